package local

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"
	"github.com/berth-dev/berth/internal/claude/local/openapitest"
)

// validated serves srv under the published description of the API: a request,
// response or stream frame that differs from it fails the test. Where the API is
// known to differ from its description, openapitest lists the exception.
func validated(t testing.TB, srv *Server) http.Handler {
	t.Helper()
	return openapitest.Validated(t, srv)
}

// door is a running, validated server with a way to call it as anybody.
type door struct {
	t   testing.TB
	srv *Server
	url string
	key string // an API key
}

// openDoor starts a server that ends with the test.
func openDoor(t testing.TB, o Options) *door {
	t.Helper()
	d := &door{t: t, key: "sk-ant-api03-test"}
	o.APIKeys = append(o.APIKeys, d.key)
	o.StrictBeta = true
	d.srv = New(o)
	web := httptest.NewServer(validated(t, d.srv))
	d.url = web.URL
	t.Cleanup(func() {
		_ = d.srv.Close() // always nil
		web.Close()
	})
	return d
}

// client returns the official SDK's client with the API key.
func (d *door) client() anthropic.Client {
	return anthropic.NewClient(option.WithBaseURL(d.url), option.WithAPIKey(d.key), option.WithMaxRetries(0))
}

// reply is a response in the terms of a test.
type reply struct {
	Status int
	Body   map[string]any
	Raw    []byte
	Header http.Header
}

// errType returns error.type of a refusal.
func (r reply) errType() string {
	e, _ := r.Body["error"].(map[string]any)
	s, _ := e["type"].(string)
	return s
}

// call sends one request with the API key, or with a Bearer credential when one
// is given. body is JSON text.
func (d *door) call(method, path, body string, bearer ...string) reply {
	d.t.Helper()
	r, err := http.NewRequestWithContext(d.t.Context(), method, d.url+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	if len(bearer) > 0 {
		r.Header.Set("Authorization", "Bearer "+bearer[0])
	} else {
		r.Header.Set("X-Api-Key", d.key)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("anthropic-version", "2026-10-21")
	r.Header.Set("anthropic-beta", betaAgents)
	if strings.HasPrefix(path, "/v1/memory_stores") {
		r.Header.Set("anthropic-beta", betaMemory)
	}
	return d.send(r)
}

func (d *door) send(r *http.Request) reply {
	d.t.Helper()
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		d.t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	got := reply{Status: res.StatusCode, Raw: raw, Header: res.Header}
	if json.Valid(raw) && bytes.HasPrefix(raw, []byte("{")) {
		if err := json.Unmarshal(raw, &got.Body); err != nil {
			d.t.Fatal(err)
		}
	}
	return got
}

// want calls like call and fails the test on another status.
func (d *door) want(status int, method, path, body string, bearer ...string) reply {
	d.t.Helper()
	got := d.call(method, path, body, bearer...)
	if got.Status != status {
		d.t.Fatalf("%s %s %s: status %d, want %d: %s", method, path, body, got.Status, status, got.Raw)
	}
	return got
}
