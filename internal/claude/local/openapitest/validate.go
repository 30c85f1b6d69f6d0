package openapitest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

const maxBody = 64 << 20

// Validated wraps h. The test fails when
//
//   - a request is accepted (2xx) that its schema refuses, or that carries a
//     query parameter which the operation does not have;
//   - a response, or a frame of an event stream, does not match its schema;
//   - a status is not described, or an unknown path is answered other than 404.
//
// A refused request need not be valid: that is what refusals are for. Requests
// for which a skip returns true pass unseen: for tests that inject garbage.
func Validated(t testing.TB, h http.Handler, skip ...func(*http.Request) bool) http.Handler {
	t.Helper()
	s, err := published()
	if err != nil {
		t.Fatalf("load the published description of the API: %v", err)
	}
	var over atomic.Bool
	t.Cleanup(func() { over.Store(true) })
	report := func(x *exchange, problem string) {
		if !over.Load() { // a straggler after the test must not panic
			t.Errorf("openapi: %s %s (status %d): %s", x.method, x.path, x.status, problem)
		}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, f := range skip {
			if f(r) {
				h.ServeHTTP(w, r)
				return
			}
		}
		x := &exchange{
			method: r.Method, path: r.URL.Path, query: r.URL.Query(), op: s.find(r),
			betas: strings.Join(r.Header.Values("anthropic-beta"), ","),
			json:  strings.HasPrefix(r.Header.Get("Content-Type"), "application/json"),
		}
		var err error
		if x.request, err = io.ReadAll(io.LimitReader(r.Body, maxBody)); err == nil {
			r.Body = io.NopCloser(bytes.NewReader(x.request))
		} else {
			r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(x.request), failing{err}))
		}
		rec := &recorder{ResponseWriter: w, exchange: x, frame: func(name, data string) {
			if problem := x.checkFrame(name, data); problem != "" {
				report(x, problem)
			}
		}}
		h.ServeHTTP(rec, r) // a panic (an aborted connection) passes: there is no response to check
		if rec.hijacked {
			return
		}
		for _, problem := range x.check() {
			report(x, problem)
		}
	})
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// exchange is one request with its response.
type exchange struct {
	method, path string
	query        url.Values
	betas        string
	op           *operation
	json         bool // the request says that its body is JSON
	request      []byte

	status   int
	stream   bool
	mime     string
	response []byte
}

// check returns what is wrong with a finished exchange.
func (x *exchange) check() (problems []string) {
	for _, e := range exceptions {
		if e.covers(x) {
			return nil
		}
	}
	if x.op == nil {
		if x.status != http.StatusNotFound && x.status != http.StatusMethodNotAllowed {
			return []string{"the API has no such operation"}
		}
		return nil
	}
	add := func(what string, err error) {
		if err != nil {
			problems = append(problems, what+": "+err.Error())
		}
	}
	if x.status >= 200 && x.status < 300 {
		add("the server accepted a request that the description refuses", x.checkRequest())
	}
	add("the response does not match the description", x.checkResponse())
	return problems
}

func (x *exchange) checkRequest() error {
	queries, err := x.op.queries()
	if err != nil {
		return err
	}
	for name, values := range x.query {
		sch, ok := queries[name]
		if name == "beta" {
			continue // appended by older clients to every URL (contract §1.3)
		}
		if !ok {
			return fmt.Errorf("query parameter %s is not described", name)
		}
		if strings.HasSuffix(name, "[]") {
			continue // one of several values of an array
		}
		for _, v := range values {
			if sch.Validate(v) != nil && sch.Validate(literal(v)) != nil {
				return fmt.Errorf("query parameter %s=%q: %w", name, v, sch.Validate(literal(v)))
			}
		}
	}
	if !x.json || len(bytes.TrimSpace(x.request)) == 0 {
		return nil
	}
	sch, err := x.op.request()
	if err != nil || sch == nil {
		return err
	}
	return validate(sch, x.request)
}

// literal reads a query value as the number or boolean that it may stand for.
func literal(v string) any {
	if b, err := strconv.ParseBool(v); err == nil && (v == "true" || v == "false") {
		return b
	}
	return json.Number(v)
}

func (x *exchange) checkResponse() error {
	status := strconv.Itoa(x.status)
	if !x.op.documents(status) {
		if _, ok := undescribed[x.status]; !ok {
			return errors.New("the status is not described for this operation")
		}
		status = "400" // every error has the same envelope
	}
	if x.stream {
		return nil // checked frame by frame
	}
	sch, err := x.op.response(status)
	if err != nil || sch == nil {
		return err
	}
	if !strings.HasPrefix(x.mime, "application/json") {
		return fmt.Errorf("content type %q, want application/json", x.mime)
	}
	err = validate(sch, x.response)
	if err != nil && x.status >= 400 && excused(x.response) {
		return nil
	}
	return err
}

// checkFrame returns what is wrong with one frame of an event stream.
func (x *exchange) checkFrame(name, data string) string {
	if x.op == nil || name == "error" || name == "ping" {
		return ""
	}
	var head struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal([]byte(data), &head); err != nil {
		return fmt.Sprintf("stream frame %q: %v", name, err)
	}
	if name != head.Type {
		return fmt.Sprintf("stream frame named %q carries an event of type %q", name, head.Type)
	}
	sch, err := x.op.event()
	if err == nil && sch != nil {
		err = validate(sch, []byte(data))
	}
	if err != nil {
		return fmt.Sprintf("stream frame does not match the description: %v", err)
	}
	return ""
}

func validate(sch *jsonschema.Schema, raw []byte) error {
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		return fmt.Errorf("not JSON: %w", err)
	}
	if err := sch.Validate(v); err != nil {
		return fmt.Errorf("%w\n%s", err, clipped(raw))
	}
	return nil
}

func clipped(b []byte) string {
	const most = 2000
	if len(b) > most {
		return string(b[:most]) + "…"
	}
	return string(b)
}
