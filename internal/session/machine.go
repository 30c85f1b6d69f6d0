// Package session runs the sessions of Claude Managed Agents: one actor each,
// whose decisions are made by a machine without I/O and whose calls are kept in
// a ledger, so that every call is answered once and none runs twice.
//
//   - machine.go, route.go, state.go, input.go, waiting.go: the pure core
//   - actor.go and its neighbours: the rim that does what the machine decided
//   - lease.go: the work item's lease
//   - keeper.go: all sessions of this process
package session

import (
	"time"
)

// step is one Step under way.
type step struct {
	*State
	now     time.Time
	out     Outcome
	changed map[string]bool
	forget  []string
}

// Step advances the state by one input at the given time and returns what has to
// be stored and done. It is deterministic: it reads no clock and does no I/O.
func (s *State) Step(now time.Time, in Input) Outcome {
	st := &step{State: s, now: now, changed: map[string]bool{}}
	st.take(in)
	st.settle()
	if s.Lease == LeaseHeld {
		st.route()
		st.dispatch()
		st.send()
		st.read()
		st.release()
	}
	return st.finish()
}

// take records the input itself; what follows from it is decided afterwards, in
// one place for all inputs.
func (st *step) take(in Input) {
	switch in := in.(type) {
	case Claimed:
		st.claimed()
	case Connected:
		st.generation++
		st.connected, st.synced = true, false
		st.wantRead()
	case Disconnected:
		st.connected, st.synced = false, false
		st.turnOverAt, st.releasing = time.Time{}, false
	case Observed:
		for i := range in.Events {
			st.observe(&in.Events[i])
			if in.Generation != 0 && in.Events[i].ProcessedAt.After(st.readHighest) {
				st.readHighest = in.Events[i].ProcessedAt
			}
		}
	case HistoryRead:
		st.historyRead(in.Generation)
		st.out.Memo = true
	case HistoryFailed:
		st.reading, st.releasing = false, false
		st.readFails++
		st.readNext = st.now.Add(delay(st.readFails, 500*time.Millisecond, 10*time.Second))
	case SandboxUp:
		st.State.Sandbox, st.Instance, st.sandboxTries = SandboxReady, in.Instance, 0
		st.recall()
	case SandboxWanted:
		st.wantSandbox()
	case SandboxDown:
		st.sandboxDown(in)
	case CallFinished:
		st.callFinished(in)
	case CallLost:
		if c := st.Calls[in.ID]; c != nil && c.State == Started {
			st.result(c, text(in.Why), true)
		}
	case PostDone:
		if c := st.Calls[in.ID]; c != nil && c.State == Finished {
			st.close(c, Posted, "")
		}
	case PostFailed:
		st.postFailed(in)
	case LeaseStopping:
		st.giveUp("the platform asked for the work item back: "+in.Why, true, false)
	case LeaseLost:
		st.State.Lease = LeaseForfeit
		st.giveUp("the lease was lost: "+in.Why, false, false)
	case Rejected:
		st.giveUp("the platform refused: "+in.Why, true, false)
	case SessionOver:
		st.Ended = orElse(st.Ended, in.How)
		st.out.Memo = true
	case Released:
		st.State.Lease = LeaseNone
	case Tick:
	}
}

// claimed starts a run: what the last run left is looked at again.
func (st *step) claimed() {
	st.State.Lease, st.released, st.releasing = LeaseHeld, false, false
	st.connected, st.synced, st.reading, st.readAgain = false, false, false, false
	st.turnOverAt, st.readNext, st.readFails = time.Time{}, time.Time{}, 0
	for _, c := range st.Calls {
		c.posting, c.attempts, c.postAfter = false, 0, time.Time{}
		if c.State == Finished {
			st.doubt(c) // the last run may have sent it
		}
	}
}

// giveUp ends the run without having finished: running calls are cancelled and
// will be answered, honestly, by the next run that finds them unanswered.
func (st *step) giveUp(why string, stop, remove bool) {
	if st.released {
		return
	}
	if st.State.Lease == LeaseHeld {
		st.State.Lease = LeaseEnding
	}
	for _, c := range st.inOrder() {
		if c.State == Started {
			st.cancel(c, why)
		}
	}
	st.released = true
	st.effect(StopWork{Why: why, Stop: stop, Remove: remove})
}

