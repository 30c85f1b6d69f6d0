package session

import (
	"time"

	"github.com/berth-dev/berth/internal/tool"
)

// This file decides what follows from the state: which calls are void, which may
// run, which results are sent, when the history is read and when the work item
// is released. Each function may be called at any time and does only what is due.

// settle closes calls that the platform has voided: by an interrupt, by the end
// of their thread, or by the end of the session (contract §4.5).
func (st *step) settle() {
	for _, c := range st.inOrder() {
		why := st.voided(c)
		if why == "" {
			continue
		}
		if c.State == Started {
			st.cancel(c, why)
		}
		st.close(c, Settled, why)
	}
	if st.Ended != "" && st.State.Lease == LeaseHeld {
		st.giveUp("the session is "+st.Ended, true, true)
	}
}

// voided returns why the platform takes no result for the call any more, or "".
func (s *State) voided(c *Call) string {
	switch {
	case s.Ended != "":
		return "the session is " + s.Ended
	case c.Thread != "" && s.ended[c.Thread]:
		return "its thread has ended"
	case c.ProcessedAt.IsZero():
		return ""
	case !c.ProcessedAt.After(s.cutoff):
		return "interrupted"
	case c.Thread != "" && !c.ProcessedAt.After(s.cutoffs[c.Thread]):
		return "its thread was interrupted"
	}
	return ""
}

// route moves seen and held calls on by their permission and verdict. Nothing is
// routed before the history was read to its end: a verdict, a result or an
// interrupt may stand further down.
func (st *step) route() {
	if !st.synced {
		return
	}
	for _, c := range st.inOrder() {
		switch verdict := st.permission(c); {
		case c.State != Seen && c.State != Held && c.State != Ready:
		case verdict == "deny":
			st.close(c, Settled, "denied")
		case c.State == Ready:
		case verdict == "allow":
			c.State = Ready
			st.touch(c)
		case c.State == Seen:
			c.State = Held
			st.touch(c)
		}
	}
}

// permission returns allow, deny or anything else for "hold". It fails closed:
// only words that are known to allow do so (contract §4.5).
func (s *State) permission(c *Call) string {
	if c.Permission == "deny" {
		return "deny" // no verdict can undo the platform's own
	}
	if v, ok := s.verdicts[c.ID]; ok {
		return v
	}
	if c.Permission == "" || c.Permission == "allow" {
		return "allow"
	}
	return "hold"
}

// dispatch starts what may run, asks for what runs since an earlier run, and
// starts the sandbox when something needs one.
func (st *step) dispatch() {
	if !st.synced {
		return
	}
	open := st.inOrder()
	for i, c := range open {
		if c.State != Ready && (c.State != Started || c.running && c.Instance == st.Instance) {
			continue
		}
		st.wantSandbox()
		if st.State.Sandbox != SandboxReady {
			return
		}
		switch {
		case c.State == Started && c.Instance == st.Instance:
			st.runs(c)
			st.effect(RecallCall{ID: c.ID})
		case c.State == Started:
			// Another guest was told to run it, and it is gone.
			st.result(c, text("The sandbox was restarted while this call was running, and it is not known how far it got. "+keptNote), true)
		case !blocked(c, open[:i]):
			c.State, c.StartedAt, c.Instance = Started, st.now, st.Instance
			st.runs(c)
			st.touch(c)
			st.effect(RunCall{ID: c.ID})
		}
	}
}

// runs notes that this process waits for a call, and for how long at most.
func (st *step) runs(c *Call) {
	c.running = true
	if st.Rules.CallLimit != nil {
		c.limit = st.Rules.CallLimit(c.Name, c.Input)
		c.until = st.now.Add(c.limit + callSlack)
	}
}

// wantSandbox starts the sandbox unless it runs or starts already.
func (st *step) wantSandbox() {
	if st.State.Sandbox == SandboxNone && st.Ended == "" {
		st.State.Sandbox, st.moveUntil, st.moveWhy = SandboxStarting, st.now.Add(startBound), ""
		st.effect(StartSandbox{})
	}
}

// blocked reports whether a ready call has to wait for an earlier one. Calls run
// side by side, with the exceptions that agents rely on: the commands of one
// shell run in order, what comes after a write sees it, and a write does not
// overtake what reads before it. Nothing but the next command waits for a shell.
func blocked(c *Call, earlier []*Call) bool {
	for _, o := range earlier {
		if o.State != Ready && o.State != Started || o.Custom || c.Custom {
			continue
		}
		switch {
		case o.Name == tool.Bash:
			if c.Name == tool.Bash && c.Thread == o.Thread {
				return true
			}
		case writes(o), writes(c):
			return true
		}
	}
	return false
}

// writes reports whether a call changes a file by itself.
func writes(c *Call) bool { return c.Name == tool.Write || c.Name == tool.Edit }

// send posts results that are ready to go.
func (st *step) send() {
	for _, c := range st.inOrder() {
		if c.State != Finished || c.posting {
			continue
		}
		if c.doubt > 0 || c.postAfter.After(st.now) {
			continue
		}
		c.posting, c.until = true, st.now.Add(postBound)
		st.effect(Post{ID: c.ID})
	}
}

// busy reports whether the session may get further without us hearing of it.
func (s *State) busy() bool {
	return !s.turnOver()
}

// turnOver reports whether the session waits for a new message and owes nothing.
func (s *State) turnOver() bool {
	if s.Status != "idle" || s.StopReason == "requires_action" && !s.stuck() {
		return false
	}
	for _, c := range s.Calls {
		if c.Open() {
			return false
		}
	}
	return true
}

// stuck reports whether the platform waits for nothing but results that it
// refused for good. There is nothing left to do then: an interrupt brings the
// session back with a new work item (contract §3.1).
func (s *State) stuck() bool {
	for _, id := range s.Requires {
		if !s.refused[id] {
			return false
		}
	}
	return len(s.Requires) > 0
}

// release gives the work item back once the turn has been over for a while and
// a last look at the history found nothing new.
func (st *step) release() {
	if !st.turnOver() {
		st.turnOpen()
		return
	}
	if !st.synced || st.reading || st.released {
		return
	}
	if st.turnOverAt.IsZero() {
		st.turnOverAt = st.now
	}
	switch {
	case st.now.Before(st.turnOverAt.Add(st.Rules.ReleaseAfter)):
	case st.releasing == 0:
		st.releasing = st.reads + 1
		st.wantRead()
		st.read()
	case st.readsDone >= st.releasing:
		st.released = true
		st.State.Lease = LeaseEnding
		st.effect(StopWork{Why: "the turn is over: " + st.StopReason, Stop: true})
	}
}

// wakeAt returns when time alone would change something.
func (s *State) wakeAt() time.Time {
	if s.Lease != LeaseHeld {
		return time.Time{}
	}
	at := s.readDue()
	due := func(t time.Time) {
		if !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	for _, c := range s.Calls {
		due(c.until)
		if c.State == Finished && !c.posting && c.doubt == 0 {
			due(c.postAfter)
		}
	}
	if s.Sandbox == SandboxStarting || s.Sandbox == SandboxEnding {
		due(s.moveUntil)
	}
	if s.reading {
		due(s.readUntil)
	}
	due(s.owedAt)
	if !s.turnOverAt.IsZero() && s.releasing == 0 && s.synced && !s.reading && !s.released {
		due(s.turnOverAt.Add(s.Rules.ReleaseAfter))
	}
	return at
}
