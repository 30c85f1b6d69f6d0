package session_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/sandbox/sandboxtest"
	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/session/sessiontest"
	"github.com/berth-dev/berth/internal/tool"
)

// running waits until the first call's tool runs and returns what ends it.
func (h *house) running() *gate {
	h.t.Helper()
	g := newGate()
	h.fake.Tool(g.tool)
	h.until("the call runs", func() bool { return len(h.fake.Records()) == 1 })
	return g
}

// kind is a knob for one kind of request; all others arrive.
func kind(name string, decide func(n int) (sessiontest.Fate, error)) func(sessiontest.Request) (sessiontest.Fate, error) {
	return func(r sessiontest.Request) (sessiontest.Fate, error) {
		if r.Kind == name {
			return decide(r.N)
		}
		return sessiontest.Arrives, nil
	}
}

func TestLostLeaseStopsTheCallWithinASecondAndPostsNothing(t *testing.T) {
	inHouse(t, turns{bash("sleep")}, func(h *house) {
		h.running()
		it := "work_sesn_1_1"
		h.claude.Steal(it)
		beats := h.claude.Count("heartbeat")
		h.until("the next heartbeat", func() bool { return h.claude.Count("heartbeat") > beats })
		h.pass(time.Second)
		if c := h.call(h.use(1).ID); c.State != session.Finished || !c.IsError {
			t.Errorf("a second after the lease was lost the call is %s", c.State)
		}
		h.pass(time.Minute)
		if posts, stops := h.claude.Posts(), h.claude.Stops(); len(posts) > 0 || len(stops) > 0 {
			t.Errorf("posts = %v, stops = %v; want none: the item is somebody else's", posts, stops)
		}
		if w := h.records.Work(it); w.State != session.WorkLost {
			t.Errorf("work on record is %s, want lost", w.State)
		}
		if !slices.Contains(h.records.Events(sesn), event.WorkLost) {
			t.Error("the loss is not in the session's log")
		}
	})
}

func TestLapsedLeaseStopsTheCallAndPostsNothing(t *testing.T) {
	inHouse(t, turns{bash("sleep")}, func(h *house) {
		h.running()
		h.pass(11 * time.Second) // a beat has been made
		down := time.Now()
		h.claude.Decide(func(r sessiontest.Request) (sessiontest.Fate, error) { return sessiontest.Hangs, nil })
		for range 60 {
			h.pass(time.Second)
			if h.call(h.use(1).ID).State == session.Finished {
				break
			}
		}
		if took := time.Since(down); took > sessiontest.TTL+time.Second {
			t.Errorf("the call was stopped after %v; the lease lasts %v", took, sessiontest.TTL)
		}
		h.claude.Decide(nil)
		h.until("it is claimed again and answered", h.claude.Done)
		h.answered()
		if s := h.claude.Stops(); len(s) > 0 {
			t.Errorf("stops = %v, want none for a lease that may have lapsed", s)
		}
	})
}

func TestHeartbeatsThatFailNowAndThenDoNoHarm(t *testing.T) {
	inHouse(t, turns{bash("sleep")}, func(h *house) {
		g := h.running()
		h.claude.Decide(kind("heartbeat", func(n int) (sessiontest.Fate, error) {
			switch n % 3 {
			case 0:
				return sessiontest.Lost, nil
			case 1:
				return sessiontest.Refused, &session.Refusal{Status: 529}
			}
			return sessiontest.Arrives, nil
		}))
		h.pass(100 * time.Second)
		g.Open()
		h.until("the turn is over", h.claude.Done)
		h.answered()
		if h.use(1).IsError || len(h.fake.Records()) != 1 {
			t.Errorf("result = %s", h.text(1))
		}
	})
}

func TestLostAnswerOfAHeartbeatCountsAsALostLease(t *testing.T) {
	// The platform took the beat, so that its token is not ours any more: to go on
	// would be to guess that nobody else has it.
	inHouse(t, turns{bash("sleep")}, func(h *house) {
		h.running()
		lost := false
		h.claude.Decide(kind("heartbeat", func(n int) (sessiontest.Fate, error) {
			if !lost {
				lost = true
				return sessiontest.Applied, nil
			}
			return sessiontest.Arrives, nil
		}))
		h.pass(15 * time.Second)
		if c := h.call(h.use(1).ID); c.State != session.Finished {
			t.Errorf("the call is %s, want it stopped", c.State)
		}
		h.until("the lease lapses and the item is claimed again", h.claude.Done)
		h.answered()
	})
}

func TestItemThatIsAskedBackIsHandedBack(t *testing.T) {
	inHouse(t, turns{bash("sleep")}, func(h *house) {
		h.running()
		h.claude.AskBack("work_sesn_1_1")
		h.until("it is handed back", func() bool { return len(h.claude.Stops()) > 0 })
		h.pass(time.Second)
		if s := h.claude.Stops(); len(s) != 1 || h.claude.State("work_sesn_1_1") != "stopped" {
			t.Errorf("stops = %v", s)
		}
		if posts := h.claude.Posts(); len(posts) > 0 {
			t.Errorf("posts = %v, want none", posts)
		}
		h.until("a new item brings the answer", h.claude.Done)
		h.answered()
	})
}

