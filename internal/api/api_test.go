package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/intake"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/sandbox/sandboxtest"
	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/store/storetest"
)

var update = flag.Bool("update", false, "write golden files")

// records is the store in memory.
type records struct {
	sessions []session.Record
	calls    []session.Call
	events   []event.Event
	err      error
}

func (r *records) Session(_ context.Context, id string) (session.Record, error) {
	for _, s := range r.sessions {
		if s.ID == id {
			return s, r.err
		}
	}
	return session.Record{}, fault.New(fault.NotFound, "there is no session %q here", id)
}

func (r *records) Sessions(_ context.Context, before time.Time, limit int) ([]session.Record, error) {
	var out []session.Record
	for _, s := range r.sessions {
		if (before.IsZero() || s.UpdatedAt.Before(before)) && len(out) < limit {
			out = append(out, s)
		}
	}
	return out, r.err
}

func (r *records) Calls(_ context.Context, _ string, after int64, limit int) ([]session.Call, error) {
	var out []session.Call
	for _, c := range r.calls {
		if c.Seq > after && len(out) < limit {
			out = append(out, c)
		}
	}
	return out, r.err
}

func (r *records) Work(context.Context, string) ([]session.Work, error) {
	return []session.Work{{ID: "work_1", State: session.WorkHeld, Secret: []byte("sealed"), Token: "hb"}}, r.err
}

func (r *records) Events(_ context.Context, _ string, after int64, limit int) ([]event.Event, error) {
	var out []event.Event
	for _, e := range r.events {
		if e.Seq > after && len(out) < limit {
			out = append(out, e)
		}
	}
	return out, r.err
}

func (r *records) AgentsSeen(context.Context, string) ([]session.AgentSeen, error) {
	return nil, r.err
}

func (r *records) AllAgentSettings(context.Context) ([]session.AgentSettings, error) {
	return nil, r.err
}

func (r *records) SessionsOf(context.Context, string, int) ([]session.Record, error) {
	return nil, r.err
}

func (r *records) Ping(context.Context) error { return r.err }

// rooms opens sandboxes of the fake backend.
type rooms struct {
	backend *sandboxtest.Fake
	stalled int
}

func (r rooms) Open(ctx context.Context, id string) (sandbox.Sandbox, error) {
	if id != "sesn_1" {
		return nil, fault.New(fault.NotFound, "there is no session %q here", id)
	}
	return r.backend.Create(ctx, sandbox.Spec{ID: sandbox.ID(id), Session: id, Image: "host"})
}

func (rooms) Free() int { return 3 }

func (r rooms) StalledCount() int { return r.stalled }

func (rooms) StalledWhy() string { return "the disk of the data directory is full; make room on it" }

func (rooms) Stalled(id string) time.Time {
	if id == "sesn_stalled" {
		return time.Unix(1, 0)
	}
	return time.Time{}
}

type guard struct{}

func (guard) Check(r *http.Request) error {
	if r.Header.Get("Authorization") != "Bearer token" {
		return fault.New(fault.Unsigned, "this needs the API token")
	}
	return nil
}

type world struct {
	t       *testing.T
	records *records
	rooms   *rooms
	pollers []intake.Status
	bus     *event.Bus
	server  *httptest.Server
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, records: &records{}, rooms: &rooms{backend: sandboxtest.NewFake()}, bus: &event.Bus{}}
	closing := make(chan struct{})
	log := slog.New(slog.DiscardHandler)
	keeper := session.NewKeeper(session.Config{}, sandboxtest.NewFake(), &storetest.Memory{}, plainSeal{}, w.bus, log)
	t.Cleanup(func() { keeper.Close() })
	w.server = httptest.NewServer(New(Deps{
		Records: w.records, Rooms: w.rooms, Agents: keeper, Bus: w.bus, Guard: guard{},
		Pollers:  func() []intake.Status { return w.pollers },
		Webhooks: http.NotFoundHandler(), Metrics: http.NotFoundHandler(), Version: "test", Capacity: 4, Log: log,
	}, closing))
	t.Cleanup(w.server.Close)
	t.Cleanup(func() { close(closing) })
	return w
}

func (w *world) request(method, path, token, body string) *http.Response {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.server.URL+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { res.Body.Close() })
	return res
}

// get decodes an answer and fails unless it has the status.
func (w *world) get(status int, path string, out any) {
	w.t.Helper()
	res := w.request(http.MethodGet, path, "token", "")
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != status {
		w.t.Fatalf("GET %s: %s %s, %v; want %d", path, res.Status, body, err, status)
	}
	if err := json.Unmarshal(body, out); err != nil {
		w.t.Fatalf("GET %s: %v in %s", path, err, body)
	}
}

