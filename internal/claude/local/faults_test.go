package local

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func (w *world) inject(f Fault) {
	w.t.Helper()
	if err := w.srv.Inject(f); err != nil {
		w.t.Fatal(err)
	}
}

// broken sends a request that must get no complete answer.
func (w *world) broken(base, method, path, body string, bearer string) error {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, base+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	if bearer != "" {
		r.Header.Set("Authorization", "Bearer "+bearer)
	} else {
		r.Header.Set("X-Api-Key", w.key)
	}
	r.Header.Set("anthropic-version", "2026-10-21")
	r.Header.Set("anthropic-beta", betaAgents)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, err = io.ReadAll(res.Body)
	return err
}

// bare serves the world without the checker of the description, which buffers.
func (w *world) bare() string {
	web := httptest.NewServer(w.srv)
	w.t.Cleanup(web.Close)
	return web.URL
}

func TestADroppedResponseHasHadItsEffect(t *testing.T) {
	w := newWorld(t, Options{LeaseTTL: 10 * time.Second}, asking)
	base := w.bare()
	id := w.session("go")
	call := w.awaitCalls(id)[0]

	w.inject(Fault{Kind: Drop, On: "poll"})
	if err := w.broken(base, "GET", w.work("/poll"), "", w.envKey); err == nil {
		t.Error("the poll was answered")
	}
	if c := w.poll(""); c != nil {
		t.Error("the dropped poll handed out nothing")
	}
	c := w.poll("?reclaim_older_than_ms=1")
	if c == nil {
		w.clock.Advance(time.Second)
		c = w.poll("?reclaim_older_than_ms=1")
	}
	w.inject(Fault{Kind: Drop, On: "ack"})
	if err := w.broken(base, "POST", w.work("/"+c.id+"/ack"), "", w.envKey); err == nil {
		t.Error("the ack was answered")
	}
	w.want(409, "POST", w.work("/"+c.id+"/ack"), "", w.envKey)

	w.inject(Fault{Kind: Drop, On: "heartbeat"})
	if err := w.broken(base, "POST", w.work("/"+c.id+"/heartbeat?expected_last_heartbeat=NO_HEARTBEAT"), "", c.token); err == nil {
		t.Error("the beat was answered")
	}
	w.beat(412, *c, "NO_HEARTBEAT")

	w.inject(Fault{Kind: Drop, On: "events.send"})
	if err := w.broken(base, "POST", "/v1/sessions/"+id+"/events", `{"events":[`+result(call, "x")+`]}`, c.token); err == nil {
		t.Error("the send was answered")
	}
	w.awaitIdle(id, "end_turn")

	w.inject(Fault{Kind: Drop, On: "stop"})
	if err := w.broken(base, "POST", w.work("/"+c.id+"/stop"), `{"force":true}`, c.token); err == nil {
		t.Error("the stop was answered")
	}
	w.stop(409, *c, `{"force":true}`)
}

func TestDroppedMemoryOperationsHaveHadTheirEffect(t *testing.T) {
	w := newWorld(t, Options{})
	w.srv.opt.StrictBeta = false
	base := w.bare()
	store := w.want(200, "POST", "/v1/memory_stores", `{"name":"n"}`).id()
	path := "/v1/memory_stores/" + store + "/memories"
	w.inject(Fault{Kind: Drop, On: "memory.create"})
	if err := w.broken(base, "POST", path, `{"path":"/a.md","content":"x"}`, ""); err == nil {
		t.Error("the create was answered")
	}
	w.want(409, "POST", path, `{"path":"/a.md","content":"y"}`)
}

func TestStatusFaultsCarryTheirHeadersAndHaveNoEffect(t *testing.T) {
	w := newWorld(t, Options{})
	w.session("go")
	no := false
	w.inject(Fault{Kind: SendCode, On: "poll", Status: 429, RetryAfter: "7", ShouldRetry: &no, Skip: 1, Times: 2})
	w.want(200, "GET", w.work("/stats"), "", w.envKey) // another operation
	if c := w.poll(""); c == nil {
		t.Fatal("the first poll was struck, want it skipped")
	}
	for range 2 {
		got := w.want(429, "GET", w.work("/poll"), "", w.envKey)
		if got.Header.Get("retry-after") != "7" || got.Header.Get("x-should-retry") != "false" || got.errType() != "rate_limit_error" {
			t.Errorf("the fault answered %v %s", got.Header, got.Raw)
		}
	}
	w.want(200, "GET", w.work("/poll"), "", w.envKey)
}

