package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// reader reads one YAML file into a Config, strictly: every key must be known,
// every value of its kind. It goes on after a problem, to report all of them.
type reader struct {
	src      Source
	file     string
	source   []byte
	problems Problems
}

// maxFile bounds the configuration file, in bytes.
const maxFile = 1 << 20

func readYAML(src Source, file string, source []byte, c *Config) Problems {
	r := &reader{src: src, file: file, source: source}
	r.document(reflect.ValueOf(c).Elem())
	return r.problems
}

// document reads the whole file into a struct.
func (r *reader) document(v reflect.Value) {
	if len(r.source) > maxFile {
		r.problems = Problems{{Error: invalid("", "%s is larger than a configuration can be (1 MiB)", r.file)}}
		return
	}
	tree, err := parser.ParseBytes(r.source, 0)
	if err != nil {
		r.syntax(err)
		return
	}
	read := false
	for _, doc := range tree.Docs {
		if doc.Body == nil {
			continue
		}
		if read {
			r.add(doc.Body, "", "the file has more than one document; keep one")
			break
		}
		read = true
		r.section(doc.Body, v, "")
	}
}

func (r *reader) syntax(err error) {
	var y yaml.Error
	if !errors.As(err, &y) || y.GetToken() == nil {
		// The library's text may quote the source, secrets and all.
		r.problems = append(r.problems, Problem{Error: invalid("", "%s is not valid YAML", r.file)})
		return
	}
	at := y.GetToken().Position
	r.problems = append(r.problems, Problem{
		Error: invalid("", "not valid YAML: %s", longWord.ReplaceAllString(y.GetMessage(), redacted)),
		File:  r.file, Line: at.Line, Column: at.Column, Excerpt: excerpt(r.source, at.Line, true),
	})
}

// add reports a problem with a node.
func (r *reader) add(n ast.Node, path, format string, args ...any) {
	at := begin(n)
	r.problems = append(r.problems, Problem{
		Error: invalid(path, format, args...),
		File:  r.file, Line: at.Line, Column: at.Column, Excerpt: excerpt(r.source, at.Line, false),
	})
}

// begin is where a node starts; a mapping's own token is its first colon.
func begin(n ast.Node) *token.Position {
	if m, ok := n.(*ast.MappingNode); ok && len(m.Values) > 0 && !m.IsFlowStyle {
		return m.Values[0].Key.GetToken().Position
	}
	return n.GetToken().Position
}

func (r *reader) section(n ast.Node, v reflect.Value, path string) {
	if isNull(n) {
		return
	}
	m, ok := n.(*ast.MappingNode)
	if !ok {
		r.add(n, path, "want settings below this key, not %s", describe(n))
		return
	}
	known := fields(v, path)
	for _, entry := range m.Values {
		name, ok := keyOf(entry)
		if !ok {
			r.add(entry.Key, path, "want a plain key, not %s", describe(entry.Key))
			continue
		}
		f, ok := find(known, name)
		if !ok {
			r.unknown(entry, path, name, known)
			continue
		}
		r.value(entry.Value, f)
	}
}

func (r *reader) unknown(entry *ast.MappingValueNode, path, name string, known []field) {
	where := name
	if path != "" {
		where = path + "." + name
	}
	names := make([]string, len(known))
	for i, f := range known {
		names[i] = f.key()
	}
	hint := "known here: " + strings.Join(names, ", ")
	if near := nearest(name, names); near != "" {
		hint = fmt.Sprintf("did you mean %q?", near)
	}
	r.add(entry.Key, where, "unknown key; %s", hint)
}

// value reads one setting.
func (r *reader) value(n ast.Node, f field) {
	switch f.value.Interface().(type) {
	case Secret:
		f.value.Set(reflect.ValueOf(r.secret(n, f.path)))
		return
	case []Secret:
		r.each(n, f, func(n ast.Node, path string) any { return r.secret(n, path) })
		return
	case map[string]string:
		f.value.Set(reflect.ValueOf(r.texts(n, f)))
		return
	}
	if f.listed() {
		r.each(n, f, func(n ast.Node, path string) any {
			e := reflect.New(f.value.Type().Elem()).Elem()
			r.section(n, e, path)
			return e.Interface()
		})
		return
	}
	if f.section() {
		r.section(n, f.value, f.path)
		return
	}
	text, ok := r.scalar(n, f)
	if !ok {
		return
	}
	if err := f.setText(text); err != nil {
		r.add(n, f.path, "%v", err)
	}
}

func (r *reader) each(n ast.Node, f field, read func(ast.Node, string) any) {
	list, ok := n.(*ast.SequenceNode)
	if !ok {
		r.add(n, f.path, "want a list, not %s", describe(n))
		return
	}
	for i, item := range list.Values {
		one := read(item, fmt.Sprintf("%s[%d]", f.path, i))
		f.value.Set(reflect.Append(f.value, reflect.ValueOf(one)))
	}
}

