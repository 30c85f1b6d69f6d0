//go:build linux

package server

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// A command that was stopped may leave processes behind that moved to sessions
// of their own, where the end of the shell does not reach them. They carry a
// mark in the environment that the shell gave them. What earlier commands left
// running on purpose carries it too; that was there before, or descends from
// something that was, and stays.

// markName is the variable that marks what a shell starts.
const markName = "BERTH_SHELL"

// pids returns what runs now.
func pids() map[int]bool {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	now := make(map[int]bool, len(entries))
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			now[pid] = true
		}
	}
	return now
}

// killLeftovers kills what a shell with this mark started since before was
// taken. The shell itself must have ended.
func killLeftovers(mark string, before map[int]bool) {
	variable := []byte(markName + "=" + mark)
	marked := map[int]process{}
	for _, p := range processes() {
		if hasVariable(p.pid, variable) {
			marked[p.pid] = p
		}
	}
	for _, pid := range leftovers(marked, before) {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// leftovers returns the pids in marked that neither were there before nor have
// an ancestor that was.
func leftovers(marked map[int]process, before map[int]bool) (out []int) {
	for pid := range marked {
		p, known := marked[pid]
		for steps := 0; known && !before[p.pid] && steps <= len(marked); steps++ {
			p, known = marked[p.parent]
		}
		if !known {
			out = append(out, pid)
		}
	}
	return out
}

func hasVariable(pid int, variable []byte) bool {
	env, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
	if err != nil {
		return false // another user's, or gone
	}
	for v := range bytes.SplitSeq(env, []byte{0}) {
		if bytes.Equal(v, variable) {
			return true
		}
	}
	return false
}
