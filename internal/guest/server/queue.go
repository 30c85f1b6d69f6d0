//go:build linux

package server

import "sync"

// queues keeps the commands of each shell in the order in which they were
// asked for.
type queues struct {
	mu   sync.Mutex
	tail map[string]*turn
}

// turn is one place in a queue.
type turn struct {
	queue  *queues
	shell  string
	before <-chan struct{} // closed when it is our turn; nil at once
	over   chan struct{}
}

// enter takes the next place behind everyone who entered before. It does not
// block.
func (q *queues) enter(shell string) *turn {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.tail == nil {
		q.tail = map[string]*turn{}
	}
	t := &turn{queue: q, shell: shell, over: make(chan struct{})}
	if last := q.tail[shell]; last != nil {
		t.before = last.over
	}
	q.tail[shell] = t
	return t
}

// wait blocks until it is t's turn or stop is closed, and reports the former.
// A nil turn never waits.
func (t *turn) wait(stop <-chan struct{}) bool {
	if t == nil || t.before == nil {
		return true
	}
	select {
	case <-t.before:
		return true
	case <-stop:
		return false
	}
}

// leave lets the next one go once everyone before t has left. It blocks until
// then.
func (t *turn) leave() {
	if t == nil {
		return
	}
	t.wait(nil)
	close(t.over)
	t.queue.mu.Lock()
	defer t.queue.mu.Unlock()
	if t.queue.tail[t.shell] == t {
		delete(t.queue.tail, t.shell)
	}
}