// texts reads names with a text each. Numbers and truth values have to be
// written as text, so that nobody wonders in which form they arrive.
func (r *reader) texts(n ast.Node, f field) map[string]string {
	m, ok := n.(*ast.MappingNode)
	if !ok {
		r.add(n, f.path, "want names with a text each, not %s", describe(n))
		return nil
	}
	out := map[string]string{}
	for _, entry := range m.Values {
		name, ok := keyOf(entry)
		if !ok {
			r.add(entry.Key, f.path, "want a plain name, not %s", describe(entry.Key))
			continue
		}
		switch v := entry.Value.(type) {
		case *ast.StringNode:
			out[name] = v.Value
		case *ast.LiteralNode:
			out[name] = v.Value.Value
		default:
			r.add(entry.Value, f.path+"."+name, "want text, not %s", describe(entry.Value))
		}
	}
	return out
}

// scalar returns the text of a value, if its kind is what the setting wants.
func (r *reader) scalar(n ast.Node, f field) (string, bool) {
	number := f.plain() == reflect.TypeFor[int]() || f.plain() == reflect.TypeFor[int64]() || f.plain() == reflect.TypeFor[float64]()
	switch n := n.(type) {
	case *ast.StringNode:
		if !number {
			return n.Value, true
		}
	case *ast.LiteralNode:
		if !number {
			return n.Value.Value, true
		}
	case *ast.IntegerNode:
		if number {
			return n.GetToken().Value, true
		}
		if f.kind() == "duration" || f.kind() == "size" {
			return n.GetToken().Value, true // the parser of the unit says what is missing
		}
	case *ast.FloatNode:
		if number {
			return n.GetToken().Value, true
		}
	}
	r.add(n, f.path, "want %s, not %s", f.want(), describe(n))
	return "", false
}

// secret reads a reference. What stands there instead is not shown.
func (r *reader) secret(n ast.Node, path string) Secret {
	m, ok := n.(*ast.MappingNode)
	if !ok {
		r.noSecret(n, path, "secrets are given by reference, never as they are")
		return Secret{}
	}
	if len(m.Values) == 1 {
		name, _ := keyOf(m.Values[0])
		value, ok := m.Values[0].Value.(*ast.StringNode)
		switch {
		case ok && name == "env" && value.Value != "":
			return fromEnv(r.src, value.Value)
		case ok && name == "file" && value.Value != "":
			p := value.Value
			if !filepath.IsAbs(p) {
				p = filepath.Join(filepath.Dir(r.file), p)
			}
			return fromFile(r.src, p)
		}
	}
	r.noSecret(n, path, "a secret has either env or file, and nothing else")
	return Secret{}
}

// noSecret is add without the excerpt.
func (r *reader) noSecret(n ast.Node, path, message string) {
	at := begin(n)
	r.problems = append(r.problems, Problem{
		Error: invalid(path, "%s", message).WithNext("write {env: NAME} or {file: path}"),
		File:  r.file, Line: at.Line, Column: at.Column,
	})
}

func keyOf(entry *ast.MappingValueNode) (string, bool) {
	s, ok := entry.Key.(*ast.StringNode)
	if !ok {
		return "", false
	}
	return s.Value, true
}

func find(known []field, name string) (field, bool) {
	for _, f := range known {
		if f.key() == name {
			return f, true
		}
	}
	return field{}, false
}

func isNull(n ast.Node) bool {
	_, ok := n.(*ast.NullNode)
	return ok
}

// describe names what a node is for a person.
func describe(n ast.Node) string {
	switch n.(type) {
	case *ast.NullNode:
		return "nothing"
	case *ast.BoolNode:
		return "true or false"
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return "a number (put it in quotes if it is text)"
	case *ast.StringNode, *ast.LiteralNode:
		return "text"
	case *ast.SequenceNode:
		return "a list"
	case *ast.MappingNode:
		return "a group of keys"
	case *ast.AnchorNode, *ast.AliasNode, *ast.MergeKeyNode:
		return "an anchor or alias, which are not supported here"
	case *ast.TagNode:
		return "a tag, which are not supported here"
	default:
		return "this"
	}
}

// nearest returns the name that is at most two edits away from a misspelt one.
func nearest(name string, names []string) string {
	best, bestAt := "", 3
	for _, n := range names {
		if d := distance(name, n); d < bestAt {
			best, bestAt = n, d
		}
	}
	return best
}

// distance counts insertions, deletions and substitutions, and swaps as two.
func distance(a, b string) int {
	if len(a) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
