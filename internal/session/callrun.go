package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/tool"
)

// Bounds of a call's run, seen from outside. The guest enforces the call's own
// timeout; these catch a guest that does not (DESIGN promise 3).
const (
	callGrace    = 30 * time.Second // beyond the guest's own bound
	cancelWithin = 10 * time.Second // for a cancelled call to end
	guestWithin  = 20 * time.Second // to connect to the guest again
	maxCallBound = time.Hour
)

// callRun is one call under way. stop may be called more than once.
type callRun struct {
	stop func()
}

// startCall runs a call on the guest, or recalls it from an earlier run, and
// reports its result. It ends without a report when the process leaves, and when
// the lease is gone already: the next run finds the call as it is now.
func (a *actor) startCall(ctx context.Context, id string, recall bool) {
	lease := a.claim.lease.ctx
	if lease.Err() != nil {
		return
	}
	c, sb, timeout := a.state.Calls[id], a.sandbox, time.Duration(a.profile().ToolTimeout)
	ask := request{
		call:     tool.Call{ID: c.ID, Name: c.Name, Input: c.Input, Shell: c.Thread, Timeout: timeout},
		instance: c.Instance, recall: recall, mayRun: !c.cancelled,
	}
	bound := callLimit(c.Name, c.Input, timeout) + callGrace
	runCtx, cancel := context.WithCancel(ctx)
	stopped := make(chan struct{})
	r := &callRun{stop: sync.OnceFunc(func() { close(stopped) })}
	a.calls[id] = r
	if c.cancelled {
		r.stop()
	}
	finished := make(chan struct{})
	a.running.Add(1)
	a.crew.Go(func() {
		defer a.running.Add(-1)
		defer cancel()
		defer close(finished)
		in := runCall(runCtx, sb, ask)
		if ctx.Err() != nil {
			return // leaving: the call goes on inside, the successor recalls it
		}
		a.tell(ctx, message{apply: func() { a.callEnded(ctx, sb, id, in) }})
	})
	a.crew.Go(func() {
		// The lease's own context counts too: a lost lease stops work at once,
		// even while the actor is busy writing. The guest has a bound for the
		// call; beyond that it is told to stop it.
		over := time.NewTimer(bound)
		defer over.Stop()
		why := "a call did not stop when it was told to"
		select {
		case <-finished:
			return
		case <-stopped:
		case <-lease.Done():
		case <-over.C:
			why = fmt.Sprintf("a call ran longer than its limit of %s and did not stop", bound-callGrace)
		}
		if ctx.Err() != nil {
			return
		}
		stopCall(ctx, sb, id)
		late := time.NewTimer(cancelWithin)
		defer late.Stop()
		select {
		case <-finished:
		case <-ctx.Done():
		case <-late.C:
			// Somebody else may be at work by now, or the guest is no use any
			// more: what does not stop when it is told to is stopped from outside.
			a.tell(ctx, message{apply: func() { a.fence(ctx, sb, why) }})
			cancel()
		}
	})
}

// callEnded runs on the actor when a call has been answered or given up.
func (a *actor) callEnded(ctx context.Context, sb sandbox.Sandbox, id string, in Input) {
	delete(a.calls, id)
	a.memories.ask()
	if _, other := in.(SandboxUp); other && a.sandbox != sb {
		in = CallLost{ID: id, Why: "The sandbox was replaced while this call was running, and it is not known how far it got."}
	}
	a.step(ctx, in)
}

// callLimit is the longest that the guest may take for a call: its timeout, or
// the longer one that a bash call asks for.
func callLimit(name string, input json.RawMessage, timeout time.Duration) time.Duration {
	bound := timeout
	if name == tool.Bash {
		var in struct {
			TimeoutMS int64 `json:"timeout_ms"`
		}
		if json.Unmarshal(input, &in) == nil && in.TimeoutMS > 0 {
			asked := maxCallBound
			if in.TimeoutMS < maxCallBound.Milliseconds() {
				asked = time.Duration(in.TimeoutMS) * time.Millisecond
			}
			bound = max(bound, asked)
		}
	}
	return min(bound, maxCallBound)
}

