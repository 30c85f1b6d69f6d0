package local

import (
	"net/url"
	"slices"
	"strconv"
	"time"
)

// The work queue (contract §3), without HTTP and without a clock of its own:
// every method is told the time, and first lets due leases lapse.
//
//	queued --poll--> handed out, still queued --ack--> starting --beat--> active
//	starting|active --stop--> stopping --forced stop--> stopped
//	any --forced stop--> stopped
//	handed out, no ack for the reclaim time --> pollable again
//	starting|active, no beat for the ttl --> queued; the old holder gets 412
//	stopping, no beat for the ttl --> stopped
//
// Each hand-out is a claim with a number and its own sessions token. The token
// of an older claim still reads and posts to the session, as far as is known of
// the platform, but its lease is lost for good: its beats are 412 and its stop
// is a 409, whoever holds the item now.

type workState string

const (
	workQueued   workState = "queued"
	workStarting workState = "starting"
	workActive   workState = "active"
	workStopping workState = "stopping"
	workStopped  workState = "stopped"
)

// workItem is "session X wants a worker".
type workItem struct {
	ID           string
	Environment  string
	Type         string // session, or healthcheck
	Session      string
	State        workState
	Metadata     map[string]string
	Created      time.Time
	Acknowledged time.Time
	Started      time.Time
	LastBeat     time.Time
	StopAsked    time.Time
	Stopped      time.Time

	handedOut time.Time // the last poll that returned it, while queued
	queuedAt  time.Time
	deadline  time.Time // of the lease, while starting, active or stopping
	ttl       time.Duration
	claim     int // counts hand-outs
	// missed tells that the session came to need a worker while this item was
	// stopping; it gets a new one at the end.
	missed bool
}

func (w *workItem) live() bool { return w.State != workStopped }

func (w *workItem) held() bool {
	return w.State == workStarting || w.State == workActive || w.State == workStopping
}

// reply is the work object; secret is "" everywhere but in a poll's reply.
func (w *workItem) reply(secret string) map[string]any {
	var sealed any
	if secret != "" {
		sealed = secret
	}
	return map[string]any{
		"id": w.ID, "type": "work", "environment_id": w.Environment, "state": string(w.State),
		"data":     map[string]any{"type": w.Type, "id": w.Session},
		"metadata": orEmpty(w.Metadata), "secret": sealed,
		"created_at": stamp(w.Created), "acknowledged_at": stampOrNil(w.Acknowledged),
		"started_at": stampOrNil(w.Started), "latest_heartbeat_at": stampOrNil(w.LastBeat),
		"stop_requested_at": stampOrNil(w.StopAsked), "stopped_at": stampOrNil(w.Stopped),
	}
}

// queue holds the work items of all environments. Guarded by Server.mu.
type queue struct {
	ttl     time.Duration
	items   map[string]*workItem
	order   []*workItem            // by creation
	polls   map[string]workersSeen // by environment
	changed chan struct{}          // closed and replaced when an item may have become pollable
	ended   func(*workItem)        // called when an item stops
}

type workersSeen map[string]time.Time

func newQueue(ttl time.Duration) *queue {
	return &queue{ttl: ttl, items: map[string]*workItem{}, polls: map[string]workersSeen{}, changed: make(chan struct{}), ended: func(*workItem) {}}
}

func (q *queue) wake() {
	close(q.changed)
	q.changed = make(chan struct{})
}

// add queues a new item.
func (q *queue) add(environment, typ, session string, now time.Time) *workItem {
	w := &workItem{
		ID: newID("work_"), Environment: environment, Type: typ, Session: session,
		State: workQueued, Created: now, queuedAt: now, ttl: q.ttl,
	}
	q.items[w.ID] = w
	if len(q.order) >= maxItems {
		q.prune()
	}
	q.order = append(q.order, w)
	q.wake()
	return w
}

// maxItems is how many items are kept before stopped ones are forgotten.
const maxItems = 10_000

// prune forgets the stopped items among the older half.
func (q *queue) prune() {
	half := len(q.order) / 2
	kept := q.order[:0]
	for i, w := range q.order {
		if i < half && !w.live() {
			delete(q.items, w.ID)
			continue
		}
		kept = append(kept, w)
	}
	clear(q.order[len(kept):])
	q.order = kept
}

