//go:build linux

package bench

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/berth-dev/berth/internal/guest"
	"github.com/berth-dev/berth/internal/guest/guesttest"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/testbin"
)

// bare is a backend without isolation: the guest of the real program, with its
// worker process, directly on the host. What it is faster than gVisor is what
// gVisor costs. It makes one sandbox.
type bare struct {
	binary, dir string

	mu  sync.Mutex
	box *bareBox
}

type bareBox struct {
	ref   sandbox.Ref
	cmd   *exec.Cmd
	conn  *guest.Client
	over  chan struct{}
	close func()
}

// bare serves the stage with sandboxes that do not isolate.
func (s *stage) bare() {
	s.b.Helper()
	b := &bare{binary: testbin.Path(s.b), dir: s.dir}
	if err := os.Chmod(s.dir, 0o711); err != nil { // for the agent's user
		s.b.Fatal(err)
	}
	stop := s.inProcess(s.b, 8, b)
	s.stop = func() {
		stop()
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.box != nil {
			b.box.close()
		}
	}
}

func (b *bare) Name() string                                { return "bare" }
func (b *bare) Features() sandbox.Features                  { return sandbox.Features{Isolation: "none"} }
func (b *bare) List(context.Context) ([]sandbox.Ref, error) { return nil, nil }
func (b *bare) Close() error                                { return nil }

func (b *bare) Remove(context.Context, sandbox.Ref, sandbox.Removal) error { return nil }

func (b *bare) Attach(context.Context, sandbox.Ref) (sandbox.Sandbox, error) {
	return nil, sandbox.ErrGone
}

func (b *bare) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.box != nil {
		return nil, errors.New("there is one sandbox already")
	}
	run := filepath.Join(b.dir, "run")
	if err := os.Mkdir(run, 0o700); err != nil {
		return nil, err
	}
	pipes, err := guesttest.NewPipes(run)
	if err != nil {
		return nil, err
	}
	in, out, err := pipes.Open()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	defer out.Close()
	box := &bareBox{ref: sandbox.Ref{ID: spec.ID, Backend: "bare", Session: spec.Session}, over: make(chan struct{})}
	box.cmd = exec.Command(b.binary, "guest", "-workdir="+filepath.Join(b.dir, "workspace"))
	box.cmd.Stdin, box.cmd.Stdout = in, out
	if err := box.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { // close waits for it
		defer close(box.over)
		_ = box.cmd.Wait()
	}()
	box.close = func() {
		if box.conn != nil {
			_ = box.conn.Close()
		}
		_ = box.cmd.Process.Signal(syscall.SIGTERM)
		<-box.over
	}
	if box.conn, err = pipes.Attach(ctx, guest.Options{}); err != nil {
		box.close()
		return nil, err
	}
	b.box = box
	return box, nil
}

func (x *bareBox) Ref() sandbox.Ref                               { return x.ref }
func (x *bareBox) Guest(context.Context) (sandbox.Guest, error)   { return x.conn, nil }
func (x *bareBox) Destroy(context.Context, sandbox.Removal) error { return nil }

func (x *bareBox) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-x.over:
		return sandbox.Exit{Code: -1, Reason: "exited"}, nil
	case <-ctx.Done():
		return sandbox.Exit{}, ctx.Err()
	}
}
