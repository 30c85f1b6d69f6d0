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
	Capacity     int           // work items held at once
	ReleaseAfter time.Duration // from the end of a turn to the release of its item
	WarmFor      time.Duration // from the release to the end of the sandbox's processes
	ToolTimeout  time.Duration // of one call
	ReadEvery    time.Duration // longest time without reading a busy session's history
	Image        string
	Limits       sandbox.Limits
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
	held     int // work items under way
	fatal    error
}

// NewKeeper returns a keeper that has started nothing yet.
func NewKeeper(cfg Config, backend sandbox.Backend, records Records, seal Sealer, bus *event.Bus, log *slog.Logger) *Keeper {
	k := &Keeper{
		cfg: cfg, backend: backend, records: records, seal: seal, bus: bus, log: log, now: time.Now,
		sessions: map[string]*actor{}, freed: make(chan struct{}, 1),
	}
	k.ctx, k.leave = context.WithCancelCause(context.Background())
	return k
}

// Close makes the keeper leave: it takes no more work, keeps the sandboxes
// running and the leases for a successor, and waits for its actors.
func (k *Keeper) Close() error {
	k.leave(errLeaving)
	k.actors.Wait()
	return nil
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

func (k *Keeper) fenced(err error) {
	k.mu.Lock()
	k.fatal = err
	k.mu.Unlock()
	k.leave(err)
}

// Free returns how many more work items may be claimed.
func (k *Keeper) Free() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return max(k.cfg.Capacity-k.held, 0)
}

// Freed receives after a slot became free.
func (k *Keeper) Freed() <-chan struct{} { return k.freed }

func (k *Keeper) slotFreed() {
	k.mu.Lock()
	k.held--
	k.mu.Unlock()
	select {
	case k.freed <- struct{}{}:
	default:
	}
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
	return w, k.records.Commit(ctx, Change{At: now, NewSession: &rec, Work: &w, Events: []event.Event{
		event.New(now, item.Session, event.WorkClaimed, map[string]string{"work": item.ID, "environment": item.Environment}),
	}})
}

// Accept takes a claimed item: its heartbeat starts before this returns.
func (k *Keeper) Accept(ctx context.Context, item Item, work Work, p Platform) error {
	return k.accept(ctx, item, work, p, NoHeartbeat, time.Time{})
}

func (k *Keeper) accept(ctx context.Context, item Item, work Work, p Platform, token string, until time.Time) error {
	log := k.log.With("session", item.Session, "work", item.ID)
	cl := &claim{item: item, platform: p, work: work, adopted: token != NoHeartbeat}
	beats := work // the lease's own copy: the claim's belongs to the actor
	cl.lease = holdLease(k.ctx, p, token, until, k.now, func(b Beat, at time.Time) {
		beats.State, beats.Token, beats.TTL, beats.BeatAt = WorkHeld, b.Token, b.TTL, at
		if err := k.records.Commit(k.ctx, Change{At: at, Work: &beats}); err != nil {
			log.Warn("heartbeat not stored; a successor would wait for the lease to lapse", "err", err)
		}
	}, log)
	k.mu.Lock()
	k.held++
	k.mu.Unlock()
	err := k.deliver(ctx, item.Session, func(a *actor) bool { return offer(a.items, cl) })
	if err != nil {
		cl.lease.release(errLeaseOver)
		k.slotFreed()
	}
	return err
}

// deliver hands something to the session's actor, which is started if there is
// none. put must not block; it is called while the actor cannot retire.
func (k *Keeper) deliver(ctx context.Context, session string, put func(*actor) bool) error {
	for {
		a, err := k.actor(ctx, session)
		if err != nil {
			return err
		}
		k.mu.Lock()
		current, done := k.sessions[session] == a, false
		if current {
			done = put(a)
		}
		k.mu.Unlock()
		switch {
		case done:
			return nil
		case current:
			return fault.New(fault.Busy, "session %s has too much waiting for it", session).WithNext("try again in a moment")
		}
		// It retired this very moment: the next one is asked.
	}
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

// actor returns the session's actor and starts it if there is none.
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
	a = &actor{
		keeper: k, id: id, log: k.log.With("session", id), record: rec,
		inbox: make(chan message, 64), items: make(chan *claim, 4), opens: make(chan openRequest, 16),
		state: NewState(id, Rules{
			Owns:         Owns,
			ReleaseAfter: k.cfg.ReleaseAfter,
			ReadEvery:    k.cfg.ReadEvery,
			SandboxTries: 2,
		}),
	}
	a.state.Restore(rec.Memo, calls)
	a.state.wait = rec.Waiting
	k.mu.Lock()
	defer k.mu.Unlock()
	if other := k.sessions[id]; other != nil {
		return other, nil
	}
	if k.ctx.Err() != nil {
		return nil, errLeaving
	}
	k.sessions[id] = a
	k.actors.Go(func() { a.main(k.ctx) })
	return a, nil
}

