package session_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/session/sessiontest"
	"github.com/berth-dev/berth/internal/tool"
)

type turns = []func(*sessiontest.Log)

func TestWorkIsDoneAndGivenBackAndTheSandboxSleeps(t *testing.T) {
	inHouse(t, turns{bash("ls", "pwd"), bash("date")}, func(h *house) {
		h.until("the turns are over", h.claude.Done)
		h.answered()
		if got, want := h.text(1), `[{"type":"text","text":"bash {\"command\":\"ls\"}"}]`; got != want {
			t.Errorf("result = %s, want %s", got, want)
		}
		h.until("the work is given back", func() bool { return h.phase() == session.Warm })
		if s := h.claude.Stops(); len(s) != 1 {
			t.Errorf("stops = %v, want the one item", s)
		}
		if w := h.records.Work("work_sesn_1_1"); w.State != session.WorkStopped || w.Secret != nil {
			t.Errorf("work on record = %+v, want it stopped and its secret erased", w)
		}
		h.until("the sandbox sleeps", func() bool { return h.phase() == session.Parked })
		if n := len(h.fake.Creates()); n != 1 {
			t.Errorf("%d sandboxes were made", n)
		}
		if h.keeper.Free() != h.cfg.Capacity {
			t.Errorf("free = %d of %d", h.keeper.Free(), h.cfg.Capacity)
		}
		// A new message wakes it.
		h.claude.Do(func(l *sessiontest.Log) { bash("again")(l); l.Idle() })
		h.until("the next turn is over", h.claude.Done)
		h.answered()
		if n := len(h.fake.Creates()); n != 2 {
			t.Errorf("%d sandboxes were made, want a second one", n)
		}
	})
}

func TestWarmSandboxServesTheNextItem(t *testing.T) {
	inHouse(t, turns{bash("ls")}, func(h *house) {
		h.until("the work is given back", func() bool { return h.phase() == session.Warm })
		h.claude.Do(func(l *sessiontest.Log) { bash("again")(l); l.Idle() })
		h.until("the next turn is over", h.claude.Done)
		h.answered()
		if n := len(h.fake.Creates()); n != 1 {
			t.Errorf("%d sandboxes were made", n)
		}
	})
}

func TestNoSandboxIsMadeWhereNothingRuns(t *testing.T) {
	inHouse(t, nil, func(h *house) {
		h.claude.Do(func(l *sessiontest.Log) { l.Idle() })
		h.accept(h.claude.Hand())
		h.until("the work is given back", func() bool { return len(h.claude.Stops()) == 1 })
		if n := len(h.fake.Creates()); n != 0 {
			t.Errorf("%d sandboxes were made", n)
		}
	})
}

func TestEmptyOutputIsSaidToBeEmpty(t *testing.T) {
	inHouse(t, turns{bash("true")}, func(h *house) {
		h.fake.Tool(func(context.Context, tool.Call) tool.Result { return tool.Text("") })
		h.until("the turn is over", h.claude.Done)
		if got, want := h.text(1), `[{"type":"text","text":"(no output)"}]`; got != want {
			t.Errorf("result = %s, want %s", got, want)
		}
	})
}

func TestAskedCallWaitsForItsVerdict(t *testing.T) {
	for _, verdict := range []string{"allow", "deny"} {
		t.Run(verdict, func(t *testing.T) {
			inHouse(t, turns{calls(session.Event{Name: tool.Bash, Permission: "ask"})}, func(h *house) {
				h.poll()
				h.pass(5 * time.Minute)
				if c := h.call(h.use(1).ID); c.State != session.Held {
					t.Fatalf("the call is %s, want held", c.State)
				}
				if h.keeper.Free() != h.cfg.Capacity {
					t.Errorf("a session that waits for a person takes a slot: %d of %d are free", h.keeper.Free(), h.cfg.Capacity)
				}
				h.claude.Do(func(l *sessiontest.Log) { l.Confirm(l.Uses()[0].ID, verdict) })
				h.until("it is answered", h.claude.Done)
				h.until("the work is given back", func() bool { return h.phase() != session.Active })
				h.until("all slots are free", func() bool { return h.keeper.Free() == h.cfg.Capacity })
				if ran := h.fake.Runs(h.use(1).ID); (ran == 1) != (verdict == "allow") {
					t.Errorf("after %s the tool ran %d times", verdict, ran)
				}
			})
		})
	}
}

