//go:build linux

package server

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// spawner starts processes as the agent's user: another uid than the guest's,
// no supplementary groups, no way to gain privileges, its own session.
type spawner struct {
	uid, gid int     // negative: the guest's own
	reaper   *reaper // nil when somebody else looks after orphans
}

// start starts cmd. The caller must call wait.
func (s *spawner) start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	if s.uid >= 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(s.uid), Gid: uint32(s.gid), Groups: []uint32{}}
	}
	started := make(chan error, 1)
	go func() { // ends with start; its thread is given up with it
		runtime.LockOSThread()
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			started <- fmt.Errorf("give up new privileges: %w", err)
			return
		}
		started <- s.reaper.own(cmd)
	}()
	return <-started
}

// wait waits for a process that start started.
func (s *spawner) wait(cmd *exec.Cmd) error {
	err := cmd.Wait()
	s.reaper.disown(cmd)
	return err
}

// killSession kills a process that start started and everything that is still
// in its session.
func killSession(cmd *exec.Cmd) {
	sid := cmd.Process.Pid
	for _, p := range processes() {
		if p.session == sid {
			_ = unix.Kill(p.pid, unix.SIGKILL)
		}
	}
	_ = cmd.Process.Kill()
}

// lookPath finds an executable as a shell with this PATH would.
func lookPath(name, dir, path string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, d := range filepath.SplitList(path) {
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		p := filepath.Join(d, name)
		if fi, err := os.Stat(p); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("%w: %s", exec.ErrNotFound, name)
}
