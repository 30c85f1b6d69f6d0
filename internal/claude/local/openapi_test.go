package local

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

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

	mu     sync.Mutex
	served chan struct{}                                                       // closed and replaced when a request has been served
	around func(http.ResponseWriter, *http.Request, func(http.ResponseWriter)) // nil, or what stands before the validator
}

// openDoor starts a server that ends with the test.
func openDoor(t testing.TB, o Options) *door {
	t.Helper()
	d := &door{t: t, key: "sk-ant-api03-test", served: make(chan struct{})}
	o.APIKeys = append(o.APIKeys, d.key)
	o.StrictBeta = true
	d.srv = New(o)
	web := httptest.NewServer(d.watched(validated(t, d.srv)))
	d.url = web.URL
	t.Cleanup(func() {
		_ = d.srv.Close() // always nil
		web.Close()
	})
	return d
}

// watched tells await of every request that has been served.
func (d *door) watched(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { // also for connections that a fault aborts
			d.mu.Lock()
			defer d.mu.Unlock()
			close(d.served)
			d.served = make(chan struct{})
		}()
		d.mu.Lock()
		around := d.around
		d.mu.Unlock()
		if around == nil {
			h.ServeHTTP(w, r)
			return
		}
		around(w, r, func(w http.ResponseWriter) { h.ServeHTTP(w, r) })
	})
}

// awaitServed waits until done, which is asked after every served request, and
// now and then for what happens without one.
func (d *door) awaitServed(what string, done func() bool) {
	d.t.Helper()
	deadline := time.After(20 * time.Second)
	now := time.NewTicker(20 * time.Millisecond)
	defer now.Stop()
	for {
		d.mu.Lock()
		served := d.served
		d.mu.Unlock()
		if done() {
			return
		}
		select {
		case <-served:
		case <-now.C:
		case <-deadline:
			d.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// client returns the official SDK's client with the API key.
func (d *door) client() anthropic.Client {
	return anthropic.NewClient(option.WithoutEnvironmentDefaults(), option.WithBaseURL(d.url), option.WithAPIKey(d.key), option.WithMaxRetries(0))
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
