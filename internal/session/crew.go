package session

import (
	"sync"
	"sync/atomic"
)

// A crew is the goroutines that work for one actor. Only the actor starts them,
// so when it finds nobody at work, nobody will be until it starts somebody. A
// member reports by message before it ends.
type crew struct {
	working atomic.Int64
	changed chan struct{} // receives after members have ended
	all     sync.WaitGroup
}

func newCrew() *crew { return &crew{changed: make(chan struct{}, 1)} }

// Go starts a member.
func (c *crew) Go(f func()) {
	c.working.Add(1)
	c.all.Go(func() {
		defer func() {
			c.working.Add(-1)
			offer(c.changed, struct{}{})
		}()
		f()
	})
}

// idle reports whether nobody is at work: all messages of the crew have been
// sent.
func (c *crew) idle() bool { return c.working.Load() == 0 }

// wait returns when everybody has ended. Nobody may be started meanwhile.
func (c *crew) wait() { c.all.Wait() }
