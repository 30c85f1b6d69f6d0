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

// startCall runs a call on the guest, or recalls it from an earlier process, and
// reports its result. It ends without a report only when the process leaves.
func (a *actor) startCall(ctx context.Context, id string, recall bool) {
	c := a.state.Calls[id]
	call := tool.Call{ID: c.ID, Name: c.Name, Input: c.Input, Shell: c.Thread, Timeout: a.keeper.cfg.ToolTimeout}
	bound := callBound(call, a.keeper.cfg.ToolTimeout)
	sb, instance := a.sandbox, c.Instance
	runCtx, cancel := context.WithTimeoutCause(ctx, bound+callGrace, errStuck)
	stopped := make(chan struct{})
	var once sync.Once
	a.calls[id] = &callRun{stop: func() { once.Do(func() { close(stopped) }) }}
	if c.cancelled {
		a.calls[id].stop()
	}
	finished := make(chan struct{})
	a.helpers.Go(func() {
		defer cancel()
		defer close(finished)
		in := runCall(runCtx, sb, call, instance, recall)
		if ctx.Err() != nil {
			return // leaving: the call goes on inside, the successor recalls it
		}
		a.tell(ctx, message{in: in, apply: func() { delete(a.calls, id) }})
	})
	lost := a.claim.lease.ctx
	a.helpers.Go(func() {
		// The lease's own context counts too: a lost lease stops work at once,
		// even while the actor is busy writing.
		select {
		case <-finished:
			return
		case <-ctx.Done():
			return
		case <-stopped:
		case <-lost.Done():
			if ctx.Err() != nil {
				return
			}
		}
		stopCall(ctx, sb, id)
		select {
		case <-finished:
		case <-ctx.Done():
		case <-time.After(cancelWithin):
			cancel()
		}
	})
}

// errStuck ends a call that neither finishes nor heeds its bounds.
var errStuck = errors.New("the call exceeded every bound")

// callBound is the longest that the guest may take for a call: its timeout, or
// the longer one that a bash call asks for.
func callBound(c tool.Call, timeout time.Duration) time.Duration {
	bound := timeout
	if c.Name == tool.Bash {
		var in struct {
			TimeoutMS int64 `json:"timeout_ms"`
		}
		if json.Unmarshal(c.Input, &in) == nil && in.TimeoutMS > 0 {
			asked := maxCallBound
			if in.TimeoutMS < maxCallBound.Milliseconds() {
				asked = time.Duration(in.TimeoutMS) * time.Millisecond
			}
			bound = max(bound, asked)
		}
	}
	return min(bound, maxCallBound)
}

// stopCall cancels a call on whatever guest answers now.
func stopCall(ctx context.Context, sb sandbox.Sandbox, id string) {
	ctx, cancel := context.WithTimeout(ctx, cancelWithin)
	defer cancel()
	if g, err := sb.Guest(ctx); err == nil {
		_ = g.Cancel(ctx, id) // the bound on the run catches a guest that does not heed it
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

// runCall asks the guest until there is an answer: connections may break, the
// call goes on inside. It never runs a call on another guest instance than the
// one on record.
func runCall(ctx context.Context, sb sandbox.Sandbox, call tool.Call, instance string, recall bool) Input {
	for failures := 1; ; failures++ {
		res, err := askGuest(ctx, sb, call, instance, recall)
		switch {
		case err == nil:
			return CallFinished{ID: call.ID, Result: res}
		case errors.Is(err, sandbox.ErrUnknownCall) && recall:
			// This very guest never heard of it: the earlier process died between
			// the record and the message. It is safe to run it now.
			recall = false
			continue
		case errors.Is(err, errOtherGuest):
			return CallLost{ID: call.ID, Why: "The sandbox was restarted while this call was running, and it is not known how far it got. " +
				"Files in /workspace were kept; running processes and shell state are gone."}
		case errors.Is(err, sandbox.ErrAcknowledged):
			return CallLost{ID: call.ID, Why: "The call ran, but its result is no longer available."}
		case errors.Is(err, sandbox.ErrGone):
			return CallLost{ID: call.ID, Why: "The sandbox ended while this call was running, and it is not known how far it got: " +
				exitReason(ctx, sb) + ". Files in /workspace were kept; running processes and shell state are gone."}
		case ctx.Err() != nil:
			return CallLost{ID: call.ID, Why: "The call did not end within its bounds and was given up. It may have had some of its effects."}
		case !errors.Is(err, sandbox.ErrDisconnected):
			return CallLost{ID: call.ID, Why: fmt.Sprintf("The sandbox did not run the call: %v.", err)}
		}
		select {
		case <-ctx.Done():
		case <-time.After(Backoff{Base: 50 * time.Millisecond, Cap: 2 * time.Second}.Wait(failures, nil)):
		}
	}
}

var errOtherGuest = errors.New("another guest instance answers")

func askGuest(ctx context.Context, sb sandbox.Sandbox, call tool.Call, instance string, recall bool) (tool.Result, error) {
	connect, cancel := context.WithTimeout(ctx, guestWithin)
	defer cancel()
	g, err := sb.Guest(connect)
	if err != nil {
		return tool.Result{}, err
	}
	if g.Instance() != instance {
		return tool.Result{}, errOtherGuest
	}
	if recall {
		return g.Recall(ctx, call.ID)
	}
	return g.Call(ctx, call)
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