func TestInterruptStopsARunningCallAndPostsNothing(t *testing.T) {
	inHouse(t, turns{bash("sleep"), bash("next")}, func(h *house) {
		g := newGate()
		h.fake.Tool(g.tool)
		h.until("the call runs", func() bool { return len(h.fake.Records()) == 1 })
		h.claude.Do(func(l *sessiontest.Log) { l.Interrupt("") })
		h.until("the next one runs", func() bool { return len(h.fake.Records()) == 2 })
		g.Open()
		h.until("it is answered", h.claude.Done)
		h.answered()
		if h.use(1).Results != 0 || h.use(2).Results != 1 {
			t.Errorf("results = %d, %d; want 0, 1", h.use(1).Results, h.use(2).Results)
		}
	})
}

func TestSessionThatIsOverGetsNothing(t *testing.T) {
	for _, how := range []string{"terminated", "archived", "deleted"} {
		t.Run(how, func(t *testing.T) {
			inHouse(t, turns{bash("ls")}, func(h *house) {
				if how == "archived" {
					h.claude.SetInfo(func(i *session.Info) { i.Archived = true })
				} else {
					h.claude.Do(func(l *sessiontest.Log) { l.End(how) })
				}
				h.accept(h.claude.Hand())
				h.pass(30 * time.Second)
				if s := h.claude.Stops(); len(s) != 1 {
					t.Errorf("stops = %v, want the item to be finished", s)
				}
				if n := len(h.fake.Creates()); n != 0 {
					t.Errorf("%d sandboxes were made", n)
				}
				if h.phase() != session.Over {
					t.Errorf("phase = %s, want over", h.phase())
				}
			})
		})
	}
}

func TestEndInTheMiddleRemovesEverything(t *testing.T) {
	inHouse(t, turns{bash("sleep")}, func(h *house) {
		h.fake.Tool(newGate().tool)
		h.until("the call runs", func() bool { return len(h.fake.Records()) == 1 })
		h.claude.Do(func(l *sessiontest.Log) { l.End("terminated") })
		h.pass(time.Minute)
		if refs, _ := h.fake.List(h.t.Context()); len(refs) > 0 || h.phase() != session.Over {
			t.Errorf("left over: %v, phase %s", refs, h.phase())
		}
		if posts := h.claude.Posts(); len(posts) > 0 {
			t.Errorf("posted: %v", posts)
		}
	})
}

func TestEndOfASessionWithoutWorkRemovesEverything(t *testing.T) {
	inHouse(t, turns{bash("ls")}, func(h *house) {
		h.until("the sandbox sleeps", func() bool { return h.phase() == session.Parked })
		if refs, _ := h.fake.List(h.t.Context()); len(refs) != 1 {
			t.Fatalf("workspaces: %v, want one", refs)
		}
		if err := h.keeper.End(h.t.Context(), sesn, "deleted"); err != nil {
			t.Fatal(err)
		}
		h.pass(time.Second)
		if refs, _ := h.fake.List(h.t.Context()); len(refs) > 0 || h.phase() != session.Over {
			t.Errorf("left over: %v, phase %s", refs, h.phase())
		}
		if _, err := h.keeper.Open(h.t.Context(), sesn); fault.CodeOf(err) != fault.Gone {
			t.Errorf("Open = %v, want gone", err)
		}
		if err := h.keeper.End(h.t.Context(), "sesn_2", "deleted"); fault.CodeOf(err) != fault.NotFound {
			t.Errorf("End of an unknown session = %v, want not found", err)
		}
	})
}

func TestResultsWhoseAnswersAreLostArePostedOnce(t *testing.T) {
	for _, strict := range []bool{true, false} {
		inHouse(t, turns{bash("a", "b", "c"), bash("d")}, func(h *house) {
			h.claude.Do(func(l *sessiontest.Log) { l.Strict = strict })
			h.claude.Decide(func(r sessiontest.Request) (sessiontest.Fate, error) {
				switch {
				case r.Kind == "answer" && r.N%3 == 1:
					return sessiontest.Applied, nil
				case r.Kind == "answer" && r.N%3 == 2:
					return sessiontest.Lost, nil
				}
				return sessiontest.Arrives, nil
			})
			h.until("the turns are over", h.claude.Done)
			h.answered()
		})
	}
}

