package session_test

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/sandbox/sandboxtest"
	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/session/sessiontest"
	"github.com/berth-dev/berth/internal/store/storetest"
	"github.com/berth-dev/berth/internal/tool"
)

// sesn is the session of most tests.
const sesn = "sesn_1"

// house is a keeper with everything that it stands on. It lives in a synctest
// bubble: a day passes in no time, and a goroutine that is left over fails the
// test.
type house struct {
	t       *testing.T
	cfg     session.Config
	claude  *sessiontest.Claude
	fake    *sandboxtest.Fake
	backend sandbox.Backend // what the next keeper uses: the fake, or something around it
	records *storetest.Memory
	wrapped session.Records // what the next keeper writes to
	keeper  *session.Keeper
	noDoor  bool // the environment is not configured
}

// inHouse runs a test with a platform whose agent does these turns.
func inHouse(t *testing.T, turns []func(*sessiontest.Log), f func(h *house)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := &house{
			t: t, claude: sessiontest.NewClaude(sesn, turns...), fake: sandboxtest.NewFake(), records: &storetest.Memory{},
			cfg: session.Config{
				Capacity: 2, ReleaseAfter: 10 * time.Second, WarmFor: time.Minute, ToolTimeout: 2 * time.Minute,
				ReadEvery: 30 * time.Second, Image: "host",
			},
		}
		h.wrapped, h.backend = h.records, h.fake
		h.open()
		defer h.clear()
		defer func() { h.keeper.Close() }()
		f(h)
	})
}

// open starts a keeper on what is there.
func (h *house) open() {
	h.t.Helper()
	log := slog.New(slog.NewTextHandler(h.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	h.keeper = session.NewKeeper(h.cfg, h.backend, h.wrapped, openSeal{}, &event.Bus{}, log)
	if err := h.keeper.Adopt(h.t.Context(), h.door); err != nil {
		h.t.Fatalf("Adopt: %v", err)
	}
}

// reopen ends the keeper in an orderly way and starts another one.
func (h *house) reopen(between func()) {
	h.t.Helper()
	h.keeper.Close()
	h.fake.Restart()
	between()
	h.open()
}

// door opens the platform as the process's configuration would.
func (h *house) door(it session.Item) session.Platform {
	if h.noDoor {
		return nil
	}
	return h.claude.Door(it)
}

// clear ends every sandbox, as the end of the host would.
func (h *house) clear() {
	refs, _ := h.fake.List(h.t.Context())
	for _, ref := range refs {
		_ = h.fake.Remove(context.Background(), ref, sandbox.Everything)
	}
}

// accept brings an item to its session, as a poller does.
func (h *house) accept(it session.Item) {
	h.t.Helper()
	if !h.keeper.Reserve() {
		h.t.Fatal("there is no free slot")
	}
	w, err := h.keeper.Record(h.t.Context(), it)
	if err == nil {
		err = h.keeper.Accept(h.t.Context(), it, w, h.claude.Door(it))
	}
	if err != nil {
		h.t.Fatalf("accept %s: %v", it.ID, err)
	}
}

// poll claims what the platform has, if it has something.
func (h *house) poll() {
	if !h.keeper.Reserve() {
		return
	}
	it := h.claude.Poll()
	if it == nil {
		h.keeper.Unreserve()
		return
	}
	w, err := h.keeper.Record(h.t.Context(), *it)
	if err == nil {
		err = h.claude.Ack(it.ID)
	}
	if err != nil {
		h.keeper.Unreserve()
		return
	}
	_ = h.keeper.Accept(h.t.Context(), *it, w, h.claude.Door(*it))
}

// pass lets time pass.
func (h *house) pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// until waits for something that has to happen within an hour, and polls every
// second as long as it has not.
func (h *house) until(what string, cond func() bool) {
	h.t.Helper()
	for range 3600 {
		synctest.Wait()
		if cond() {
			return
		}
		if h.keeper.Err() == nil {
			h.poll()
		}
		h.pass(time.Second)
	}
	h.t.Fatalf("it did not happen within an hour: %s\n%s", what, h.story())
}

// story is what is on record.
func (h *house) story() string {
	rec, calls, _ := h.records.LoadSession(context.Background(), sesn)
	s := "phase " + string(rec.Phase) + ", waits for " + string(rec.Waiting.For) + " (" + rec.Waiting.Detail + ")\n"
	for _, c := range calls {
		s += "  " + c.ID + " " + c.Name + " " + string(c.State) + " " + c.Reason + "\n"
	}
	return s
}

// call returns a call as it is on record.
func (h *house) call(id string) session.Call {
	h.t.Helper()
	_, calls, err := h.records.LoadSession(context.Background(), sesn)
	i := slices.IndexFunc(calls, func(c session.Call) bool { return c.ID == id })
	if err != nil || i < 0 {
		h.t.Fatalf("there is no call %s on record: %v", id, err)
	}
	return calls[i]
}

func (h *house) phase() session.Phase {
	rec, _, _ := h.records.LoadSession(context.Background(), sesn)
	return rec.Phase
}

// answered fails unless every call of the log that takes a result has exactly
// one, and no tool ran twice.
func (h *house) answered() {
	h.t.Helper()
	h.claude.See(func(l *sessiontest.Log) {
		for _, u := range l.Uses() {
			if n := h.fake.Runs(u.ID); n > 1 {
				h.t.Errorf("the tool of %s ran %d times", u.ID, n)
			}
			if u.Results > 1 || u.Results == 0 && u.Settled == "" {
				h.t.Errorf("%s has %d results", u.ID, u.Results)
			}
		}
	})
}

// use returns the n-th call of the log, from 1.
func (h *house) use(n int) *sessiontest.Use {
	h.t.Helper()
	var u *sessiontest.Use
	h.claude.See(func(l *sessiontest.Log) {
		if len(l.Uses()) >= n {
			u = l.Uses()[n-1]
		}
	})
	if u == nil {
		h.t.Fatalf("the agent made fewer than %d calls", n)
	}
	return u
}

// text is the text of the n-th call's result.
func (h *house) text(n int) string {
	h.t.Helper()
	var s string
	h.claude.See(func(l *sessiontest.Log) { s = string(l.Uses()[n-1].Content) })
	return s
}

// bash is a turn with these commands, all at once.
func bash(commands ...string) func(*sessiontest.Log) {
	return func(l *sessiontest.Log) {
		for _, c := range commands {
			l.Call(false, session.Event{Name: tool.Bash, Input: []byte(`{"command":"` + c + `"}`)})
		}
	}
}

// calls is a turn with these calls.
func calls(events ...session.Event) func(*sessiontest.Log) {
	return func(l *sessiontest.Log) {
		for _, ev := range events {
			l.Call(false, ev)
		}
	}
}

// openSeal seals nothing; what it returns can be told from plain text.
type openSeal struct{}

func (openSeal) Seal(plain []byte) ([]byte, error)  { return append([]byte("sealed "), plain...), nil }
func (openSeal) Open(sealed []byte) ([]byte, error) { return sealed[len("sealed "):], nil }

// gate lets calls of a fake's tool wait until it is opened.
type gate struct {
	open chan struct{}
	once sync.Once
}

func newGate() *gate { return &gate{open: make(chan struct{})} }

func (g *gate) Open() { g.once.Do(func() { close(g.open) }) }

// tool waits for the gate or for the call's end.
func (g *gate) tool(ctx context.Context, c tool.Call) tool.Result {
	select {
	case <-g.open:
		return tool.Text("done " + c.ID)
	case <-ctx.Done():
		return tool.Error("cancelled")
	}
}
