//go:build linux

package linux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The processes of a sandbox on the host: the sandbox itself, the first process
// of a PID namespace, whose death ends everything inside; what helps it; and
// for a moment the runtime that starts both. They are found by what they are,
// whoever started them and wherever that one stopped:
//
//   - gVisor's (its kernel, and a helper that opened its files) are named runsc…
//     and carry the runtime's state folder and the sandbox's id in their
//     arguments: that under which it was started, see folder.run.
//   - Those of other runtimes (the guest itself, as the host sees it, and the
//     runtime before it) have the sandbox's FIFO as standard input. It exists
//     before the runtime starts, nobody inside can open it, and it is removed
//     after the processes.

const maxCmdline = 64 << 10

// process is one process of a sandbox.
type process struct {
	pid  int
	name string // "runsc-sandbox", "runsc-gofer", "runsc"
}

const kernelName = runtimeName + "-sandbox"

// target is what the processes of one sandbox are known by.
type target struct {
	id   string      // the folder's name
	run  string      // what the runtime knows the sandbox by
	fifo fs.FileInfo // their standard input, nil when there is no such sandbox
}

func (f folder) target() target {
	t := target{id: f.id(), run: f.run()}
	if info, err := os.Lstat(f.path(inName)); err == nil && info.Mode()&fs.ModeNamedPipe != 0 {
		t.fifo = info
	}
	return t
}

// processes returns the processes of one sandbox; zombies are not processes.
func (r runtime) processes(t target) ([]process, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var found []process
	for _, n := range names {
		pid, err := strconv.Atoi(n)
		if err != nil {
			continue
		}
		if name, ok := r.owns(pid, t); ok {
			found = append(found, process{pid, name})
		}
	}
	return found, nil
}

// owns reports whether a process belongs to a sandbox, and its name.
func (r runtime) owns(pid int, t target) (string, bool) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	if t.fifo != nil && listens(dir, t.id, t.fifo) {
		return "guest", true
	}
	b, err := readBounded(filepath.Join(dir, "cmdline"), maxCmdline)
	if err != nil || !bytes.HasPrefix(b, []byte(runtimeName)) {
		return "", false
	}
	args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
	if !slices.Contains(args, "--root="+filepath.Join(r.runs, runtimeName)) || args[len(args)-1] != t.run {
		return "", false
	}
	return args[0], true
}

// listens reports whether a FIFO is a process's standard input. The name is
// looked at first, so that nothing else is touched.
func listens(proc, id string, fifo fs.FileInfo) bool {
	stdin := filepath.Join(proc, "fd/0")
	name, err := os.Readlink(stdin)
	if err != nil || !strings.HasSuffix(name, filepath.Join("/", id, inName)) {
		return false
	}
	info, err := os.Stat(stdin)
	return err == nil && os.SameFile(info, fifo)
}

// kernel returns a handle on the sandbox's own process, nil when none runs.
func (r runtime) kernel(f folder) (*handle, error) {
	t := f.target()
	found, err := r.processes(t)
	if err != nil {
		return nil, err
	}
	first := f.pid()
	for _, p := range found {
		if p.name != kernelName && p.pid != first {
			continue
		}
		h, err := r.open(p.pid, t)
		if h != nil || err != nil {
			return h, err
		}
	}
	return nil, nil
}

// kill ends all processes of a sandbox and returns when they have ended.
func (r runtime) kill(ctx context.Context, f folder) error {
	for {
		t := f.target()
		found, err := r.processes(t)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return nil
		}
		for _, p := range found {
			if err := r.killOne(ctx, p.pid, t); err != nil {
				return fmt.Errorf("kill %s of %s: %w", p.name, t.id, err)
			}
		}
	}
}

func (r runtime) killOne(ctx context.Context, pid int, t target) error {
	h, err := r.open(pid, t)
	if h == nil || err != nil {
		return err
	}
	defer h.Close()
	if err := h.signal(unix.SIGKILL); err != nil {
		return err
	}
	return h.wait(ctx)
}

// handle is a process that cannot be mistaken for a later one with its number.
type handle struct{ file *os.File }

// open returns a handle on a process of a sandbox, nil when it is gone.
func (r runtime) open(pid int, t target) (*handle, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	h := &handle{os.NewFile(uintptr(fd), "pidfd")}
	if _, ok := r.owns(pid, t); !ok { // the number was given away in between
		_ = h.Close()
		return nil, nil
	}
	return h, nil
}

// Close drops the handle; a wait in progress returns an error.
func (h *handle) Close() error { return h.file.Close() }

func (h *handle) signal(sig syscall.Signal) error {
	raw, err := h.file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	if errors.Is(failed, unix.ESRCH) {
		return nil
	}
	return failed
}

// wait blocks until the process has ended.
func (h *handle) wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = h.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := h.file.SyscallConn()
	if err != nil {
		return err
	}
	err = raw.Read(ended)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// status tells how an ended process ended: 0 to 127 for an exit, 128 and more
// for a signal, -1 when the kernel does not say.
func (h *handle) status() int {
	status := -1
	raw, err := h.file.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { status = exitStatus(int(fd)) })
	}
	return status
}

// ended reports whether the process behind a pidfd has ended.
func ended(fd uintptr) bool { return polled(int(fd), unix.POLLIN, 0) }

func polled(fd int, event int16, patience time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: event}}
	n, err := unix.Poll(fds, int(patience.Milliseconds()))
	return err == nil && n == 1 && fds[0].Revents&event != 0
}

// reapPatience is how long the kernel may take to publish the status of an
// ended process: until its parent has heard of it.
const reapPatience = 100 * time.Millisecond

// exitStatus asks how an ended process ended. If it is our child (a server that
// is the first process of a container inherits orphans) it is reaped. Linux
// 6.15 and later tell; others leave it unknown.
func exitStatus(fd int) int {
	_ = unix.Waitid(unix.P_PIDFD, fd, nil, unix.WEXITED|unix.WNOHANG, nil)
	polled(fd, unix.POLLHUP, reapPatience)
	// struct pidfd_info of linux/pidfd.h, in its first published size.
	info := struct {
		mask, cgroup uint64
		ids          [11]uint32
		status       int32
	}{mask: pidfdInfoExit}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	if errno != 0 || info.mask&pidfdInfoExit == 0 {
		return -1
	}
	ws := syscall.WaitStatus(info.status)
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

const (
	pidfdGetInfo  = 0xc040ff0b // _IOWR(0xff, 11, 64 bytes)
	pidfdInfoExit = 1 << 3
)
