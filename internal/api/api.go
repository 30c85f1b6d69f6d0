// Package api is Berth's HTTP API: /api/v1 with its OpenAPI description, health
// and metrics. One file per resource. Everything under /api/v1 needs the API
// token; errors are problem+json with the stable codes of package fault.
package api

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/intake"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/session"
)

// Records is what the API reads. store.Store implements it.
type Records interface {
	Session(ctx context.Context, id string) (session.Record, error)
	Sessions(ctx context.Context, before time.Time, limit int) ([]session.Record, error)
	Calls(ctx context.Context, session string, after int64, limit int) ([]session.Call, error)
	Work(ctx context.Context, session string) ([]session.Work, error)
	Events(ctx context.Context, session string, after int64, limit int) ([]event.Event, error)
	AgentsSeen(ctx context.Context, id string) ([]session.AgentSeen, error)
	AllAgentSettings(ctx context.Context) ([]session.AgentSettings, error)
	SessionsOf(ctx context.Context, agent string, limit int) ([]session.Record, error)
	Ping(ctx context.Context) error
}

// Agents knows what agents' sandboxes are made with. session.Keeper implements
// it.
type Agents interface {
	Agent(ctx context.Context, id, name string) (session.AgentView, error)
	ConfiguredAgents() []string
	SetAgent(ctx context.Context, id string, s session.Settings, revision int64) (session.AgentSettings, error)
	PatchAgent(ctx context.Context, id string, set session.Settings, unset []string, revision int64) (session.AgentSettings, error)
}

// Workspace tells which agents there are at the platform. claude.Admin
// implements it.
type Workspace interface {
	Agents(ctx context.Context) ([]session.AgentInfo, error)
	Agent(ctx context.Context, id string) (session.AgentInfo, error)
}

// Rooms opens sandboxes for people. session.Keeper implements it.
type Rooms interface {
	Open(ctx context.Context, session string) (sandbox.Sandbox, error)
	Free() int
	// Stalled returns since when the session's changes cannot be recorded.
	Stalled(session string) time.Time
	// StalledCount and StalledWhy tell of all of them.
	StalledCount() int
	StalledWhy() string
}

// Deps are what the API stands on.
type Deps struct {
	Records  Records
	Rooms    Rooms
	Agents   Agents
	Platform Workspace // nil without an API key
	Bus      *event.Bus
	Guard    interface{ Check(*http.Request) error }
	Pollers  func() []intake.Status
	Images   sandbox.Images // nil when the backend has none
	Webhooks http.Handler   // POST /webhooks
	Metrics  http.Handler
	Version  string
	Capacity int
	Log      *slog.Logger
}

// server holds the handlers.
type server struct {
	Deps
	closing <-chan struct{}
}

// New returns the handler of the whole HTTP surface. Long answers (streams,
// terminals) end when closing is closed.
func New(d Deps, closing <-chan struct{}) http.Handler {
	s := &server{Deps: d, closing: closing}
	mux := http.NewServeMux()
	mux.Handle("/webhooks", d.Webhooks)
	mux.HandleFunc("GET /healthz", s.healthz)
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.Handle("GET /metrics", d.Metrics)

	private := http.NewServeMux()
	api := humago.New(private, s.describe())
	s.sessions(api)
	s.agents(api)
	s.exec(api)
	s.images(api)
	s.status(api)
	private.HandleFunc("GET /api/v1/sessions/{id}/events/stream", s.streamEvents)
	private.HandleFunc("GET /api/v1/sessions/{id}/terminal", s.terminal)
	private.HandleFunc("/api/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, fault.New(fault.NotFound, "there is no %s %s", r.Method, r.URL.Path).WithNext("see /openapi.json"))
	})
	mux.Handle("/openapi.json", private)
	mux.Handle("/api/", s.guarded(private))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, fault.New(fault.NotFound, "there is nothing at %s", r.URL.Path).WithNext("the API is under /api/v1, see /openapi.json"))
	})
	return s.recovered(mux)
}

func (s *server) describe() huma.Config {
	c := huma.DefaultConfig("Berth", s.Version)
	c.DocsPath, c.SchemasPath = "", ""
	c.CreateHooks = nil // no $schema links in answers
	c.Info.Description = "The sandboxes of Claude Managed Agents on your own infrastructure."
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"token": {Type: "http", Scheme: "bearer", Description: "the API token in the data directory"},
	}
	c.Security = []map[string][]string{{"token": {}}}
	return c
}

// guarded lets requests through that carry the token, with a body of bounded
// size.
func (s *server) guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.Guard.Check(r); err != nil {
			writeError(w, err)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, 4<<20)
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		next.ServeHTTP(w, r)
	})
}

// recovered turns a panic into a 500 and a log line: one request may not end the
// server.
func (s *server) recovered(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if v := recover(); v != nil {
				if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
					panic(v)
				}
				s.Log.Error("a request panicked", "method", r.Method, "path", r.URL.Path, "panic", v)
				writeError(w, fault.New(fault.Internal, "panic"))
			}
		}()
		next.ServeHTTP(w, r)
	})
}
