package local

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// brainFunc is a brain made of a function.
type brainFunc struct {
	run func(context.Context, *Turn) error
}

func (b *brainFunc) Run(ctx context.Context, t *Turn) error { return b.run(ctx, t) }

func TestAStreamShowsWhatHappensFromNowOn(t *testing.T) {
	w := newWorld(t, Options{})
	id := w.session("before")
	w.awaitIdle(id, "end_turn")
	one := w.stream("/v1/sessions/" + id + "/events/stream")
	two := w.stream("/v1/sessions/" + id + "/events/stream")
	if ct := one.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Errorf("content type %q", ct)
	}
	sent := events(w.say(id, message("now")))[0]
	for _, l := range []*line{one, two} {
		if e := l.next(); e.str("id") != sent.str("id") {
			t.Errorf("the stream begins with %v, want the new message", e)
		}
	}
	w.srv.CutStreams(id)
	for e := one.next(); e != nil; e = one.next() { // what was emitted is still written
		if e.str("processed_at") == "" {
			t.Errorf("after the first event comes %v, want only processed ones", e)
		}
	}
}

func TestAnIdleStreamIsKeptAlive(t *testing.T) {
	w := newWorld(t, Options{KeepAlive: 5 * time.Millisecond})
	l := w.stream("/v1/sessions/" + w.session("") + "/events/stream")
	for l.scan.Scan() {
		if l.scan.Text() == ": keep-alive" {
			return
		}
	}
	t.Error("the stream ended without a keep-alive")
}

func TestASlowReaderIsDisconnected(t *testing.T) {
	w := newWorld(t, Options{StreamBuffer: 2})
	id := w.session("")
	w.srv.mu.Lock()
	se := w.srv.sessions[id]
	st := &stream{filter: (*event).onSession, frames: make(chan frame, 2)} // nobody reads
	se.streams[st] = struct{}{}
	for range 3 {
		w.srv.emit(se, &event{Type: "agent.thinking"})
	}
	ended := st.ended
	w.srv.mu.Unlock()
	if !ended {
		t.Error("a reader that lags behind its buffer is still connected")
	}
}

func TestAStreamOfAThreadShowsItsOwnEvents(t *testing.T) {
	w := newWorld(t, Options{}, `
name: team
steps:
  - open_thread: a
  - wait: message
  - {thread: a, message: "mine"}
  - message: "ours"
`)
	id := w.session("go")
	all := w.awaitIdle(id, "end_turn")
	child := last(all, "session.thread_created").str("session_thread_id")
	l := w.stream("/v1/sessions/" + id + "/threads/" + child + "/stream")
	w.say(id, message("more"))
	for e := l.next(); e.str("type") != "agent.message"; e = l.next() {
		if e == nil {
			t.Fatal("the stream ended")
		}
		if e.str("type") == "user.message" {
			t.Errorf("the child's stream shows the session's %v", e)
		}
	}
}

func TestUnknownDeltasAreRefused(t *testing.T) {
	w := newWorld(t, Options{})
	got := w.wild("GET", "/v1/sessions/"+w.session("")+"/events/stream?event_deltas[]=agent.tool_use", "")
	if got.Status != 400 {
		t.Errorf("status %d, want 400", got.Status)
	}
}

// Brains.

func TestABrainsErrorEndsTheTurnAndTheNextMessageBeginsAnother(t *testing.T) {
	w := newWorld(t, Options{})
	turns := 0
	w.srv.opt.Brain = &brainFunc{run: func(_ context.Context, t *Turn) error {
		turns++
		if turns == 1 {
			return errors.New("no more tokens")
		}
		if turns == 2 {
			panic("oh")
		}
		return t.Message("", "recovered")
	}}
	id := w.session("go")
	all := w.awaitIdle(id, "retries_exhausted")
	e, _ := last(all, "session.error")["error"].(map[string]any)
	if e["message"] != "no more tokens" {
		t.Errorf("the error is %v", e)
	}
	w.say(id, message("again"))
	w.await(id, "the second error", func(all []logEvent) bool { return count(all, "session.error") == 2 })
	w.say(id, message("and again"))
	if all = w.awaitIdle(id, "end_turn"); last(all, "agent.message") == nil {
		t.Errorf("the log is %v", types(all))
	}
}

func TestATurnIsRefusedAfterAnInterrupt(t *testing.T) {
	w := newWorld(t, Options{})
	refused := make(chan error, 1)
	w.srv.opt.Brain = &brainFunc{run: func(ctx context.Context, t *Turn) error {
		<-ctx.Done()
		refused <- errors.Join(t.Message("", "too late"), context.Cause(ctx))
		return nil
	}}
	id := w.session("go")
	w.await(id, "running", func(all []logEvent) bool { return last(all, "session.status_running") != nil })
	w.say(id, `{"type":"user.interrupt"}`)
	if err := <-refused; !errors.Is(err, ErrInterrupted) {
		t.Errorf("the turn's error is %v, want ErrInterrupted", err)
	}
	if all := w.awaitIdle(id, "end_turn"); last(all, "agent.message") != nil {
		t.Errorf("the interrupted turn still said something: %v", types(all))
	}
}

