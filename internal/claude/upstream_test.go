package claude

import (
	"encoding/base64"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/session"
)

const (
	envKey = "sk-ant-oat01-environment"
	token  = "sk-ant-req-item"
)

// seen is one request as the platform received it.
type seen struct {
	Method, Path, Query, Body string
	Header                    http.Header
}

// upstream is a platform whose answers a test scripts, one per request; the
// last one answers all that follow.
type upstream struct {
	*httptest.Server

	mu      sync.Mutex
	script  []http.HandlerFunc
	reqs    []seen
	arrived chan seen
}

func newUpstream(t *testing.T, script ...http.HandlerFunc) *upstream {
	t.Helper()
	u := &upstream{script: script, arrived: make(chan seen, 64)}
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s := seen{r.Method, r.URL.EscapedPath(), r.URL.RawQuery, string(body), r.Header}
		u.mu.Lock()
		u.reqs = append(u.reqs, s)
		n := min(len(u.reqs), len(u.script)) - 1
		u.mu.Unlock()
		select {
		case u.arrived <- s:
		default:
		}
		u.script[n](w, r)
	}))
	t.Cleanup(u.Close)
	return u
}

func (u *upstream) requests() []seen {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]seen(nil), u.reqs...)
}

func (u *upstream) only(t *testing.T) seen {
	t.Helper()
	r := u.requests()
	if len(r) != 1 {
		t.Fatalf("the platform received %d requests, want 1", len(r))
	}
	return r[0]
}

func reply(status int, contentType, body string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if contentType != "" {
			w.Header().Set("Content-Type", contentType)
		} else {
			w.Header()["Content-Type"] = nil
		}
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

func ok(body string) http.HandlerFunc { return reply(200, "application/json", body) }

// hangUp takes the request and cuts the connection without an answer.
func hangUp(w http.ResponseWriter, _ *http.Request) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		conn.Close()
	}
}

func refuse(status int, kind, message string, header ...string) http.HandlerFunc {
	return reply(status, "application/json",
		`{"type":"error","error":{"type":"`+kind+`","message":"`+message+`"},"request_id":"req_body"}`, header...)
}

// logs is a log that a test can read.
type logs struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newTestQueue is a queue at u that retries without waiting.
func newTestQueue(t *testing.T, u *upstream, log io.Writer) *Queue {
	t.Helper()
	q, err := NewQueue(Options{
		BaseURL: u.URL, EnvironmentID: "env_1", EnvironmentKey: envKey, WorkerID: "tester",
		Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	q.door.time.retry = session.Backoff{Base: time.Microsecond, Cap: 10 * time.Microsecond}
	q.conn.time = q.door.time
	return q
}

func newTestPlatform(t *testing.T, u *upstream) *platform {
	t.Helper()
	return newTestQueue(t, u, io.Discard).Platform(testItem()).(*platform)
}

func testItem() session.Item {
	return session.Item{ID: "work_1", Environment: "env_1", Type: "session", Session: "sesn_1", Secret: secretFor(token)}
}

func secretFor(token string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(`{"sessions_token":"` + token + `","api_base_url":"https://else.where"}`))
}
