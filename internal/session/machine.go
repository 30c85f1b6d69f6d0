// Package session runs the sessions of Claude Managed Agents: one actor each,
// whose decisions are made by a machine without I/O and whose calls are kept in
// a ledger, so that every call is answered once and none runs twice.
//
//   - machine.go, observe.go, read.go, route.go, state.go, input.go, waiting.go:
//     the pure core
//   - actor.go and its neighbours: the rim that does what the machine decided
//   - lease.go: the work item's lease
//   - keeper.go: all sessions of this process
package session

import (
	"errors"
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
		st.watch()
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
		st.claimed(in)
	case Connected:
		st.generation++
		st.connected, st.synced, st.blindAt, st.readNext = true, false, time.Time{}, time.Time{}
		st.wantRead()
	case Disconnected:
		// The turn is as over as it was: only an event opens it, and nothing is
		// released before the history was read again.
		st.connected, st.synced, st.blindAt, st.releasing = false, false, st.now.Add(blindAfter), 0
	case Observed:
		st.observed(in)
	case HistoryRead:
		st.historyRead(in)
	case HistoryFailed:
		st.historyFailed(in)
	case SandboxUp:
		st.sandboxUp(in)
	case SandboxDelayed:
		st.sandboxDelayed(in)
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
	case CallReloaded:
		st.reloaded(in)
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
		st.over(in.How)
	case Released:
		st.State.Lease = LeaseNone
	case Tick:
	}
}

// claimed starts a run: what the last run left is looked at again.
func (st *step) claimed(in Claimed) {
	if in.Alive && st.Ended != "" {
		// Whatever said so was wrong: the platform knows better.
		st.Ended, st.Status, st.statusAt, st.out.Memo = "", "", time.Time{}, true
	}
	st.State.Lease, st.released, st.sandboxTries = LeaseHeld, false, 0
	st.connected, st.synced, st.blindAt = false, false, st.now.Add(blindAfter)
	st.reading, st.readAgain, st.readNext, st.readFails = false, false, time.Time{}, 0
	st.owedAt, st.judging, st.results, st.readAll = time.Time{}, nil, nil, false
	clear(st.reloading)
	st.turnOpen()
	for _, c := range st.inOrder() {
		c.running, c.posting, c.attempts, c.postAfter, c.until = false, false, 0, time.Time{}, time.Time{}
		if c.State == Finished {
			c.doubt = st.reads + 1 // the last run may have sent it
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

// over records that the session itself has ended.
func (st *step) over(how string) {
	if st.Ended == "" {
		st.Ended, st.out.Memo = how, true
	}
}

func (st *step) sandboxUp(in SandboxUp) {
	st.State.Sandbox, st.Instance, st.sandboxTries, st.moveUntil = SandboxReady, in.Instance, 0, time.Time{}
	for _, id := range st.strays {
		st.effect(CancelCall{ID: id})
	}
	st.forget, st.strays = append(st.forget, st.strays...), nil
	if st.State.Lease == LeaseHeld {
		return // dispatch asks for what runs there
	}
	// Without a lease nothing may run. What has finished meanwhile is kept by
	// the guest; the next run asks for it.
	for _, c := range st.inOrder() {
		if c.State == Started && c.Instance == st.Instance {
			st.effect(CancelCall{ID: c.ID})
		}
	}
}

func (st *step) sandboxDelayed(in SandboxDelayed) {
	if st.State.Sandbox == SandboxStarting {
		st.moveUntil, st.moveWhy = st.now.Add(in.Within+startBound), in.Why
	}
}

func (st *step) sandboxDown(in SandboxDown) {
	st.State.Sandbox, st.Instance, st.moveUntil = SandboxNone, "", time.Time{}
	if in.Starting {
		if st.State.Lease != LeaseHeld {
			return // nobody waits for it any more; calls are the next run's
		}
		st.sandboxTries++
		if st.sandboxTries < st.Rules.SandboxTries && !in.Final {
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
				". "+keptNote), true)
		}
	}
}

func (st *step) callFinished(in CallFinished) {
	c := st.Calls[in.ID]
	if c == nil || c.State != Started {
		if c != nil || st.closed[in.ID] {
			st.forget = append(st.forget, in.ID) // settled meanwhile: nobody wants it
		}
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
	c.posting, c.until, c.refusal = false, time.Time{}, in.Err.Error()
	c.attempts++
	switch status := StatusOf(in.Err); {
	case Gone(in.Err):
		st.over("deleted")
	case status == 400 || status == 413 || status == 422:
		// Perhaps an earlier, unanswered request did arrive, or the call was
		// voided: look first. If neither, the platform does not take this
		// content, and a call without a result would hang the session.
		if c.attempts > 1 || c.replaced {
			st.effect(CheckSession{})
		}
		if c.replaced {
			st.refused[c.ID] = true
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
		st.giveUp("the platform refused a result: "+in.Err.Error(), true, false)
	default:
		c.postAfter = st.now.Add(max(delay(c.attempts, time.Second, 10*time.Second), askedFor(in.Err)))
		st.doubt(c)
	}
}

// askedFor is how long the platform asked to wait, within reason.
func askedFor(err error) time.Duration {
	var r *Refusal
	if !errors.As(err, &r) {
		return 0
	}
	return min(r.RetryAfter, 5*time.Minute)
}

// delay is exponential from base to limit, by the number of failures (from 1).
func delay(failures int, base, limit time.Duration) time.Duration {
	d := base << min(max(failures-1, 0), 20)
	if d <= 0 || d > limit {
		return limit
	}
	return d
}

// result gives a call its result.
func (st *step) result(c *Call, content []byte, isError bool) {
	c.State, c.Content, c.IsError, c.FinishedAt = Finished, content, isError, st.now
	c.posting, c.attempts, c.postAfter, c.until = false, 0, time.Time{}, time.Time{}
	st.touch(c)
}

// close ends a call for good.
func (st *step) close(c *Call, as CallState, reason string) {
	switch {
	case c.State == Started && st.State.Sandbox != SandboxReady:
		// It may still run in a sandbox that an earlier process left.
		st.strays = append(st.strays, c.ID)
	case c.State == Started || c.State == Finished:
		st.forget = append(st.forget, c.ID)
	}
	c.State, c.Reason, c.DoneAt, c.posting = as, reason, st.now, false
	st.touch(c)
	delete(st.Calls, c.ID)
	st.closed[c.ID] = true
	if _, ok := st.verdicts[c.ID]; ok {
		delete(st.verdicts, c.ID)
		st.out.Memo = true
	}
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
	w := st.explain()
	if w.Since.IsZero() {
		if w.Since = st.now; w.For == st.wait.For {
			w.Since = st.wait.Since
		}
	}
	if !w.equal(st.wait) {
		st.wait = w
		st.out.Waiting = &w
	}
	st.out.WakeAt = st.wakeAt()
	return st.out
}
