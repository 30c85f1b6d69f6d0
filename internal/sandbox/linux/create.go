//go:build linux

package linux

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
)

// Bounds of removal: ending the processes, and a Create that failed may take
// this long to clean up, whatever its own context says.
const (
	killTimeout    = 20 * time.Second
	cleanupTimeout = 30 * time.Second
)

// Create implements sandbox.Backend.
func (b *Backend) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	if err := b.check(spec); err != nil {
		return nil, err
	}
	if box, err := b.existing(ctx, spec.ID); err != nil || box != nil {
		return box, err
	}
	// Out of the slot's turn: a pull may take long, and Destroy must not wait.
	img, err := b.choose(ctx, spec)
	if err != nil {
		return nil, err
	}
	defer img.release()
	if box, err := b.fromPool(ctx, spec, img); err != nil {
		return nil, err
	} else if box != nil {
		return box, nil
	}
	// Nor is waiting for one's turn part of the start: many at once would all
	// take too long.
	done, err := b.turn(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	s, err := b.enter(ctx, spec.ID)
	if err != nil {
		return nil, err
	}
	defer b.leave(s)
	if box := b.current(s); box != nil {
		return box, nil
	}
	ctx, cancel := b.bounded(ctx)
	defer cancel()
	return b.start(ctx, s, spec, img)
}

// existing returns the sandbox that runs under an id and answers, nil when none
// does.
func (b *Backend) existing(ctx context.Context, id string) (sandbox.Sandbox, error) {
	s, err := b.enter(ctx, id)
	if err != nil {
		return nil, err
	}
	defer b.leave(s)
	if box := b.current(s); box != nil {
		return box, nil
	}
	if box := b.readopt(ctx, s); box != nil {
		return box, nil
	}
	return nil, nil
}

// bounded returns a context for one start.
func (b *Backend) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, b.cfg.StartTimeout, fmt.Errorf("not ready within %s", b.cfg.StartTimeout))
}

// readopt returns a sandbox of an earlier process if it runs and answers.
func (b *Backend) readopt(ctx context.Context, s *slot) *Sandbox {
	ctx, cancel := b.bounded(ctx)
	defer cancel()
	box, err := b.adopt(s)
	if err == nil && box != nil {
		_, err = box.Guest(ctx)
	}
	if err != nil {
		b.log.Warn("sandbox replaced, because it could not be adopted", "sandbox", s.id, "err", err)
		return nil
	}
	return box
}

// start makes a sandbox anew. In the slot's turn; nothing that answers runs.
func (b *Backend) start(ctx context.Context, s *slot, spec sandbox.Spec, img chosen) (_ *Sandbox, err error) {
	begun := time.Now()
	p, err := b.prepare(ctx)
	if err != nil {
		return nil, fmt.Errorf("prepare sandbox %s: %w", spec.ID, err)
	}
	p = img.over(p)
	if err := b.remove(ctx, s, sandbox.KeepFiles); err != nil {
		return nil, fmt.Errorf("clear sandbox %s: %w", spec.ID, err)
	}
	f := s.dir
	r := b.record(spec, img, p)
	ids := b.runtime.ids
	kept, err := f.make(r, ids.host(0), ids.host(ids.agent))
	defer func() {
		if err == nil {
			return
		}
		said := f.diagnosis()
		how := sandbox.Everything
		if kept {
			how = sandbox.KeepFiles
		}
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		if failed := b.remove(clean, s, how); failed != nil {
			b.log.Error("sandbox not cleaned up", "sandbox", spec.ID, "err", failed)
		}
		err = fmt.Errorf("start sandbox %s: %w", spec.ID, err)
		if said != "" {
			err = fmt.Errorf("%w (%s)", err, said)
		}
	}()
	if err != nil {
		return nil, err
	}
	box, err := b.launch(ctx, s, f, r, p)
	if err != nil {
		return nil, err
	}
	if _, err := box.Guest(ctx); err != nil {
		return nil, err
	}
	b.log.Info("sandbox ready", "sandbox", spec.ID, "session", spec.Session, "backend", Name, "dur", time.Since(begun))
	return box, nil
}

