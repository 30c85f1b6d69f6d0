package session_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/tool"
)

// script feeds one machine by hand. Its platform never gets ahead of it: tests
// make events with at and choose when and how they arrive.
type script struct {
	t     *testing.T
	state *session.State
	now   time.Time
	last  session.Outcome
}

func newScript(t *testing.T) *script {
	rules := session.Rules{Owns: session.Owns, ReleaseAfter: 10 * time.Second, ReadEvery: time.Minute, SandboxTries: 2}
	return &script{t: t, state: session.NewState("sesn_1", rules), now: begin}
}

// in gives inputs, a millisecond apart, and returns the effects of all of them.
func (s *script) in(inputs ...session.Input) []string {
	s.t.Helper()
	var effects []string
	for _, in := range inputs {
		s.now = s.now.Add(time.Millisecond)
		s.last = s.state.Step(s.now, in)
		for _, e := range s.last.Effects {
			effects = append(effects, name(e))
		}
	}
	return effects
}

// pass lets time pass and ticks.
func (s *script) pass(d time.Duration) []string {
	s.t.Helper()
	s.now = s.now.Add(d)
	return s.in(session.Tick{})
}

func (s *script) want(got []string, want ...string) {
	s.t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		s.t.Fatalf("effects (-want +got):\n%s", diff)
	}
}

// begin claims, connects and reads a history that holds the events.
func (s *script) begin(events ...session.Event) []string {
	s.t.Helper()
	s.want(s.in(session.Claimed{Alive: true}, session.Connected{}), "read 1 since the beginning")
	return s.in(listed(1, events...), session.HistoryRead{Read: 1})
}

// name is an effect in words.
func name(e session.Effect) string {
	switch e := e.(type) {
	case session.ReadHistory:
		since := "the beginning"
		if !e.Since.IsZero() {
			since = e.Since.Sub(begin).String()
		}
		return fmt.Sprintf("read %d since %s", e.Read, since)
	case session.StartSandbox:
		return "start sandbox"
	case session.RunCall:
		return "run " + e.ID
	case session.RecallCall:
		return "recall " + e.ID
	case session.CancelCall:
		return "cancel " + e.ID
	case session.Forget:
		return fmt.Sprint("forget ", e.IDs)
	case session.Post:
		return "post " + e.ID
	case session.ReplaceSandbox, session.ReloadCall, session.Warn:
	case session.CheckSession:
		return "check session"
	case session.StopWork:
		return fmt.Sprintf("stop work (tell %v, remove %v): %s", e.Stop, e.Remove, e.Why)
	}
	return fmt.Sprintf("%T", e)
}

func at(seconds float64, ev session.Event) session.Event {
	ev.ProcessedAt = begin.Add(time.Duration(seconds * float64(time.Second)))
	return ev
}

func use(id, name string) session.Event {
	return session.Event{ID: id, Type: "agent.tool_use", Name: name, Input: []byte(`{}`)}
}

func ask(id string) session.Event {
	ev := use(id, tool.Bash)
	ev.Permission = "ask"
	return ev
}

func confirm(id, call, verdict string) session.Event {
	return session.Event{ID: id, Type: "user.tool_confirmation", Refers: call, Verdict: verdict}
}

func idle(id, reason string, requires ...string) session.Event {
	return session.Event{ID: id, Type: "session.status_idle", StopReason: reason, Requires: requires}
}

func typed(id, typ string) session.Event { return session.Event{ID: id, Type: typ} }

func streamed(events ...session.Event) session.Input { return session.Observed{Events: events} }

func listed(read int, events ...session.Event) session.Input {
	return session.Observed{Events: events, Read: read}
}

func TestCallRunsAndItsResultIsPosted(t *testing.T) {
	s := newScript(t)
	s.want(s.begin(at(-1, use("c1", tool.Bash))), "start sandbox")
	s.want(s.in(session.SandboxUp{Instance: "i1"}), "run c1")
	s.want(s.in(session.CallFinished{ID: "c1", Result: tool.Text("ok")}), "post c1")
	s.want(s.in(session.PostDone{ID: "c1"}), "forget [c1]")
}

func TestNothingRunsBeforeTheHistoryIsRead(t *testing.T) {
	s := newScript(t)
	s.in(session.Claimed{}, session.Connected{})
	s.want(s.in(streamed(at(0, use("c1", tool.Bash)))))
	s.want(s.in(session.HistoryFailed{Read: 1}))
	s.want(s.pass(time.Second), "read 2 since the beginning")
	s.want(s.in(listed(2, at(0, use("c1", tool.Bash))), session.HistoryRead{Read: 2}), "start sandbox")
}