// retire removes an actor that has nothing left to do. It reports false when
// something arrived meanwhile: the actor has to go on.
func (k *Keeper) retire(a *actor) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(a.items) > 0 || len(a.opens) > 0 || len(a.inbox) > 0 || len(a.waiters) > 0 || a.state.Sandbox == SandboxStarting {
		return false
	}
	delete(k.sessions, a.id)
	return true
}

// Adopt takes over what an earlier process left: leases that may still be ours,
// sandboxes and running calls; and removes what belongs to nobody. door opens
// the platform for an item; it returns nil for an environment that is no longer
// configured. Call it once, before anything is accepted.
func (k *Keeper) Adopt(ctx context.Context, door func(Item) Platform) error {
	if err := k.sweep(ctx); err != nil {
		k.log.Error("left-over sandboxes not removed", "err", err)
	}
	work, err := k.records.OpenWork(ctx)
	if err != nil {
		return fmt.Errorf("load open work: %w", err)
	}
	for _, w := range work {
		k.adopt(ctx, w, door)
	}
	live, err := k.records.LiveSessions(ctx)
	if err != nil {
		return fmt.Errorf("load sessions: %w", err)
	}
	for _, rec := range live {
		if rec.Sandbox == nil {
			continue
		}
		// Its actor attaches to the sandbox and keeps it warm for a while.
		if _, err := k.ask(ctx, rec.ID, false); err != nil {
			k.log.Warn("sandbox not adopted", "session", rec.ID, "err", err)
		}
	}
	return nil
}

func (k *Keeper) adopt(ctx context.Context, w Work, door func(Item) Platform) {
	log := k.log.With("session", w.Session, "work", w.ID)
	drop := func(why string) {
		now := k.now()
		w.State, w.EndedAt, w.Why, w.Secret = WorkLost, now, why, nil
		ev := event.New(now, w.Session, event.WorkLost, map[string]string{"work": w.ID, "why": why})
		if err := k.records.Commit(ctx, Change{At: now, Work: &w, Events: []event.Event{ev}}); err != nil {
			log.Error("work item not closed", "err", err)
		}
		log.Info("work item of an earlier process dropped", "why", why)
	}
	secret, err := k.seal.Open(w.Secret)
	if err != nil {
		drop("its secret cannot be opened: the platform will hand the item out again")
		return
	}
	item := Item{ID: w.ID, Environment: w.Environment, Type: "session", Session: w.Session, Secret: string(secret)}
	p := door(item)
	if p == nil {
		drop("its environment is no longer configured")
		return
	}
	token, until := w.Token, w.BeatAt.Add(w.TTL)
	if w.State == WorkClaimed {
		// No beat is on record: the lease may never have been taken.
		token, until = NoHeartbeat, time.Time{}
	} else if !until.After(k.now()) {
		drop("its lease lapsed while no server ran: the platform will hand the item out again")
		return
	}
	now := k.now()
	_ = k.records.Commit(ctx, Change{At: now, Events: []event.Event{ // a report; the item is adopted all the same
		event.New(now, w.Session, event.WorkAdopted, map[string]string{"work": w.ID}),
	}})
	if err := k.accept(ctx, item, w, p, token, until); err != nil {
		log.Error("work item not adopted", "err", err)
	}
}

// Open returns the running sandbox of a session, starting it if need be.
func (k *Keeper) Open(ctx context.Context, session string) (sandbox.Sandbox, error) {
	return k.ask(ctx, session, true)
}

func (k *Keeper) ask(ctx context.Context, session string, wait bool) (sandbox.Sandbox, error) {
	reply := make(chan openReply, 1)
	err := k.deliver(ctx, session, func(a *actor) bool { return offer(a.opens, openRequest{reply: reply}) })
	if err != nil || !wait {
		return nil, err
	}
	select {
	case r := <-reply:
		return r.sandbox, r.err
	case <-k.ctx.Done():
		return nil, fault.Wrap(errLeaving, fault.Unavailable, "the server is shutting down")
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

// sweep removes sandboxes of this data directory that belong to no live session.
func (k *Keeper) sweep(ctx context.Context) error {
	refs, err := k.backend.List(ctx)
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	live, err := k.records.LiveSessions(ctx)
	if err != nil {
		return fmt.Errorf("load sessions: %w", err)
	}
	wanted := map[string]bool{}
	for _, rec := range live {
		wanted[sandbox.ID(rec.ID)] = true
	}
	var errs []error
	for _, ref := range refs {
		if wanted[ref.ID] {
			continue
		}
		k.log.Info("removing a sandbox that belongs to no session", "sandbox", ref.ID)
		errs = append(errs, k.backend.Remove(ctx, ref, sandbox.Everything))
	}
	return errors.Join(errs...)
}

// sweepOne removes what a session has on this host, running or not.
func (k *Keeper) sweepOne(ctx context.Context, session string, how sandbox.Removal) error {
	refs, err := k.backend.List(ctx)
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	for _, ref := range refs {
		if ref.ID == sandbox.ID(session) {
			return k.backend.Remove(ctx, ref, how)
		}
	}
	return nil
}