// stopCall cancels a call on whatever guest answers now. The bound on the run
// catches a guest that cannot be told, or does not heed it.
func stopCall(ctx context.Context, sb sandbox.Sandbox, id string) {
	ctx, cancel := context.WithTimeout(ctx, cancelWithin)
	defer cancel()
	for failures := 1; ; failures++ {
		g, err := sb.Guest(ctx)
		if err == nil {
			err = g.Cancel(ctx, id)
		}
		if !errors.Is(err, sandbox.ErrDisconnected) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(Backoff{Base: 50 * time.Millisecond, Cap: time.Second}.Wait(failures, nil)):
		}
	}
}

// forget acknowledges settled calls; a failure costs the guest some memory.
func forget(ctx context.Context, sb sandbox.Sandbox, ids []string) {
	ctx, cancel := context.WithTimeout(ctx, guestWithin)
	defer cancel()
	if g, err := sb.Guest(ctx); err == nil {
		_ = g.Acknowledge(ctx, ids...)
	}
}

// request is what a guest is asked for.
type request struct {
	call     tool.Call
	instance string // the guest that may answer it
	recall   bool   // do not start it: it was started before
	mayRun   bool   // a recalled call that the guest never heard of may run now
}

// runCall asks the guest until there is an answer: connections may break, the
// call goes on inside. It never runs a call on another guest instance than the
// one on record; when another one answers, it reports that one as SandboxUp.
func runCall(ctx context.Context, sb sandbox.Sandbox, ask request) Input {
	for failures := 1; ; failures++ {
		res, answers, err := askGuest(ctx, sb, ask)
		switch {
		case err == nil:
			return CallFinished{ID: ask.call.ID, Result: res}
		case errors.Is(err, sandbox.ErrUnknownCall) && ask.recall && ask.mayRun:
			// This very guest never heard of it: the earlier process died between
			// the record and the message. It is safe to run it now.
			ask.recall = false
			continue
		case errors.Is(err, sandbox.ErrUnknownCall) && ask.recall:
			return CallLost{ID: ask.call.ID, Why: "The call was not run: it was stopped before it began."}
		case errors.Is(err, errOtherGuest):
			return SandboxUp{Instance: answers}
		case errors.Is(err, sandbox.ErrAcknowledged):
			return CallLost{ID: ask.call.ID, Why: "The call ran, but its result is no longer available."}
		case errors.Is(err, sandbox.ErrGone):
			return CallLost{ID: ask.call.ID, Why: "The sandbox ended while this call was running, and it is not known how far it got: " +
				exitReason(ctx, sb) + ". Files in /workspace were kept; running processes and shell state are gone."}
		case ctx.Err() != nil:
			return CallLost{ID: ask.call.ID, Why: "The call did not end within its bounds and was given up. It may have had some of its effects."}
		case !errors.Is(err, sandbox.ErrDisconnected):
			return CallLost{ID: ask.call.ID, Why: fmt.Sprintf("The sandbox did not answer the call, and it is not known how far it got: %v.", err)}
		}
		select {
		case <-ctx.Done():
		case <-time.After(Backoff{Base: 50 * time.Millisecond, Cap: 2 * time.Second}.Wait(failures, nil)):
		}
	}
}

var errOtherGuest = errors.New("another guest instance answers")

// askGuest asks once. With errOtherGuest it names the guest that answers now.
func askGuest(ctx context.Context, sb sandbox.Sandbox, ask request) (tool.Result, string, error) {
	connect, cancel := context.WithTimeout(ctx, guestWithin)
	defer cancel()
	g, err := sb.Guest(connect)
	if err != nil {
		return tool.Result{}, "", err
	}
	if g.Instance() != ask.instance {
		return tool.Result{}, g.Instance(), errOtherGuest
	}
	if ask.recall {
		res, err := g.Recall(ctx, ask.call.ID)
		return res, "", err
	}
	res, err := g.Call(ctx, ask.call)
	return res, "", err
}

// exitReason asks a sandbox that is gone how it ended.
func exitReason(ctx context.Context, sb sandbox.Sandbox) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	exit, err := sb.Wait(ctx)
	if err != nil || exit.Reason == "" {
		return "the reason is not known"
	}
	return exit.Reason
}