func TestReadOfAnEarlierRunProvesNothing(t *testing.T) {
	s := newScript(t)
	s.begin(at(-1, use("c1", tool.Bash)))
	s.in(session.SandboxUp{Instance: "i1"}, session.Disconnected{}, session.Connected{}) // read 2 is under way
	s.in(session.CallFinished{ID: "c1", Result: tool.Text("ok")})                        // and so is a post
	s.in(session.LeaseLost{Why: "412"}, session.Released{}, session.Claimed{}, session.Connected{})
	s.want(s.in(session.HistoryRead{Read: 2}))
	s.want(s.in(session.HistoryRead{Read: 3}), "post c1")
}

func TestResultOfUnknownFateIsLookedUpFirst(t *testing.T) {
	for _, err := range []error{errors.New("reset"), &session.Refusal{Status: 503}, &session.Refusal{Status: 400}} {
		s := newScript(t)
		s.begin(at(-1, use("c1", tool.Bash)))
		s.in(session.SandboxUp{Instance: "i1"}, session.CallFinished{ID: "c1", Result: tool.Text("ok")})
		s.want(s.in(session.PostFailed{ID: "c1", Err: err}), "read 2 since -3s")
		s.want(s.in(listed(2, at(1, session.Event{ID: "r1", Type: "user.tool_result", Refers: "c1"})), session.HistoryRead{Read: 2}), "forget [c1]")
		s.want(s.pass(time.Minute), "read 3 since -1s")
	}
}

func TestRefusedResultIsReplacedOnceAndThenGivenUp(t *testing.T) {
	s := newScript(t)
	s.begin(at(-1, use("c1", tool.Bash)))
	s.in(session.SandboxUp{Instance: "i1"}, session.CallFinished{ID: "c1", Result: tool.Text("ok")})
	refused := session.PostFailed{ID: "c1", Err: &session.Refusal{Status: 400, Message: "no"}}
	s.want(s.in(refused), "read 2 since -3s")
	s.want(s.in(session.HistoryRead{Read: 2}), "post c1")
	s.want(s.in(refused), "check session", "read 3 since -3s")
	if c := s.state.Calls["c1"]; !c.IsError {
		t.Errorf("the result after two refusals is %s; want an error that says so", c.Content)
	}
	s.want(s.in(session.HistoryRead{Read: 3}), "post c1")
	s.want(s.in(refused), "check session", "forget [c1]")

	// The platform still waits for it, and nothing here can change that.
	s.want(s.in(streamed(at(2, idle("e1", "requires_action", "c1")))))
	if w := s.last.Waiting; w == nil || w.For != session.ForPlatform {
		t.Errorf("it waits for %+v, want the platform", w)
	}
	s.want(s.pass(time.Minute), "read 4 since -3s")
	s.want(s.in(session.HistoryRead{Read: 4}), "stop work (tell true, remove false): the turn is over: requires_action")
}

func TestStatusesOfOneTimeAreTakenInTheOrderOfTheList(t *testing.T) {
	s := newScript(t)
	s.begin()
	s.in(streamed(at(1, idle("e2", "end_turn"))))
	s.in(session.Disconnected{}, session.Connected{})
	s.in(listed(2, at(1, typed("e1", "session.status_running")), at(1, idle("e2", "end_turn"))), session.HistoryRead{Read: 2})
	if s.state.Status != "idle" {
		t.Errorf("status = %s, want idle", s.state.Status)
	}
}

func TestTerminationCountsWheneverItIsHeardOf(t *testing.T) {
	s := newScript(t)
	s.begin(at(5, idle("e2", "end_turn")))
	s.want(s.in(streamed(at(1, typed("e1", "session.status_terminated")))),
		"stop work (tell true, remove true): the session is terminated")
}

func TestStrictestVerdictWinsInEveryOrder(t *testing.T) {
	verdicts := []session.Event{at(1, confirm("v1", "c1", "perhaps")), at(2, confirm("v2", "c1", "allow")), at(3, confirm("v3", "c1", "deny"))}
	for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		s := newScript(t)
		s.want(s.begin(at(0, ask("c1")), verdicts[order[0]], verdicts[order[1]], verdicts[order[2]]))
		if s.state.Calls["c1"] != nil {
			t.Errorf("order %v: the call is %s, want it settled", order, s.state.Calls["c1"].State)
		}
	}
	for _, order := range [][]int{{0, 1}, {1, 0}} {
		s := newScript(t)
		s.want(s.begin(at(0, ask("c1")), verdicts[order[0]], verdicts[order[1]]), "start sandbox")
	}
}