func TestRefusedResultDoesNotHangTheSession(t *testing.T) {
	inHouse(t, turns{bash("a"), bash("b")}, func(h *house) {
		h.claude.Decide(func(r sessiontest.Request) (sessiontest.Fate, error) {
			if r.Kind == "answer" && r.N <= 2 {
				return sessiontest.Refused, &session.Refusal{Status: 413, Type: "request_too_large", Message: "too large"}
			}
			return sessiontest.Arrives, nil
		})
		h.until("the turns are over", h.claude.Done)
		h.answered()
		if !h.use(1).IsError || !strings.Contains(h.text(1), "could not be delivered") {
			t.Errorf("result = %s, want one that says why there is no other", h.text(1))
		}
	})
}

func TestCutAndSilentStreamsLoseNothing(t *testing.T) {
	for name, trouble := range map[string]func(*house){
		"cut":   func(h *house) { h.claude.CutStreams() },
		"mute":  func(h *house) { h.claude.Mute(true) },
		"never": func(h *house) { h.claude.CutStreams() },
	} {
		t.Run(name, func(t *testing.T) {
			inHouse(t, turns{bash("a"), bash("b"), bash("c")}, func(h *house) {
				if name == "never" {
					h.claude.Decide(func(r sessiontest.Request) (sessiontest.Fate, error) {
						if r.Kind == "stream" {
							return sessiontest.Refused, &session.Refusal{Status: 503}
						}
						return sessiontest.Arrives, nil
					})
				}
				h.until("the turns are over", func() bool { trouble(h); return h.claude.Done() })
				h.answered()
			})
		})
	}
}

func TestHistoryThatFailsIsReadAgain(t *testing.T) {
	inHouse(t, turns{bash("a"), bash("b")}, func(h *house) {
		h.claude.Decide(func(r sessiontest.Request) (sessiontest.Fate, error) {
			if r.Kind == "history" && r.N%3 != 0 {
				return sessiontest.Refused, &session.Refusal{Status: 529}
			}
			if r.Kind == "history" && r.N == 3 {
				return sessiontest.Hangs, nil
			}
			return sessiontest.Arrives, nil
		})
		h.until("the turns are over", h.claude.Done)
		h.answered()
	})
}

func TestHistoryIsNotReadFromTheBeginningEveryTime(t *testing.T) {
	inHouse(t, nil, func(h *house) {
		h.claude.Do(func(l *sessiontest.Log) {
			for range 500 {
				l.Event("agent.message")
			}
		})
		h.pass(time.Minute)
		h.claude.Do(func(l *sessiontest.Log) { bash("a")(l); l.Idle() })
		h.until("the turn is over", h.claude.Done)
		first := h.claude.Listed()
		for range 20 {
			h.claude.CutStreams()
			h.pass(time.Second)
		}
		if more := h.claude.Listed() - first; more > 20*20 {
			t.Errorf("20 reconnects listed %d events, after %d in the beginning", more, first)
		}
	})
}

func TestSandboxThatCannotStartIsAnAnswer(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		h.fake.StartError(fault.New(fault.Unavailable, "the host has no memory left"))
		h.until("the first is answered", func() bool { return h.use(1).Results == 1 })
		h.fake.StartError(nil)
		h.claude.Do(func(l *sessiontest.Log) { bash("b")(l); l.Idle() })
		h.until("the turns are over", h.claude.Done)
		h.answered()
		if !h.use(1).IsError || !strings.Contains(h.text(1), "no memory left") || h.use(2).IsError {
			t.Errorf("results = %s, %s; want an error that says why, and a result", h.text(1), h.text(2))
		}
		if !slices.Contains(h.records.Events(sesn), event.SandboxFailed) {
			t.Error("the failure is not in the session's log")
		}
	})
}

