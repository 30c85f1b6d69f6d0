package berth_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// plan is what a tree of sources is held against.
type plan struct {
	module   string
	rings    []ring // from the inside out
	imports  []importRule
	calls    []callRule
	pure     pureRule
	backends string // every folder below it is a sandbox backend, but those named …test
	suite    string // what a backend's tests have to call
	records  string // folder with a record for each direct dependency
	grabBags []string
	maxLines int
}

// ring is a set of rooms. A room is a folder with all folders below it that are
// not rooms themselves.
type ring struct {
	name  string
	why   string // rooms further in may not import this ring
	apart string // why its rooms may not import each other; "" when they may
	rooms []string
}

// importRule says who alone may import path and what lies below it.
type importRule struct {
	path  string
	rooms []string
	tests []string // more rooms, in their _test files only
	why   string
}

// callRule says that nobody uses these functions but allow, a file or a folder
// each with the reason.
type callRule struct {
	names []string
	tests bool // holds for _test files too
	why   string
	allow map[string]string
}

// pureRule names files that decide and do nothing: they import and use none of
// these.
type pureRule struct {
	files   []string
	imports []string
	names   []string
	why     string
}

// source is one parsed Go file.
type source struct {
	name string // its path
	dir  string
	test bool // a _test file, or in a package that only tests may import
	ast  *ast.File
	size int // in lines
}

// inspection is one pass over a tree.
type inspection struct {
	plan     plan
	fset     *token.FileSet
	sources  []source
	used     map[string]bool // exceptions and imports that somebody needs
	direct   []string        // modules that go.mod requires by itself
	records  []byte          // all of the plan's records
	problems []string
}

// inspect returns everything in the tree that breaks the plan.
func inspect(tree fs.FS, p plan) ([]string, error) {
	in := &inspection{plan: p, fset: token.NewFileSet(), used: map[string]bool{}}
	if err := fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return in.folder(name)
		}
		return in.file(tree, name)
	}); err != nil {
		return nil, err
	}
	for _, s := range in.sources {
		in.checkImports(s)
		in.checkCalls(s)
		in.checkGoroutines(s)
	}
	in.checkComments()
	in.checkBackends()
	in.checkRecords()
	in.checkPlan()
	return in.problems, nil
}

func (in *inspection) blame(where, why, format string, args ...any) {
	in.problems = append(in.problems, where+": "+fmt.Sprintf(format, args...)+" ("+why+")")
}

func (in *inspection) folder(name string) error {
	base := path.Base(name)
	if hidden := strings.HasPrefix(base, ".") && name != "." && name != ".ci"; hidden || slices.Contains([]string{"testdata", "bin", "dist", "node_modules"}, base) {
		return fs.SkipDir
	}
	if slices.Contains(in.plan.grabBags, base) {
		in.blame(name, "a folder is named for its subject; a name that fits everything collects everything", "the folder is a grab bag")
	}
	return nil
}

var (
	unfinished = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME)\b`)
	fence      = regexp.MustCompile("(?ms)^ *```.*?^ *```$|`[^`\n]*`")
	required   = regexp.MustCompile(`(?m)^(?:require)?\s+(\S+) v\S+$`) // but not "// indirect"
	link       = regexp.MustCompile(`\]\(([^)\s]+)\)`)
)