func TestUnknownVerdictHoldsTheCall(t *testing.T) {
	s := newScript(t)
	s.want(s.begin(at(0, ask("c1")), at(1, confirm("v1", "c1", "Allow"))))
	if got := s.state.Calls["c1"].State; got != session.Held {
		t.Errorf("state = %s, want held", got)
	}
	s.want(s.in(streamed(at(2, confirm("v2", "c1", "allow")))), "start sandbox")
}

func TestDenyStopsACallThatHasNotStarted(t *testing.T) {
	s := newScript(t)
	s.want(s.begin(at(0, ask("c1")), at(1, confirm("v1", "c1", "allow"))), "start sandbox")
	s.in(streamed(at(2, confirm("v2", "c1", "deny"))))
	s.want(s.in(session.SandboxUp{Instance: "i1"}))
}

func TestQueuedVerdictCountsAndQueuedInterruptDoesNot(t *testing.T) {
	s := newScript(t)
	s.begin(at(0, ask("c1")))
	s.want(s.in(streamed(typed("i1", "user.interrupt"))))
	s.want(s.in(streamed(confirm("v1", "c1", "allow"))), "start sandbox")
	s.in(session.SandboxUp{Instance: "i1"})
	s.want(s.in(streamed(at(9, typed("i1", "user.interrupt")))), "cancel c1", "forget [c1]")
}

func TestCursorStaysWhileAnInputIsQueued(t *testing.T) {
	s := newScript(t)
	s.begin(at(1, typed("e1", "agent.message")))
	again := func(read int, events ...session.Event) []string {
		s.in(session.Disconnected{})
		effects := s.in(session.Connected{})
		s.in(listed(read, events...), session.HistoryRead{Read: read})
		return effects
	}
	s.want(again(2, typed("i1", "user.interrupt"), at(20, typed("e2", "agent.message"))), "read 2 since -1s")
	s.want(again(3, at(21, typed("i1", "user.interrupt")), at(20, typed("e2", "agent.message"))), "read 3 since -1s")
	s.want(again(4), "read 4 since 19s")
}

func TestLateCallIsFoundWhenThePlatformWaitsForIt(t *testing.T) {
	s := newScript(t)
	s.begin(at(10, typed("e1", "agent.message")))
	s.want(s.in(streamed(at(30, idle("e2", "requires_action", "c1")))), "read 2 since 8s")
	s.want(s.in(session.HistoryRead{Read: 2}), "read 3 since the beginning")
	s.want(s.in(listed(3, at(1, use("c1", tool.Read))), session.HistoryRead{Read: 3}), "start sandbox")
}

func TestUnknownRequiredCallIsLookedForOnce(t *testing.T) {
	s := newScript(t)
	s.begin(at(10, typed("e1", "agent.message")))
	s.in(streamed(at(30, idle("e2", "requires_action", "c1"))))
	s.in(session.HistoryRead{Read: 2})
	s.want(s.in(session.HistoryRead{Read: 3}))
	s.want(s.pass(time.Minute), "read 4 since 8s")
	s.want(s.in(session.HistoryRead{Read: 4}))
}

func TestCallsOfThePlatformsOwnServersAreNotLookedFor(t *testing.T) {
	s := newScript(t)
	s.begin(at(10, typed("m1", "agent.mcp_tool_use")))
	s.want(s.in(streamed(at(11, confirm("v1", "m1", "allow")), at(30, idle("e2", "requires_action", "m1")))))
	if v := s.state.Memo().Verdicts; len(v) > 0 {
		t.Errorf("verdicts kept: %v", v)
	}
}

func TestSessionGoesOnWithoutAStream(t *testing.T) {
	s := newScript(t)
	s.want(s.in(session.Claimed{}))
	s.want(s.pass(time.Second))
	s.want(s.pass(2*time.Second), "read 1 since the beginning")
	s.want(s.in(listed(1, at(0, use("c1", tool.Bash))), session.HistoryRead{Read: 1}), "start sandbox")
	s.want(s.in(session.SandboxUp{Instance: "i1"}), "run c1")
	s.want(s.pass(5 * time.Second))
	s.want(s.pass(5*time.Second), "read 2 since -2s")
	s.want(s.in(listed(2, at(3, typed("i1", "user.interrupt"))), session.HistoryRead{Read: 2}), "cancel c1", "forget [c1]")
}

