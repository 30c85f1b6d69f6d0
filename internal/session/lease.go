package session

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// A lease is the right to work on a session. Three rules:
//
//  1. It is beaten from the moment the item is claimed, before anything slow.
//  2. It is ours until the last successful beat was sent plus the platform's
//     ttl, by our clock, and not a moment longer: then it may have lapsed.
//  3. When in doubt the world is left alone first and asked second: the lease's
//     context ends before anybody is told.
type lease struct {
	platform Platform
	log      *slog.Logger
	now      func() time.Time
	stored   func(Beat, time.Time) // keeps the token for a successor
	unproven bool                  // recorded by an earlier process, and perhaps never acknowledged

	ctx    context.Context // ends with the lease; its cause says why
	cancel context.CancelCauseFunc
	done   sync.WaitGroup
	ended  chan Input // receives once, when the platform or the clock ends it

	mu    sync.Mutex
	token string
	until time.Time // with both readings of the clock where it was set here; see left
}

// Causes of the end of a lease's context.
var (
	errLeaseLost     = errors.New("the lease was lost")
	errLeaseStopping = errors.New("the platform asked for the work item back")
	errLeaseOver     = errors.New("the run is over")
	errLeaving       = errors.New("the server is leaving")
)

// Bounds of heartbeats (contract §3.4; the interval is a third of the ttl
// instead of half, so that two beats may fail).
const (
	beatBeforeTTL  = 30 * time.Second // staleness ceiling before the first beat
	beatMaxPause   = 30 * time.Second
	beatMinPause   = 250 * time.Millisecond
	beatMinTimeout = time.Second
	beatMaxTimeout = 30 * time.Second
	beatLeaving    = 2 * time.Second // for a beat that is under way when the server leaves
)

// hold starts beating. l.token is NoHeartbeat for a fresh claim, or the stored
// token of an adopted one, with l.until as the end of its validity.
func (l *lease) hold(ctx context.Context) *lease {
	l.ended = make(chan Input, 1)
	if l.until.IsZero() {
		l.until = l.now().Add(beatBeforeTTL)
	}
	l.ctx, l.cancel = context.WithCancelCause(ctx)
	l.done.Go(l.beat)
	return l
}

// release ends the beating and waits for it.
func (l *lease) release(cause error) {
	l.cancel(cause)
	l.done.Wait()
}

// left returns for how long posts are still allowed. The clock that only runs
// forward stands still while a host is suspended, and the clock on the wall can
// be set: what either of them says has lapsed may have lapsed.
func (l *lease) left() time.Duration {
	steady, wall := l.readings()
	return min(steady, wall)
}

// readings are what is left by the steady clock and by the one on the wall.
func (l *lease) readings() (steady, wall time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	return l.until.Sub(now), l.until.Round(0).Sub(now.Round(0))
}

// beat runs until the lease ends.
func (l *lease) beat() {
	failures := 0
	for {
		sent := l.now()
		// If only the wall's clock says that it is over, the platform is asked:
		// nothing is posted until it has answered.
		left, _ := l.readings()
		if left <= 0 {
			l.end(errLeaseLost, LeaseLost{Why: "no heartbeat succeeded in time, so it may have lapsed"})
			return
		}
		b, err := l.send(min(max(left/2, beatMinTimeout), beatMaxTimeout, left))
		alive := err == nil && b.Extended && b.State != "stopping" && b.State != "stopped"
		if alive {
			failures = 0
			l.extend(&b, sent)
		}
		if l.ctx.Err() != nil {
			return
		}
		pause := min(max(b.TTL/3, beatMinPause), beatMaxPause)
		switch {
		case alive:
		case err == nil && b.Extended:
			l.end(errLeaseStopping, LeaseStopping{Why: "its state is " + b.State})
			return
		case err == nil:
			l.end(errLeaseStopping, LeaseStopping{Why: "the lease was not extended; its state is " + b.State})
			return
		case StatusOf(err) == 412, !Retryable(err) && l.unproven:
			l.end(errLeaseLost, LeaseLost{Why: err.Error()})
			return
		case !Retryable(err):
			l.end(errLeaseStopping, Rejected{Why: err.Error()})
			return
		default:
			failures++
			pause = Backoff{Base: 250 * time.Millisecond, Cap: 5 * time.Second}.Wait(failures, err)
			l.log.Warn("heartbeat failed", "failures", failures, "err", err)
			steady, _ := l.readings()
			pause = max(min(pause, steady), 0)
		}
		select {
		case <-l.ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// send makes one beat. It ends with the lease, except that a beat which is under
// way when the server leaves is waited for a little: the platform may have taken
// it, and then only its answer is of use to the successor.
func (l *lease) send(timeout time.Duration) (Beat, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(l.ctx), timeout)
	defer cancel()
	over := context.AfterFunc(l.ctx, func() {
		if errors.Is(context.Cause(l.ctx), errLeaving) {
			time.AfterFunc(beatLeaving, cancel)
			return
		}
		cancel()
	})
	defer over()
	if err := l.ctx.Err(); err != nil {
		return Beat{}, err
	}
	return l.platform.Heartbeat(ctx, l.token, timeout)
}

// extend notes a successful beat. An answer without a ttl is taken for the
// shortest that makes sense.
func (l *lease) extend(b *Beat, sent time.Time) {
	if b.TTL <= 0 {
		b.TTL = beatBeforeTTL
	}
	l.mu.Lock()
	l.token, l.until = b.Token, sent.Add(b.TTL)
	l.mu.Unlock()
	l.unproven = false
	l.stored(*b, sent)
}

// end stops everything that hangs on the lease, then tells the session.
func (l *lease) end(cause error, in Input) {
	l.cancel(cause)
	l.ended <- in
}
