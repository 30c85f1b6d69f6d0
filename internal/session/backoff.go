package session

import (
	"errors"
	"math/rand/v2"
	"time"
)

// Backoff computes waits between attempts: exponential from Base to Cap with
// full jitter in the upper half, and never shorter than what the platform asked
// for. The zero value waits 500 ms to 30 s.
type Backoff struct {
	Base time.Duration
	Cap  time.Duration
}

// Wait returns how long to wait after the given number of failures (from 1).
func (b Backoff) Wait(failures int, err error) time.Duration {
	base, limit := b.Base, b.Cap
	if base <= 0 {
		base = 500 * time.Millisecond
	}
	if limit <= 0 {
		limit = 30 * time.Second
	}
	d := base << min(max(failures-1, 0), 20)
	if d <= 0 || d > limit {
		d = limit
	}
	d = d/2 + rand.N(d/2+1)
	var r *Refusal
	if errors.As(err, &r) && r.RetryAfter > d {
		d = min(r.RetryAfter, 5*time.Minute)
	}
	return d
}