// file reads one file; Go files are kept for the checks that need all of them.
func (in *inspection) file(tree fs.FS, name string) error {
	ext := path.Ext(name)
	if !slices.Contains([]string{".go", ".mod", ".md", ".sql", ".sh", ".yml", ".yaml"}, ext) {
		return nil
	}
	text, err := fs.ReadFile(tree, name)
	if err != nil {
		return err
	}
	if found := unfinished.Find(text); found != nil {
		in.blame(name, "what is not done is an entry in the tracker; what is merged is finished", "it says %s", found)
	}
	switch ext {
	case ".mod":
		for _, m := range required.FindAllSubmatch(text, -1) {
			if name == "go.mod" {
				in.direct = append(in.direct, string(m[1]))
			}
		}
	case ".md":
		if path.Dir(name) == in.plan.records {
			in.records = append(in.records, text...)
		}
		for _, m := range link.FindAllSubmatch(fence.ReplaceAll(text, nil), -1) {
			target, _, _ := strings.Cut(string(m[1]), "#")
			if target == "" || strings.Contains(target, ":") {
				continue // within the page, or on another host
			}
			if _, err := fs.Stat(tree, path.Join(path.Dir(name), target)); err != nil {
				in.blame(name, "a reader who follows a link has a question", "the link %s leads nowhere", target)
			}
		}
	case ".go":
		parsed, err := parser.ParseFile(in.fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		s := source{
			name: name, dir: path.Dir(name), ast: parsed, size: bytes.Count(text, []byte("\n")),
			test: strings.HasSuffix(name, "_test.go") || support(path.Dir(name)),
		}
		in.sources = append(in.sources, s)
		if s.size > in.plan.maxLines && !ast.IsGenerated(parsed) {
			in.blame(name, "a file is one subject; one that is longer has two", "%d lines; the limit is %d", s.size, in.plan.maxLines)
		}
	}
	return nil
}

// support reports whether a package is there for tests, as its name says.
func support(dir string) bool {
	base := path.Base(dir)
	return strings.HasSuffix(base, "test") || strings.HasPrefix(base, "test")
}

// room finds where a folder belongs: its room and the ring's number, or -1.
func (in *inspection) room(dir string) (string, int) {
	room, number := "", -1
	for i, r := range in.plan.rings {
		for _, candidate := range r.rooms {
			if below(dir, candidate) && len(candidate) > len(room) {
				room, number = candidate, i
			}
		}
	}
	return room, number
}

// below reports whether a path is root or lies below it.
func below(name, root string) bool {
	return name == root || strings.HasPrefix(name, root+"/")
}

func (in *inspection) checkImports(s source) {
	room, ringOf := in.room(s.dir)
	if ringOf < 0 {
		in.blame(s.name, "a package without a ring may import anything; give it one in house_test.go and ARCHITECTURE.md", "its folder is in no ring")
		return
	}
	for _, spec := range s.ast.Imports {
		imported, _ := strconv.Unquote(spec.Path.Value) // it was parsed
		for _, rule := range in.plan.imports {
			if !below(imported, rule.path) {
				continue
			}
			in.used[rule.path] = true
			if !slices.Contains(rule.rooms, room) && !(s.test && slices.Contains(rule.tests, room)) && !below(in.plan.module+"/"+s.dir, rule.path) {
				in.blame(s.name, rule.why, "only %s may import %s", strings.Join(rule.rooms, " and "), imported)
			}
		}
		if slices.Contains(in.plan.pure.files, s.name) && slices.Contains(in.plan.pure.imports, imported) {
			in.blame(s.name, in.plan.pure.why, "it imports %s", imported)
		}
		dir, ours := strings.CutPrefix(imported, in.plan.module+"/")
		if !ours || s.test {
			continue
		}
		if support(dir) {
			in.blame(s.name, "what only tests need is not part of the program", "only tests may import %s", dir)
		}
		target, ringTo := in.room(dir)
		switch {
		case ringTo > ringOf:
			in.blame(s.name, in.plan.rings[ringTo].why, "%s imports %s, which lies further out", room, dir)
		case ringTo == ringOf && target != room && in.plan.rings[ringOf].apart != "":
			in.blame(s.name, in.plan.rings[ringOf].apart, "%s imports %s of the same ring", room, dir)
		}
	}
}

// checkCalls finds uses of functions, called or handed on.
func (in *inspection) checkCalls(s source) {
	names := map[string]string{} // the file's names for packages
	for _, spec := range s.ast.Imports {
		imported, _ := strconv.Unquote(spec.Path.Value)
		name := path.Base(imported)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		names[name] = imported
	}
	ast.Inspect(s.ast, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && names[x.Name] != "" {
				in.checkCall(s, n, names[x.Name]+"."+n.Sel.Name)
			}
		case *ast.CallExpr:
			if f, ok := n.Fun.(*ast.Ident); ok {
				in.checkCall(s, n, f.Name)
			}
		}
		return true
	})
}

func (in *inspection) checkCall(s source, at ast.Node, called string) {
	if slices.Contains(in.plan.pure.files, s.name) && slices.Contains(in.plan.pure.names, called) {
		in.blame(in.fset.Position(at.Pos()).String(), in.plan.pure.why, "it uses %s", called)
	}
	for _, rule := range in.plan.calls {
		if !slices.Contains(rule.names, called) || s.test && !rule.tests {
			continue
		}
		allowed := false
		for place := range rule.allow {
			if below(s.name, place) {
				in.used[rule.names[0]+place], allowed = true, true
			}
		}
		if !allowed {
			in.blame(in.fset.Position(at.Pos()).String(), rule.why, "it uses %s", called)
		}
	}
}

