package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/sandbox"
)

// claim is a work item on its way to its session, with its lease already held.
type claim struct {
	item     Item
	platform Platform
	lease    *lease
	work     Work
	adopted  bool
}

// message is what the actor's helpers send it. apply, if any, runs on the actor
// before the machine sees the input.
type message struct {
	in    Input
	apply func()
}

// An actor owns one session. Its goroutine is the only one that touches the
// fields below; helpers report through the inbox. Two contexts end it: the run's
// (the session must stop) and the keeper's (the process is leaving and the
// session goes on without it).
type actor struct {
	keeper *Keeper
	id     string
	log    *slog.Logger
	state  *State
	record Record
	inbox  chan message
	items  chan *claim
	opens  chan openRequest

	sandbox sandbox.Sandbox // nil when none runs
	skilled bool            // its skills are installed
	waiters []openRequest   // people who wait for it
	info    Info
	watch   sync.WaitGroup // the goroutines that wait for a sandbox's end

	// Of the run under way:
	claim   *claim
	runCtx  context.Context
	helpers sync.WaitGroup
	calls   map[string]*callRun
	ending  *StopWork
}

// openRequest asks for a connection to the session's sandbox, for a person.
type openRequest struct {
	reply chan<- openReply // buffered, so that the actor never waits for it
}

type openReply struct {
	sandbox sandbox.Sandbox
	err     error
}

// main is the life of an actor: runs, and the warm time between them. It returns
// when the keeper leaves, or when there is nothing left to keep warm.
func (a *actor) main(ctx context.Context) {
	defer a.watch.Wait()
	defer a.helpers.Wait()
	defer a.answerOpens(nil, errLeaving)
	for ctx.Err() == nil {
		warm := time.NewTimer(a.keeper.cfg.WarmFor)
		if a.sandbox == nil {
			warm.Reset(0)
		}
		select {
		case cl := <-a.items:
			a.run(ctx, cl)
		case m := <-a.inbox:
			a.take(ctx, m)
		case req := <-a.opens:
			a.open(ctx, req)
		case <-ctx.Done():
		case <-warm.C:
			if a.sandbox != nil {
				a.remove(ctx, sandbox.KeepFiles, "idle")
				continue
			}
			if a.keeper.retire(a) {
				return
			}
			// An item or a request arrived at this very moment.
		}
		warm.Stop()
	}
}

// run works on one item until it is released, lost, or the process leaves.
func (a *actor) run(ctx context.Context, cl *claim) {
	a.claim, a.ending, a.calls = cl, nil, map[string]*callRun{}
	runCtx, cancel := context.WithCancelCause(cl.lease.ctx)
	a.runCtx = runCtx
	defer func() { a.claim = nil }()

	a.record.Phase = Active
	over := a.greet(ctx)
	if over == "" {
		a.equip(runCtx)
	}
	a.step(ctx, Claimed{})
	if over != "" {
		a.step(ctx, SessionOver{How: over})
	}
	if a.ending == nil {
		a.helpers.Go(func() { a.follow(runCtx, cl.platform) })
	}
	a.loop(ctx)

	cancel(errLeaseOver)
	a.drain(ctx)
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
	<-timer.C
	for a.ending == nil && ctx.Err() == nil {
		if at := a.state.wakeAt(); !at.IsZero() {
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
		case next := <-a.items:
			// The platform gave the session out again: whatever we hold is dead.
			a.items <- next
			a.claim.lease.cancel(errLeaseLost)
			a.step(ctx, LeaseLost{Why: "a newer work item for the session arrived: " + next.item.ID})
		case req := <-a.opens:
			a.open(ctx, req)
		case <-timer.C:
			a.step(ctx, Tick{})
		}
	}
}

