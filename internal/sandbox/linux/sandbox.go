//go:build linux

package linux

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/berth-dev/berth/internal/guest"
	"github.com/berth-dev/berth/internal/sandbox"
)

// Sandbox is one run of a sandbox, from its start or adoption to its end. A
// later Create with the same id makes another value.
type Sandbox struct {
	backend    *Backend
	ref        sandbox.Ref
	dir        folder
	run        string // folder.run
	record     record
	proc       *handle
	destroying atomic.Bool   // Destroy began before the end
	given      atomic.Bool   // another value stands for it
	over       chan struct{} // closed when exit is set
	dialling   chan struct{} // holds a token while nobody connects

	exit sandbox.Exit // after over

	mu   sync.Mutex
	conn *noted
}

// handshake bounds how long a running guest may take to answer.
const handshake = 10 * time.Second

func newSandbox(b *Backend, f folder, r record, proc *handle) *Sandbox {
	s := &Sandbox{
		backend: b, ref: sandbox.Ref{ID: f.id(), Backend: Name, Session: r.Session}, dir: f, run: f.run(), record: r, proc: proc,
		over: make(chan struct{}), dialling: make(chan struct{}, 1),
	}
	s.dialling <- struct{}{}
	return s
}

// Ref implements sandbox.Sandbox.
func (s *Sandbox) Ref() sandbox.Ref { return s.ref }

// Guest implements sandbox.Sandbox.
func (s *Sandbox) Guest(ctx context.Context) (sandbox.Guest, error) {
	select {
	case <-s.dialling:
		defer func() { s.dialling <- struct{}{} }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if c := s.connection(); c != nil {
		return c, nil
	}
	c, err := s.dial(ctx)
	if err != nil {
		if s.hasEnded() {
			err = sandbox.ErrGone
		}
		return nil, fmt.Errorf("connect to sandbox %s: %w", s.ref.ID, err)
	}
	s.mu.Lock()
	s.conn = c
	s.mu.Unlock()
	if s.hasEnded() { // the watcher may have looked before conn was set
		s.hangUp()
		return nil, fmt.Errorf("connect to sandbox %s: %w", s.ref.ID, sandbox.ErrGone)
	}
	return c, nil
}

// connection returns the present connection if it lives.
func (s *Sandbox) connection() *noted {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil || s.hasEnded() {
		return nil
	}
	select {
	case <-s.conn.Done():
		return nil
	default:
		return s.conn
	}
}

func (s *Sandbox) dial(ctx context.Context) (*noted, error) {
	if s.hasEnded() {
		return nil, sandbox.ErrGone
	}
	s.hangUp() // an earlier connection that broke
	to, from, err := s.dir.openPipes()
	if err != nil {
		return nil, err
	}
	ctx, release := until(ctx, s.over, sandbox.ErrGone)
	defer release()
	c, err := guest.Attach(ctx, from, to, pipes{to, from}, guest.Options{Env: s.record.Env, Handshake: handshake})
	if err != nil {
		return nil, err
	}
	return &noted{Client: c, box: s}, nil
}

// hangUp closes the present connection, if there is one.
func (s *Sandbox) hangUp() {
	s.mu.Lock()
	c := s.conn
	s.conn = nil
	s.mu.Unlock()
	if c != nil {
		_ = c.Close()
	}
}

// Wait implements sandbox.Sandbox. After the backend was closed it returns an
// error, because nobody watches any more.
func (s *Sandbox) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-s.over:
		return s.exit, nil
	default:
	}
	select {
	case <-s.over:
		return s.exit, nil
	case <-s.backend.closing:
		return sandbox.Exit{}, errClosed
	case <-ctx.Done():
		return sandbox.Exit{}, context.Cause(ctx)
	}
}

// Destroy implements sandbox.Sandbox. A later sandbox with the same id is left
// alone.
func (s *Sandbox) Destroy(ctx context.Context, how sandbox.Removal) error {
	b := s.backend
	slot, err := b.enter(ctx, s.ref.ID)
	if err != nil {
		return err
	}
	defer b.leave(slot)
	if box := b.current(slot); box != nil && box != s {
		return nil
	}
	if err := b.remove(ctx, slot, how); err != nil {
		return fmt.Errorf("destroy sandbox %s: %w", s.ref.ID, err)
	}
	b.log.Info("sandbox destroyed", "sandbox", s.ref.ID, "session", s.ref.Session)
	return nil
}

func (s *Sandbox) hasEnded() bool {
	select {
	case <-s.over:
		return true
	default:
		return false
	}
}

// watch waits for the end; the backend owns the goroutine.
func (s *Sandbox) watch() {
	err := s.proc.wait(context.Background()) // abandon ends it
	if err != nil {
		_ = s.proc.Close()
		if !s.backend.isClosing() && !s.given.Load() { // abandon was not the reason
			s.backend.log.Error("sandbox not watched", "sandbox", s.ref.ID, "err", err)
		}
		s.hangUp()
		return
	}
	s.exit = s.howEnded()
	_ = s.proc.Close()
	close(s.over)
	s.hangUp()
	s.backend.ended(s)
	s.backend.log.Info("sandbox ended", "sandbox", s.ref.ID, "session", s.ref.Session, "reason", s.exit.Reason)
}

// abandon stops watching and hangs up; the sandbox runs on.
func (s *Sandbox) abandon() {
	_ = s.proc.Close()
	s.hangUp()
}

// howEnded names the end of a sandbox. The kernel's own count of kills for lack
// of memory decides: the runtime does not notice them.
func (s *Sandbox) howEnded() sandbox.Exit {
	if s.destroying.Load() {
		return sandbox.Exit{Code: -1, Reason: "destroyed"}
	}
	if l := s.backend.limits; l != nil && l.oomKills(s.run) > 0 {
		return sandbox.Exit{Code: -1, Reason: "out of memory"}
	}
	// The guest never ends by itself: an end of which nothing is known was none
	// of its own.
	status := s.proc.status()
	if status < 0 || status == 128+int(syscall.SIGKILL) {
		return sandbox.Exit{Code: -1, Reason: "killed"}
	}
	return sandbox.Exit{Code: status, Reason: "exited"}
}

// pipes closes both of our ends.
type pipes [2]*os.File

func (p pipes) Close() error { return errors.Join(p[0].Close(), p[1].Close()) }

// until returns a context that also ends, with the given cause, when done is
// closed; release must be called.
func until(ctx context.Context, done <-chan struct{}, cause error) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-done:
			cancel(cause)
		case <-ctx.Done():
		}
	})
	return ctx, func() {
		cancel(nil)
		wg.Wait()
	}
}