// liveFor returns the live item of a session, if there is one.
func (q *queue) liveFor(session string) *workItem {
	for _, w := range slices.Backward(q.order) {
		if w.Type == "session" && w.Session == session && w.live() {
			return w
		}
	}
	return nil
}

// settle lets every lease lapse that is due.
func (q *queue) settle(now time.Time) {
	for _, w := range q.order {
		if w.held() && !now.Before(w.deadline) {
			q.lapse(w, now)
		}
	}
}

// lapse ends a lease: the item is pollable again, unless it was to stop.
func (q *queue) lapse(w *workItem, now time.Time) {
	if w.State == workStopping {
		q.end(w, now)
		return
	}
	w.State = workQueued
	w.queuedAt = now
	w.handedOut, w.Acknowledged, w.Started, w.LastBeat, w.deadline = time.Time{}, time.Time{}, time.Time{}, time.Time{}, time.Time{}
	q.wake()
}

func (q *queue) end(w *workItem, now time.Time) {
	w.State = workStopped
	w.Stopped = now
	q.ended(w)
}

// poll hands out the oldest claimable item of an environment, or nil. next is
// when one may become claimable by the passing of time alone (zero: never).
func (q *queue) poll(environment, worker string, reclaim time.Duration, now time.Time) (item *workItem, next time.Time) {
	q.settle(now)
	if worker != "" {
		q.see(environment, worker, now)
	}
	for _, w := range q.order {
		if w.Environment != environment {
			continue
		}
		var due time.Time
		switch {
		case w.State == workQueued && !w.handedOut.IsZero():
			due = w.handedOut.Add(reclaim)
			if !now.Before(due) {
				due = time.Time{}
			}
		case w.State == workStarting || w.State == workActive:
			due = w.deadline
		case w.State != workQueued:
			continue
		}
		if due.IsZero() {
			w.handedOut = now
			w.claim++
			return w, time.Time{}
		}
		if next.IsZero() || due.Before(next) {
			next = due
		}
	}
	return nil, next
}

// see records a polling worker and forgets those of long ago.
func (q *queue) see(environment, worker string, now time.Time) {
	seen := q.polls[environment]
	if seen == nil {
		seen = workersSeen{}
		q.polls[environment] = seen
	}
	for id, at := range seen {
		if now.Sub(at) > workerWindow {
			delete(seen, id)
		}
	}
	if len(seen) < 10_000 {
		seen[worker] = now
	}
}

// workerWindow is how long a worker counts as polling (contract §2.2).
const workerWindow = 30 * time.Second

// ack claims a handed-out item.
func (q *queue) ack(w *workItem, idempotent bool, now time.Time) *apiError {
	q.settle(now)
	switch {
	case w.State == workQueued && !w.handedOut.IsZero():
		w.State = workStarting
		w.Acknowledged = now
		w.deadline = now.Add(w.ttl)
		return nil
	case w.State == workStarting && idempotent:
		return nil
	case w.State == workQueued:
		return fail(409, "work item %s is queued and has not been handed out", w.ID)
	}
	return fail(409, "work item %s is %s", w.ID, w.State)
}

// Expected tokens of a heartbeat.
const (
	noHeartbeat  = "NO_HEARTBEAT"
	anyHeartbeat = "" // unconditional
)

// beat extends the lease when expected is the last token byte for byte. claim is
// the caller's, 0 for one that has none.
func (q *queue) beat(w *workItem, claim int, expected string, ttl time.Duration, now time.Time) (map[string]any, *apiError) {
	q.settle(now)
	if w.State == workStopping || w.State == workStopped { // no comparison any more (contract §3.3)
		return w.beatReply(false), nil
	}
	actual := w.token()
	lost := w.State == workQueued || claim != 0 && claim != w.claim
	if lost || expected != anyHeartbeat && expected != actual && !(expected == noHeartbeat && actual == "") {
		return nil, w.preconditionFailed(expected)
	}
	if ttl > 0 {
		w.ttl = min(max(ttl, time.Second), 300*time.Second)
	}
	w.State = workActive
	if w.Started.IsZero() {
		w.Started = now
	}
	w.LastBeat = now
	w.deadline = now.Add(w.ttl)
	return w.beatReply(true), nil
}