func TestLostSandboxIsAnAnswerAndIsReplaced(t *testing.T) {
	inHouse(t, turns{bash("a", "b"), bash("c")}, func(h *house) {
		g := newGate()
		h.fake.Tool(g.tool)
		h.until("the call runs", func() bool { return len(h.fake.Records()) == 1 })
		h.fake.LoseSandbox(sandbox.ID(sesn), sandbox.Exit{Code: -1, Reason: "out of memory"})
		g.Open()
		h.until("the turns are over", h.claude.Done)
		h.answered()
		if !h.use(1).IsError || !strings.Contains(h.text(1), "out of memory") || h.use(2).IsError {
			t.Errorf("results = %s, %s; want an error that says why, and a result", h.text(1), h.text(2))
		}
	})
}

func TestBrokenConnectionToTheGuestIsNoEnd(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		g := newGate()
		h.fake.Tool(g.tool)
		h.until("the call runs", func() bool { return len(h.fake.Records()) == 1 })
		for range 5 {
			h.fake.DropConnection(sandbox.ID(sesn))
			h.pass(3 * time.Second)
		}
		g.Open()
		h.until("the turn is over", h.claude.Done)
		h.answered()
		if h.use(1).IsError {
			t.Errorf("result = %s, want the tool's own", h.text(1))
		}
	})
}

func TestGuestThatNeverAnswersIsBounded(t *testing.T) {
	inHouse(t, turns{bash("a"), bash("b")}, func(h *house) {
		never := make(chan struct{})
		defer close(never)
		h.fake.Tool(func(_ context.Context, c tool.Call) tool.Result {
			if strings.Contains(string(c.Input), `"a"`) {
				<-never // heeds nothing
			}
			return tool.Text("ok")
		})
		begun := time.Now()
		h.until("the turns are over", h.claude.Done)
		h.answered()
		if took := time.Since(begun); took > 4*time.Minute {
			t.Errorf("it took %v", took)
		}
		if !h.use(1).IsError {
			t.Errorf("result = %s, want an error", h.text(1))
		}
	})
}

func TestTwoItemsForOneSessionDoNotTakeTurns(t *testing.T) {
	inHouse(t, turns{bash("a"), bash("b")}, func(h *house) {
		g := newGate()
		h.fake.Tool(g.tool)
		first := h.claude.Hand()
		h.accept(first)
		h.until("the call runs", func() bool { return len(h.fake.Records()) == 1 })
		h.accept(h.claude.Hand())
		h.pass(time.Minute)
		g.Open()
		h.until("the turns are over", h.claude.Done)
		h.until("the work is given back", func() bool { return h.phase() != session.Active })
		h.answered()
		if s := h.claude.Stops(); len(s) != 2 || s[0] != first.ID {
			t.Errorf("stops = %v, want each item once, the first one first", s)
		}
		if h.keeper.Free() != h.cfg.Capacity {
			t.Errorf("free = %d of %d", h.keeper.Free(), h.cfg.Capacity)
		}
	})
}

func TestOnlyTheNewestOfManyItemsIsWorkedOn(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		h.keeper.Close()
		h.cfg.Capacity = 10
		h.open()
		for range 4 {
			h.accept(h.claude.Hand())
		}
		h.until("the turn is over", h.claude.Done)
		h.until("the work is given back", func() bool { return h.phase() != session.Active })
		h.answered()
		if s := h.claude.Stops(); len(s) != 4 {
			t.Errorf("stops = %v, want four", s)
		}
		if h.keeper.Free() != h.cfg.Capacity {
			t.Errorf("free = %d of %d", h.keeper.Free(), h.cfg.Capacity)
		}
	})
}

func TestCapacityBoundsReservations(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		for n, want := range []bool{true, true, false} {
			if got := h.keeper.Reserve(); got != want {
				t.Errorf("reservation %d of 2: %t, want %t", n+1, got, want)
			}
		}
		h.keeper.Unreserve()
		select {
		case <-h.keeper.Freed():
		default:
			t.Error("a freed slot was not told")
		}
		if h.keeper.Free() != 1 {
			t.Errorf("free = %d, want 1", h.keeper.Free())
		}
		h.keeper.Unreserve()
	})
}