func TestWorkIsGivenBackAfterALastLook(t *testing.T) {
	s := newScript(t)
	s.begin(at(0, idle("e1", "end_turn")))
	s.want(s.pass(9 * time.Second))
	s.want(s.pass(time.Second), "read 2 since -2s")
	s.want(s.in(session.Tick{}))
	s.want(s.in(session.HistoryRead{Read: 2}), "stop work (tell true, remove false): the turn is over: end_turn")
}

func TestFailedLookDoesNotGiveWorkBack(t *testing.T) {
	s := newScript(t)
	s.begin(at(0, idle("e1", "end_turn")))
	s.want(s.pass(10*time.Second), "read 2 since -2s")
	s.want(s.in(session.HistoryFailed{Read: 2}))
	s.want(s.in(session.Tick{}))
	s.want(s.pass(time.Second), "read 3 since -2s")
	s.want(s.in(session.HistoryRead{Read: 3}), "stop work (tell true, remove false): the turn is over: end_turn")
}

func TestQueuedMessageKeepsTheWork(t *testing.T) {
	s := newScript(t)
	s.begin(at(0, idle("e1", "end_turn")))
	s.pass(9 * time.Second)
	s.in(streamed(typed("m1", "user.message")))
	s.want(s.pass(9 * time.Second))
}

func TestNeutralEventsDoNotKeepTheWork(t *testing.T) {
	s := newScript(t)
	s.begin(at(0, idle("e1", "end_turn")))
	s.pass(9 * time.Second)
	s.in(streamed(at(9, typed("u1", "session.usage")), at(9, typed("i1", "user.interrupt"))))
	s.want(s.pass(time.Second), "read 2 since -2s")
}

func TestWorkIsKeptWhileAPersonIsAsked(t *testing.T) {
	s := newScript(t)
	s.begin(at(0, ask("c1")), at(1, idle("e1", "requires_action", "c1")))
	s.want(s.pass(59*time.Second + 990*time.Millisecond))
	s.want(s.pass(time.Second), "read 2 since -1s") // the round, not the release
	s.want(s.in(session.HistoryRead{Read: 2}))
	if w := s.last.Waiting; w != nil && w.For != session.ForPerson {
		t.Errorf("it waits for %s, want a person", w.For)
	}
}

func TestStartThatNobodyWaitsForAnswersNothing(t *testing.T) {
	s := newScript(t)
	s.state.Restore(session.Memo{}, []session.Call{{ID: "c1", Name: tool.Bash, Seq: 1, State: session.Started, Instance: "i1"}})
	s.want(s.begin(), "start sandbox")
	s.in(session.LeaseLost{Why: "412"})
	for range 3 {
		s.in(session.SandboxDown{Starting: true, Why: "the run ended"})
	}
	if got := s.state.Calls["c1"].State; got != session.Started {
		t.Errorf("state = %s, want started: the guest may still run it", got)
	}
}

func TestCallsAreAnsweredWhenTheSandboxCannotStart(t *testing.T) {
	s := newScript(t)
	s.want(s.begin(at(0, use("c1", tool.Bash))), "start sandbox")
	s.want(s.in(session.SandboxDown{Starting: true, Why: "no space"}), "start sandbox")
	s.want(s.in(session.SandboxDown{Starting: true, Why: "no space"}), "post c1")
	if c := s.state.Calls["c1"]; !c.IsError || !c.StartedAt.IsZero() {
		t.Errorf("call = %+v, want an error result of a call that never started", c)
	}
}

func TestRunningCallOfAnEarlierProcessIsRecalledAfterTheRead(t *testing.T) {
	s := newScript(t)
	s.state.Restore(session.Memo{}, []session.Call{{ID: "c1", Name: tool.Bash, Seq: 1, State: session.Started, Instance: "i1", ProcessedAt: begin}})
	s.want(s.in(session.SandboxWanted{}), "start sandbox")
	s.want(s.in(session.Claimed{}, session.SandboxUp{Instance: "i1"}, session.Connected{}), "read 1 since the beginning")
	s.want(s.in(session.HistoryRead{Read: 1}), "recall c1")
}

func TestInterruptedCallOfAnEarlierProcessIsNotRecalled(t *testing.T) {
	s := newScript(t)
	s.state.Restore(session.Memo{}, []session.Call{{ID: "c1", Name: tool.Bash, Seq: 1, State: session.Started, Instance: "i1", ProcessedAt: begin}})
	s.in(session.Claimed{}, session.SandboxUp{Instance: "i1"}, session.Connected{})
	s.want(s.in(listed(1, at(1, typed("i1", "user.interrupt"))), session.HistoryRead{Read: 1}), "cancel c1", "forget [c1]")
}