// token is the last heartbeat as the holder must echo it; "" for none.
func (w *workItem) token() string {
	if w.LastBeat.IsZero() {
		return ""
	}
	return stamp(w.LastBeat)
}

func (w *workItem) ttlSeconds() int { return max(int(w.ttl/time.Second), 1) }

func (w *workItem) beatReply(extended bool) map[string]any {
	return map[string]any{
		"type": "work_heartbeat", "last_heartbeat": w.token(), "lease_extended": extended,
		"state": string(w.State), "ttl_seconds": w.ttlSeconds(),
	}
}

// preconditionFailed is the 412 of contract §1.5.
func (w *workItem) preconditionFailed(expected string) *apiError {
	actual, last := "NULL", any(nil)
	if t := w.token(); t != "" {
		actual, last = t, t
	}
	if expected == "" {
		expected = "ANY"
	}
	e := failCode(412, "heartbeat_precondition_failed", "Heartbeat precondition failed: expected %s, actual was %s", expected, actual)
	e.Details["error_visibility"] = "user_facing"
	e.Details["current_state"] = map[string]any{
		"state": string(w.State), "last_heartbeat": last, "lease_extended": false, "ttl_seconds": w.ttlSeconds(),
	}
	return e
}

// stop ends an item, or asks its holder to. A forced stop of a stopping item is
// its end; every other stop of a stopping or stopped one is a 409.
func (q *queue) stop(w *workItem, claim int, force bool, now time.Time) *apiError {
	q.settle(now)
	switch {
	case w.State == workStopped, w.State == workStopping && !force:
		return fail(409, "work item %s is already %s", w.ID, w.State)
	case claim != 0 && (claim != w.claim || w.State == workQueued && w.handedOut.IsZero()):
		return fail(409, "the lease of work item %s was lost", w.ID)
	}
	if w.StopAsked.IsZero() {
		w.StopAsked = now
	}
	if force || w.State == workQueued { // nobody holds it: nothing to wait for
		q.end(w, now)
		return nil
	}
	w.State = workStopping
	return nil
}

// updateMetadata merges a patch; null deletes.
func (w *workItem) updateMetadata(patch map[string]*string) *apiError {
	merged, err := mergedMetadata(w.Metadata, patch)
	if err != nil {
		err.Details = map[string]any{"error_code": "invalid_metadata"}
		return err
	}
	w.Metadata = merged
	return nil
}

// stats is the stats object of one environment.
func (q *queue) stats(environment string, now time.Time) map[string]any {
	q.settle(now)
	depth, pending := 0, 0
	var oldest time.Time
	for _, w := range q.order {
		if w.Environment != environment || w.State != workQueued {
			continue
		}
		if w.handedOut.IsZero() {
			depth++
		} else {
			pending++
		}
		if oldest.IsZero() || w.queuedAt.Before(oldest) {
			oldest = w.queuedAt
		}
	}
	workers := 0
	for _, at := range q.polls[environment] {
		if now.Sub(at) <= workerWindow {
			workers++
		}
	}
	return map[string]any{
		"type": "work_queue_stats", "depth": depth, "pending": pending,
		"oldest_queued_at": stampOrNil(oldest), "workers_polling": workers,
	}
}

// pollQuery reads block_ms and reclaim_older_than_ms.
func pollQuery(v url.Values, reclaim time.Duration) (block, reclaimAfter time.Duration, err *apiError) {
	read := func(name string, most int, into *time.Duration) *apiError {
		if !v.Has(name) {
			return nil
		}
		n, perr := strconv.Atoi(v.Get(name))
		if perr != nil || n < 1 || n > most {
			return fail(400, "%s: must be a whole number from 1 to %d", name, most)
		}
		*into = time.Duration(n) * time.Millisecond
		return nil
	}
	reclaimAfter = reclaim
	if err = read("block_ms", 999, &block); err == nil {
		err = read("reclaim_older_than_ms", 24*3600*1000, &reclaimAfter)
	}
	return block, reclaimAfter, err
}
