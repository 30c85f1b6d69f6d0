package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/intake"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/sandbox/sandboxtest"
	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/store"
)

// platform is a workspace with these agents.
type platform struct {
	agents []session.AgentInfo
	err    error
}

func (p *platform) Agents(context.Context) ([]session.AgentInfo, error) { return p.agents, p.err }

func (p *platform) Agent(_ context.Context, id string) (session.AgentInfo, error) {
	for _, a := range p.agents {
		if a.ID == id {
			return a, p.err
		}
	}
	if p.err != nil {
		return session.AgentInfo{}, p.err
	}
	return session.AgentInfo{}, &session.Refusal{Status: 404, Type: "not_found_error"}
}

// plainSeal seals nothing.
type plainSeal struct{}

func (plainSeal) Seal(b []byte) ([]byte, error) { return b, nil }
func (plainSeal) Open(b []byte) ([]byte, error) { return b, nil }

// agentsWorld is the API over a real store and a real keeper.
type agentsWorld struct {
	*world
	store    *store.Store
	platform *platform
}

func newAgentsWorld(t *testing.T) *agentsWorld {
	s, err := store.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cpus := 7.0
	cfg := session.Config{
		Capacity: 1, WarmFor: time.Minute, ToolTimeout: time.Minute, Image: "host", Limits: sandbox.Limits{CPUs: 2, MemoryBytes: 1 << 30, Processes: 64, OpenFiles: 128},
		Agents: []session.AgentFile{{ID: "agent_file", Settings: session.Settings{CPUs: &cpus}}, {Name: "Coder", Settings: session.Settings{CPUs: &cpus}}},
	}
	keeper := session.NewKeeper(cfg, sandboxtest.NewFake(), s, plainSeal{}, &event.Bus{}, slog.New(slog.DiscardHandler))
	w := &agentsWorld{world: &world{t: t}, store: s, platform: &platform{}}
	closing := make(chan struct{})
	w.server = httptest.NewServer(New(Deps{
		Records: s, Rooms: keeper, Agents: keeper, Platform: w.platform, Bus: &event.Bus{}, Guard: guard{},
		Pollers: func() []intake.Status { return nil }, Webhooks: http.NotFoundHandler(), Metrics: http.NotFoundHandler(),
		Version: "test", Capacity: 1, Log: slog.New(slog.DiscardHandler),
	}, closing))
	t.Cleanup(func() {
		w.server.Close()
		close(closing)
		keeper.Close()
		s.Close()
	})
	return w
}