func TestConnectionFaults(t *testing.T) {
	w := newWorld(t, Options{})
	base := w.bare()
	id := w.session("")
	w.inject(Fault{Kind: Reset, On: "session.get"})
	if err := w.broken(base, "GET", "/v1/sessions/"+id, "", ""); err == nil {
		t.Error("a reset was answered")
	}
	w.inject(Fault{Kind: Hang, On: "session.get", Delay: 20 * time.Millisecond})
	began := time.Now()
	if err := w.broken(base, "GET", "/v1/sessions/"+id, "", ""); err == nil || time.Since(began) < 20*time.Millisecond {
		t.Errorf("a hang ended after %v with %v", time.Since(began), err)
	}
	w.inject(Fault{Kind: SlowBody, On: "session.get", Delay: 20 * time.Millisecond})
	began = time.Now()
	if err := w.broken(base, "GET", "/v1/sessions/"+id, "", ""); err != nil || time.Since(began) < 20*time.Millisecond {
		t.Errorf("a slow body ended after %v with %v", time.Since(began), err)
	}
}

func TestLeaseFaultsAreCoherent(t *testing.T) {
	w := newWorld(t, Options{})
	w.session("go")
	c := w.claim()
	token := w.beat(200, c, "NO_HEARTBEAT").str("last_heartbeat")
	w.inject(Fault{Kind: LeaseLost})
	got := w.beat(412, c, token)
	if got.path("error", "details", "current_state", "state") != "queued" {
		t.Errorf("the lost lease answered %s", got.Raw)
	}
	c = w.claim() // it is really queued again
	w.inject(Fault{Kind: Stopping})
	if state := w.beat(200, c, "NO_HEARTBEAT").str("state"); state != "stopping" {
		t.Errorf("the state is %s, want stopping", state)
	}
	w.stop(200, c, `{"force":true}`)
}

func TestSecretFaults(t *testing.T) {
	w := newWorld(t, Options{})
	secret := func(k FaultKind) string {
		t.Helper()
		w.session("go")
		w.inject(Fault{Kind: k})
		return w.want(200, "GET", w.work("/poll"), "", w.envKey).str("secret")
	}
	if s := secret(SecretAbsent); s != "" {
		t.Errorf("the absent secret is %q", s)
	}
	if s := secret(SecretGarbage); !strings.Contains(s, "!!") {
		t.Errorf("the garbage is %q", s)
	}
	if s := secret(SecretNoToken); tokenOf(t, s) != "" {
		t.Errorf("the secret without a token is %q", s)
	}
	if s := secret(SecretPadded); !strings.HasSuffix(s, "=") || tokenOf(t, s) == "" {
		t.Errorf("the padded secret is %q", s)
	}
}

func TestHistoryFaults(t *testing.T) {
	w := newWorld(t, Options{})
	id := w.session("go")
	n := len(w.awaitIdle(id, "end_turn"))
	path := "/v1/sessions/" + id + "/events?limit=2"
	first := w.want(200, "GET", path, "")
	w.inject(Fault{Kind: EmptyPage})
	empty := w.want(200, "GET", path+"&page="+first.str("next_page"), "")
	if len(events(empty)) != 0 || empty.str("next_page") == "" {
		t.Fatalf("the empty page is %s", empty.Raw)
	}
	rest := w.want(200, "GET", "/v1/sessions/"+id+"/events?limit=1000", "")
	if len(events(rest)) != n {
		t.Errorf("the history has %d events, want %d", len(events(rest)), n)
	}
	again := w.want(200, "GET", path+"&page="+empty.str("next_page"), "")
	if len(events(again)) != 2 || events(again)[0].str("id") == events(first)[0].str("id") {
		t.Errorf("behind the empty page comes %s", again.Raw)
	}
	w.inject(Fault{Kind: SendCode, Status: 500, On: "events.list", Skip: 1})
	w.want(200, "GET", path, "")
	w.want(500, "GET", path+"&page="+first.str("next_page"), "")
}