// launch writes the bundle and starts the runtime on it.
func (b *Backend) launch(ctx context.Context, s *slot, f folder, r record, p *prepared) (*Sandbox, error) {
	if err := b.readyDisk(ctx, f, r.Limits.DiskBytes); err != nil {
		return nil, err
	}
	st := f.storage(b.runtime.ids)
	image, workspace := filepath.Join(b.images, p.root), st.workspace
	root := b.runtime.engine.root(f, image)
	staged := []string{root, b.binaries, workspace}
	mounts := f.mounts(r.Shares)
	if mounts != "" {
		staged = append(staged, mounts)
	}
	for _, sh := range r.Shares {
		staged = append(staged, f.shared(sh))
	}
	stage, err := b.runtime.chooseStage(b.cfg.DataDir, staged...)
	if err != nil {
		return nil, err
	}
	if stage.Disk = st.disk; stage.Disk != nil {
		stage.Disk.Clear = inWorkspace(r.Shares)
	} else if err := makeWay(workspace, inWorkspace(r.Shares)); err != nil {
		return nil, err
	}
	b.runtime.engine.mounts(&stage, f, st, image)
	l := layout{
		root: stage.inside(root), binds: p.binds, workspace: stage.inside(workspace),
		guest: stage.inside(filepath.Join(b.binaries, p.binary)), shares: f.mounted(stage, r.Shares), ids: b.runtime.ids,
	}
	if mounts != "" {
		l.mounts = stage.inside(mounts)
	}
	if b.limits != nil {
		if err := b.limits.makeParent(); err != nil {
			return nil, err
		}
		l.cgroup, l.unified = b.limits.path(f.run()), b.limits.unified
	}
	config, err := bundle(b.runtime.engine, l, r.Limits)
	if err != nil {
		return nil, err
	}
	if err := writeFile(filepath.Join(f.path(bundleName), "config.json"), config); err != nil {
		return nil, err
	}
	err = b.runtime.run(ctx, launch{
		binary: filepath.Join(b.binaries, p.binary), folder: f, stage: stage, layer: st.layer, limited: b.limits != nil,
	})
	if err != nil {
		return nil, err
	}
	proc, err := b.runtime.kernel(f)
	if err != nil {
		return nil, err
	}
	if proc == nil {
		return nil, errors.New("it ended at once")
	}
	box := newSandbox(b, f, r, proc)
	return box, b.install(s, box)
}

// remove ends whatever runs under a slot's id and removes what is left of it on
// the host. It works on the remains of any interrupted Create or remove. In the
// slot's turn.
func (b *Backend) remove(ctx context.Context, s *slot, how sandbox.Removal) error {
	box := b.current(s)
	if box != nil {
		box.destroying.Store(true)
	}
	ending, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := b.runtime.kill(ending, s.dir); err != nil {
		return err
	}
	if box != nil {
		if _, err := box.Wait(ending); err != nil {
			return fmt.Errorf("wait for the end of %s: %w", s.id, err)
		}
	}
	f := s.dir
	if err := b.forget(ending, f); err != nil {
		return err
	}
	if b.limits != nil {
		if err := b.limits.remove(ending, f.run()); err != nil {
			return err
		}
	}
	if err := f.detached(ending); err != nil {
		return err
	}
	if how == sandbox.KeepFiles {
		return f.clear()
	}
	if err := removeAll(string(f)); err != nil {
		return fmt.Errorf("remove sandbox folder: %w", err)
	}
	return nil
}

// maxEnv bounds Spec.Env, in bytes: it travels in one message to the guest.
const maxEnv = 32 << 10

func (b *Backend) check(s sandbox.Spec) error {
	if err := checkID(s.ID); err != nil {
		return err
	}
	if !isHost(s.Image) {
		if err := b.store.Check(s.Image); err != nil {
			return err
		}
	}
	if err := checkShares(s.Shares); err != nil {
		return err
	}
	size := 0
	for k, v := range s.Env {
		size += len(k) + len(v)
	}
	if size > maxEnv {
		return fault.New(fault.TooLarge, "the environment has %d bytes, more than %d", size, maxEnv).WithField("env")
	}
	return nil
}

// CheckImage implements sandbox.ImageChecker.
func (b *Backend) CheckImage(image string) error {
	if isHost(image) {
		return nil
	}
	return b.store.Check(image)
}

func checkID(id string) error {
	if !idPattern.MatchString(id) {
		return fault.New(fault.Invalid, "%q is not a sandbox id", id).WithField("id")
	}
	return nil
}
