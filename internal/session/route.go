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
		if c.State != Seen && c.State != Held {
			continue
		}
		switch st.permission(c) {
		case "allow":
			c.State = Ready
			st.touch(c)
		case "deny":
			st.close(c, Settled, "denied")
		default:
			if c.State != Held {
				c.State = Held
				st.touch(c)
			}
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

// dispatch starts what may run, and the sandbox when something needs one.
func (st *step) dispatch() {
	if !st.synced {
		return
	}
	open := st.inOrder()
	for i, c := range open {
		needs := c.State == Ready || c.State == Started && c.Instance != st.Instance
		if !needs {
			continue
		}
		st.wantSandbox()
		if st.State.Sandbox != SandboxReady {
			return
		}
		if c.State == Started {
			// Another guest was told to run it, and it is gone.
			st.result(c, text("The sandbox was restarted while this call was running, and it is not known how far it got. "+
				"Files in /workspace were kept; running processes and shell state are gone."), true)
			continue
		}
		if blocked(c, open[:i]) {
			continue
		}
		c.State, c.StartedAt, c.Instance = Started, st.now, st.Instance
		st.touch(c)
		st.effect(RunCall{ID: c.ID})
	}
}

// wantSandbox starts the sandbox unless it runs or starts already.
func (st *step) wantSandbox() {
	if st.State.Sandbox == SandboxNone && st.Ended == "" {
		st.State.Sandbox = SandboxStarting
		st.effect(StartSandbox{})
	}
}

// recall asks the guest for the calls that an earlier process started on this
// very guest. It is called once, when the sandbox is up.
func (st *step) recall() {
	for _, c := range st.inOrder() {
		if c.State == Started && c.Instance == st.Instance {
			st.effect(RecallCall{ID: c.ID})
		}
	}
}

// blocked reports whether a ready call has to wait for an earlier one. Calls run
// side by side, with two exceptions that agents rely on: the commands of one
// shell run in order, and whatever comes after a file was written sees it
// written. Nothing but the next command waits for a shell.
func blocked(c *Call, earlier []*Call) bool {
	for _, o := range earlier {
		if o.State != Ready && o.State != Started {
			continue
		}
		if o.Custom || c.Custom {
			continue
		}
		switch o.Name {
		case tool.Write, tool.Edit:
			return true
		case tool.Bash:
			if c.Name == tool.Bash && c.Thread == o.Thread {
				return true
			}
		}
	}
	return false
}

// send posts results that are ready to go.
func (st *step) send() {
	for _, c := range st.inOrder() {
		if c.State != Finished || c.posting {
			continue
		}
		if c.doubt > 0 || c.postAfter.After(st.now) {
			continue
		}
		c.posting = true
		st.effect(Post{ID: c.ID})
	}
}

// wantRead asks for the history as soon as possible.
func (st *step) wantRead() {
	if st.reading {
		st.readAgain = true
		return
	}
	st.readNext = st.now
}

// read starts a read of the history when one is due.
func (st *step) read() {
	if st.reading || !st.connected || st.released {
		return
	}
	if st.readAgain {
		st.readAgain = false
		st.readNext = st.now
	}
	if st.readNext.IsZero() && st.synced && st.busy() && !st.now.Before(st.readAt.Add(st.Rules.ReadEvery)) {
		st.readNext = st.now
	}
	if st.readNext.IsZero() || st.readNext.After(st.now) {
		return
	}
	st.reading, st.readNext = true, time.Time{}
	st.reads++
	since := st.Cursor
	if !since.IsZero() {
		since = since.Add(-Overlap)
	}
	st.readHighest = time.Time{}
	st.effect(ReadHistory{Since: since, Generation: st.generation})
}

// busy reports whether the session may get further without us hearing of it.
func (s *State) busy() bool {
	return !s.turnOver()
}

// turnOver reports whether the session waits for a new message and owes nothing.
func (s *State) turnOver() bool {
	if s.Status != "idle" || s.StopReason == "requires_action" {
		return false
	}
	for _, c := range s.Calls {
		if c.Open() {
			return false
		}
	}
	return true
}

// release gives the work item back once the turn has been over for a while and
// a last look at the history found nothing new.
func (st *step) release() {
	if !st.synced || st.reading || st.released || !st.turnOver() {
		if !st.turnOver() {
			st.turnOverAt, st.releasing = time.Time{}, false
		}
		return
	}
	if st.turnOverAt.IsZero() {
		st.turnOverAt, st.releasing = st.now, false
	}
	if st.now.Before(st.turnOverAt.Add(st.Rules.ReleaseAfter)) {
		return
	}
	if !st.releasing {
		if st.readNext.IsZero() {
			st.wantRead()
			st.releasing = true
			st.read()
		}
		return
	}
	st.released = true
	st.State.Lease = LeaseEnding
	st.effect(StopWork{Why: "the turn is over: " + st.StopReason, Stop: true})
}

// wakeAt returns when time alone would change something.
func (s *State) wakeAt() time.Time {
	if s.Lease != LeaseHeld {
		return time.Time{}
	}
	var at time.Time
	due := func(t time.Time) {
		if !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	if s.connected && !s.reading {
		due(s.readNext)
		if s.synced && s.busy() {
			due(s.readAt.Add(s.Rules.ReadEvery))
		}
	}
	for _, c := range s.Calls {
		if c.State == Finished && !c.posting && c.doubt == 0 {
			due(c.postAfter)
		}
	}
	if !s.turnOverAt.IsZero() && !s.released && !s.reading && s.readNext.IsZero() {
		due(s.turnOverAt.Add(s.Rules.ReleaseAfter))
	}
	return at
}