func TestWithoutALeaseARunningCallIsStopped(t *testing.T) {
	s := newScript(t)
	s.state.Restore(session.Memo{}, []session.Call{{ID: "c1", Name: tool.Bash, Seq: 1, State: session.Started, Instance: "i1"}})
	s.in(session.SandboxWanted{})
	s.want(s.in(session.SandboxUp{Instance: "i1"}), "cancel c1")
	// The next run asks what became of it.
	s.want(s.begin(), "recall c1")
	s.want(s.in(session.CallFinished{ID: "c1", Result: tool.Text("had finished before")}), "post c1")
	if c := s.state.Calls["c1"]; c.IsError {
		t.Errorf("a good result was replaced: %s", c.Content)
	}
}

func TestAnotherGuestAnswersForTheFirst(t *testing.T) {
	s := newScript(t)
	s.begin(at(0, use("c1", tool.Bash)), at(1, use("c2", tool.Bash)))
	s.want(s.in(session.SandboxUp{Instance: "i1"}), "run c1")
	s.want(s.in(session.SandboxUp{Instance: "i2"}), "run c2", "post c1")
}

func TestOnlyThePlatformCanSayThatASessionIsGone(t *testing.T) {
	for _, test := range []struct {
		typ  string
		want string
	}{
		{"not_found_error", "stop work (tell true, remove true): the session is deleted"},
		{"", "stop work (tell true, remove false): the platform refused a result: the platform answered 404 : no"},
	} {
		s := newScript(t)
		s.begin(at(-1, use("c1", tool.Bash)))
		s.in(session.SandboxUp{Instance: "i1"}, session.CallFinished{ID: "c1", Result: tool.Text("ok")})
		got := s.in(session.PostFailed{ID: "c1", Err: &session.Refusal{Status: 404, Type: test.typ, Message: "no"}})
		if !slices.Contains(got, test.want) {
			t.Errorf("%q: effects = %q, want %q", test.typ, got, test.want)
		}
	}
}

func TestSessionThatWasThoughtToBeOverGoesOn(t *testing.T) {
	s := newScript(t)
	s.in(session.SessionOver{How: "deleted"})
	s.want(s.begin(at(0, use("c1", tool.Bash))), "start sandbox")
}

func TestClosedCallsAreRememberedByIDAlone(t *testing.T) {
	s := newScript(t)
	s.begin()
	s.in(session.SandboxWanted{}, session.SandboxUp{Instance: "i1"})
	for i := range 500 {
		id := fmt.Sprint("c", i)
		s.in(streamed(at(float64(i), use(id, tool.Read))))
		s.in(session.CallFinished{ID: id, Result: tool.Text("ok")}, session.PostDone{ID: id})
		s.want(s.in(streamed(at(float64(i), use(id, tool.Read))))) // the same again
	}
	if n := len(s.state.Calls); n > 0 {
		t.Errorf("%d calls are kept", n)
	}
}

func TestWriteIsSeenByWhatComesAfterIt(t *testing.T) {
	s := newScript(t)
	s.begin(at(0, use("w", tool.Write)), at(1, use("r", tool.Read)), at(2, use("b", tool.Bash)))
	s.want(s.in(session.SandboxUp{Instance: "i1"}), "run w")
	s.want(s.in(session.CallFinished{ID: "w", Result: tool.Text("ok")}), "run r", "run b", "post w")
}

func TestShellsOfTwoThreadsRunSideBySide(t *testing.T) {
	s := newScript(t)
	other := use("b2", tool.Bash)
	other.Thread = "sthr_1"
	s.begin(at(0, use("b1", tool.Bash)), at(1, other), at(2, use("b3", tool.Bash)))
	s.want(s.in(session.SandboxUp{Instance: "i1"}), "run b1", "run b2")
	s.want(s.in(session.CallFinished{ID: "b1", Result: tool.Text("ok")}), "run b3", "post b1")
}

func TestLostLeaseCancelsAndPostsNothing(t *testing.T) {
	s := newScript(t)
	s.begin(at(0, use("c1", tool.Read)), at(1, use("c2", tool.Read)))
	s.in(session.SandboxUp{Instance: "i1"})
	s.want(s.in(session.LeaseLost{Why: "412"}), "cancel c1", "cancel c2", "stop work (tell false, remove false): the lease was lost: 412")
	s.want(s.in(session.CallFinished{ID: "c1", Result: tool.Error("cancelled")}))
	s.want(s.in(session.Tick{}, session.Released{}))
	if w := s.state.Calls["c1"]; w.State != session.Finished {
		t.Errorf("c1 is %s, want finished: the next run answers it", w.State)
	}
}
