//go:build linux

package linux

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/berth-dev/berth/internal/sandbox"
)

// slot serialises the making and removing of sandboxes with one id. Its turn is
// not a lock but a token: it is held across the whole of a Create or Destroy,
// and waiting for it ends with a context.
type slot struct {
	id   string
	dir  folder
	turn chan struct{}

	// Under Backend.mu:
	users   int      // who hold the turn or wait for it
	running *Sandbox // nil, or the latest; it may have ended since
}

var errClosed = errors.New("the backend is closed")

// enter waits for the turn of an id; leave must follow.
func (b *Backend) enter(ctx context.Context, id string) (*slot, error) {
	return b.enterAt(ctx, b.folder(id))
}

func (b *Backend) enterAt(ctx context.Context, dir folder) (*slot, error) {
	id := dir.id()
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil, errClosed
	}
	s := b.slots[id]
	if s == nil {
		s = &slot{id: id, dir: dir, turn: make(chan struct{}, 1)}
		s.turn <- struct{}{}
		b.slots[id] = s
	}
	s.users++
	b.mu.Unlock()
	select {
	case <-s.turn:
		return s, nil
	case <-ctx.Done():
		b.drop(s)
		return nil, fmt.Errorf("wait for sandbox %s: %w", id, context.Cause(ctx))
	}
}

func (b *Backend) leave(s *slot) {
	s.turn <- struct{}{}
	b.drop(s)
}

func (b *Backend) drop(s *slot) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s.users--
	b.tidy(s)
}

// tidy forgets a slot that says nothing. Under b.mu.
func (b *Backend) tidy(s *slot) {
	if s.users == 0 && (s.running == nil || s.running.hasEnded()) && b.slots[s.id] == s {
		delete(b.slots, s.id)
	}
}

// current returns the sandbox of a slot if it runs.
func (b *Backend) current(s *slot) *Sandbox {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.running == nil || s.running.hasEnded() {
		return nil
	}
	return s.running
}

// install makes a sandbox the one of its slot; it reports false when the
// backend was closed in between.
func (b *Backend) install(s *slot, box *Sandbox) error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		_ = box.proc.Close()
		return errClosed
	}
	s.running = box
	b.watchers.Go(box.watch)
	b.mu.Unlock()
	return nil
}

// ended is called by a sandbox that ended.
func (b *Backend) ended(box *Sandbox) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.slots[box.ref.ID]; s != nil && s.running == box {
		b.tidy(s)
	}
	b.pool.poke() // it may have been there
}

const trimEvery = time.Minute

// trimLogs bounds the logs of all running sandboxes until Close.
func (b *Backend) trimLogs() {
	ticker := time.NewTicker(trimEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-b.closing:
			return
		}
		b.mu.Lock()
		slots := slices.Collect(maps.Values(b.slots))
		b.mu.Unlock()
		for _, s := range slots {
			s.dir.trimLogs()
		}
	}
}

// Attach implements sandbox.Backend.
func (b *Backend) Attach(ctx context.Context, ref sandbox.Ref) (sandbox.Sandbox, error) {
	if err := checkID(ref.ID); err != nil {
		return nil, err
	}
	s, err := b.enter(ctx, ref.ID)
	if err != nil {
		return nil, err
	}
	defer b.leave(s)
	if box := b.current(s); box != nil {
		return box, nil
	}
	box, err := b.adopt(s)
	if err != nil {
		return nil, err
	}
	if box == nil {
		return nil, fmt.Errorf("attach to sandbox %s: %w", ref.ID, sandbox.ErrGone)
	}
	return box, nil
}

// adopt takes over a sandbox that an earlier process started; nil when none
// runs. In the slot's turn.
func (b *Backend) adopt(s *slot) (*Sandbox, error) {
	proc, err := b.runtime.kernel(s.dir)
	if proc == nil || err != nil {
		return nil, err
	}
	r, err := s.dir.record()
	if err != nil {
		_ = proc.Close()
		return nil, err
	}
	box := newSandbox(b, s.dir, r, proc)
	if err := b.install(s, box); err != nil {
		return nil, err
	}
	b.log.Info("sandbox adopted", "sandbox", s.id, "session", r.Session)
	return box, nil
}

// Remove implements sandbox.Backend.
func (b *Backend) Remove(ctx context.Context, ref sandbox.Ref, how sandbox.Removal) error {
	if err := checkID(ref.ID); err != nil {
		return err
	}
	s, err := b.enter(ctx, ref.ID)
	if err != nil {
		return err
	}
	defer b.leave(s)
	return b.remove(ctx, s, how)
}
