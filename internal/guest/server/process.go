//go:build linux

package server

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
)

// process is a line of the process table.
type process struct {
	pid, parent, session int
}

// processes reads the process table. Processes that end meanwhile are missing.
func processes() []process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue
		}
		if p, ok := parseStat(pid, stat); ok {
			out = append(out, p)
		}
	}
	return out
}

// parseStat reads /proc/PID/stat. The command name in it may hold anything, so
// the fields are counted from its closing bracket.
func parseStat(pid int, stat []byte) (process, bool) {
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return process{}, false
	}
	f := bytes.Fields(stat[i+1:]) // state, parent, group, session, …
	if len(f) < 4 {
		return process{}, false
	}
	parent, err1 := strconv.Atoi(string(f[1]))
	session, err2 := strconv.Atoi(string(f[3]))
	return process{pid, parent, session}, err1 == nil && err2 == nil
}

// descendants returns the pids below root, parents first.
func descendants(table []process, root int) []int {
	below := map[int][]int{}
	for _, p := range table {
		below[p.parent] = append(below[p.parent], p.pid)
	}
	var out []int
	seen := map[int]bool{root: true}
	for queue := []int{root}; len(queue) > 0; queue = queue[1:] {
		for _, pid := range below[queue[0]] {
			if !seen[pid] {
				seen[pid] = true
				out = append(out, pid)
				queue = append(queue, pid)
			}
		}
	}
	return out
}
