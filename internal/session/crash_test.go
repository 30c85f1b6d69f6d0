package session_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/sandbox/sandboxtest"
	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/session/sessiontest"
	"github.com/berth-dev/berth/internal/tool"
)

// mortal is what a process writes to that is killed at its n-th change: just
// before the change is stored, or just after. From then on it can do nothing
// more, as after kill -9; what is on its way to others may still arrive.
type mortal struct {
	session.Records
	after bool

	mu   sync.Mutex
	left int
}

func (m *mortal) Commit(ctx context.Context, c session.Change) error {
	m.mu.Lock()
	m.left--
	left := m.left
	m.mu.Unlock()
	switch {
	case left > 0:
		return m.Records.Commit(ctx, c)
	case left == 0 && m.after:
		if err := m.Records.Commit(ctx, c); err != nil {
			return err
		}
	}
	return session.ErrFenced
}

// scenario is a life with a bit of everything: parallel calls, an ask, a second
// turn, an interrupt, release and sleep.
func scenario(h *house) {
	h.claude.Latency(20 * time.Millisecond)
	h.fake.CallDelay(300 * time.Millisecond)
	asked, interrupted := false, false
	h.until("the turns are over and the sandbox sleeps", func() bool {
		if h.keeper.Err() != nil {
			h.reopen(func() { h.wrapped = h.records })
		}
		h.claude.See(func(l *sessiontest.Log) {
			asked = asked || len(l.Uses()) > 2
			interrupted = interrupted || len(l.Uses()) > 4
		})
		if asked && h.use(3).Verdict == "" {
			h.claude.Do(func(l *sessiontest.Log) { l.Confirm(l.Uses()[2].ID, "allow") })
		}
		if interrupted && h.use(5).Pending() && time.Since(h.use(5).ProcessedAt) > 3*time.Second {
			h.claude.Do(func(l *sessiontest.Log) { l.Interrupt("") })
		}
		return h.claude.Done() && h.phase() == session.Parked
	})
}

var scenarioTurns = turns{
	calls(session.Event{Name: tool.Bash}, session.Event{Name: tool.Read}, session.Event{Name: tool.Bash, Permission: "ask"}),
	calls(session.Event{Name: tool.Write}, session.Event{Name: tool.Bash, Input: []byte(`{"command":"sleep"}`)}),
	bash("date"),
}

// slow makes the command "sleep" last until it is cancelled.
func slow(ctx context.Context, c tool.Call) tool.Result {
	if string(c.Input) == `{"command":"sleep"}` {
		<-ctx.Done()
	}
	return sandboxtest.Echo(ctx, c)
}

// ok holds what is true when everything is over.
func (h *house) ok() {
	h.t.Helper()
	h.answered()
	lost := slices.Contains(h.records.Events(sesn), event.WorkLost)
	h.claude.See(func(l *sessiontest.Log) {
		for i, u := range l.Uses() {
			if u.IsError && !lost {
				h.t.Errorf("call %d was answered with an error: %s", i+1, u.Content)
			}
		}
	})
	if open, _ := h.records.OpenWork(h.t.Context()); len(open) > 0 {
		h.t.Errorf("work is still open: %v", open)
	}
	if err := h.keeper.Sweep(h.t.Context()); err != nil {
		h.t.Errorf("Sweep: %v", err)
	}
	h.pass(2 * time.Minute)
	if _, err := h.fake.Attach(h.t.Context(), sandbox.Ref{ID: sandbox.ID(sesn)}); !errors.Is(err, sandbox.ErrGone) {
		h.t.Errorf("a sandbox is left over: %v\n%s\n%v", err, h.story(), h.records.Events(sesn))
	}
	if h.keeper.Free() != h.cfg.Capacity {
		h.t.Errorf("free = %d of %d", h.keeper.Free(), h.cfg.Capacity)
	}
}

