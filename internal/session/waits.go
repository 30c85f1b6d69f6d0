package session

import "time"

// This file is what the keeper knows of its sessions' waits: for the slots, and
// for those who watch over the whole.

// waits notes what a session waits for.
func (k *Keeper) waits(session string, w Waiting) {
	k.mu.Lock()
	was := k.patient[session]
	if w.For == ForPerson || w.For == ForClient {
		k.patient[session] = true
	} else {
		delete(k.patient, session)
	}
	k.waiting[session] = w
	freed := !was && k.patient[session]
	k.mu.Unlock()
	if freed {
		offer(k.freed, struct{}{})
	}
}

// Wait sums up the sessions that wait for one thing.
type Wait struct {
	Sessions int
	Oldest   time.Time // since when the first of them waits
}

// overdueAfter is how long after its bound a wait is called overdue: what acts
// at the bound needs a moment.
const overdueAfter = callSlack

// Waits returns what the sessions of this process wait for now. overdue counts
// those that should have got further by themselves: it is a defect when it does
// not stay zero.
func (k *Keeper) Waits() (waits map[For]Wait, overdue int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	waits = map[For]Wait{}
	now := k.now()
	for session, w := range k.waiting {
		if since, stalled := k.stalled[session]; stalled {
			w = Waiting{For: ForStorage, Since: since}
		}
		sum := waits[w.For]
		if sum.Sessions++; sum.Oldest.IsZero() || w.Since.Before(sum.Oldest) {
			sum.Oldest = w.Since
		}
		waits[w.For] = sum
		if !w.Until.IsZero() && now.Sub(w.Until) > overdueAfter {
			overdue++
		}
	}
	return waits, overdue
}