func TestDescriptionIsCurrent(t *testing.T) {
	w := newWorld(t)
	res := w.request(http.MethodGet, "/openapi.json", "", "")
	raw, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("GET /openapi.json: %s %v", res.Status, err)
	}
	var got bytes.Buffer
	if err := json.Indent(&got, raw, "", "  "); err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/openapi.json"
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || !bytes.Equal(want, got.Bytes()) {
		t.Errorf("the description differs from %s (%v); if that is wanted: go test ./internal/api -update", golden, err)
	}
}

func TestEverythingUnderTheAPINeedsTheToken(t *testing.T) {
	w := newWorld(t)
	var description struct {
		Paths map[string]map[string]any
	}
	if err := json.NewDecoder(w.request(http.MethodGet, "/openapi.json", "", "").Body).Decode(&description); err != nil {
		t.Fatal(err)
	}
	paths := []string{"GET /api/v1/sessions/x/events/stream", "GET /api/v1/sessions/x/terminal", "GET /api/v1/nothing", "GET /api/"}
	for path, methods := range description.Paths {
		for method := range methods {
			paths = append(paths, strings.ToUpper(method)+" "+strings.ReplaceAll(path, "{id}", "x"))
		}
	}
	if len(paths) < 9 {
		t.Fatalf("only %d paths", len(paths))
	}
	for _, p := range paths {
		method, path, _ := strings.Cut(p, " ")
		for _, token := range []string{"", "wrong"} {
			res := w.request(method, path, token, "{}")
			var problem Problem
			if err := json.NewDecoder(res.Body).Decode(&problem); err != nil || res.StatusCode != 401 || problem.Code != fault.Unsigned ||
				res.Header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("%s with token %q: %s %+v %v", p, token, res.Status, problem, err)
			}
		}
	}
}

func TestErrorsHaveCodesAndNoInsides(t *testing.T) {
	w := newWorld(t)
	w.records.sessions = []session.Record{{ID: "sesn_1"}}
	var p Problem
	w.get(404, "/api/v1/sessions/sesn_2", &p)
	if p.Code != fault.NotFound || !strings.Contains(p.Detail, "sesn_2") {
		t.Errorf("unknown session: %+v", p)
	}
	for path, field := range map[string]string{
		"/api/v1/sessions?limit=0":                 "query.limit",
		"/api/v1/sessions?limit=many":              "query.limit",
		"/api/v1/sessions?after=!":                 "after",
		"/api/v1/sessions/sesn_1/events?after=x":   "after",
		"/api/v1/sessions/sesn_1/terminal?cols=-1": "cols",
	} {
		p = Problem{}
		w.get(400, path, &p)
		if p.Code != fault.Invalid || p.Field != field {
			t.Errorf("%s: %+v, want the field %s", path, p, field)
		}
	}
	w.get(404, "/api/v1/nothing", &p)
	w.records.err = errors.New("disk on fire at /secret/path")
	p = Problem{}
	w.get(500, "/api/v1/sessions", &p)
	if p.Code != fault.Internal || strings.Contains(fmt.Sprint(p), "fire") {
		t.Errorf("an internal error shows its cause: %+v", p)
	}
}

func TestListsArePagedToTheEnd(t *testing.T) {
	w := newWorld(t)
	start := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	for i := range 5 {
		w.records.sessions = append(w.records.sessions, session.Record{ID: fmt.Sprint("sesn_", i), UpdatedAt: start.Add(-time.Duration(i) * time.Second)})
		w.records.calls = append(w.records.calls, session.Call{ID: fmt.Sprint("sevt_", i), Seq: int64(i + 1), State: session.Posted})
	}
	var ids []string
	for after := ""; ; {
		var page Page[Session]
		w.get(200, "/api/v1/sessions?limit=2&after="+after, &page)
		for _, s := range page.Data {
			ids = append(ids, s.ID)
		}
		if after = page.Next; after == "" {
			break
		}
	}
	if fmt.Sprint(ids) != "[sesn_0 sesn_1 sesn_2 sesn_3 sesn_4]" {
		t.Errorf("sessions: %v", ids)
	}
	var calls Page[Call]
	w.get(200, "/api/v1/sessions/sesn_0/calls?limit=3&after=3", &calls)
	if len(calls.Data) != 2 || calls.Data[0].ID != "sevt_3" || calls.Next != "" {
		t.Errorf("calls: %+v", calls)
	}
}

func TestSecretsOfWorkItemsAreNotShown(t *testing.T) {
	w := newWorld(t)
	w.records.sessions = []session.Record{{ID: "sesn_1"}}
	body, err := io.ReadAll(w.request(http.MethodGet, "/api/v1/sessions/sesn_1", "token", "").Body)
	if err != nil || !bytes.Contains(body, []byte("work_1")) {
		t.Fatalf("%s %v", body, err)
	}
	if bytes.Contains(body, []byte("sealed")) || bytes.Contains(body, []byte(base64.StdEncoding.EncodeToString([]byte("sealed")))) {
		t.Errorf("the answer shows a secret: %s", body)
	}
}

