//go:build linux

package linux

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/berth-dev/berth/internal/sandbox"
)

// The pool holds sandboxes that were started for nobody in particular. Each is
// given to one session, which has it until it is removed: nothing of a session
// can be in one that is given to another.
//
// A pooled sandbox lives in the folder pool. To give it away its record is
// written and its folder moved to where that of the session's sandbox has to be,
// which is one step: what a crash leaves is either in the pool, which is emptied
// at the next start, or the session's. The runtime goes on knowing it by the id
// that it was started under (folder.run).
//
// What is fixed at the start must be what the session wants: image, limits,
// runtime, and no shares. The environment is the guest's only when it is
// connected to, so it is the session's.

var _ sandbox.Pool = (*Backend)(nil)

type pool struct {
	dir  string
	want int
	wake chan struct{} // holds a token when there is something to do

	mu    sync.Mutex
	ready []*Sandbox
}

// MaxPool bounds Config.Pool.
const MaxPool = 64

func newPool(dir string, want int) *pool {
	return &pool{dir: dir, want: min(max(want, 0), MaxPool), wake: make(chan struct{}, 1)}
}

func (p *pool) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// take removes and returns the first sandbox for which fits.
func (p *pool) take(fits func(*Sandbox) bool) *Sandbox {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.ready, fits)
	if i < 0 {
		return nil
	}
	box := p.ready[i]
	p.ready = slices.Delete(p.ready, i, i+1)
	return box
}

func (p *pool) lacks() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.ready) < p.want
}

func (p *pool) add(box *Sandbox) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ready = append(p.ready, box)
}

// How long Fill waits after failures: longer each time.
const (
	fillRetry    = time.Second
	maxFillRetry = time.Minute
)

// Fill implements sandbox.Pool.
func (b *Backend) Fill(ctx context.Context) {
	b.emptyPool(ctx)
	if b.pool.want == 0 {
		return
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		b.emptyPool(clean)
	}()
	pause := fillRetry
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.pool.wake:
		case <-retry.C:
		}
		for dead := b.pool.take((*Sandbox).hasEnded); dead != nil; dead = b.pool.take((*Sandbox).hasEnded) {
			b.discard(ctx, dead.dir)
		}
		for b.pool.lacks() && ctx.Err() == nil {
			if err := b.stock(ctx); err != nil {
				if ctx.Err() == nil {
					b.log.Warn("no sandbox for the pool", "again_in", pause, "err", err)
				}
				retry.Reset(pause)
				pause = min(2*pause, maxFillRetry)
				break
			}
			pause = fillRetry
		}
	}
}

// stock starts one sandbox more.
func (b *Backend) stock(ctx context.Context) error {
	var random [12]byte
	_, _ = rand.Read(random[:]) // never fails
	spec := sandbox.Spec{ID: "b" + hex.EncodeToString(random[:]), Image: b.cfg.Images.Default}
	img, err := b.choose(ctx, spec)
	if err != nil {
		return err
	}
	defer img.release()
	done, err := b.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	s, err := b.enterAt(ctx, folder(filepath.Join(b.pool.dir, spec.ID)))
	if err != nil {
		return err
	}
	defer b.leave(s)
	ctx, cancel := b.bounded(ctx)
	defer cancel()
	box, err := b.start(ctx, s, spec, img)
	if err != nil {
		return err
	}
	if c := box.connection(); c != nil {
		// Most sessions begin with a command. An image without a shell has nothing
		// to gain.
		if err := c.Prepare(ctx); err != nil {
			b.log.Debug("no shell in a sandbox of the pool", "sandbox", spec.ID, "err", err)
		}
	}
	box.hangUp() // whoever gets it connects with an environment of their own
	if err := writeFile(s.dir.path(runName), []byte(spec.ID)); err != nil {
		return errors.Join(err, b.remove(context.WithoutCancel(ctx), s, sandbox.Everything))
	}
	b.pool.add(box)
	return nil
}