// checkGoroutines wants a word with every bare go statement of the program.
func (in *inspection) checkGoroutines(s source) {
	if s.test {
		return
	}
	commented := map[int]bool{}
	for _, group := range s.ast.Comments {
		commented[in.fset.Position(group.Pos()).Line] = true
		commented[in.fset.Position(group.End()).Line+1] = true
	}
	ast.Inspect(s.ast, func(n ast.Node) bool {
		if g, ok := n.(*ast.GoStmt); ok && !commented[in.fset.Position(g.Pos()).Line] {
			in.blame(in.fset.Position(g.Pos()).String(), "every goroutine has an owner who waits for it: use WaitGroup.Go, or say in a comment what ends it",
				"a bare go statement")
		}
		return true
	})
}

func (in *inspection) checkComments() {
	comments := map[string]int{}
	for _, s := range in.sources {
		if strings.HasSuffix(s.name, "_test.go") {
			continue
		}
		n := comments[s.dir]
		if s.ast.Doc != nil {
			n++
		}
		comments[s.dir] = n
	}
	for _, dir := range slices.Sorted(maps.Keys(comments)) {
		if n := comments[dir]; n != 1 {
			in.blame(dir, "a package says in one place what it is for", "it has %d package comments", n)
		}
	}
}

func (in *inspection) checkBackends() {
	suite := map[string]bool{}
	for _, s := range in.sources {
		backend, _, _ := strings.Cut(strings.TrimPrefix(s.dir, in.plan.backends+"/"), "/")
		if !strings.HasPrefix(s.dir, in.plan.backends+"/") || strings.HasSuffix(backend, "test") {
			continue
		}
		suite[backend] = suite[backend] || s.test && in.calls(s, in.plan.suite)
	}
	for _, backend := range slices.Sorted(maps.Keys(suite)) {
		if !suite[backend] {
			in.blame(path.Join(in.plan.backends, backend), "a second implementation is worth what its conformance suite proves", "no test of this backend calls %s", in.plan.suite)
		}
	}
}

// calls reports whether a file calls pkg.Func.
func (in *inspection) calls(s source, function string) bool {
	found := false
	ast.Inspect(s.ast, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			if sel, ok := call.Fun.(*ast.SelectorExpr); ok {
				x, ok := sel.X.(*ast.Ident)
				found = found || ok && x.Name+"."+sel.Sel.Name == function
			}
		}
		return !found
	})
	return found
}

func (in *inspection) checkRecords() {
	for _, module := range in.direct {
		if !bytes.Contains(in.records, []byte("`"+module+"`")) {
			in.blame("go.mod", "a dependency is a decision: what for, why not the standard library, how to leave it", "no record in %s covers %s", in.plan.records, module)
		}
	}
}

// checkPlan finds entries of the plan that nothing in the tree needs any more.
func (in *inspection) checkPlan() {
	const why = "a rule about nothing hides that nobody holds it"
	exists := map[string]bool{}
	for _, s := range in.sources {
		exists[s.name] = true
		for dir := s.dir; ; dir = path.Dir(dir) {
			exists[dir] = true
			if dir == "." {
				break
			}
		}
	}
	rooms := []string{in.plan.backends}
	for _, r := range in.plan.rings {
		rooms = append(rooms, r.rooms...)
	}
	for _, rule := range in.plan.imports {
		rooms = append(append(rooms, rule.rooms...), rule.tests...)
		if !in.used[rule.path] {
			in.blame("house_test.go", why, "nobody imports %s", rule.path)
		}
	}
	slices.Sort(rooms)
	for _, room := range slices.Compact(rooms) {
		if !exists[room] {
			in.blame("house_test.go", why, "there is no package in %s", room)
		}
	}
	for _, file := range in.plan.pure.files {
		if !exists[file] {
			in.blame("house_test.go", why, "there is no file %s", file)
		}
	}
	for _, rule := range in.plan.calls {
		for _, place := range slices.Sorted(maps.Keys(rule.allow)) {
			if !in.used[rule.names[0]+place] {
				in.blame("house_test.go", why, "%s does not need its exception for %s", place, rule.names[0])
			}
		}
	}
}
