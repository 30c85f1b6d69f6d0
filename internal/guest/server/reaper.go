//go:build linux

package server

import (
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reaper collects orphans: processes whose parents died and that became
// children of the guest, which is the first process of its sandbox. It never
// collects a process that the guest started itself, because somebody waits for
// that: it looks at the next zombie without taking it, and takes it only when
// it is a stranger. A nil reaper only starts processes.
type reaper struct {
	wake chan struct{} // cap 1

	mu   sync.Mutex // also held while a process is started, so that none is seen before it is owned
	mine map[int]bool
}

func newReaper() *reaper { return &reaper{wake: make(chan struct{}, 1), mine: map[int]bool{}} }

// own starts cmd and remembers it.
func (r *reaper) own(cmd *exec.Cmd) error {
	if r == nil {
		return cmd.Start()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	r.mine[cmd.Process.Pid] = true
	return nil
}

// disown forgets a process that has been waited for.
func (r *reaper) disown(cmd *exec.Cmd) {
	if r == nil {
		return
	}
	r.mu.Lock()
	delete(r.mine, cmd.Process.Pid)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run collects until stop is closed.
func (r *reaper) run(stop <-chan struct{}) {
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	defer signal.Stop(died)
	for {
		r.sweep()
		select {
		case <-died:
		case <-r.wake: // one of ours is gone and may have hidden strangers
		case <-stop:
			return
		}
	}
}

// sweep collects strangers until there are none, or one of our own comes first
// in the kernel's list. Its owner will collect that one and wake us again.
func (r *reaper) sweep() {
	for r.collect() {
	}
}

func (r *reaper) collect() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid := zombie()
	if pid == 0 || r.mine[pid] {
		return false
	}
	_, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
	return err == nil || err == unix.EINTR
}

// zombie returns the pid of a child that has ended, without collecting it; 0
// when there is none.
func zombie() int {
	// The part of siginfo_t that waitid fills in, on 64-bit Linux.
	var info struct {
		signo, errno, code, _ int32
		pid                   int32
		_                     [108]byte
	}
	for {
		err := unix.Waitid(unix.P_ALL, 0, (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == nil {
			return int(info.pid)
		}
		if err != unix.EINTR {
			return 0
		}
	}
}