// greet reads the session once the lease is held. It returns how the session
// ended if it is over already. A read that fails does not matter: everything in
// it is a convenience, except skills, which are asked for again with the sandbox.
func (a *actor) greet(ctx context.Context) (over string) {
	for failures := 1; ; failures++ {
		tryCtx, cancel := context.WithTimeout(a.runCtx, 15*time.Second)
		info, err := a.claim.platform.Info(tryCtx)
		cancel()
		switch {
		case err == nil:
			a.info = info
			a.record.Agent, a.record.AgentName, a.record.AgentVersion = info.AgentID, info.AgentName, info.AgentVersion
			a.record.Title, a.record.Model = info.Title, info.Model
			if len(info.Memories) > 0 {
				a.warn(ctx, "the agent's memory stores are not mounted in this sandbox", "stores", len(info.Memories))
			}
			if info.Archived {
				return "archived"
			}
			if info.Status == "terminated" {
				return "terminated"
			}
			return ""
		case StatusOf(err) == 404:
			return "deleted"
		case a.runCtx.Err() != nil || !Retryable(err) || failures >= 5:
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

// take handles one message.
func (a *actor) take(ctx context.Context, m message) {
	if m.apply != nil {
		m.apply()
	}
	if m.in != nil {
		a.step(ctx, m.in)
	}
}

// tell sends a message to the actor; it gives up when ctx ends.
func (a *actor) tell(ctx context.Context, m message) bool {
	select {
	case a.inbox <- m:
		return true
	case <-ctx.Done():
		return false
	}
}

// step advances the machine, stores what changed and does what follows. When
// the change cannot be stored nothing is done: see commit.
func (a *actor) step(ctx context.Context, in Input) {
	out := a.state.Step(a.keeper.now(), in)
	if !a.commit(ctx, out) {
		return
	}
	for _, e := range out.Effects {
		a.do(ctx, e)
	}
}

// commit stores an outcome with its events. It retries until it succeeds: an
// effect that is not on record must not happen. It gives up only when the run
// or the process ends, and then nothing more is done.
func (a *actor) commit(ctx context.Context, out Outcome) bool {
	now := a.keeper.now()
	if len(out.Changed) == 0 && len(out.Fresh) == 0 && !out.Memo && out.Waiting == nil && len(out.Effects) == 0 {
		return true
	}
	change := Change{At: now, CallsOf: a.id, Calls: out.Changed}
	if out.Memo || out.Waiting != nil {
		a.record.Memo, a.record.Waiting = a.state.Memo(), a.state.wait
		change.Session = &a.record
	}
	for i := range out.Fresh {
		change.Events = append(change.Events, mirror(now, a.id, &out.Fresh[i]))
	}
	for _, c := range out.Changed {
		change.Events = append(change.Events, callEvent(now, a.id, c))
	}
	if !a.store(ctx, change) {
		return false
	}
	for _, c := range out.Changed {
		if !c.Open() { // the ledger has it; memory need not
			c.Input, c.Content = nil, nil
		}
	}
	return true
}

// store commits a change, again and again until it is in or ctx ends.
func (a *actor) store(ctx context.Context, change Change) bool {
	if change.Session != nil {
		change.Session.UpdatedAt = change.At
	}
	for failures := 1; ; failures++ {
		err := a.keeper.records.Commit(ctx, change)
		if err == nil {
			a.keeper.bus.Publish(a.id)
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		a.log.Error("ledger not written; the session waits until it can be", "failures", failures, "err", err)
		if errors.Is(err, ErrFenced) {
			a.keeper.fenced(err)
			<-ctx.Done()
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(Backoff{Base: 100 * time.Millisecond, Cap: 5 * time.Second}.Wait(failures, nil)):
		}
	}
}

// ErrFenced is what Records returns to a process that no longer owns the data.
var ErrFenced = errors.New("another process has taken over this data directory")

// do carries out one effect; whatever takes time reports back by message.
func (a *actor) do(ctx context.Context, e Effect) {
	switch e := e.(type) {
	case ReadHistory:
		platform, runCtx := a.claim.platform, a.runCtx
		a.helpers.Go(func() { a.readHistory(runCtx, platform, e) })
	case StartSandbox:
		plan, runCtx := movePlan{ref: a.record.Sandbox}, ctx
		if a.claim != nil {
			plan.platform, plan.skills, runCtx = a.claim.platform, a.info.Skills, a.runCtx
		}
		a.helpers.Go(func() { a.startSandbox(ctx, runCtx, plan) })
	case RunCall:
		a.startCall(ctx, e.ID, false)
	case RecallCall:
		a.startCall(ctx, e.ID, true)
	case CancelCall:
		if r := a.calls[e.ID]; r != nil {
			r.stop()
		}
	case Forget:
		if sb := a.sandbox; sb != nil {
			a.helpers.Go(func() { forget(ctx, sb, e.IDs) })
		}
	case Post:
		c := a.state.Calls[e.ID]
		answer := Answer{Call: c.ID, Custom: c.Custom, Content: c.Content, IsError: c.IsError}
		cl := a.claim
		a.helpers.Go(func() { a.post(ctx, cl, answer) })
	case StopWork:
		a.ending = &e
	default:
		panic(fmt.Sprintf("session: unknown effect %T", e)) // the set is closed
	}
}

// drain waits for the run's helpers while taking what they still report.
func (a *actor) drain(ctx context.Context) {
	idle := make(chan struct{})
	go func() { // ends with the helpers, which are bounded
		a.helpers.Wait()
		close(idle)
	}()
	for {
		select {
		case m := <-a.inbox:
			a.take(ctx, m)
		case req := <-a.opens:
			a.open(ctx, req)
		case <-idle:
			return
		}
	}
}

// conclude ends the work item as the machine decided.
func (a *actor) conclude(ctx context.Context) {
	end, cl := *a.ending, a.claim
	cl.lease.release(errLeaseOver)
	cl.work.State = WorkLost
	if end.Stop {
		cl.work.State = WorkStopped
		if err := cl.platform.Stop(ctx, true); err != nil {
			a.log.Warn("work item not stopped; its lease will lapse", "work", cl.item.ID, "err", err)
		}
	}
	out := a.state.Step(a.keeper.now(), Released{})
	a.commit(ctx, out)

	now := a.keeper.now()
	cl.work.EndedAt, cl.work.Why, cl.work.Secret = now, end.Why, nil
	typ := map[WorkState]event.Type{WorkLost: event.WorkLost, WorkStopped: event.WorkStopped}[cl.work.State]
	a.record.Phase = Warm
	if a.sandbox == nil {
		a.record.Phase = Parked
	}
	a.store(ctx, Change{At: now, Session: &a.record, Work: &cl.work, Events: []event.Event{
		event.New(now, a.id, typ, map[string]string{"work": cl.item.ID, "why": end.Why}),
	}})
	a.log.Info("work item ended", "work", cl.item.ID, "state", cl.work.State, "why", end.Why)
	if end.Remove {
		a.end(ctx, a.state.Ended)
	}
	a.keeper.slotFreed()
}

// end removes everything of a session that is over.
func (a *actor) end(ctx context.Context, how string) {
	a.remove(ctx, sandbox.Everything, "the session is "+how)
	now := a.keeper.now()
	a.record.Phase, a.record.EndedAt, a.record.EndReason = Over, now, how
	a.store(ctx, Change{At: now, Session: &a.record, Events: []event.Event{
		event.New(now, a.id, event.SessionEnded, map[string]string{"how": how}),
	}})
}

// warn puts something that people should know into the session's log.
func (a *actor) warn(ctx context.Context, text string, args ...any) {
	a.log.Warn(text, args...)
	now := a.keeper.now()
	a.store(ctx, Change{At: now, Events: []event.Event{event.New(now, a.id, event.Warning, map[string]string{"text": text})}})
}

// maxMirrored bounds what is kept of one platform event, in bytes.
const maxMirrored = 64 << 10

// mirror is the entry of our own log for a platform event.
func mirror(now time.Time, session string, ev *Event) event.Event {
	e := event.Event{At: now.UTC(), Session: session, Type: event.Type(event.ClaudePrefix + ev.Type), Source: ev.ID, Data: ev.Raw}
	if len(e.Data) > maxMirrored || !json.Valid(e.Data) {
		e.Data, _ = json.Marshal(map[string]any{ // plain values always encode
			"id": ev.ID, "type": ev.Type, "processed_at": ev.ProcessedAt, "name": ev.Name, "left_out_bytes": len(ev.Raw),
		})
	}
	return e
}

var callEvents = map[CallState]event.Type{
	Seen: event.CallSeen, Held: event.CallHeld, Ready: event.CallSeen, Started: event.CallStarted,
	Finished: event.CallFinished, Posted: event.CallPosted, Settled: event.CallSettled, Foreign: event.CallSeen,
}

func callEvent(now time.Time, session string, c *Call) event.Event {
	data := map[string]any{"call": c.ID, "name": c.Name, "state": c.State}
	if c.Reason != "" {
		data["why"] = c.Reason
	}
	if c.State == Finished || c.State == Posted {
		data["is_error"] = c.IsError
	}
	if c.State == Finished && !c.StartedAt.IsZero() {
		data["ms"] = c.FinishedAt.Sub(c.StartedAt).Milliseconds()
	}
	return event.New(now, session, callEvents[c.State], data)
}
