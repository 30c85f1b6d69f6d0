package session

import (
	"context"
	"slices"
	"time"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/sandbox"
)

// This file is the life of one work item with its session: a run.

// claim is a work item on its way to its session, with its lease already held.
type claim struct {
	item     Item
	platform Platform
	lease    *lease
	work     Work
}

// nextClaim returns the item to work on next, nil when none waits. Of several
// only the newest is worth the work.
func (a *actor) nextClaim(ctx context.Context) *claim {
	for len(a.items) > 0 {
		a.next = append(a.next, <-a.items)
	}
	for len(a.next) > 1 {
		old := a.next[0]
		a.next = a.next[1:]
		a.giveBack(ctx, old, StopWork{Why: "a newer work item for the session arrived", Stop: true})
		a.keeper.slotFreed()
	}
	if len(a.next) == 0 {
		return nil
	}
	cl := a.next[0]
	a.next = nil
	return cl
}

// run works on one item until it is released, lost, or the process leaves.
func (a *actor) run(ctx context.Context, cl *claim) {
	runCtx, cancel := context.WithCancelCause(cl.lease.ctx)
	defer cancel(nil)
	a.claim, a.runCtx, a.ending, a.calls, a.informed = cl, runCtx, nil, map[string]*callRun{}, false
	a.memories = a.newMemoryRun(cl)
	defer func() { a.claim, a.runCtx, a.memories = nil, nil, nil }()

	a.record.Phase = Active
	over := a.greet()
	a.memories.learned(a.info)
	if over == "" {
		if a.equip(ctx) {
			a.remember(ctx)
		}
	}
	a.step(ctx, Claimed{Alive: a.informed && over == ""})
	if over != "" {
		a.step(ctx, SessionOver{How: over})
	}
	a.findMemories(ctx)
	if a.ending == nil {
		memories := a.memories
		a.crew.Go(func() { a.follow(runCtx, cl.platform) })
		a.crew.Go(func() { memories.follow(runCtx) })
	}
	a.loop(ctx)
	a.catchUp(ctx, true)

	cancel(errLeaseOver)
	a.drain(ctx)
	a.catchUp(ctx, true)
	a.keepMemories(ctx)
	if ctx.Err() != nil {
		cl.lease.release(errLeaving) // the successor goes on with the stored token
		return
	}
	a.conclude(ctx)
}

// loop takes messages until the run ends.
func (a *actor) loop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for a.ending == nil && ctx.Err() == nil {
		if at := earlier(earlier(a.state.wakeAt(), a.outlivesAt()), a.later.due()); !at.IsZero() {
			timer.Reset(max(at.Sub(a.keeper.now()), 0))
		} else {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
		case m := <-a.inbox:
			a.take(ctx, m)
		case in := <-a.claim.lease.ended:
			a.step(ctx, in)
		case cl := <-a.items:
			a.supersede(ctx, cl)
		case req := <-a.opens:
			a.open(ctx, req)
		case <-timer.C:
			a.catchUp(ctx, false)
			a.step(ctx, Tick{})
		}
		a.replaceOld(ctx)
	}
}

// supersede ends the run because the platform gave the session out again. If it
// is the very same item, our lease on it is dead; if it is another one, ours is
// handed back, or the two would take turns for ever.
func (a *actor) supersede(ctx context.Context, cl *claim) {
	a.next = append(a.next, cl)
	if cl.item.ID == a.claim.item.ID {
		a.claim.lease.cancel(errLeaseLost)
		a.step(ctx, LeaseLost{Why: "the platform handed the work item out again"})
		return
	}
	a.step(ctx, LeaseStopping{Why: "a newer work item for the session arrived: " + cl.item.ID})
}

// Reading the session at the beginning of a run.
const (
	infoWithin = 15 * time.Second
	infoTries  = 4
)

