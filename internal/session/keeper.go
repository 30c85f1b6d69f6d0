package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/tool"
)

// Config are the settings of a Keeper.
type Config struct {
	Capacity     int           // work items held at once, those that wait for a person apart
	ReleaseAfter time.Duration // from the end of a turn to the release of its item
	WarmFor      time.Duration // from the release to the end of the sandbox's processes
	ToolTimeout  time.Duration // of one call
	ReadEvery    time.Duration // longest time without reading a busy session's history
	MemorySync   time.Duration // shortest time between two synchronizations of memory stores
	Image        string
	Limits       sandbox.Limits
	Lifetime     time.Duration // longest life of one sandbox; zero: no limit
	SetupTimeout time.Duration // longest run of a set-up command; zero: five minutes
	// Agents are the settings of single agents that the configuration has; they
	// may name an image, limits and times of their own, which win over the above.
	Agents []AgentFile
	// Secret reports whether a text holds a credential of this server, none of
	// which may be in a setting. It may be nil.
	Secret func(text string) bool
	Skills SkillCache // nil: sandboxes show no skills
	// Visit opens a session that nobody holds a work item of; nil, and what it
	// returns may be nil, when nobody can.
	Visit func(environment, session string) Visitor
}

// Keeper runs all sessions of this process: one actor each. Safe for concurrent
// use.
type Keeper struct {
	cfg     Config
	backend sandbox.Backend
	records Records
	seal    Sealer
	bus     *event.Bus
	log     *slog.Logger
	now     func() time.Time

	ctx    context.Context // ends when the process leaves
	leave  context.CancelCauseFunc
	actors sync.WaitGroup
	freed  chan struct{}

	mu       sync.Mutex
	sessions map[string]*actor
	held     int             // work items under way
	patient  map[string]bool // sessions with an item that wait for a person or another client
	waiting  map[string]Waiting
	fatal    error
	stallWhy string
	stalled  map[string]time.Time // sessions whose changes cannot be recorded, and since when
}

// NewKeeper returns a keeper that has started nothing yet.
func NewKeeper(cfg Config, backend sandbox.Backend, records Records, seal Sealer, bus *event.Bus, log *slog.Logger) *Keeper {
	k := &Keeper{
		cfg: cfg, backend: backend, records: records, seal: seal, bus: bus, log: log, now: time.Now,
		sessions: map[string]*actor{}, stalled: map[string]time.Time{}, patient: map[string]bool{}, waiting: map[string]Waiting{},
		freed: make(chan struct{}, 1),
	}
	k.ctx, k.leave = context.WithCancelCause(context.Background())
	return k
}

// Close makes the keeper leave: it takes no more work, keeps the sandboxes
// running and the leases for a successor, and waits for its actors.
func (k *Keeper) Close() error {
	k.quit(errLeaving, nil)
	k.actors.Wait()
	return nil
}

// quit makes every actor leave. Actors start under the same lock, so none does
// afterwards.
func (k *Keeper) quit(cause, fatal error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fatal == nil && k.ctx.Err() == nil {
		k.fatal = fatal
	}
	k.leave(cause)
}

// commit stores a change. A keeper whose data are another process's leaves.
func (k *Keeper) commit(ctx context.Context, c Change) error {
	err := k.records.Commit(ctx, c)
	if errors.Is(err, ErrFenced) {
		k.quit(err, err)
	}
	return err
}

// Err returns why the keeper had to stop by itself, if it did; Done is closed
// then, or when Close was called.
func (k *Keeper) Err() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fatal
}

// Done is closed when the keeper leaves.
func (k *Keeper) Done() <-chan struct{} { return k.ctx.Done() }

// Free returns how many more work items may be claimed.
func (k *Keeper) Free() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.free()
}

// maxPatient bounds all items held, as a multiple of the capacity.
const maxPatient = 8

// free returns the slots that are left. A session that waits for a person costs
// a heartbeat now and then and may do so for days: it takes no slot from those
// that have something to do. Called with k.mu.
func (k *Keeper) free() int {
	if k.held >= maxPatient*k.cfg.Capacity {
		return 0
	}
	return max(k.cfg.Capacity-(k.held-len(k.patient)), 0)
}

// Freed receives after a slot became free.
func (k *Keeper) Freed() <-chan struct{} { return k.freed }

// Reserve takes a slot for an item that is about to be claimed; false when none
// is free. Accept uses it up, Unreserve gives it back.
func (k *Keeper) Reserve() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.free() == 0 {
		return false
	}
	k.held++
	return true
}

// Unreserve gives a slot back that was not used.
func (k *Keeper) Unreserve() { k.slotFreed() }

func (k *Keeper) slotFreed() {
	k.mu.Lock()
	k.held--
	k.mu.Unlock()
	offer(k.freed, struct{}{})
}

// Record stores that a polled item is about to be ours, before the platform is
// told: whatever happens next, a successor knows of it.
func (k *Keeper) Record(ctx context.Context, item Item) (Work, error) {
	sealed, err := k.seal.Seal([]byte(item.Secret))
	if err != nil {
		return Work{}, fmt.Errorf("seal the secret of %s: %w", item.ID, err)
	}
	now := k.now()
	w := Work{ID: item.ID, Session: item.Session, Environment: item.Environment, State: WorkClaimed, Secret: sealed, ClaimedAt: now}
	rec := Record{ID: item.Session, Environment: item.Environment, Phase: Active, Backend: k.backend.Name(), CreatedAt: now, UpdatedAt: now}
	if err := k.commit(ctx, Change{At: now, NewSession: &rec, Work: &w, Events: []event.Event{
		event.New(now, item.Session, event.WorkClaimed, map[string]string{"work": item.ID, "environment": item.Environment}),
	}}); err != nil {
		return Work{}, fmt.Errorf("record work item %s: %w", item.ID, err)
	}
	k.bus.Publish(item.Session)
	return w, nil
}