// observe records one event of the platform.
func (st *step) observe(ev *Event) {
	if ev.ID != "" {
		if ev.ProcessedAt.IsZero() {
			// Queued at the platform: it comes again with its time.
			if isInput(ev.Type) {
				if _, done := st.seen[ev.ID]; !done {
					st.queued[ev.ID] = true
				}
				return
			}
		} else {
			delete(st.queued, ev.ID)
			if _, dup := st.seen[ev.ID]; dup {
				return
			}
			st.seen[ev.ID] = ev.ProcessedAt
		}
		st.out.Fresh = append(st.out.Fresh, *ev)
	}
	switch ev.Type {
	case "agent.tool_use", "agent.custom_tool_use":
		st.callSeen(ev)
	case "user.tool_result", "user.custom_tool_result", "agent.tool_result":
		st.answeredBy(ev)
	case "user.tool_confirmation":
		st.verdicts[ev.Refers] = ev.Verdict
		st.out.Memo = true
	case "user.interrupt":
		st.interrupted(ev)
	case "session.thread_status_terminated":
		if ev.Thread != "" {
			st.ended[ev.Thread] = true
			st.out.Memo = true
		}
	case "session.status_running", "session.status_idle", "session.status_rescheduled", "session.status_terminated":
		st.status(ev)
	case "session.deleted":
		st.Ended = "deleted"
	}
	if !neutral(ev.Type) && ev.Type != "session.status_idle" {
		st.turnOverAt = time.Time{}
	}
}

// isInput reports whether an event is sent by clients and can therefore be
// queued (contract §4.2).
func isInput(typ string) bool {
	return len(typ) > 5 && (typ[:5] == "user." || typ == "system.message")
}

// neutral reports whether an event gives no sign that the turn is over or open
// (contract §4.6).
func neutral(typ string) bool {
	switch typ {
	case "user.tool_confirmation", "user.interrupt", "session.thread_status_terminated", "session.usage":
		return true
	}
	return false
}

func (st *step) callSeen(ev *Event) {
	if ev.ID == "" || st.Calls[ev.ID] != nil {
		return
	}
	st.seq++
	c := &Call{
		ID: ev.ID, Thread: ev.Thread, Name: ev.Name, Custom: ev.Type == "agent.custom_tool_use",
		Input: ev.Input, Permission: ev.Permission, ProcessedAt: ev.ProcessedAt,
		Seq: st.seq, State: Seen, SeenAt: st.now,
	}
	if !st.Rules.Owns(c.Name, c.Custom) {
		c.State = Foreign
	}
	st.Calls[c.ID] = c
	st.touch(c)
	if st.answered[c.ID] {
		delete(st.answered, c.ID)
		st.out.Memo = true
		st.close(c, Settled, "answered before it was seen")
	}
}

// answeredBy closes the call that a result in the log speaks about: our own post
// comes back this way too.
func (st *step) answeredBy(ev *Event) {
	c := st.Calls[ev.Refers]
	if c == nil {
		if ev.Refers != "" {
			st.answered[ev.Refers] = true
			st.out.Memo = true
		}
		return
	}
	switch {
	case c.State == Finished && ev.Type != "agent.tool_result":
		st.close(c, Posted, "")
	case c.State == Started:
		st.cancel(c, "answered by somebody else")
		st.close(c, Settled, "answered by somebody else while it ran")
	case c.Open() || c.State == Foreign:
		st.close(c, Settled, "answered by the platform or by another client")
	}
}

// interrupted records an interrupt. Only a processed one counts, and it settles
// the calls that were processed at or before it (contract §4.5).
func (st *step) interrupted(ev *Event) {
	if ev.ProcessedAt.IsZero() {
		return
	}
	if ev.Thread == "" {
		if ev.ProcessedAt.After(st.cutoff) {
			st.cutoff = ev.ProcessedAt
			st.out.Memo = true
		}
		return
	}
	if ev.ProcessedAt.After(st.cutoffs[ev.Thread]) {
		st.cutoffs[ev.Thread] = ev.ProcessedAt
		st.out.Memo = true
	}
}

func (st *step) status(ev *Event) {
	if ev.ProcessedAt.Before(st.statusAt) {
		return // an older status that arrived late
	}
	st.statusAt = ev.ProcessedAt
	st.StopReason, st.Requires = "", nil
	switch ev.Type {
	case "session.status_running":
		st.Status = "running"
	case "session.status_rescheduled":
		st.Status = "rescheduling"
	case "session.status_terminated":
		st.Status, st.Ended = "terminated", orElse(st.Ended, "terminated")
	case "session.status_idle":
		st.Status, st.StopReason, st.Requires = "idle", ev.StopReason, ev.Requires
		for _, id := range ev.Requires {
			if st.Calls[id] == nil && !st.answered[id] {
				st.wantRead() // the stream lost the event that it speaks of
				break
			}
		}
	}
}

// historyRead closes a read: the cursor moves, and if the read began on this
// connection the session is in step with the platform.
func (st *step) historyRead(generation int) {
	st.reading, st.readFails, st.readNext, st.readAt = false, 0, time.Time{}, st.now
	if generation == st.generation && st.connected {
		st.synced = true
	}
	for _, c := range st.Calls {
		if c.doubt <= st.reads {
			c.doubt = 0 // this read began after the doubt, and found no answer
		}
	}
	// While something is queued at the platform the cursor stays: the queued
	// event may be listed by the time of its creation.
	if len(st.queued) == 0 && st.readHighest.After(st.Cursor) {
		st.Cursor = st.readHighest
		st.out.Memo = true
		for id, at := range st.seen {
			if at.Before(st.Cursor.Add(-2 * Overlap)) {
				delete(st.seen, id)
			}
		}
	}
}

