package session

import (
	"context"
	"errors"
	"fmt"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/sandbox"
)

// This file is about what other processes left: work items, sandboxes, records.

// Adopt takes over what an earlier process left: leases that may still be ours,
// sandboxes and running calls; and removes what belongs to nobody. door opens
// the platform for an item; it returns nil for an environment that is no longer
// configured. Call it once, before anything is accepted.
func (k *Keeper) Adopt(ctx context.Context, door func(Item) Platform) error {
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
		if rec.Sandbox != nil || rec.Phase == Active || rec.Phase == Warm {
			k.look(ctx, rec.ID)
		}
	}
	if err := k.Sweep(ctx); err != nil {
		k.log.Error("left-over sandboxes not removed", "err", err)
	}
	return nil
}

// look makes a session's actor look for a sandbox that it left, and keep it warm
// for a while.
func (k *Keeper) look(ctx context.Context, session string) {
	if err := k.deliver(ctx, session, func(a *actor) bool { return offer(a.opens, openRequest{}) }); err != nil {
		k.log.Warn("sandbox not adopted", "session", session, "err", err)
	}
}

func (k *Keeper) adopt(ctx context.Context, w Work, door func(Item) Platform) {
	log := k.log.With("session", w.Session, "work", w.ID)
	drop := func(why string) {
		if err := k.Abandon(ctx, w, why); err != nil {
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
	l := &lease{platform: p, token: w.Token, until: w.BeatAt.Add(w.TTL)}
	if w.State == WorkClaimed {
		// No beat is on record: the lease may never have been taken, or the item
		// not even been acknowledged.
		l = &lease{platform: p, token: NoHeartbeat, unproven: true}
	} else if !l.until.After(k.now()) {
		drop("its lease lapsed while no server ran: the platform will hand the item out again")
		return
	}
	now := k.now()
	if err := k.commit(ctx, Change{At: now, Events: []event.Event{
		event.New(now, w.Session, event.WorkAdopted, map[string]string{"work": w.ID}),
	}}); err != nil {
		log.Warn("event not written", "type", event.WorkAdopted, "err", err)
	}
	k.mu.Lock()
	k.held++ // it holds a slot, even if there are fewer now
	k.mu.Unlock()
	if err := k.accept(ctx, item, w, l); err != nil {
		log.Error("work item not adopted", "err", err)
	}
}

// Sweep removes the sandboxes of this data directory that belong to no live
// session, and has those looked after that run although their session does not
// know: made by a process that died before it could note them, or not removed
// when they should have been. It may be called at any time.
func (k *Keeper) Sweep(ctx context.Context) error {
	refs, err := k.backend.List(ctx) // before the sessions: what is made later is not looked at
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	live, err := k.records.LiveSessions(ctx)
	if err != nil {
		return fmt.Errorf("load sessions: %w", err)
	}
	owner := map[string]Record{}
	for _, rec := range live {
		owner[sandbox.ID(rec.ID)] = rec
	}
	busy := k.busy()
	var errs []error
	for _, ref := range refs {
		rec, owned := owner[ref.ID]
		switch {
		case busy[ref.ID]:
		case !owned:
			k.log.Info("removing a sandbox that belongs to no session", "sandbox", ref.ID)
			errs = append(errs, k.backend.Remove(ctx, ref, sandbox.Everything))
		default:
			if _, err := k.backend.Attach(ctx, ref); err == nil {
				k.look(ctx, rec.ID)
			} else if !errors.Is(err, sandbox.ErrGone) { // gone: only its files are left, and they are kept
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// busy returns the ids of the sandboxes whose sessions have an actor.
func (k *Keeper) busy() map[string]bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	busy := map[string]bool{}
	for id := range k.sessions {
		busy[sandbox.ID(id)] = true
	}
	return busy
}
