package session

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/berth-dev/berth/internal/sandbox"
)

// message is what the actor's crew sends it. apply, if any, runs on the actor
// before the machine sees the input.
type message struct {
	in    Input
	apply func()
}

// An actor owns one session. Its goroutine is the only one that touches the
// fields below; its crew reports through the inbox. Two contexts end it: the
// run's (the session must stop) and the keeper's (the process is leaving and the
// session goes on without it).
type actor struct {
	keeper  *Keeper
	id      string
	log     *slog.Logger
	state   *State
	record  Record
	crew    *crew
	inbox   chan message
	items   chan *claim
	started bool // main runs; guarded by the keeper's mutex
	opens   chan openRequest

	sandbox   sandbox.Sandbox // nil when none runs
	adoptOnly bool            // the next start attaches or does nothing
	waiters   []openRequest   // people who wait for it
	info      Info
	watch     sync.WaitGroup // the goroutines that wait for a sandbox's end
	next      []*claim       // that arrived and wait for their run
	later     later          // what need not be done at once

	// Of the run under way:
	claim    *claim // nil between runs
	runCtx   context.Context
	calls    map[string]*callRun
	running  atomic.Int64 // calls that the guest is asked for
	informed bool         // info is this run's
	memories *memoryRun
	ending   *StopWork
}

// openRequest asks for a connection to the session's sandbox, for a person; or,
// without a reply, for a sandbox that an earlier process left to be adopted.
type openRequest struct {
	reply chan<- openReply // buffered, so that the actor never waits for it
}

type openReply struct {
	sandbox sandbox.Sandbox
	err     error
}

func newActor(k *Keeper, id string, rec Record, calls []Call) *actor {
	a := &actor{
		keeper: k, id: id, log: k.log.With("session", id), record: rec, crew: newCrew(),
		inbox: make(chan message, 64), items: make(chan *claim, 4), opens: make(chan openRequest, 16),
		state: NewState(id, Rules{
			Owns:         Owns,
			ReleaseAfter: k.cfg.ReleaseAfter,
			ReadEvery:    k.cfg.ReadEvery,
			SandboxTries: 2,
		}),
	}
	a.state.Rules.CallLimit = func(name string, input json.RawMessage) time.Duration {
		return callLimit(name, input, time.Duration(a.profile().ToolTimeout))
	}
	if a.record.Phase == Active {
		a.record.Phase = Parked // an earlier process was at work; this one is not yet
	}
	a.state.Restore(rec.Memo, calls)
	a.state.wait = rec.Waiting
	return a
}

// main is the life of an actor: runs, and the warm time between them. It returns
// when the keeper leaves, or when there is nothing left to keep warm.
func (a *actor) main(ctx context.Context) {
	defer a.leave()
	for ctx.Err() == nil {
		if cl := a.nextClaim(ctx); cl != nil {
			a.run(ctx, cl)
			continue
		}
		if len(a.waiters) > 0 && a.state.Sandbox == SandboxNone {
			a.step(ctx, SandboxWanted{})
		}
		if a.sandbox == nil && a.record.Sandbox != nil {
			a.adopt(ctx) // an earlier process left it, and no call has needed it since
		}
		if a.sandbox == nil && a.keeper.retire(a) {
			return
		}
		a.idle(ctx)
	}
}

// idle waits between two runs for whatever comes first.
func (a *actor) idle(ctx context.Context) {
	var cold <-chan time.Time
	stay, why := a.staysFor()
	if a.sandbox != nil {
		warm := time.NewTimer(stay)
		defer warm.Stop()
		cold = warm.C
	}
	select {
	case cl := <-a.items:
		a.next = append(a.next, cl)
	case m := <-a.inbox:
		a.take(ctx, m)
	case req := <-a.opens:
		a.open(ctx, req)
	case <-a.crew.changed:
	case <-ctx.Done():
	case <-cold:
		a.remove(ctx, sandbox.KeepFiles, why)
	}
}

// leave waits for everybody who works for the actor. What it has not begun is
// left to the next process.
func (a *actor) leave() {
	a.crew.wait()
	a.watch.Wait()
	for len(a.items) > 0 {
		a.next = append(a.next, <-a.items)
	}
	for _, cl := range a.next {
		cl.lease.release(errLeaving)
	}
	for len(a.opens) > 0 {
		if req := <-a.opens; req.reply != nil {
			a.waiters = append(a.waiters, req)
		}
	}
	a.answerOpens(nil, shuttingDown())
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
	now := a.keeper.now()
	out := a.state.Step(now, in)
	if a.claim != nil && a.later.keep(now, out) {
		if out.Waiting != nil {
			a.keeper.waits(a.id, *out.Waiting)
		}
	} else if !a.commit(ctx, out) {
		return
	}
	for _, e := range out.Effects {
		a.do(ctx, e)
	}
}

// do carries out one effect; whatever takes time reports back by message.
func (a *actor) do(ctx context.Context, e Effect) {
	switch e := e.(type) {
	case ReadHistory:
		platform, runCtx := a.claim.platform, a.runCtx
		a.crew.Go(func() { a.readHistory(runCtx, platform, e) })
	case StartSandbox:
		plan, runCtx := a.planMove(), ctx
		if a.claim != nil {
			runCtx = a.runCtx
		}
		a.crew.Go(func() { a.startSandbox(ctx, runCtx, plan) })
	case RunCall:
		a.startCall(ctx, e.ID, false)
	case RecallCall:
		a.startCall(ctx, e.ID, true)
	case CancelCall:
		if r := a.calls[e.ID]; r != nil {
			r.stop()
		} else if sb := a.sandbox; sb != nil {
			a.crew.Go(func() { stopCall(ctx, sb, e.ID) }) // of an earlier process
		}
	case Forget:
		a.later.forget(a.keeper.now(), e.IDs)
		a.catchUp(ctx, a.claim == nil)
	case Post:
		c := a.state.Calls[e.ID]
		answer := Answer{Call: c.ID, Custom: c.Custom, Content: c.Content, IsError: c.IsError}
		cl := a.claim
		a.crew.Go(func() { a.post(ctx, cl, answer) })
	case ReplaceSandbox:
		if sb := a.sandbox; sb != nil {
			a.crew.Go(func() { a.tell(ctx, message{apply: func() { a.fence(ctx, sb, e.Why) }}) })
		}
	case ReloadCall:
		a.crew.Go(func() { a.reloadCall(ctx, e.ID) })
	case Warn:
		a.warn(ctx, e.Text)
	case CheckSession:
		platform, runCtx := a.claim.platform, a.runCtx
		a.crew.Go(func() { a.check(runCtx, platform) })
	case StopWork:
		a.ending = &e
	default:
		panic(fmt.Sprintf("session: unknown effect %T", e)) // the set is closed
	}
}