// fromPool gives a session a sandbox of the pool; nil when none fits.
func (b *Backend) fromPool(ctx context.Context, spec sandbox.Spec, img chosen) (*Sandbox, error) {
	if b.pool.want == 0 || len(spec.Shares) > 0 {
		return nil, nil
	}
	s, err := b.enter(ctx, spec.ID)
	if err != nil {
		return nil, err
	}
	defer b.leave(s)
	if _, err := os.Lstat(string(s.dir)); !errors.Is(err, fs.ErrNotExist) {
		return nil, nil // it has files of its own
	}
	begun := time.Now()
	p, err := b.prepare(ctx)
	if err != nil {
		return nil, err
	}
	r := b.record(spec, img, img.over(p))
	pooled := b.pool.take(func(box *Sandbox) bool {
		o := box.record
		return !box.hasEnded() && o.Root == r.Root && o.Binary == r.Binary && o.Runtime == r.Runtime && o.Limits == r.Limits
	})
	b.pool.poke()
	if pooled == nil {
		return nil, nil
	}
	ctx, cancel := b.bounded(ctx)
	defer cancel()
	box, err := b.give(ctx, s, pooled, r)
	if err != nil {
		b.log.Warn("a sandbox of the pool could not be used", "sandbox", spec.ID, "session", spec.Session, "err", err)
		b.discard(ctx, pooled.dir)
		return nil, b.remove(context.WithoutCancel(ctx), s, sandbox.Everything)
	}
	b.log.Info("sandbox ready", "sandbox", spec.ID, "session", spec.Session, "backend", Name, "pooled", pooled.run, "dur", time.Since(begun))
	return box, nil
}

// give makes a sandbox of the pool that of a slot. In the slot's turn.
func (b *Backend) give(ctx context.Context, s *slot, pooled *Sandbox, r record) (*Sandbox, error) {
	from, err := b.enterAt(ctx, pooled.dir)
	if err != nil {
		return nil, err
	}
	defer b.leave(from)
	b.mu.Lock()
	from.running = nil
	b.mu.Unlock()
	pooled.given.Store(true)
	pooled.abandon()
	if err := pooled.dir.write(r); err != nil {
		return nil, err
	}
	if err := os.Rename(string(pooled.dir), string(s.dir)); err != nil {
		return nil, fmt.Errorf("move it out of the pool: %w", err)
	}
	box, err := b.adopt(s)
	if err != nil {
		return nil, err
	}
	if box == nil {
		return nil, errors.New("it has ended")
	}
	_, err = box.Guest(ctx)
	return box, err
}

// discard removes a sandbox of the pool that nobody may get any more.
func (b *Backend) discard(ctx context.Context, f folder) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	s, err := b.enterAt(ctx, f)
	if err == nil {
		err = b.remove(ctx, s, sandbox.Everything)
		b.leave(s)
	}
	if err != nil {
		b.log.Error("sandbox of the pool not removed", "sandbox", f.id(), "err", err)
	}
}

// emptyPool removes all that is in the pool, which may be another process's.
func (b *Backend) emptyPool(ctx context.Context) {
	for b.pool.take(func(*Sandbox) bool { return true }) != nil {
	}
	entries, err := os.ReadDir(b.pool.dir)
	if err != nil {
		b.log.Error("pool not emptied", "err", err)
	}
	for _, e := range entries {
		if idPattern.MatchString(e.Name()) {
			b.discard(ctx, folder(filepath.Join(b.pool.dir, e.Name())))
		}
	}
}

// records returns what all sandboxes of this data folder were made with, those
// of the pool too.
func (b *Backend) records() ([]record, error) {
	var all []record
	for _, dir := range []string{b.sandboxes, b.pool.dir} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("list sandboxes: %w", err)
		}
		for _, e := range entries {
			if r, err := folder(filepath.Join(dir, e.Name())).record(); err == nil {
				all = append(all, r)
			}
		}
	}
	return all, nil
}

// record is what a sandbox is made with.
func (b *Backend) record(spec sandbox.Spec, img chosen, p *prepared) record {
	return record{
		Session: spec.Session, Image: spec.Image, Env: img.env(maps.Clone(spec.Env)), Limits: withDefaults(spec.Limits, b.cfg.Defaults),
		Shares: spec.Shares, Binary: p.binary, Root: p.root, Runtime: b.cfg.Runtime,
	}
}
