package session

import (
	"context"
	"errors"
	"slices"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
)

// This file is where an actor's sandbox and the memory stores of its session
// meet: when it is made, found, used again, and left.

// create makes a sandbox with the session's stores in it, filled.
func (a *actor) create(ctx context.Context, plan *movePlan, spec sandbox.Spec) (sandbox.Sandbox, error) {
	skills := spec.Shares
	spec.Shares = append(slices.Clip(skills), plan.shares...)
	if plan.memories == nil {
		return a.keeper.backend.Create(ctx, spec)
	}
	stores, err := plan.memories.shares(ctx)
	if err != nil {
		a.note(ctx, event.MemoryFailed, map[string]string{"why": fault.Public(err).Error()})
		return nil, err
	}
	spec.Shares = append(slices.Clip(skills), stores...)
	for again := true; ; again = false {
		sb, err := a.keeper.backend.Create(ctx, spec)
		if err != nil {
			return nil, err
		}
		err = plan.memories.fill(ctx, sb, openWithin)
		if err == nil {
			return sb, nil
		}
		if context.Cause(ctx) != nil && !errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
			return nil, err // nobody waits for it; it is left to whoever comes next
		}
		if failed := destroy(ctx, sb, sandbox.KeepFiles); failed != nil {
			return nil, errors.Join(err, failed)
		}
		if !errors.Is(err, errNotOpen) || !again { // else one without stores ran already
			a.note(ctx, event.MemoryFailed, map[string]string{"why": fault.Public(err).Error()})
			return nil, err
		}
	}
}

// reopen brings the stores of a sandbox that was found running up to date. One
// without them is ended, so that another takes its place.
func (a *actor) reopen(ctx context.Context, plan *movePlan, sb sandbox.Sandbox) error {
	err := plan.memories.catchUp(ctx, sb)
	if errors.Is(err, errNotOpen) {
		err = errors.Join(err, destroy(ctx, sb, sandbox.KeepFiles))
	}
	return err
}

// remember brings the stores of a sandbox that is warm up to date, before a call
// runs in it.
func (a *actor) remember(ctx context.Context) {
	if a.sandbox == nil {
		return
	}
	if err := a.memories.catchUp(a.runCtx, a.sandbox); errors.Is(err, errNotOpen) {
		a.warn(ctx, "the sandbox is made again, with the session's memory stores in it; processes and shells in it have ended")
		a.remove(ctx, sandbox.KeepFiles, "it lacks the session's memory stores")
	}
}

// findMemories looks for the sandbox that an earlier process left: what was
// written there may not have been sent, even if no call needs it any more.
func (a *actor) findMemories(ctx context.Context) {
	if a.sandbox == nil && a.record.Sandbox != nil && len(a.info.Memories) > 0 && a.ending == nil {
		a.step(ctx, SandboxWanted{})
	}
}

// keepMemories is the last synchronization under a work item. The lease is held
// meanwhile; without it nothing is sent.
func (a *actor) keepMemories(ctx context.Context) {
	lease, m := a.claim.lease.ctx, a.memories
	if ctx.Err() != nil || lease.Err() != nil {
		return
	}
	clean, over := a.state.turnOver(), a.ending != nil && a.ending.Remove
	a.crew.Go(func() { m.finish(lease, clean, over) })
	a.drain(ctx)
}
