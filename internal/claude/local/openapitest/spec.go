// Package openapitest holds an HTTP handler against the description of the API
// that Anthropic publishes: every request and every response that passes is
// validated against the schema of its operation, and every frame of an event
// stream against the union of events. It is for tests only.
//
// The description ships inside the official Go SDK's module, compressed, and is
// read from there: the schemas are those of the SDK version in go.mod.
package openapitest

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

const (
	sdkModule = "github.com/anthropics/anthropic-sdk-go/v2"
	specFile  = "scripts/mock-spec.json.gz"
	specURL   = "mem:///openapi.json" // what the document is called inside the compiler
	maxSpec   = 64 << 20
)

// spec is the published description. Safe for concurrent use.
type spec struct {
	paths     map[string]any
	mux       *http.ServeMux    // finds the path of a request
	templates map[string]string // path to its key in paths, which may end in ?beta=true

	mu      sync.Mutex
	comp    *jsonschema.Compiler
	schemas map[string]*jsonschema.Schema // by JSON pointer
}

// published reads the description once per process: it is large.
var published = sync.OnceValues(load)

func load() (*spec, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", sdkModule).Output()
	dir := strings.TrimSpace(string(out))
	if err != nil || dir == "" {
		return nil, fmt.Errorf("find module %s (is the go command on the PATH, and the module downloaded?): %w", sdkModule, err)
	}
	f, err := os.Open(filepath.Join(dir, filepath.FromSlash(specFile)))
	if err != nil {
		return nil, fmt.Errorf("open description: %w", err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("unpack description: %w", err)
	}
	raw, err := io.ReadAll(io.LimitReader(z, maxSpec))
	if err != nil {
		return nil, fmt.Errorf("unpack description: %w", err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("parse description: %w", err)
	}
	s := &spec{
		mux: http.NewServeMux(), templates: map[string]string{},
		comp: jsonschema.NewCompiler(), schemas: map[string]*jsonschema.Schema{},
	}
	s.comp.DefaultDraft(jsonschema.Draft2020) // OpenAPI 3.1
	s.comp.AssertFormat()
	s.comp.UseRegexpEngine(pattern)
	if err := s.comp.AddResource(specURL, doc); err != nil {
		return nil, fmt.Errorf("load description: %w", err)
	}
	top, _ := doc.(map[string]any)
	if s.paths, _ = top["paths"].(map[string]any); s.paths == nil {
		return nil, fmt.Errorf("the description has no paths")
	}
	for template := range s.paths {
		path, beta := strings.CutSuffix(template, "?beta=true")
		known := s.templates[path] != ""
		if !beta || !known { // what is described without a beta needs none
			s.templates[path] = template
		}
		if !known {
			s.mux.HandleFunc(path, http.NotFound)
		}
	}
	return s, nil
}

// pattern compiles a regular expression of JavaScript, in which the description
// is written: \uXXXX is \x{XXXX} here.
func pattern(expr string) (jsonschema.Regexp, error) {
	return regexp.Compile(unicodeEscape.ReplaceAllString(expr, `\x{$1}`))
}

var unicodeEscape = regexp.MustCompile(`\\u([0-9a-fA-F]{4})`)

// operation is one method of one path.
type operation struct {
	spec    *spec
	name    string // method and template, for messages
	pointer []string
	node    map[string]any
}

// find returns the operation of a request, nil when the API has none.
func (s *spec) find(r *http.Request) *operation {
	bare := r.Clone(r.Context())
	bare.URL = &url.URL{Path: r.URL.Path}
	bare.Host = ""
	_, path := s.mux.Handler(bare)
	template := s.templates[path]
	methods, _ := s.paths[template].(map[string]any)
	method := strings.ToLower(r.Method)
	node, _ := methods[method].(map[string]any)
	if node == nil {
		return nil
	}
	return &operation{spec: s, name: r.Method + " " + path, pointer: []string{"paths", template, method}, node: node}
}

// request returns the schema of the body, nil when none of JSON is described.
func (o *operation) request() (*jsonschema.Schema, error) {
	return o.spec.schema(o.node, o.pointer, "requestBody", "content", "application/json", "schema")
}

// response returns the schema of a reply, nil when the status is not described
// or its body is not JSON.
func (o *operation) response(status string) (*jsonschema.Schema, error) {
	return o.spec.schema(o.node, o.pointer, "responses", status, "content", "application/json", "schema")
}

// event returns the schema of a frame of the operation's event stream.
func (o *operation) event() (*jsonschema.Schema, error) {
	if name, ok := frames[o.name]; ok {
		return o.spec.compile([]string{"components", "schemas", name})
	}
	return o.response("200")
}

// documents reports whether the operation describes a status.
func (o *operation) documents(status string) bool {
	responses, _ := o.node["responses"].(map[string]any)
	_, ok := responses[status]
	return ok
}

// queries returns the names and schemas of the query parameters.
func (o *operation) queries() (map[string]*jsonschema.Schema, error) {
	found := map[string]*jsonschema.Schema{}
	params, _ := o.node["parameters"].([]any)
	for i, p := range params {
		p, _ := p.(map[string]any)
		name, _ := p["name"].(string)
		if p["in"] != "query" {
			continue
		}
		sch, err := o.spec.schema(p, append(slices.Clip(o.pointer), "parameters", fmt.Sprint(i)), "schema")
		if err != nil {
			return nil, err
		}
		found[name] = sch
	}
	return found, nil
}

// schema compiles what lies at keys below node, nil when nothing does.
func (s *spec) schema(node map[string]any, pointer []string, keys ...string) (*jsonschema.Schema, error) {
	for i, k := range keys {
		next, ok := node[k].(map[string]any)
		if !ok {
			return nil, nil
		}
		node = next
		pointer = append(slices.Clip(pointer), keys[i])
	}
	return s.compile(pointer)
}

func (s *spec) compile(pointer []string) (*jsonschema.Schema, error) {
	escape := strings.NewReplacer("~", "~0", "/", "~1")
	var at strings.Builder
	for _, p := range pointer {
		at.WriteByte('/')
		at.WriteString(url.PathEscape(escape.Replace(p)))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if sch := s.schemas[at.String()]; sch != nil {
		return sch, nil
	}
	sch, err := s.comp.Compile(specURL + "#" + at.String())
	if err != nil {
		return nil, fmt.Errorf("compile the schema at %s: %w", at.String(), err)
	}
	s.schemas[at.String()] = sch
	return sch, nil
}