func TestAStalledSessionSaysSo(t *testing.T) {
	w := newWorld(t)
	w.records.sessions = []session.Record{{ID: "sesn_stalled", Waiting: session.Waiting{For: session.ForTool}}}
	var s Session
	w.get(200, "/api/v1/sessions/sesn_stalled", &s)
	if s.Waiting.For != session.ForStorage || !strings.Contains(s.Waiting.Detail, "make room") || !s.Waiting.Since.Equal(time.Unix(1, 0)) {
		t.Errorf("it waits for %+v, want storage since it stalled", s.Waiting)
	}
}

func TestStreamGoesOnAfterTheLastEvent(t *testing.T) {
	w := newWorld(t)
	w.records.sessions = []session.Record{{ID: "sesn_1"}}
	w.records.events = []event.Event{{Seq: 1, Type: "a"}, {Seq: 2, Type: "b"}}
	res := w.request(http.MethodGet, "/api/v1/sessions/sesn_1/events/stream?after=1", "token", "")
	if res.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%s %s", res.Status, res.Header.Get("Content-Type"))
	}
	lines := bufio.NewScanner(res.Body)
	var got []string
	for lines.Scan() && lines.Text() != "" {
		got = append(got, lines.Text())
	}
	if len(got) != 3 || got[0] != "id: 2" || got[1] != "event: b" {
		t.Errorf("the stream begins with %q", got)
	}
}

func TestExecRunsInTheSessionsSandbox(t *testing.T) {
	w := newWorld(t)
	res := w.request(http.MethodPost, "/api/v1/sessions/sesn_1/exec", "token", `{"argv":["echo","hi"]}`)
	var out ExecResult
	if err := json.NewDecoder(res.Body).Decode(&out); err != nil || res.StatusCode != 200 {
		t.Errorf("exec: %s %+v %v", res.Status, out, err)
	}
	for name, body := range map[string]string{"no argv": `{}`, "empty argv": `{"argv":[]}`, "unknown field": `{"argv":["a"],"x":1}`, "not JSON": `{`} {
		if res := w.request(http.MethodPost, "/api/v1/sessions/sesn_1/exec", "token", body); res.StatusCode != 400 {
			t.Errorf("%s: %s, want 400", name, res.Status)
		}
	}
	if res := w.request(http.MethodPost, "/api/v1/sessions/sesn_9/exec", "token", `{"argv":["a"]}`); res.StatusCode != 404 {
		t.Errorf("unknown session: %s, want 404", res.Status)
	}
}

func TestTerminalOfAnotherOriginIsRefused(t *testing.T) {
	w := newWorld(t)
	address := strings.Replace(w.server.URL, "http", "ws", 1) + "/api/v1/sessions/sesn_1/terminal"
	header := http.Header{"Authorization": {"Bearer token"}, "Origin": {"https://evil.example"}}
	conn, res, err := websocket.Dial(t.Context(), address, &websocket.DialOptions{HTTPHeader: header})
	if err == nil {
		conn.CloseNow()
		t.Fatal("a page of another origin opened a terminal")
	}
	if res == nil || res.StatusCode != http.StatusForbidden {
		t.Errorf("answer %v, %v; want 403", res, err)
	}
}

func TestReadyOnlyWhenWorkIsFound(t *testing.T) {
	w := newWorld(t)
	health := func() (int, string) {
		res := w.request(http.MethodGet, "/readyz", "", "")
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(body)
	}
	ready := func() int { code, _ := health(); return code }
	if got := ready(); got != 503 {
		t.Errorf("before the first poll: %d", got)
	}
	w.pollers = []intake.Status{{Environment: "env_1", LastPoll: time.Now()}}
	if got := ready(); got != 200 {
		t.Errorf("after a poll: %d", got)
	}
	w.pollers[0].Failures, w.pollers[0].Stopped = 3, true
	if got := ready(); got != 503 {
		t.Errorf("while refused: %d", got)
	}
	w.pollers[0] = intake.Status{Environment: "env_1", AtCapacity: true}
	w.rooms.stalled = 2
	if code, reasons := health(); code != 503 || !strings.Contains(reasons, "cannot be recorded: the disk of the data directory is full") {
		t.Errorf("while sessions cannot be recorded: %d %s", code, reasons)
	}
	w.rooms.stalled = 0
	w.records.err = fault.New(fault.Unavailable, "the database is damaged")
	if _, reasons := health(); !strings.Contains(reasons, "the database is damaged") {
		t.Errorf("with a damaged database: %s", reasons)
	}
	w.records.err = errors.New("locked")
	if got := ready(); got != 503 {
		t.Errorf("without a database: %d", got)
	}
	if got := w.request(http.MethodGet, "/healthz", "", "").StatusCode; got != 200 {
		t.Errorf("healthz: %d", got)
	}
}