func TestABrainHearsMoreDuringItsTurn(t *testing.T) {
	w := newWorld(t, Options{})
	w.srv.opt.Brain = &brainFunc{run: func(ctx context.Context, t *Turn) error {
		if _, err := t.Tools(ctx, Call{Name: "bash"}); err != nil {
			return err
		}
		said := t.Input()[0].Text()
		for _, e := range t.More() {
			said += "+" + e.Text()
		}
		if n := len(t.History()); n < 5 {
			return fmt.Errorf("the history has only %d events", n)
		}
		return t.Message("", said)
	}}
	id := w.session("one")
	call := w.awaitCalls(id)[0]
	w.say(id, message("two"))
	w.say(id, result(call, "x"))
	all := w.awaitIdle(id, "end_turn")
	content, _ := last(all, "agent.message")["content"].([]any)
	if textOf(content) != "one+two" {
		t.Errorf("the brain heard %q, want one+two", textOf(content))
	}
	if count(all, "session.status_running") != 2 {
		t.Errorf("the log is %v, want one turn", types(all))
	}
}

func TestUsageCountsTokensAndActiveTime(t *testing.T) {
	w := newWorld(t, Options{}, "{name: slow, steps: [{pause: 10s}, {message: hello}]}")
	id := w.session("go")
	w.clock.AwaitAlarm(time.Second)
	w.clock.Advance(10 * time.Second)
	w.awaitIdle(id, "end_turn")
	got := w.want(200, "GET", "/v1/sessions/"+id, "")
	if s, _ := got.path("usage", "active_seconds").(float64); s < 10 || s > 11 {
		t.Errorf("active_seconds = %v, want about 10", s)
	}
	if got.path("usage", "input_tokens") != 100.0 {
		t.Errorf("input_tokens = %v, want 100", got.path("usage", "input_tokens"))
	}
}

func TestCloseEndsEverything(t *testing.T) {
	s := New(Options{APIKeys: []string{"k"}})
	web := httptest.NewServer(s)
	defer web.Close()
	s.mu.Lock()
	now := s.now()
	se := &session{
		ID: "sesn_1", SelfHosted: true, Agent: map[string]any{}, Status: statusIdle, Created: now,
		calls: map[string]*call{}, threads: map[string]*thread{}, streams: map[*stream]struct{}{}, changed: make(chan struct{}),
	}
	se.addThread(&thread{ID: "sthr_1"})
	s.sessions[se.ID] = se
	s.mu.Unlock()
	s.opt.Brain = &brainFunc{run: func(ctx context.Context, t *Turn) error {
		_, err := t.Tools(ctx, Call{Name: "bash"})
		return err
	}}
	if _, err := s.Send(se.ID, map[string]any{"type": "user.message", "content": textContent("go")}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil { // waits for the turn
		t.Fatal(err)
	}
	rec := httptest.NewRecorder()
	s.ServeHTTP(rec, httptest.NewRequest("GET", "/v1/sessions", strings.NewReader("")))
	if rec.Code != 503 {
		t.Errorf("a request after Close is answered %d, want 503", rec.Code)
	}
}

func TestRequestsAreLoggedWithoutCredentials(t *testing.T) {
	w := newWorld(t, Options{RequestLog: 8})
	w.session("go")
	c := w.claim()
	w.beat(200, c, "NO_HEARTBEAT")
	var ops, kinds []string
	for _, r := range w.srv.Requests() {
		ops, kinds = append(ops, r.Operation), append(kinds, r.Credential)
		if strings.Contains(fmt.Sprint(r), c.token) || strings.Contains(fmt.Sprint(r), w.envKey) {
			t.Errorf("the log holds a credential: %v", r)
		}
	}
	if diff := cmp.Diff([]string{"POST /v1/environments", "POST /v1/agents", "session.create", "poll", "ack", "heartbeat"}, ops); diff != "" {
		t.Errorf("operations (-want +got):\n%s", diff)
	}
	if kinds[3] != "environment key" || kinds[5] != "sessions token" {
		t.Errorf("kinds: %v", kinds)
	}
	for range 20 {
		w.want(200, "GET", "/v1/sessions", "")
	}
	if n := len(w.srv.Requests()); n > 8 {
		t.Errorf("the log holds %d requests, want at most 8", n)
	}
}
