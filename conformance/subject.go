package conformance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Subject is a worker to be judged: a command that serves one environment.
type Subject struct {
	Name    string
	Version string
	// Command is started in a folder of its own, which is all that it may use. It
	// serves until SIGTERM; one that ends is started again, as a supervisor would.
	Command []string
	// Slots is how many sessions one process serves at once; Processes how many
	// run side by side, each with an environment of its own. Defaults 1 and 1.
	Slots, Processes int
	// Can lists what it can do: skills, memory, webhooks, restart (its work
	// survives the end of its process).
	Can []string
	// Release is how long after the end of a turn it may keep the work item.
	// Default 60 s, as the official workers do.
	Release time.Duration
	// Memory is the folder where it mounts memory stores. Default /mnt/memory.
	Memory string
	// Prepare makes a process's folder ready and returns more environment, and
	// where it takes webhooks. May be nil.
	Prepare func(dir string) (Setup, error)
	// Cleanup removes what processes left behind, the folder included. Default:
	// removes the folder.
	Cleanup func(ctx context.Context, dir string) error
}

// Setup is what one process of a subject needs beside the usual environment.
type Setup struct {
	Env     []string
	Webhook string // URL that takes webhooks
}

func (s Subject) withDefaults() Subject {
	s.Slots, s.Processes = max(s.Slots, 1), max(s.Processes, 1)
	if s.Release <= 0 {
		s.Release = time.Minute
	}
	if s.Memory == "" {
		s.Memory = "/mnt/memory"
	}
	if s.Cleanup == nil {
		s.Cleanup = func(_ context.Context, dir string) error { return os.RemoveAll(dir) }
	}
	return s
}

// lacks returns what a case needs and the subject cannot do.
func (s Subject) lacks(c Case) string {
	for _, need := range c.Needs {
		if !slices.Contains(s.Can, need) {
			return need
		}
	}
	return ""
}

// worker keeps one process of a subject running.
type worker struct {
	subject Subject
	dir     string
	env     []string
	log     tail

	mu      sync.Mutex
	cmd     *exec.Cmd
	ended   chan struct{} // of cmd
	closing bool
	starts  int
	broken  error // it cannot be started
	keeper  sync.WaitGroup
}

// stopWithin is how long a worker has to end after SIGTERM.
const stopWithin = 15 * time.Second

// startWorker starts a process in a new folder.
func startWorker(s Subject, env ...string) (*worker, Setup, error) {
	dir, err := os.MkdirTemp("", "conform-") // short: sockets may live below it
	if err != nil {
		return nil, Setup{}, fmt.Errorf("make a folder for the worker: %w", err)
	}
	w := &worker{subject: s, dir: dir}
	var setup Setup
	if s.Prepare != nil {
		if setup, err = s.Prepare(dir); err != nil {
			return nil, setup, errors.Join(fmt.Errorf("prepare the worker: %w", err), os.RemoveAll(dir))
		}
	}
	w.env = append(setup.Env, env...)
	if err := w.start(); err != nil {
		return nil, setup, errors.Join(err, os.RemoveAll(dir))
	}
	return w, setup, nil
}

// start starts the process, and sees to it that there is always one.
func (w *worker) start() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	cmd := exec.Command(w.subject.Command[0], w.subject.Command[1:]...) //nolint:noctx // it ends with its worker, not with a call
	cmd.Dir, cmd.Stdout, cmd.Stderr = w.dir, &w.log, &w.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	for _, e := range cmd.Environ() { // ours, without anything that names another platform
		if upper := strings.ToUpper(e); !strings.HasPrefix(upper, "ANTHROPIC_") && !strings.HasPrefix(upper, "BERTH_") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.Env = append(cmd.Env, w.env...)
	if err := cmd.Start(); err != nil {
		w.broken = err
		return fmt.Errorf("start the worker: %w", err)
	}
	ended := make(chan struct{})
	w.cmd, w.ended = cmd, ended
	w.starts++
	w.keeper.Go(func() {
		err := cmd.Wait()
		fmt.Fprintf(&w.log, "\n--- the process ended: %v\n", err)
		close(ended)
		pause := time.NewTimer(restartPause)
		defer pause.Stop()
		<-pause.C
		w.mu.Lock()
		again := !w.closing
		w.mu.Unlock()
		if again {
			_ = w.start() // remembered in broken
		}
	})
	return nil
}

// restartPause is how long a supervisor waits.
const restartPause = 200 * time.Millisecond

// signal sends a signal to the process and its children.
func (w *worker) signal(sig syscall.Signal) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = syscall.Kill(-w.cmd.Process.Pid, sig) // it may have ended
}

// stop ends the process for good and removes what it left.
func (w *worker) stop() error {
	w.mu.Lock()
	w.closing = true
	ended := w.ended
	w.mu.Unlock()
	w.signal(syscall.SIGTERM)
	late := time.NewTimer(stopWithin)
	defer late.Stop()
	select {
	case <-ended:
	case <-late.C:
	}
	w.signal(syscall.SIGKILL) // and its children, should any be left
	w.keeper.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return w.subject.Cleanup(ctx, w.dir)
}

// tail keeps the end of what a process writes.
type tail struct {
	mu   sync.Mutex
	data []byte
}

const tailBytes = 256 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.data = append(t.data, b...)
	if over := len(t.data) - tailBytes; over > 0 {
		t.data = append(t.data[:0], t.data[over:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.data)
}
