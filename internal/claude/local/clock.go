package local

import (
	"sync"
	"time"
)

// Clock is where the platform's time comes from.
type Clock interface {
	Now() time.Time
	// After returns a channel that receives once d has passed; at once when d is
	// not positive.
	After(d time.Duration) <-chan time.Time
}

// RealClock is the wall clock.
func RealClock() Clock { return realClock{} }

type realClock struct{}

func (realClock) Now() time.Time                         { return time.Now() }
func (realClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// ManualClock stands still until Advance moves it. Safe for concurrent use.
type ManualClock struct {
	mu      sync.Mutex
	now     time.Time
	waiting []alarm
	changed chan struct{} // closed and replaced whenever an alarm is set
}

type alarm struct {
	at time.Time
	ch chan time.Time
}

// NewManualClock returns a clock that shows start.
func NewManualClock(start time.Time) *ManualClock {
	return &ManualClock{now: start, changed: make(chan struct{})}
}

// Now returns the time that the clock shows.
func (c *ManualClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// After returns a channel that receives once the clock has been moved by d.
func (c *ManualClock) After(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := make(chan time.Time, 1)
	if d <= 0 {
		ch <- c.now
		return ch
	}
	c.waiting = append(c.waiting, alarm{c.now.Add(d), ch})
	close(c.changed)
	c.changed = make(chan struct{})
	return ch
}

// Advance moves the clock and rings every alarm that has become due.
func (c *ManualClock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	kept := c.waiting[:0]
	for _, a := range c.waiting {
		if a.at.After(c.now) {
			kept = append(kept, a)
			continue
		}
		a.ch <- c.now
	}
	clear(c.waiting[len(kept):])
	c.waiting = kept
}

// AwaitAlarm blocks until somebody waits for a moment at least d ahead, so that
// a test moves the clock only after the code under test has begun to wait.
func (c *ManualClock) AwaitAlarm(d time.Duration) { c.AwaitAlarms(1, d) }

// AwaitAlarms is AwaitAlarm for n waiters.
func (c *ManualClock) AwaitAlarms(n int, d time.Duration) {
	for {
		c.mu.Lock()
		changed, found := c.changed, 0
		for _, a := range c.waiting {
			if !a.at.Before(c.now.Add(d)) {
				found++
			}
		}
		c.mu.Unlock()
		if found >= n {
			return
		}
		<-changed
	}
}