func TestRefusedCredentialEndsTheRun(t *testing.T) {
	for _, request := range []string{"heartbeat", "history", "stream", "answer"} {
		t.Run(request, func(t *testing.T) {
			inHouse(t, turns{bash("a")}, func(h *house) {
				h.claude.Decide(kind(request, func(n int) (sessiontest.Fate, error) {
					return sessiontest.Refused, &session.Refusal{Status: 403, Type: "permission_error"}
				}))
				h.accept(h.claude.Hand())
				h.until("the item is given back", func() bool { return len(h.claude.Stops()) > 0 })
				h.claude.Decide(nil)
				h.until("the next item does better", h.claude.Done)
				h.answered()
			})
		})
	}
}

func TestLeaseLostWhileTheRunEndsIsNotStopped(t *testing.T) {
	inHouse(t, turns{bash("sleep")}, func(h *house) {
		h.reopen(func() { h.backend = deafBackend{h.fake} })
		h.running()
		h.pass(5 * time.Second)
		// The run ends, which takes as long as the call needs to be given up; the
		// lease goes meanwhile.
		h.claude.Decide(kind("history", func(n int) (sessiontest.Fate, error) {
			return sessiontest.Refused, &session.Refusal{Status: 403}
		}))
		h.claude.CutStreams()
		h.pass(time.Second)
		h.claude.Steal("work_sesn_1_1")
		h.pass(time.Minute)
		if s := h.claude.Stops(); len(s) > 0 {
			t.Errorf("stops = %v, want none", s)
		}
		if w := h.records.Work("work_sesn_1_1"); w.State != session.WorkLost {
			t.Errorf("work on record is %s, want lost", w.State)
		}
	})
}

func TestCallThatIgnoresALostLeaseIsFencedFromOutside(t *testing.T) {
	inHouse(t, turns{bash("sleep")}, func(h *house) {
		h.reopen(func() { h.backend = deafBackend{h.fake} })
		h.running()
		h.claude.Steal("work_sesn_1_1")
		h.pass(30 * time.Second)
		if _, err := h.fake.Attach(h.t.Context(), sandbox.Ref{ID: sandbox.ID(sesn)}); !errors.Is(err, sandbox.ErrGone) {
			t.Errorf("the sandbox still runs: %v", err)
		}
	})
}

// deafBackend is a fake whose guests do not heed Cancel.
type deafBackend struct{ *sandboxtest.Fake }

func (b deafBackend) Create(ctx context.Context, s sandbox.Spec) (sandbox.Sandbox, error) {
	sb, err := b.Fake.Create(ctx, s)
	return deafBox{sb}, err
}

type deafBox struct{ sandbox.Sandbox }

func (b deafBox) Guest(ctx context.Context) (sandbox.Guest, error) {
	g, err := b.Sandbox.Guest(ctx)
	return deafGuest{g}, err
}

type deafGuest struct{ sandbox.Guest }

func (deafGuest) Cancel(context.Context, string) error { return nil }

func TestLostLeaseStopsTheCallAlsoWhileNothingCanBeStored(t *testing.T) {
	inHouse(t, turns{bash("sleep", "b")}, func(h *house) {
		stopped := make(chan time.Time, 1)
		h.fake.Tool(func(ctx context.Context, c tool.Call) tool.Result {
			<-ctx.Done()
			stopped <- time.Now()
			return tool.Error("cancelled")
		})
		h.until("the call runs", func() bool { return len(h.fake.Records()) == 1 })
		h.records.Refuse(errors.New("database or disk is full"))
		h.claude.Do(func(l *sessiontest.Log) { l.Event("agent.message") }) // the actor tries to store it
		h.claude.Steal("work_sesn_1_1")
		beats := h.claude.Count("heartbeat")
		h.until("the next heartbeat", func() bool { return h.claude.Count("heartbeat") > beats })
		h.pass(time.Second)
		select {
		case <-stopped:
		default:
			t.Error("the call runs on")
		}
		h.records.Refuse(nil)
	})
}

func TestCallWhoseLeaseWentWhileItWasRecordedDoesNotRun(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		slow := &slowRecords{Records: h.records, gate: newGate()}
		h.reopen(func() { h.wrapped = slow })
		h.poll()
		h.pass(time.Second)
		h.claude.Steal("work_sesn_1_1")
		h.pass(15 * time.Second) // the lease is known to be lost by now
		slow.gate.Open()
		h.pass(30 * time.Second)
		if n := len(h.fake.Records()); n > 0 {
			t.Errorf("%d calls reached the guest", n)
		}
		h.accept(h.claude.Hand())
		h.until("it is answered", h.claude.Done)
		h.answered()
		if n := len(h.fake.Records()); n > 0 || !h.use(1).IsError {
			t.Errorf("%d calls reached the guest; result %s", n, h.text(1))
		}
	})
}

// slowRecords store no started call before the gate is open.
type slowRecords struct {
	session.Records
	gate *gate
}

func (r *slowRecords) Commit(ctx context.Context, c session.Change) error {
	if slices.ContainsFunc(c.Calls, func(c *session.Call) bool { return c.State == session.Started }) {
		select {
		case <-r.gate.open:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return r.Records.Commit(ctx, c)
}