// Abandon stores that a recorded item did not become ours, or is not any more. A
// successor must not touch it.
func (k *Keeper) Abandon(ctx context.Context, w Work, why string) error {
	now := k.now()
	w.State, w.EndedAt, w.Why, w.Secret = WorkLost, now, why, nil
	if err := k.commit(ctx, Change{At: now, Work: &w, Events: []event.Event{
		event.New(now, w.Session, event.WorkLost, map[string]string{"work": w.ID, "why": why}),
	}}); err != nil {
		return fmt.Errorf("abandon work item %s: %w", w.ID, err)
	}
	k.bus.Publish(w.Session)
	return nil
}

// Accept takes a claimed item into the slot that was reserved for it: its
// heartbeat starts before this returns. On error the slot is free again.
func (k *Keeper) Accept(ctx context.Context, item Item, work Work, p Platform) error {
	return k.accept(ctx, item, work, &lease{platform: p, token: NoHeartbeat})
}

// accept starts the lease and hands the item to its session.
func (k *Keeper) accept(ctx context.Context, item Item, work Work, l *lease) error {
	l.log, l.now = k.log.With("session", item.Session, "work", item.ID), k.now
	beats := work // the lease's own copy: the claim's belongs to the actor
	l.stored = func(b Beat, at time.Time) {
		beats.State, beats.Token, beats.TTL, beats.BeatAt = WorkHeld, b.Token, b.TTL, at
		// Also while leaving: a successor needs the token.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(k.ctx), storeBeatWithin)
		defer cancel()
		if err := k.commit(ctx, Change{At: at, Work: &beats}); err != nil {
			l.log.Warn("heartbeat not stored; a successor would wait for the lease to lapse", "err", err)
		}
	}
	cl := &claim{item: item, platform: l.platform, work: work, lease: l.hold(k.ctx)}
	err := k.deliver(ctx, item.Session, func(a *actor) bool { return offer(a.items, cl) })
	if err != nil {
		l.release(errLeaseOver)
		k.slotFreed()
	}
	return err
}

// storeBeatWithin bounds the writing of a token: the next beat must not be late.
const storeBeatWithin = 5 * time.Second

// deliver hands something to the session's actor. An actor that has to be
// started finds it there when it begins: one that began without its work item
// would take what runs in an adopted sandbox for abandoned. put must not block;
// it is called while the actor cannot retire.
func (k *Keeper) deliver(ctx context.Context, session string, put func(*actor) bool) error {
	for {
		a, err := k.actor(ctx, session)
		if err != nil {
			return err
		}
		k.mu.Lock()
		current, leaving := k.sessions[session], k.ctx.Err() != nil
		mine := current == a || current == nil && !a.started
		done := !leaving && mine && put(a)
		if done && !a.started {
			a.started = true
			k.sessions[session] = a
			k.actors.Go(func() { a.main(k.ctx) })
		}
		k.mu.Unlock()
		switch {
		case done:
			return nil
		case leaving:
			return shuttingDown()
		case mine:
			return fault.New(fault.Busy, "session %s has too much waiting for it", session).WithNext("try again in a moment")
		}
		// It retired, or another one was started, this very moment: ask again.
	}
}

func shuttingDown() error {
	return fault.Wrap(errLeaving, fault.Unavailable, "the server is shutting down")
}

// offer sends without waiting.
func offer[T any](ch chan<- T, v T) bool {
	select {
	case ch <- v:
		return true
	default:
		return false
	}
}

// Owns reports whether Berth answers calls of this name. Names that it does not
// know are left to whoever does (contract §4.5).
func Owns(name string, custom bool) bool {
	return !custom && slices.Contains(tool.Stock(), name)
}

// actor returns the session's actor, or a new one that deliver has to start.
func (k *Keeper) actor(ctx context.Context, id string) (*actor, error) {
	k.mu.Lock()
	a := k.sessions[id]
	k.mu.Unlock()
	if a != nil {
		return a, nil
	}
	rec, calls, err := k.records.LoadSession(ctx, id)
	if err != nil {
		return nil, err
	}
	return newActor(k, id, rec, calls), nil
}

// retire removes an actor that has nothing left to do. It reports false when
// something is under way or has just arrived: the actor has to go on.
func (k *Keeper) retire(a *actor) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	arrived := len(a.items) + len(a.next) + len(a.opens) + len(a.inbox) + len(a.waiters)
	if arrived > 0 || !a.crew.idle() || a.state.Sandbox != SandboxNone {
		return false
	}
	delete(k.sessions, a.id)
	delete(k.waiting, a.id)
	return true
}

// Open returns the running sandbox of a session, starting it if need be.
func (k *Keeper) Open(ctx context.Context, session string) (sandbox.Sandbox, error) {
	reply := make(chan openReply, 1)
	err := k.deliver(ctx, session, func(a *actor) bool { return offer(a.opens, openRequest{reply: reply}) })
	if err != nil {
		return nil, err
	}
	select {
	case r := <-reply:
		return r.sandbox, r.err
	case <-k.ctx.Done():
		return nil, shuttingDown()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// End removes everything of a session that is over at the platform and that
// nobody works on here. A session with a work item learns it from its events.
func (k *Keeper) End(ctx context.Context, session, how string) error {
	return k.deliver(ctx, session, func(a *actor) bool {
		return offer(a.inbox, message{apply: func() {
			if a.claim == nil && a.record.Phase != Over {
				a.step(k.ctx, SessionOver{How: how})
				a.end(k.ctx, how)
			}
		}})
	})
}