func TestStreamFaults(t *testing.T) {
	for _, tt := range []struct {
		fault Fault
		want  string // the types of frames after the first message
	}{
		{Fault{Kind: CutStream, Every: 2}, "user.message user.message"},
		{Fault{Kind: Duplicate, Every: 2}, "user.message user.message user.message session.status_running"},
		{Fault{Kind: Omit, Every: 3}, "user.message user.message span.model_request_start agent.message session.usage"},
		{Fault{Kind: Reorder, Every: 2}, "user.message session.status_running user.message"},
		{Fault{Kind: Huge, Every: 2, Bytes: 1 << 20}, "user.message session.huge user.message"},
		{Fault{Kind: ErrorFrame, Every: 2}, "user.message error"},
	} {
		t.Run(string(tt.fault.Kind), func(t *testing.T) {
			w := newWorld(t, Options{})
			w.url = w.bare()
			id := w.session("")
			w.inject(tt.fault)
			l := w.stream("/v1/sessions/" + id + "/events/stream")
			w.say(id, message("go"))
			var got []string
			for range strings.FieldsSeq(tt.want) {
				got = append(got, l.next().str("type"))
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("the frames are %v, want %s", got, tt.want)
			}
			if k := tt.fault.Kind; k == CutStream || k == ErrorFrame {
				if e := l.next(); e != nil {
					t.Errorf("the stream goes on with %v", e)
				}
			}
		})
	}
}

func TestStrangeItemsCanBeQueued(t *testing.T) {
	w := newWorld(t, Options{})
	id := w.session("")
	w.want(200, "POST", "/v1/sessions/"+id+"/archive", "")
	for _, item := range []struct {
		typ, session string
		want         int
	}{{"healthcheck", "", 0}, {"session", id, 200}, {"session", "sesn_nope", 404}} {
		if _, err := w.srv.Enqueue(w.env, item.typ, item.session); err != nil {
			t.Fatal(err)
		}
		got := w.wild("GET", w.work("/poll"), "", w.envKey)
		if got.path("data", "type") != item.typ {
			t.Errorf("the queue has %s, want a %s", got.Raw, item.typ)
		}
		token := tokenOf(t, got.str("secret"))
		if item.want != 0 {
			w.want(item.want, "GET", "/v1/sessions/"+item.session, "", token)
		}
		if got := w.wild("POST", w.work("/"+got.id()+"/stop"), `{"force":true}`, token); got.Status != 200 {
			t.Errorf("the stop answered %s", got.Raw)
		}
	}
	var refused *apiError
	if _, err := w.srv.Enqueue("env_no", "session", ""); !errors.As(err, &refused) || refused.Status != 404 {
		t.Errorf("an item for no environment: %v", err)
	}
}

func TestFaultsAreChecked(t *testing.T) {
	w := newWorld(t, Options{})
	for _, f := range []Fault{
		{}, {Kind: "gremlin", On: "poll"}, {Kind: Drop}, {Kind: LeaseLost, On: "poll"}, {Kind: SendCode, On: "poll"}, {Kind: SendCode, On: "poll", Status: 200}, {Kind: Drop, On: "stream"},
	} {
		if err := w.srv.Inject(f); err == nil {
			t.Errorf("%+v was accepted", f)
		}
	}
	w.inject(Fault{Kind: SendCode, On: "*", Status: 500, Times: -1})
	w.want(500, "GET", "/v1/sessions", "")
	w.want(500, "GET", "/v1/agents", "")
	if n := w.srv.ClearFaults(); n != 1 {
		t.Errorf("%d faults were cleared, want 1", n)
	}
	w.inject(Fault{Kind: SendCode, On: "GET /v1/agents/*", Status: 503})
	w.want(200, "GET", "/v1/agents", "")
	w.want(503, "GET", "/v1/agents/"+w.agent, "")
}