func (st *step) sandboxDown(in SandboxDown) {
	st.State.Sandbox, st.Instance = SandboxNone, ""
	if in.Starting {
		st.sandboxTries++
		if st.sandboxTries < st.Rules.SandboxTries {
			return // dispatch asks again
		}
		st.sandboxTries = 0
		for _, c := range st.inOrder() {
			if c.State == Ready {
				st.result(c, text("The call was not run: "+in.Why), true)
			}
		}
	}
	for _, c := range st.inOrder() {
		if c.State == Started {
			st.result(c, text("The sandbox ended while this call was running, and it is not known how far it got: "+in.Why+
				". Files in /workspace were kept; running processes and shell state are gone."), true)
		}
	}
}

func (st *step) callFinished(in CallFinished) {
	c := st.Calls[in.ID]
	if c == nil {
		return
	}
	if c.State != Started {
		st.forget = append(st.forget, in.ID) // settled meanwhile: nobody wants it
		return
	}
	if c.cancelled {
		st.result(c, text("The call was stopped before it was done: "+c.Reason+". It may have had some of its effects."), true)
		return
	}
	content, isError := prepare(in.Result)
	st.result(c, content, isError)
}

func (st *step) postFailed(in PostFailed) {
	c := st.Calls[in.ID]
	if c == nil || c.State != Finished {
		return
	}
	c.posting = false
	c.attempts++
	switch status := StatusOf(in.Err); {
	case status == 400 || status == 413 || status == 422:
		// Perhaps an earlier, unanswered request did arrive, or the call was
		// voided: look first. If neither, the platform does not take this
		// content, and a call without a result would hang the session.
		if c.replaced {
			st.close(c, Settled, "the platform refuses every result: "+in.Err.Error())
			return
		}
		if c.attempts > 1 {
			c.replaced = true
			c.Content, c.IsError = text("The result could not be delivered: the platform refused it ("+in.Err.Error()+")."), true
			st.touch(c)
		}
		st.doubt(c)
	case !Retryable(in.Err):
		if status == 404 {
			st.Ended = orElse(st.Ended, "deleted")
			st.settle()
			return
		}
		st.giveUp("the platform refused a result: "+in.Err.Error(), true, false)
	default:
		c.postAfter = st.now.Add(delay(c.attempts, time.Second, 30*time.Second))
		st.doubt(c)
	}
}

// doubt marks a result that may have been delivered without our knowing: it is
// not sent again before a read of the history that begins after now.
func (st *step) doubt(c *Call) {
	c.doubt = st.reads + 1
	st.wantRead()
}

// delay is exponential from base to limit, by the number of failures (from 1).
func delay(failures int, base, limit time.Duration) time.Duration {
	d := base << min(max(failures-1, 0), 20)
	if d <= 0 || d > limit {
		return limit
	}
	return d
}

func orElse(s, other string) string {
	if s != "" {
		return s
	}
	return other
}

// result gives a started call its result.
func (st *step) result(c *Call, content []byte, isError bool) {
	c.State, c.Content, c.IsError, c.FinishedAt = Finished, content, isError, st.now
	c.posting, c.attempts, c.postAfter = false, 0, time.Time{}
	st.touch(c)
}

// close ends a call for good.
func (st *step) close(c *Call, as CallState, reason string) {
	if c.State == Started || c.State == Finished {
		st.forget = append(st.forget, c.ID)
	}
	c.State, c.Reason, c.DoneAt, c.posting = as, reason, st.now, false
	delete(st.verdicts, c.ID)
	st.touch(c)
}

// cancel stops a started call.
func (st *step) cancel(c *Call, why string) {
	if !c.cancelled {
		c.cancelled, c.Reason = true, why
		st.touch(c)
		st.effect(CancelCall{ID: c.ID})
	}
}

func (st *step) touch(c *Call) {
	if !st.changed[c.ID] {
		st.changed[c.ID] = true
		st.out.Changed = append(st.out.Changed, c)
	}
}

func (st *step) effect(e Effect) { st.out.Effects = append(st.out.Effects, e) }

// finish completes the outcome: what the guest may forget, what the session
// waits for, and when to look again.
func (st *step) finish() Outcome {
	if len(st.forget) > 0 {
		st.effect(Forget{IDs: st.forget})
	}
	what, detail := st.explain()
	if what != st.wait.For || detail != st.wait.Detail {
		since := st.now
		if what == st.wait.For {
			since = st.wait.Since
		}
		st.wait = Waiting{For: what, Since: since, Detail: detail}
		w := st.wait
		st.out.Waiting = &w
	}
	st.out.WakeAt = st.wakeAt()
	return st.out
}