// TestKilledAtEveryChange is the crash matrix: a process is killed at each change
// that it makes during a whole scenario, before and after the change is stored,
// and the next process goes on with what is there.
func TestKilledAtEveryChange(t *testing.T) {
	changes := 0
	inHouse(t, scenarioTurns, func(h *house) {
		h.fake.Tool(slow)
		scenario(h)
		h.ok()
		changes = h.records.Stored()
	})
	t.Logf("the scenario makes %d changes", changes)
	if changes < 20 {
		t.Fatalf("the scenario makes only %d changes", changes)
	}
	for n := 1; n <= changes; n++ {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d after=%v", n, after), func(t *testing.T) {
				inHouse(t, scenarioTurns, func(h *house) {
					m := &mortal{Records: h.records, left: n, after: after}
					h.fake.Tool(slow)
					h.reopen(func() { h.wrapped = m })
					scenario(h)
					h.ok()
				})
			})
		}
	}
}

// TestKilledAgainAndAgain kills every process after a few changes.
func TestKilledAgainAndAgain(t *testing.T) {
	for each := 2; each < 14; each++ {
		t.Run(fmt.Sprint(each), func(t *testing.T) {
			inHouse(t, scenarioTurns, func(h *house) {
				h.fake.Tool(slow)
				kills := 0
				mortalAgain := func() { h.wrapped = &mortal{Records: h.records, left: each, after: kills%2 == 0} }
				h.reopen(mortalAgain)
				h.until("it has been killed ten times, or is over", func() bool {
					if h.keeper.Err() != nil {
						kills++
						h.reopen(mortalAgain)
					}
					return kills == 10 || h.claude.Done() && h.phase() == session.Parked
				})
				h.reopen(func() { h.wrapped = h.records })
				scenario(h)
				h.ok()
			})
		})
	}
}

func TestRestartInTheMiddleOfACallRunsAndAnswersItOnce(t *testing.T) {
	inHouse(t, turns{bash("sleep"), bash("b")}, func(h *house) {
		g := h.running()
		for range 5 {
			h.reopen(func() {})
			h.pass(7 * time.Second)
		}
		g.Open()
		h.until("the turns are over", h.claude.Done)
		h.answered()
		if h.use(1).IsError {
			t.Errorf("result = %s, want the tool's own", h.text(1))
		}
		if events := h.records.Events(sesn); slices.Contains(events, event.WorkLost) || !slices.Contains(events, event.WorkAdopted) {
			t.Errorf("events = %v, want the work adopted and never lost", events)
		}
	})
}

func TestRestartDuringAHeartbeatKeepsTheLease(t *testing.T) {
	inHouse(t, turns{bash("sleep")}, func(h *house) {
		g := h.running()
		h.claude.Latency(time.Second) // half of it on the way there, half on the way back
		for i := range 30 {
			h.reopen(func() {})
			h.pass(time.Duration(i*50) * time.Millisecond)
		}
		h.claude.Latency(0)
		g.Open()
		h.until("the turn is over", h.claude.Done)
		h.answered()
		if slices.Contains(h.records.Events(sesn), event.WorkLost) || h.use(1).IsError {
			t.Errorf("the lease was lost: %v; the result is %s", h.records.Events(sesn), h.text(1))
		}
	})
}

func TestRestartAfterTheLeaseLapsedStopsWhatRuns(t *testing.T) {
	inHouse(t, turns{bash("sleep")}, func(h *house) {
		h.running()
		h.reopen(func() { h.pass(time.Hour) })
		h.pass(time.Second)
		if w := h.records.Work("work_sesn_1_1"); w.State != session.WorkLost {
			t.Errorf("work on record is %s, want lost", w.State)
		}
		h.pass(time.Second)
		h.until("it is claimed again and answered", h.claude.Done)
		h.answered()
		if got := h.text(1); got != `[{"type":"text","text":"cancelled"}]` {
			t.Errorf("result = %s, want the guest's own of a cancelled call", got)
		}
	})
}