// change makes a request with an If-Match header and decodes the answer.
func (w *agentsWorld) change(method, path, match, body string, out any) (int, string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.server.URL+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header = http.Header{"Authorization": {"Bearer token"}, "Content-Type": {"application/json"}}
	if match != "" {
		req.Header.Set("If-Match", match)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := json.Unmarshal(raw, out); err != nil {
		w.t.Fatalf("%s %s: %v in %s", method, path, err, raw)
	}
	return res.StatusCode, res.Header.Get("ETag")
}

func (w *agentsWorld) add(id, agent, name string, made *session.Profile) {
	w.t.Helper()
	rec := session.Record{ID: id, Agent: agent, AgentName: name, Phase: session.Parked, CreatedAt: time.Unix(1, 0), UpdatedAt: time.Unix(2, 0), Profile: made}
	if made != nil {
		rec.Phase, rec.Sandbox, rec.SandboxSince, rec.Revision = session.Warm, &sandbox.Ref{ID: sandbox.ID(id)}, time.Unix(3, 0), 1
	}
	if err := w.store.Commit(w.t.Context(), session.Change{At: time.Unix(2, 0), Session: &rec}); err != nil {
		w.t.Fatal(err)
	}
}

func TestAgentsOfAllPlacesAreListed(t *testing.T) {
	w := newAgentsWorld(t)
	w.add("sesn_1", "agent_seen", "Seen", nil)
	w.platform.agents = []session.AgentInfo{{ID: "agent_there", Name: "There", Version: 4, Model: "m"}, {ID: "agent_seen", Name: "Renamed", Version: 2}}
	var sb AgentSandbox
	if status, _ := w.change("PATCH", "/api/v1/agents/agent_set/sandbox", "", `{"set":{"cpus":1,"env":{"A":"1"}}}`, &sb); status != 200 {
		t.Fatalf("PATCH: %d", status)
	}
	want := []Agent{
		{ID: "agent_file"},
		{ID: "agent_seen", Name: "Renamed", Version: 2, Sessions: 1, Live: 1},
		{ID: "agent_set", Set: []string{"cpus", "env.A"}, Revision: 1},
		{ID: "agent_there", Name: "There", Version: 4, Model: "m"},
	}
	var got []Agent
	for after := ""; ; {
		var page AgentList
		w.get(200, "/api/v1/agents?limit=3&after="+after, &page)
		got = append(got, page.Data...)
		if after = page.Next; after == "" {
			break
		}
	}
	for i := range got {
		got[i].LastAt = nil
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	w.platform.err = errors.New("connection refused at 10.1.2.3")
	var page AgentList
	w.get(200, "/api/v1/agents", &page)
	if len(page.Data) != 3 && len(page.Data) != 4 || page.Warning == "" || strings.Contains(page.Warning, "10.1.2.3") {
		t.Errorf("without the platform: %+v", page)
	}
}

func TestAnAgentThatNobodyHasSeenHasTheDefaults(t *testing.T) {
	w := newAgentsWorld(t)
	var a AgentDetail
	w.get(200, "/api/v1/agents/agent_new", &a)
	if a.Known || a.Sandbox.Effective.CPUs != 2 || a.Sandbox.Sources["cpus"] != session.FromServer || a.Revision != 0 || a.Warning != "" {
		t.Errorf("%+v", a)
	}
	w.platform.agents = []session.AgentInfo{{ID: "agent_new", Name: "Coder"}}
	w.get(200, "/api/v1/agents/agent_new", &a)
	if !a.Known || a.Name != "Coder" || a.Sandbox.Effective.CPUs != 7 || a.Sandbox.Sources["cpus"] != session.FromFile {
		t.Errorf("by its name in the file: %+v", a)
	}
	var p Problem
	for _, path := range []string{"/api/v1/agents/Coder", "/api/v1/agents/Coder/sandbox"} {
		w.get(400, path, &p)
		if p.Code != fault.Invalid || p.Field != "agent" || p.Next == "" {
			t.Errorf("%s: %+v", path, p)
		}
	}
}

func TestWhoUsesTheSettingsAndWhatWillDiffer(t *testing.T) {
	w := newAgentsWorld(t)
	var a AgentDetail
	w.get(200, "/api/v1/agents/agent_1", &a)
	same, other := a.Sandbox.Effective, a.Sandbox.Effective
	other.CPUs, other.Env = 1, map[string]string{"A": "1"}
	w.add("sesn_1", "agent_1", "x", &same)
	w.add("sesn_2", "agent_1", "x", &other)
	w.add("sesn_3", "agent_1", "x", nil)
	w.add("sesn_4", "agent_2", "x", nil)
	w.get(200, "/api/v1/agents/agent_1", &a)
	since := time.Unix(3, 0).UTC()
	want := []AgentSession{
		{ID: "sesn_1", Phase: session.Warm, Since: &since, Revision: 1},
		{ID: "sesn_2", Phase: session.Warm, Since: &since, Revision: 1, Differs: []string{"cpus", "env"}},
		{ID: "sesn_3", Phase: session.Parked},
	}
	if d := cmp.Diff(want, a.Users); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	var one Session
	w.get(200, "/api/v1/sessions/sesn_2", &one)
	if d := cmp.Diff(&other, one.Sandbox.Settings); d != "" || one.Sandbox.Revision != 1 {
		t.Errorf("the session shows revision %d and\n%s", one.Sandbox.Revision, d)
	}
}

func TestSettingsAreChangedByTagSoThatNobodyOverwritesAnother(t *testing.T) {
	w := newAgentsWorld(t)
	const path = "/api/v1/agents/agent_1/sandbox"
	var sb AgentSandbox
	var p Problem
	if status, tag := w.change("GET", path, "", "", &sb); status != 200 || tag != `"0"` {
		t.Fatalf("GET: %d %s", status, tag)
	}
	if status, _ := w.change("PUT", path, "", `{}`, &p); status != 428 || p.Code != fault.Invalid || p.Field != "If-Match" {
		t.Errorf("PUT without If-Match: %d %+v", status, p)
	}
	if status, tag := w.change("PUT", path, `"0"`, `{"memory":"4GiB","env":{"A":"1"},"lifetime":"1h30m"}`, &sb); status != 200 || tag != `"1"` || sb.Effective.Memory != 4<<30 || sb.Sources["env.A"] != "set" {
		t.Errorf("PUT: %d %s %+v", status, tag, sb)
	}
	if status, _ := w.change("PUT", path, `"0"`, `{"cpus":1}`, &p); status != 412 || p.Code != fault.Conflict || p.Next == "" {
		t.Errorf("PUT of what is not there any more: %d %+v", status, p)
	}
	if status, _ := w.change("PATCH", path, `"0"`, `{"set":{"cpus":1}}`, &p); status != 412 {
		t.Errorf("PATCH of what is not there any more: %d", status)
	}
	sb = AgentSandbox{}
	if status, tag := w.change("PATCH", path, `"1"`, `{"set":{"cpus":1},"unset":["env.A"]}`, &sb); status != 200 || tag != `"2"` || len(sb.Effective.Env) != 0 || sb.Effective.CPUs != 1 || sb.Effective.Memory != 4<<30 {
		t.Errorf("PATCH: %d %s %+v", status, tag, sb)
	}
	sb = AgentSandbox{}
	if status, tag := w.change("PUT", path, `*`, `{}`, &sb); status != 200 || tag != `"3"` || sb.Effective.CPUs != 2 {
		t.Errorf("PUT over whatever is there: %d %s %+v", status, tag, sb)
	}
	for match, status := range map[string]int{`3`: 400, `W/"3"`: 400, `"x"`: 400, `"-1"`: 400, `"3", "4"`: 400} {
		if got, _ := w.change("PUT", path, match, `{}`, &p); got != status || p.Field != "If-Match" {
			t.Errorf("If-Match %s: %d %+v", match, got, p)
		}
	}
	for body, field := range map[string]string{
		`{"set":{"cpus":1000}}`: "cpus", `{"set":{"env":{"ANTHROPIC_API_KEY":"x"}}}`: "env.ANTHROPIC_API_KEY", `{"unset":["cpu"]}`: "unset",
		`{"set":{"memory":"much"}}`: "body", `{"set":{"memory":5}}`: "body.set.memory", `{"set":{"cpu":5}}`: "body.set.cpu", `{"sets":{}}`: "body.sets",
	} {
		p = Problem{}
		if status, _ := w.change("PATCH", path, "", body, &p); status != 400 || p.Code != fault.Invalid || p.Field != field {
			t.Errorf("%s: %d %+v, want the field %s", body, status, p, field)
		}
	}
	events, err := w.store.Events(t.Context(), "", 0, 10)
	if err != nil || len(events) != 3 || events[0].Type != event.AgentChanged || !bytes.Contains(events[0].Data, []byte(`"changed":["memory","lifetime","env.A"]`)) {
		t.Errorf("events = %+v, %v", events, err)
	}
}
