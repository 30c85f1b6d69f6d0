package session

import (
	"fmt"
	"slices"
	"time"
)

// This file is the watchdog (DESIGN promise 3): whatever waits for us has a
// bound, and what exceeds it is repaired or ended, never left alone. The rim has
// bounds of its own for everything that it does (callrun.go, house.go,
// follow.go) and is expected to keep them; those here are a little longer and
// hold even if the rim goes wrong. The repairs, in this order:
//
//  1. catch up: the history is read, because the platform may have settled it
//  2. the call is stopped, and the guest ends the worker that does not heed it
//  3. the sandbox is replaced; its files are kept
//  4. the model reads an error result that says what is known
const (
	postBound  = time.Minute       // from the sending of a result to its answer or failure
	readBound  = 3 * pageWithin    // from the beginning of a read to its next page
	startBound = 2 * startWithin   // from asking for a sandbox to hearing of it
	endBound   = 2 * destroyWithin // from having a sandbox ended to hearing of it
	// callSlack is what the rim may take beyond a call's own bound: to stop it,
	// and to replace the sandbox.
	callSlack = callGrace + cancelWithin + destroyWithin + 20*time.Second
	// owedAfter is how long the platform may wait for a call that is closed here
	// before the whole history is held against it: the events cross.
	owedAfter = 30 * time.Second
	// maxReposts bounds how often a result is sent again that the platform took
	// and lost.
	maxReposts = 3
)

// watch ends what exceeded its bound.
func (st *step) watch() {
	for _, c := range st.inOrder() {
		switch {
		case c.until.IsZero() || c.until.After(st.now):
		case c.State == Finished && c.posting:
			c.posting, c.until = false, time.Time{}
			c.attempts++
			st.doubt(c)
		case c.State == Started && c.running:
			st.replaceSandbox("a call neither ended within its limit nor could be stopped")
			st.result(c, text("The call did not end within its limit of "+c.limit.String()+
				" and could not be stopped, so its sandbox was replaced. It may have had some of its effects. "+keptNote), true)
		}
	}
	if expired(st.moveUntil, st.now) {
		switch st.State.Sandbox {
		case SandboxStarting:
			st.sandboxDown(SandboxDown{Starting: true, Why: fmt.Sprintf("the sandbox was not ready within %s", startBound)})
		case SandboxEnding:
			st.sandboxDown(SandboxDown{Why: "it could not be ended"})
		}
	}
	if st.reading && expired(st.readUntil, st.now) {
		st.historyFailed(HistoryFailed{Read: st.reads})
	}
	st.watchOwed()
}

// replaceSandbox ends the sandbox; the next call gets a new one.
func (st *step) replaceSandbox(why string) {
	if st.State.Sandbox == SandboxReady {
		st.State.Sandbox, st.moveUntil = SandboxEnding, st.now.Add(endBound)
		st.effect(ReplaceSandbox{Why: why})
	}
}

// keptNote ends the results of calls whose sandbox is gone.
const keptNote = "Files in /workspace were kept; running processes and shell state are gone."

func expired(until, now time.Time) bool { return !until.IsZero() && !until.After(now) }

// owed returns the calls that the platform waits for although they are closed
// here as answered.
func (s *State) owed() []string {
	if s.Status != "idle" || s.StopReason != "requires_action" {
		return nil
	}
	var ids []string
	for _, id := range s.Requires {
		if s.closed[id] && !s.refused[id] && !s.reloading[id] {
			ids = append(ids, id)
		}
	}
	return ids
}

// watchOwed has the whole history read when the platform has been parked for a
// while on calls that are closed here: either it says something newer, or it has
// lost a result that it took.
func (st *step) watchOwed() {
	switch owed := st.owed(); {
	case len(owed) == 0:
		st.owedAt = time.Time{}
	case st.owedAt.IsZero():
		st.owedAt = st.now.Add(owedAfter)
	case !st.owedAt.After(st.now):
		st.owedAt = st.now.Add(max(owedAfter, st.Rules.ReadEvery))
		if !st.readAll { // else such a read is on its way for another reason
			st.readAll, st.judging, st.judgeRead = true, owed, st.reads+1
			st.wantRead()
		}
	}
}

// judge holds what a read of the whole history found against what the platform
// was waiting for when it was asked for.
func (st *step) judge() {
	owed := st.owed()
	for _, id := range st.judging {
		if !slices.Contains(owed, id) || st.results[id] {
			continue
		}
		st.reloading[id] = true
		st.effect(ReloadCall{ID: id})
	}
	st.judging, st.results = nil, nil
}

// reloaded opens a call again whose result the platform took and lost. Calls
// that were settled have none to send: the platform voided them by itself, and
// an interrupt is what makes it notice.
func (st *step) reloaded(in CallReloaded) {
	if !st.reloading[in.ID] {
		return
	}
	delete(st.reloading, in.ID)
	c := in.Call
	switch {
	case c == nil || !slices.Contains(st.owed(), in.ID):
		return // it cannot be read now, and is looked at again; or it is over
	case c.State != Posted || st.reposts[in.ID] >= maxReposts:
		st.refused[in.ID] = true
		return
	}
	st.reposts[in.ID]++
	delete(st.closed, in.ID)
	st.Calls[in.ID] = c
	c.State, c.DoneAt, c.Reason = Finished, time.Time{}, "the platform had lost the result"
	if len(c.Content) == 0 {
		c.Content, c.IsError = text("The call ran, but its result is no longer available."), true
	}
	st.touch(c)
	st.effect(Warn{Text: "the platform waits for call " + in.ID + ", whose result it had accepted: it is sent again"})
}
