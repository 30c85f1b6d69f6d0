package local

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/goccy/go-yaml"
)

// The stand-in's own door, below /_local and closed without an admin key: what
// the exported methods of Server do, for clients in another process. Bodies are
// YAML or JSON. Keys that are minted here are in the reply, as nowhere else.

func (s *Server) adminRoutes() {
	if s.opt.AdminKey == "" {
		return
	}
	admin := func(pattern string, h handlerFunc) { s.handle(pattern, credAdmin, h) }
	admin("POST /_local/keys", s.adminKey)
	admin("POST /_local/scenarios", s.adminScenario)
	admin("GET /_local/scenarios", s.adminScenarios)
	admin("GET /_local/sessions/{session}/scenario", s.adminReport)
	admin("POST /_local/clock", s.adminClock)
	admin("POST /_local/faults", s.adminFault)
	admin("DELETE /_local/faults", s.adminClear)
	admin("GET /_local/requests", s.adminRequests)
	admin("GET /_local/posts", s.adminPosts)
	admin("POST /_local/streams/cut", s.adminCut)
	admin("GET /_local/work", s.adminWork)
	admin("POST /_local/work", s.adminEnqueue)
	admin("POST /_local/work/{work}/expire", s.adminExpire)
	admin("GET /_local/webhooks", s.adminWebhooks)
}

// decodeYAML reads a strict YAML or JSON body.
func decodeYAML(w http.ResponseWriter, r *http.Request, v any) *apiError {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		return fail(400, "reading the request body: %v", err)
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return nil
	}
	if err := yaml.UnmarshalWithOptions(body, v, yaml.Strict()); err != nil {
		return fail(400, "invalid request body: %v", err)
	}
	return nil
}

// adminKey mints a key: for an environment when the body names one, else for the
// workspace.
func (s *Server) adminKey(w http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	var body struct {
		Environment string `yaml:"environment"`
	}
	if err := decodeYAML(w, r, &body); err != nil {
		return nil, err
	}
	if body.Environment == "" {
		return map[string]any{"key": s.MintAPIKey()}, nil
	}
	key := s.MintEnvironmentKey(body.Environment)
	if key == "" {
		return nil, fail(404, "environment %q not found", body.Environment)
	}
	return map[string]any{"key": key}, nil
}

func (s *Server) adminScenario(w http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		return nil, fail(400, "reading the request body: %v", err)
	}
	sc, err := ParseScenario(body)
	if err == nil {
		err = s.AddScenario(sc)
	}
	if err != nil {
		return nil, fail(400, "%v", err)
	}
	return map[string]any{"name": sc.Name, "steps": len(sc.Steps)}, nil
}

func (s *Server) adminScenarios(http.ResponseWriter, *http.Request, caller) (any, *apiError) {
	s.scripted.mu.Lock()
	defer s.scripted.mu.Unlock()
	all := map[string]string{}
	for name, sc := range s.scripted.scenarios {
		all[name] = sc.Description
	}
	return all, nil
}

func (s *Server) adminReport(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	report := s.Scenario(r.PathValue("session"))
	if report.Session == "" {
		return nil, fail(404, "session %q has played no scenario", r.PathValue("session"))
	}
	return report, nil
}

// adminClock moves a manual clock.
func (s *Server) adminClock(w http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	var body struct {
		Advance time.Duration `yaml:"advance"`
	}
	if err := decodeYAML(w, r, &body); err != nil {
		return nil, err
	}
	manual, ok := s.clock.(*ManualClock)
	if !ok {
		return nil, fail(409, "the server runs on the real clock")
	}
	if body.Advance < 0 {
		return nil, fail(400, "advance: time does not go backwards")
	}
	manual.Advance(body.Advance)
	return map[string]any{"now": stamp(manual.Now())}, nil
}

func (s *Server) adminFault(w http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	var f Fault
	if err := decodeYAML(w, r, &f); err != nil {
		return nil, err
	}
	if err := s.Inject(f); err != nil {
		return nil, fail(400, "%v", err)
	}
	return map[string]any{"kind": f.Kind}, nil
}

func (s *Server) adminClear(http.ResponseWriter, *http.Request, caller) (any, *apiError) {
	return map[string]any{"cleared": s.ClearFaults()}, nil
}

func (s *Server) adminRequests(http.ResponseWriter, *http.Request, caller) (any, *apiError) {
	return map[string]any{"data": s.Requests()}, nil
}

func (s *Server) adminPosts(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	return map[string]any{"data": orNone(s.Posts(r.URL.Query().Get("session")))}, nil
}

func (s *Server) adminCut(w http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	var body struct {
		Session string `yaml:"session"`
	}
	if err := decodeYAML(w, r, &body); err != nil {
		return nil, err
	}
	s.CutStreams(body.Session)
	return map[string]any{}, nil
}

func (s *Server) adminWork(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	return map[string]any{"data": orNone(s.Works(r.URL.Query().Get("session")))}, nil
}

func (s *Server) adminEnqueue(w http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	var body struct {
		Environment string `yaml:"environment"`
		Type        string `yaml:"type"`
		Session     string `yaml:"session"`
	}
	if err := decodeYAML(w, r, &body); err != nil {
		return nil, err
	}
	id, err := s.Enqueue(body.Environment, body.Type, body.Session)
	if refused, ok := errors.AsType[*apiError](err); ok {
		return nil, refused
	}
	return map[string]any{"id": id}, nil
}

func (s *Server) adminExpire(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	return map[string]any{"expired": s.ExpireLease(r.PathValue("work"))}, nil
}

func (s *Server) adminWebhooks(http.ResponseWriter, *http.Request, caller) (any, *apiError) {
	return map[string]any{"data": orNone(s.Webhooks())}, nil
}
