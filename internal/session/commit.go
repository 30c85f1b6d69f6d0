package session

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
)

// This file is how an actor writes: every change with its events in one
// transaction, and nothing is done that is not on record.

// ErrFenced is what Records returns to a process that no longer owns the data.
var ErrFenced = errors.New("another process has taken over this data directory")

// commit stores an outcome with its events. It retries until it succeeds: an
// effect that is not on record must not happen. It gives up only when the
// process leaves, and then nothing more is done.
func (a *actor) commit(ctx context.Context, out Outcome) bool {
	now := a.keeper.now()
	out = a.later.with(out)
	if out.empty() {
		return true
	}
	change := Change{At: now, CallsOf: a.id, Calls: out.Changed}
	if out.Waiting != nil {
		a.keeper.waits(a.id, *out.Waiting)
	}
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
	return a.store(ctx, change)
}

// store commits a change, again and again until it is in or ctx ends.
func (a *actor) store(ctx context.Context, change Change) bool {
	if change.Session != nil {
		change.Session.UpdatedAt = change.At
	}
	for failures := 1; ; failures++ {
		if ctx.Err() != nil {
			return false
		}
		err := a.keeper.commit(ctx, change)
		if err == nil {
			if failures > 1 {
				a.keeper.stall(a.id, false)
			}
			a.keeper.bus.Publish(a.id)
			return true
		}
		if ctx.Err() != nil || errors.Is(err, ErrFenced) {
			return false
		}
		a.log.Error("ledger not written; the session waits until it can be", "failures", failures, "err", err)
		a.keeper.stalledBy(err)
		a.keeper.stall(a.id, true)
		a.pause(ctx, Backoff{Base: 100 * time.Millisecond, Cap: 5 * time.Second}.Wait(failures, nil))
	}
}

// pause waits while the ledger cannot be written. People get into a sandbox that
// runs all the same: perhaps to make room.
func (a *actor) pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case req := <-a.opens:
			switch {
			case req.reply == nil: // an adoption waits for better times
				defer offer(a.opens, req)
			case a.sandbox != nil:
				req.reply <- openReply{sandbox: a.sandbox}
			default:
				req.reply <- openReply{err: fault.New(fault.Unavailable, "nothing can be recorded, so no sandbox is started").
					WithNext("make room on the disk of the data directory")}
			}
		}
	}
}

// stall notes whether a session waits for its changes to be recorded.
func (k *Keeper) stall(session string, stalled bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, known := k.stalled[session]
	switch {
	case !stalled:
		delete(k.stalled, session)
	case !known:
		k.stalled[session] = k.now()
	}
}

// Stalled returns since when a session waits for its changes to be recorded:
// the zero time when it does not. Nothing is done for it meanwhile.
func (k *Keeper) Stalled(session string) time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.stalled[session]
}

// stalledBy notes why changes cannot be recorded.
func (k *Keeper) stalledBy(err error) {
	why := ""
	if fault.CodeOf(err) != fault.Internal {
		why = fault.Public(err).Error()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stallWhy = why
}

// StalledWhy returns why changes could not be recorded the last time, for a
// person: "" when there are no words for it but those in the log.
func (k *Keeper) StalledWhy() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.stallWhy
}

// StalledCount returns how many sessions wait so.
func (k *Keeper) StalledCount() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.stalled)
}

// warn puts something that people should know into the session's log.
func (a *actor) warn(ctx context.Context, text string) {
	a.log.Warn("warning", "text", text)
	now := a.keeper.now()
	a.store(ctx, Change{At: now, Events: []event.Event{event.New(now, a.id, event.Warning, map[string]string{"text": text})}})
}

// reloadCall reads a closed call with what was sent.
func (a *actor) reloadCall(ctx context.Context, id string) {
	c, err := a.keeper.records.LoadCall(ctx, a.id, id)
	if err != nil {
		a.log.Warn("call not read", "call", id, "err", err)
		a.tell(ctx, message{in: CallReloaded{ID: id}})
		return
	}
	a.tell(ctx, message{in: CallReloaded{ID: id, Call: &c}})
}

// note puts an event into the session's log from the crew. It is a report, not
// a state change: when it cannot be written it is dropped.
func (a *actor) note(ctx context.Context, typ event.Type, data any) {
	now := a.keeper.now()
	if err := a.keeper.commit(ctx, Change{At: now, Events: []event.Event{event.New(now, a.id, typ, data)}}); err != nil {
		a.log.Warn("event not written", "type", typ, "err", err)
		return
	}
	a.keeper.bus.Publish(a.id)
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
