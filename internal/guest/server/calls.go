//go:build linux

package server

import (
	"sync"

	"github.com/berth-dev/berth/internal/guest/wire"
)

// The call table makes calls idempotent by their id:
//
//	unknown → running → finished → acknowledged
//
// A running call is attached to, a finished one hands out the same bytes again,
// an acknowledged one is only remembered, so that it never runs again.

// Bounds of the table.
const (
	maxOpenCalls    = 1024      // running, or finished and not acknowledged
	maxHeldBytes    = 256 << 20 // results that wait for an acknowledgement
	maxAcknowledged = 100_000   // ids remembered
	maxIDLength     = 256
)

type table struct {
	mu    sync.Mutex
	calls map[string]*call
	held  int // bytes of results in calls
	acked memory
}

// call is one entry of the table. result may be read after done is closed.
type call struct {
	id      string
	done    chan struct{} // closed when there is a result, or the call was withdrawn
	cancel  chan struct{} // closed by the first cancellation
	result  []byte        // nil for a withdrawn call
	stopped bool          // cancel is closed; guarded by the table
	acked   bool          // acknowledged while it ran; guarded by the table
}

func newTable() *table {
	return &table{calls: map[string]*call{}, acked: memory{limit: maxAcknowledged, set: map[string]struct{}{}}}
}

// begin returns the entry of id and whether this made it: then the caller runs
// the call and ends it with finish or withdraw.
func (t *table) begin(id string) (c *call, fresh bool, code wire.Code) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c, code = t.lookup(id); code != wire.Unknown {
		return c, false, code
	}
	if id == "" || len(id) > maxIDLength {
		return nil, false, wire.Invalid
	}
	if len(t.calls) >= maxOpenCalls {
		return nil, false, wire.Busy
	}
	c = &call{id: id, done: make(chan struct{}), cancel: make(chan struct{})}
	t.calls[id] = c
	return c, true, wire.OK
}

// recall returns the entry of id without making one.
func (t *table) recall(id string) (*call, wire.Code) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lookup(id)
}

func (t *table) lookup(id string) (*call, wire.Code) {
	if t.acked.has(id) {
		return nil, wire.Acknowledged
	}
	if c := t.calls[id]; c != nil {
		return c, wire.OK
	}
	return nil, wire.Unknown
}

// stop asks a running call to stop. Unknown and finished calls are left alone.
func (t *table) stop(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := t.calls[id]; c != nil && !c.stopped {
		c.stopped = true
		close(c.cancel)
	}
}

// finish gives the call its result, which must not be nil.
func (t *table) finish(c *call, result []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held+len(result) > maxHeldBytes {
		result = tooManyResults
	}
	c.result = result
	if c.acked {
		delete(t.calls, c.id)
	} else {
		t.held += len(result)
	}
	close(c.done)
}

var tooManyResults = []byte(`{"content":[{"type":"text","text":"the call finished, but its result was dropped: ` +
	`too many results wait to be fetched"}],"is_error":true}`)

// withdraw removes a call that never ran because its input did not arrive.
func (t *table) withdraw(c *call) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.calls, c.id)
	close(c.done)
}

// acknowledge drops results and remembers the ids, also those it never heard of.
func (t *table) acknowledge(ids []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, id := range ids {
		if id == "" || len(id) > maxIDLength {
			continue
		}
		t.acked.add(id)
		c := t.calls[id]
		switch {
		case c == nil:
		case c.result == nil:
			c.acked = true
		default:
			t.held -= len(c.result)
			delete(t.calls, id)
		}
	}
}

// memory is a set of the last ids that were added to it.
type memory struct {
	limit int
	set   map[string]struct{}
	order []string // a ring once it is full
	next  int
}

func (m *memory) has(id string) bool {
	_, ok := m.set[id]
	return ok
}

func (m *memory) add(id string) {
	if m.has(id) {
		return
	}
	m.set[id] = struct{}{}
	if len(m.order) < m.limit {
		m.order = append(m.order, id)
		return
	}
	delete(m.set, m.order[m.next])
	m.order[m.next] = id
	m.next = (m.next + 1) % m.limit
}
