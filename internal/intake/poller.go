// Package intake receives work: a poller for each environment, and the webhook
// receiver that makes it faster. Everything works with polling alone.
package intake

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/berth-dev/berth/internal/session"
)

// Keeper is where claimed items go. session.Keeper implements it.
type Keeper interface {
	// Reserve takes a slot before an item is asked for, so that several pollers
	// never claim more than there is room for; false when none is free. Accept
	// uses it up, Unreserve gives it back.
	Reserve() bool
	Unreserve()
	Freed() <-chan struct{}
	// Record stores an item before the platform is told that it is ours; Abandon
	// that it did not become so.
	Record(ctx context.Context, item session.Item) (session.Work, error)
	Abandon(ctx context.Context, work session.Work, why string) error
	Accept(ctx context.Context, item session.Item, work session.Work, p session.Platform) error
}

// Timing of a poller (contract §3.4).
const (
	pollBlock    = 999 * time.Millisecond // the platform's longest
	pauseMin     = time.Second            // after an empty poll
	pauseMax     = 3 * time.Second
	pollWithin   = 30 * time.Second // beyond the block, for an answer
	ackAttempts  = 4
	claimTimeout = 30 * time.Second
)

// Poller claims the work of one environment, for as long as there are free
// slots: what cannot be run now stays in the platform's queue, which loses
// nothing.
type Poller struct {
	queue  Queue
	keeper Keeper
	log    *slog.Logger
	bell   chan struct{}

	mu     sync.Mutex
	status Status
}

// Status is what a poller knows about itself.
type Status struct {
	Environment string    `json:"environment"`
	LastPoll    time.Time `json:"last_poll,omitzero"`    // that was answered
	LastClaim   time.Time `json:"last_claim,omitzero"`   //
	Failures    int       `json:"failures"`              // in a row
	LastError   string    `json:"last_error,omitempty"`  // of the last failure, without secrets
	Stopped     bool      `json:"stopped,omitempty"`     // refused for good: the key or the environment is wrong
	AtCapacity  bool      `json:"at_capacity,omitempty"` // not polling: no free slot
}

// NewPoller returns a poller that has not started.
func NewPoller(q Queue, k Keeper, log *slog.Logger) *Poller {
	return &Poller{
		queue: q, keeper: k, log: log.With("environment", q.Environment()), bell: make(chan struct{}, 1),
		status: Status{Environment: q.Environment()},
	}
}

// Ring makes the poller look at once. It never blocks; rings coalesce.
func (p *Poller) Ring() {
	select {
	case p.bell <- struct{}{}:
	default:
	}
}

// Status returns a copy of what the poller knows.
func (p *Poller) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

func (p *Poller) note(change func(*Status)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.status)
}

// refusedPause is how long a poller rests after the platform refused it: a key
// may be replaced or an environment restored without a restart.
const refusedPause = time.Minute

// Run polls until ctx ends.
func (p *Poller) Run(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		if !p.keeper.Reserve() {
			p.note(func(s *Status) { s.AtCapacity = true })
			p.wait(ctx, pauseMax, p.keeper.Freed())
			continue
		}
		claimed, err := p.poll(ctx)
		if !claimed {
			p.keeper.Unreserve()
		}
		if ctx.Err() != nil {
			return
		}
		now := time.Now()
		if err == nil {
			failures = 0
			p.note(func(s *Status) {
				s.LastPoll, s.Failures, s.LastError, s.Stopped, s.AtCapacity = now, 0, "", false, false
				if claimed {
					s.LastClaim = now
				}
			})
			if !claimed {
				p.wait(ctx, pauseMin+rand.N(pauseMax-pauseMin), nil)
			}
			continue
		}
		failures++
		refused := errors.Is(err, errRefused)
		pause := session.Backoff{Base: 2 * time.Second, Cap: time.Minute}.Wait(failures, err)
		if refused {
			pause = refusedPause
		}
		p.log.Warn("no work claimed", "failures", failures, "refused", refused, "pause", pause, "err", err)
		p.note(func(s *Status) {
			s.Failures, s.LastError, s.Stopped, s.AtCapacity = failures, err.Error(), refused, false
		})
		p.wait(ctx, pause, nil)
	}
}

// errRefused marks a poll that the platform refused for good.
var errRefused = errors.New("the platform refuses this environment's key")

// poll asks for one item and claims it; false when there was none for us.
func (p *Poller) poll(ctx context.Context) (claimed bool, err error) {
	within, cancel := context.WithTimeout(ctx, pollBlock+pollWithin)
	defer cancel()
	item, err := p.queue.Poll(within, pollBlock)
	switch {
	case err != nil && session.StatusOf(err) != 0 && !session.Retryable(err):
		return false, fmt.Errorf("%w: %w", errRefused, err)
	case err != nil || item == nil:
		return false, err
	}
	return p.claim(ctx, *item)
}

// wait pauses until the time is over, the bell rings, or early receives.
func (p *Poller) wait(ctx context.Context, d time.Duration, early <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-p.bell:
	case <-early:
	}
}

// claim makes a polled item ours: on record, acknowledged, beating. Whatever
// fails on the way leaves the item to the platform, which hands it out again.
func (p *Poller) claim(ctx context.Context, item session.Item) (claimed bool, err error) {
	// A claim that has begun is carried through, or its item would wait for its
	// lease to lapse.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), claimTimeout)
	defer cancel()
	log := p.log.With("work", item.ID, "session", item.Session)
	if item.Type != "session" || item.Session == "" {
		// A health check, or a kind that is not known yet (contract §12.8).
		log.Info("work item is not a session; finished", "type", item.Type)
		if err := p.queue.ForceStop(ctx, item.ID); err != nil {
			return false, fmt.Errorf("stop work item %s: %w", item.ID, err)
		}
		p.Ring() // there may be another one behind it
		return false, nil
	}
	work, err := p.keeper.Record(ctx, item)
	if err != nil {
		return false, err
	}
	if err := p.ack(ctx, item.ID); err != nil {
		log.Warn("work item not acknowledged; left to the platform", "err", err)
		return false, p.keeper.Abandon(ctx, work, "it could not be acknowledged")
	}
	// From here on the slot is the item's, whatever comes of it.
	if err := p.keeper.Accept(ctx, item, work, p.queue.Platform(item)); err != nil {
		log.Error("work item not accepted", "err", err)
	}
	return true, nil
}

// ack acknowledges an item. After an attempt without an answer a refusal proves
// nothing: the item may be ours, and the first heartbeat will tell (contract
// §12.1).
func (p *Poller) ack(ctx context.Context, id string) error {
	doubt := false
	for failures := 1; ; failures++ {
		err := p.queue.Ack(ctx, id)
		if err == nil {
			return nil
		}
		var refusal *session.Refusal
		answered := errors.As(err, &refusal)
		switch {
		case answered && refusal.Status == 409 && doubt:
			return nil
		case answered && (refusal.Status == 409 || !session.Retryable(err)):
			return err
		case failures >= ackAttempts:
			return err
		}
		doubt = doubt || !answered || refusal.Status >= 500
		select {
		case <-ctx.Done():
			return err
		case <-time.After(session.Backoff{Base: 200 * time.Millisecond, Cap: 2 * time.Second}.Wait(failures, err)):
		}
	}
}
