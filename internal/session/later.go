package session

import (
	"context"
	"slices"
	"time"
)

// This file is what an actor does not do at once, because nobody waits for it and
// it costs less together with what comes next: most of what the platform says
// changes nothing, and each record costs a sync of the disk. Nothing is lost with
// it: the platform has it, and a successor reads it.

// How long it may wait, and how much.
const (
	storeAfter     = 5 * time.Millisecond
	maxLater       = 256 // platform events
	forgetAfter    = time.Second
	maxUnforgotten = 16 // closed calls that the guest still holds
)

// later is what waits. Only the actor's goroutine uses it.
type later struct {
	out      Outcome
	storeAt  time.Time // zero: nothing waits
	ids      []string  // closed calls, of which the guest shall be told
	forgetAt time.Time
}

// keep takes an outcome if it may wait: nothing follows from it, and of the
// states of calls it is Posted. A successor that finds Finished looks into the
// history before it sends anything.
func (l *later) keep(now time.Time, out Outcome) bool {
	if out.empty() {
		return false
	}
	for _, c := range out.Changed {
		if c.State != Posted {
			return false
		}
	}
	for _, e := range out.Effects {
		if _, ok := e.(Forget); !ok {
			return false
		}
	}
	if len(l.out.Fresh)+len(out.Fresh) > maxLater {
		return false
	}
	if l.storeAt.IsZero() {
		l.storeAt = now.Add(storeAfter)
	}
	l.out.add(out)
	return true
}

// with returns what waits together with what came after it; nothing waits then.
func (l *later) with(out Outcome) Outcome {
	all := l.out
	all.add(out)
	l.out, l.storeAt = Outcome{}, time.Time{}
	return all
}

func (l *later) forget(now time.Time, ids []string) {
	if len(l.ids) == 0 {
		l.forgetAt = now.Add(forgetAfter)
	}
	l.ids = append(l.ids, ids...)
}

// due is when catchUp has something to do next; zero for never.
func (l *later) due() time.Time { return earlier(l.storeAt, l.forgetAt) }

// catchUp does what has waited long enough, or all of it.
func (a *actor) catchUp(ctx context.Context, all bool) {
	now := a.keeper.now()
	if at := a.later.storeAt; !at.IsZero() && (all || !now.Before(at)) {
		a.commit(ctx, Outcome{})
	}
	at, ids := a.later.forgetAt, a.later.ids
	if len(ids) == 0 || !all && len(ids) < maxUnforgotten && now.Before(at) {
		return
	}
	a.later.ids, a.later.forgetAt = nil, time.Time{}
	if sb := a.sandbox; sb != nil {
		a.crew.Go(func() { forget(ctx, sb, ids) })
	}
}

// add makes one outcome of two that follow each other. The effects of what was
// kept have been carried out.
func (o *Outcome) add(next Outcome) {
	for _, c := range next.Changed {
		if !slices.Contains(o.Changed, c) {
			o.Changed = append(o.Changed, c)
		}
	}
	o.Fresh = append(o.Fresh, next.Fresh...)
	o.Effects = next.Effects
	o.Memo, o.WakeAt = o.Memo || next.Memo, next.WakeAt
	if next.Waiting != nil {
		o.Waiting = next.Waiting
	}
}

// empty reports that there is nothing to store and nothing to do.
func (o *Outcome) empty() bool {
	return len(o.Changed) == 0 && len(o.Fresh) == 0 && !o.Memo && o.Waiting == nil && len(o.Effects) == 0
}
