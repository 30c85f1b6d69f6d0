package local

import (
	"encoding/json"
	"maps"
	"slices"
	"time"
)

// The log of a session: what was processed, in the strict order of processed_at,
// and behind it what is queued. A queued event keeps its id when it is
// processed, and moves to its place (contract §4.2).

type event struct {
	ID        string
	Type      string
	Processed time.Time // zero while queued
	Thread    string    // "" is the primary thread
	CrossPost bool      // an event of a child thread that the session's stream shows too
	Fields    map[string]any
	seq       int // counts arrivals
}

func (e *event) public() Event {
	return Event{ID: e.ID, Type: e.Type, ProcessedAt: e.Processed, Thread: e.Thread, Fields: e.Fields}
}

// onSession reports whether the session's own list and stream show the event.
func (e *event) onSession() bool { return e.Thread == "" || e.CrossPost }

// reply is the event as JSON value.
func (e *event) reply() map[string]any {
	m := map[string]any{"id": e.ID, "type": e.Type, "processed_at": stampOrNil(e.Processed)}
	maps.Copy(m, e.Fields)
	return m
}

// frame is the event as one frame of a stream.
func (e *event) frame() frame {
	b, err := json.Marshal(e.reply())
	if err != nil {
		b = []byte(`{"type":"session.error"}`) // only values that came from JSON get here
	}
	return frame{Type: e.Type, Data: b}
}

type eventLog struct {
	processed []*event
	queued    []*event
	seq       int
}

func (l *eventLog) append(e *event) {
	l.seq++
	e.seq = l.seq
	if e.Processed.IsZero() {
		l.queued = append(l.queued, e)
		return
	}
	l.processed = append(l.processed, e)
}

// process moves a queued event to the end of the processed ones.
func (l *eventLog) process(e *event, now time.Time) {
	l.queued = slices.DeleteFunc(l.queued, func(q *event) bool { return q == e })
	e.Processed = now
	l.processed = append(l.processed, e)
}

// has reports whether a queued event satisfies f.
func (l *eventLog) has(f func(*event) bool) bool { return slices.ContainsFunc(l.queued, f) }

// eventQuery selects from a log.
type eventQuery struct {
	Desc    bool
	Types   []string // empty: all
	Created timeRange
	Thread  func(*event) bool
}

func (q eventQuery) matches(e *event) bool {
	if !q.Thread(e) || len(q.Types) > 0 && !slices.Contains(q.Types, e.Type) {
		return false
	}
	if e.Processed.IsZero() { // it will be processed later than any moment in the past
		return q.Created.before.IsZero()
	}
	return q.Created.holds(e.Processed)
}

// place is where a page ended: at a processed event, or among the queued ones.
// It stays true while the log grows, unlike a number of entries.
type place struct {
	Processed time.Time // of the last processed event that lies before the place in time
	Seq       int       // of a queued event, 0 while among the processed ones
}

// place returns where a page that ends with e ends.
func (l *eventLog) place(e *event) place {
	if !e.Processed.IsZero() {
		return place{Processed: e.Processed}
	}
	p := place{Seq: e.seq}
	if n := len(l.processed); n > 0 {
		p.Processed = l.processed[n-1].Processed
	}
	return p
}

// page returns up to limit events behind from (nil: from the start), and whether
// there are more.
func (l *eventLog) page(q eventQuery, from *place, limit int) (found []*event, more bool) {
	all := func(yield func(*event) bool) {
		lists := [][]*event{l.processed, l.queued}
		if q.Desc {
			slices.Reverse(lists)
		}
		for _, list := range lists {
			for i := range list {
				if q.Desc {
					i = len(list) - 1 - i
				}
				if !yield(list[i]) {
					return
				}
			}
		}
	}
	for e := range all {
		if !q.matches(e) || from != nil && !e.behind(*from, q.Desc) {
			continue
		}
		if len(found) == limit {
			return found, true
		}
		found = append(found, e)
	}
	return found, false
}

// behind reports whether the event comes after p in the order.
func (e *event) behind(p place, desc bool) bool {
	queued := e.Processed.IsZero()
	switch {
	case queued && p.Seq == 0:
		return !desc
	case queued && desc:
		return e.seq < p.Seq
	case queued:
		return e.seq > p.Seq
	case desc && p.Seq != 0: // the processed ones follow the queued ones
		return true
	case desc:
		return e.Processed.Before(p.Processed)
	}
	// Ascending, this also brings again what was queued on an earlier page and
	// has been processed since: an update, with its processed_at.
	return e.Processed.After(p.Processed)
}