func TestResultThatWasReadyWhenTheLeaseLapsedIsDelivered(t *testing.T) {
	inHouse(t, turns{bash("sleep")}, func(h *house) {
		g := h.running()
		h.reopen(func() { g.Open(); h.pass(time.Hour) })
		h.until("it is claimed again and answered", h.claude.Done)
		h.answered()
		if h.use(1).IsError {
			t.Errorf("result = %s, want the tool's own", h.text(1))
		}
	})
}

func TestRestartWithoutWorkKeepsTheSandboxWarmAndThenLetsItSleep(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		h.until("the work is given back", func() bool { return h.phase() == session.Warm })
		h.reopen(func() {})
		h.pass(30 * time.Second)
		if h.phase() != session.Warm {
			t.Errorf("phase = %s, want warm", h.phase())
		}
		h.pass(time.Minute)
		if h.phase() != session.Parked {
			t.Errorf("phase = %s, want parked", h.phase())
		}
	})
}

func TestRestartOfTheHostMakesNoSandboxes(t *testing.T) {
	inHouse(t, turns{bash("sleep")}, func(h *house) {
		h.running()
		h.reopen(func() {
			h.pass(time.Hour)
			h.fake.LoseSandbox(sandbox.ID(sesn), sandbox.Exit{Code: -1, Reason: "killed"})
		})
		h.pass(time.Minute)
		if n := len(h.fake.Creates()); n != 1 {
			t.Errorf("%d sandboxes were made", n)
		}
		if h.phase() != session.Parked {
			t.Errorf("phase = %s, want parked", h.phase())
		}
		h.until("it is claimed again and answered", h.claude.Done)
		h.answered()
	})
}

func TestPersonWhoOpensWhileASandboxIsLookedForGetsOne(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		h.until("the work is given back", func() bool { return h.phase() == session.Warm })
		h.reopen(func() { h.fake.LoseSandbox(sandbox.ID(sesn), sandbox.Exit{}) })
		if _, err := h.keeper.Open(h.t.Context(), sesn); err != nil {
			t.Errorf("Open: %v", err)
		}
	})
}

func TestLeavingWhileASandboxIsAdoptedLeavesItRunning(t *testing.T) {
	inHouse(t, turns{bash("sleep")}, func(h *house) {
		g := h.running()
		h.reopen(func() { h.backend = slowBackend{h.fake} })
		h.pass(3 * time.Second) // the attach is under way
		h.reopen(func() { h.backend = h.fake })
		g.Open()
		h.until("the turn is over", h.claude.Done)
		h.answered()
		if h.use(1).IsError {
			t.Errorf("result = %s, want the tool's own", h.text(1))
		}
	})
}

// slowBackend is a fake whose guests take ten seconds to answer.
type slowBackend struct{ *sandboxtest.Fake }

func (b slowBackend) Attach(ctx context.Context, ref sandbox.Ref) (sandbox.Sandbox, error) {
	sb, err := b.Fake.Attach(ctx, ref)
	return slowBox{sb}, err
}

type slowBox struct{ sandbox.Sandbox }

func (b slowBox) Guest(ctx context.Context) (sandbox.Guest, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(10 * time.Second):
		return b.Sandbox.Guest(ctx)
	}
}

func TestItemThatWasNeverAcknowledgedIsNotStopped(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		it := h.claude.Poll()
		if _, err := h.keeper.Record(h.t.Context(), *it); err != nil {
			t.Fatal(err)
		}
		h.reopen(func() {}) // killed before the acknowledgement
		h.pass(time.Second)
		if s := h.claude.Stops(); len(s) > 0 {
			t.Errorf("stops = %v, want none: it may be somebody else's", s)
		}
		h.until("it is claimed properly", h.claude.Done)
		h.answered()
	})
}