// greet reads the session once the lease is held. It returns how the session
// ended if it is over already. A read that fails does not matter: everything in
// it is a convenience, except skills and memory stores, which are asked for again
// with the sandbox.
func (a *actor) greet() (over string) {
	for failures := 1; ; failures++ {
		tryCtx, cancel := context.WithTimeout(a.runCtx, infoWithin)
		info, err := a.claim.platform.Info(tryCtx)
		cancel()
		switch {
		case err == nil:
			a.info, a.informed = info, true
			a.record.Agent, a.record.AgentName, a.record.AgentVersion = info.AgentID, info.AgentName, info.AgentVersion
			a.record.Title, a.record.Model = info.Title, info.Model
			switch {
			case info.Archived:
				return "archived"
			case info.Status == "terminated":
				return "terminated"
			}
			return ""
		case Gone(err):
			return "deleted"
		case a.runCtx.Err() != nil || !Retryable(err) || failures >= infoTries:
			a.log.Warn("session not read", "err", err)
			return ""
		}
		select {
		case <-a.runCtx.Done():
			return ""
		case <-time.After(Backoff{}.Wait(failures, err)):
		}
	}
}

// check asks whether the session has ended without our hearing of it. No answer
// is no news.
func (a *actor) check(ctx context.Context, p Platform) {
	ask, cancel := context.WithTimeout(ctx, infoWithin)
	defer cancel()
	info, err := p.Info(ask)
	switch {
	case Gone(err):
		a.tell(ctx, message{in: SessionOver{How: "deleted"}})
	case err != nil:
	case info.Archived:
		a.tell(ctx, message{in: SessionOver{How: "archived"}})
	case info.Status == "terminated":
		a.tell(ctx, message{in: SessionOver{How: "terminated"}})
	}
}

// drain waits for the crew while taking what it still reports, so that nothing
// of this run is left when the next one begins.
func (a *actor) drain(ctx context.Context) {
	for {
		idle := a.crew.idle() // looked at first: whoever has ended has reported
		select {
		case m := <-a.inbox:
			a.take(ctx, m)
			continue
		default:
		}
		if idle {
			return
		}
		select {
		case m := <-a.inbox:
			a.take(ctx, m)
		case <-a.crew.changed:
		}
	}
}

// conclude ends the work item as the machine decided.
func (a *actor) conclude(ctx context.Context) {
	a.giveBack(ctx, a.claim, *a.ending)
	a.commit(ctx, a.state.Step(a.keeper.now(), Released{}))
	if a.state.Ended != "" {
		a.end(ctx, a.state.Ended)
	}
	a.keeper.slotFreed()
}

// giveBack ends an item: its lease, the item at the platform, and its record.
func (a *actor) giveBack(ctx context.Context, cl *claim, end StopWork) {
	cl.lease.release(errLeaseOver)
	select {
	case in := <-cl.lease.ended:
		// It ended while the run was being drained. An item whose lease was
		// lost is never stopped: it may be somebody else's (contract §12.5).
		if lost, ok := in.(LeaseLost); ok {
			end.Stop, end.Why = false, "the lease was lost: "+lost.Why
		}
	default:
	}
	again := slices.ContainsFunc(a.next, func(next *claim) bool { return next.item.ID == cl.item.ID })
	end.Stop = end.Stop && !again
	state, typ := WorkLost, event.WorkLost
	if end.Stop {
		state, typ = WorkStopped, event.WorkStopped
		if err := cl.platform.Stop(ctx, true); err != nil {
			a.log.Warn("work item not stopped; its lease will lapse", "work", cl.item.ID, "err", err)
		}
	}
	now := a.keeper.now()
	if a.claim == cl {
		a.record.Phase = Warm
		if a.record.Sandbox == nil {
			a.record.Phase = Parked
		}
	}
	change := Change{At: now, Session: &a.record, Events: []event.Event{
		event.New(now, a.id, typ, map[string]string{"work": cl.item.ID, "why": end.Why}),
	}}
	if !again { // else the record belongs to the claim that follows
		cl.work.State, cl.work.EndedAt, cl.work.Why, cl.work.Secret = state, now, end.Why, nil
		change.Work = &cl.work
	}
	a.store(ctx, change)
	a.log.Info("work item ended", "work", cl.item.ID, "state", state, "why", end.Why)
}

// end removes everything of a session that is over.
func (a *actor) end(ctx context.Context, how string) {
	a.remove(ctx, sandbox.Everything, "the session is "+how)
	now := a.keeper.now()
	a.record.Phase, a.record.EndedAt, a.record.EndReason = Over, now, how
	a.store(ctx, Change{At: now, Session: &a.record, Events: []event.Event{
		event.New(now, a.id, event.SessionEnded, map[string]string{"how": how}),
	}})
	a.answerOpens(nil, a.gone())
}
