package event

import "sync"

// Bus wakes the readers of the log. It carries no events: a reader that is woken
// reads the store from its own cursor, so a slow one loses nothing and blocks
// nobody. The zero value is ready; safe for concurrent use.
type Bus struct {
	mu   sync.Mutex
	subs map[chan struct{}]string
}

// Subscribe returns a channel that receives when events for session ("" for
// every session) may have been added, and a function that ends the
// subscription. Wakes coalesce.
func (b *Bus) Subscribe(session string) (wake <-chan struct{}, cancel func()) {
	ch := make(chan struct{}, 1)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.subs == nil {
		b.subs = map[chan struct{}]string{}
	}
	b.subs[ch] = session
	return ch, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.subs, ch)
	}
}

// Publish wakes the subscribers of session and those of every session. It never
// blocks.
func (b *Bus) Publish(session string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ch, want := range b.subs {
		if want == "" || want == session {
			select {
			case ch <- struct{}{}:
			default:
			}
		}
	}
}