func TestItemThatWasAcknowledgedButNotBeatenIsAdopted(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		it := h.claude.Hand()
		if _, err := h.keeper.Record(h.t.Context(), it); err != nil {
			t.Fatal(err)
		}
		h.reopen(func() {})
		h.pass(30 * time.Second)
		if !h.claude.Done() {
			t.Errorf("the item was not adopted\n%s", h.story())
		}
		h.answered()
	})
}

func TestAbandonedItemIsNotAdopted(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		it := h.claude.Hand()
		w, err := h.keeper.Record(h.t.Context(), it)
		if err == nil {
			err = h.keeper.Abandon(h.t.Context(), w, "it could not be acknowledged")
		}
		if err != nil {
			t.Fatal(err)
		}
		h.reopen(func() {})
		h.pass(time.Minute)
		if n := h.claude.Count("heartbeat"); n > 0 {
			t.Errorf("%d heartbeats for an item that is not ours", n)
		}
	})
}

func TestItemOfAnEnvironmentThatIsNotConfiguredIsDropped(t *testing.T) {
	inHouse(t, turns{bash("sleep")}, func(h *house) {
		h.running()
		h.noDoor = true
		h.reopen(func() {})
		h.pass(time.Second)
		if w := h.records.Work("work_sesn_1_1"); w.State != session.WorkLost || w.Secret != nil {
			t.Errorf("work on record = %+v, want it lost and its secret erased", w)
		}
	})
}

func TestSandboxesOfNobodyAreSwept(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		h.until("the work is given back", func() bool { return h.phase() == session.Warm })
		stranger, err := h.fake.Create(h.t.Context(), sandbox.Spec{ID: sandbox.ID("sesn_9"), Session: "sesn_9"})
		if err != nil {
			t.Fatal(err)
		}
		if err := h.keeper.Sweep(h.t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := h.fake.Attach(h.t.Context(), stranger.Ref()); !errors.Is(err, sandbox.ErrGone) {
			t.Errorf("the stranger runs on: %v", err)
		}
		if _, err := h.fake.Attach(h.t.Context(), sandbox.Ref{ID: sandbox.ID(sesn)}); err != nil {
			t.Errorf("a warm sandbox was swept: %v", err)
		}
	})
}

func TestFullStorePostsNothingThatIsNotOnRecord(t *testing.T) {
	inHouse(t, turns{bash("a"), bash("b")}, func(h *house) {
		g := h.running()
		full := errors.New("database or disk is full")
		h.records.Refuse(full)
		g.Open()
		h.pass(20 * time.Second)
		if posts := h.claude.Posts(); len(posts) > 0 {
			t.Errorf("posted while nothing could be recorded: %v", posts)
		}
		h.records.Refuse(nil)
		h.until("the turns are over", h.claude.Done)
		h.answered()
		if h.use(1).IsError {
			t.Errorf("result = %s, want the tool's own", h.text(1))
		}
	})
}

func TestStoreThatTakesAndDeniesItLosesNothing(t *testing.T) {
	inHouse(t, scenarioTurns, func(h *house) {
		h.fake.Tool(slow)
		n := 0
		h.records.After = func(int, session.Change) error {
			if n++; n%3 == 0 {
				return errors.New("the answer of the database was lost")
			}
			return nil
		}
		scenario(h)
		h.ok()
	})
}

func TestProcessThatIsReplacedStopsAtOnce(t *testing.T) {
	inHouse(t, turns{bash("sleep")}, func(h *house) {
		g := h.running()
		h.records.Refuse(session.ErrFenced)
		g.Open()
		h.pass(11 * time.Second) // at the latest with the next heartbeat
		select {
		case <-h.keeper.Done():
		default:
			t.Fatal("the keeper goes on")
		}
		if !errors.Is(h.keeper.Err(), session.ErrFenced) || len(h.claude.Posts()) > 0 {
			t.Errorf("Err = %v, posts = %v", h.keeper.Err(), h.claude.Posts())
		}
		if err := h.keeper.Accept(h.t.Context(), h.claude.Hand(), session.Work{}, nil); err == nil {
			t.Error("it takes more work")
		}
	})
}
