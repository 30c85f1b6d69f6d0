//go:build linux

package server

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// InProcess runs the worker's side in the calling process, for tests of other
// packages. Killing it stops its calls and shells.
func InProcess(workdir string) Launch {
	return func() (Worker, error) {
		inR, inW := io.Pipe()
		outR, outW := io.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() { _ = newToolbox(workdir, nil).serve(inR, outW) })
		return Worker{R: outR, W: inW, Kill: func() {
			_ = inW.Close()
			_ = inR.Close()
			_ = outR.Close()
			wg.Wait()
		}}, nil
	}
}

// processWorker starts this program again, which then becomes the agent's user by
// itself: had it that user from the start, commands that the agent left running
// could open its memory before it has closed that to them.
func processWorker(cfg Config) Launch {
	spawn := spawner{uid: -1, gid: -1, reaper: cfg.reaper}
	args := []string{"berth", "guest", "worker", "-workdir", cfg.Workdir}
	if cfg.UID >= 0 {
		args = append(args, fmt.Sprintf("-uid=%d", cfg.UID), fmt.Sprintf("-gid=%d", cfg.GID))
	}
	args = append(args, cfg.Shares.args()...)
	return func() (Worker, error) {
		inR, inW, err := os.Pipe()
		if err != nil {
			return Worker{}, err
		}
		defer inR.Close()
		outR, outW, err := os.Pipe()
		if err != nil {
			_ = inW.Close()
			return Worker{}, err
		}
		defer outW.Close()
		last := &tail{limit: 4 << 10}
		cmd := &exec.Cmd{
			Path:  "/proc/self/exe",
			Args:  args,
			Dir:   cfg.Workdir,
			Env:   list(merge(standard(cfg.Workdir, "agent"), cfg.Env)),
			Stdin: inR, Stdout: outW, Stderr: last,
			WaitDelay: time.Second,
		}
		if err := spawn.start(cmd); err != nil {
			_ = inW.Close()
			_ = outR.Close()
			return Worker{}, err
		}
		ended := make(chan struct{})
		go func() { // Kill waits for it
			defer close(ended)
			err := spawn.wait(cmd)
			// Something that holds a copy of the pipes must not make a dead
			// worker look alive.
			_ = inW.Close()
			_ = outR.Close()
			cfg.Log.Info("worker ended", "err", err, "stderr", string(last.bytes()))
		}()
		return Worker{R: outR, W: inW, Kill: func() {
			killTree(cmd.Process.Pid)
			_ = cmd.Process.Kill()
			<-ended
		}}, nil
	}
}

// killTree kills a process and everything below it, from the top, so that
// nothing below is started anew.
func killTree(pid int) {
	below := descendants(processes(), pid)
	_ = unix.Kill(pid, unix.SIGKILL)
	for _, p := range below {
		_ = unix.Kill(p, unix.SIGKILL)
	}
}
