//go:build linux

package linux

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroups is where limits come from. The runtime makes a cgroup per sandbox and
// starts everything inside it; here is what comes before (a parent, and whether
// it can work at all) and after (what the kernel counted, and removal).
type cgroups struct {
	mount   string // where cgroup file systems are mounted
	parent  string // name of our parent cgroup
	unified bool   // version 2 alone; otherwise version 1, or both ("hybrid")
}

// controllers that limits need.
var controllers = []string{"cpu", "memory", "pids"}

const cgroupMount = "/sys/fs/cgroup"

// openCgroups finds out whether limits can be enforced. The error says in one
// sentence why this host does not.
func openCgroups(mount, dataDir string) (*cgroups, error) {
	c := &cgroups{mount: mount, parent: cgroupName(dataDir)}
	_, err := os.Stat(filepath.Join(mount, "cgroup.controllers"))
	c.unified = err == nil
	if err := c.makeParent(); err != nil {
		return nil, err
	}
	c.removeParent()
	return c, nil
}

// makeParent makes the parent of all sandboxes' cgroups, or finds it.
func (c *cgroups) makeParent() error {
	if c.unified {
		return c.makeUnified()
	}
	return c.makeSplit()
}

func cgroupName(dataDir string) string {
	sum := sha256.Sum256([]byte(dataDir))
	return "berth-" + hex.EncodeToString(sum[:4])
}

// makeSplit is for version 1: one tree for each controller.
func (c *cgroups) makeSplit() error {
	for _, ctl := range controllers {
		at := filepath.Join(c.mount, ctl)
		if _, err := os.Stat(filepath.Join(at, "cgroup.procs")); err != nil {
			return fmt.Errorf("the cgroup controller %q is not mounted at %s", ctl, at)
		}
		if err := makeDir(filepath.Join(at, c.parent)); err != nil {
			return fmt.Errorf("no cgroup can be made: %w", err)
		}
	}
	return nil
}

// makeUnified is for version 2: one tree, and a parent hands its controllers on
// to its children, which it may only while it has no processes of its own.
func (c *cgroups) makeUnified() error {
	have, err := os.ReadFile(filepath.Join(c.mount, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read cgroup controllers: %w", err)
	}
	names := strings.Fields(string(have))
	for _, ctl := range controllers {
		if !slices.Contains(names, ctl) {
			return fmt.Errorf("the cgroup controller %q is not available", ctl)
		}
	}
	// The runtime hands on all of them, so all of them must work.
	all := []byte("+" + strings.Join(names, " +"))
	parent := filepath.Join(c.mount, c.parent)
	if err := os.WriteFile(filepath.Join(c.mount, "cgroup.subtree_control"), all, 0); err != nil {
		return fmt.Errorf("cgroup controllers cannot be handed on: %w", err)
	}
	if err := makeDir(parent); err != nil {
		return fmt.Errorf("no cgroup can be made: %w", err)
	}
	if err := os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), all, 0); err != nil {
		return fmt.Errorf("cgroup controllers cannot be handed on: %w", err)
	}
	return nil
}

func makeDir(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// path is a sandbox's cgroup, as the runtime is told.
func (c *cgroups) path(id string) string { return "/" + c.parent + "/" + id }

// oomKills is how often the kernel ended a process of the sandbox for lack of
// memory. 0 when the cgroup is gone.
func (c *cgroups) oomKills(id string) int {
	file := filepath.Join(c.mount, "memory", c.parent, id, "memory.oom_control")
	if c.unified {
		file = filepath.Join(c.mount, c.parent, id, "memory.events")
	}
	b, err := readBounded(file, 4<<10)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if name, value, _ := strings.Cut(strings.TrimSpace(line), " "); name == "oom_kill" {
			n, _ := strconv.Atoi(value)
			return n
		}
	}
	return 0
}

// remove removes a sandbox's cgroup from every tree. Its processes have been
// killed; the kernel may take a moment to agree. The parent goes with the last.
func (c *cgroups) remove(ctx context.Context, id string) error {
	dirs, err := c.everywhere(filepath.Join(c.parent, id))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := removeCgroup(ctx, dir); err != nil {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
	c.removeParent()
	return nil
}

// everywhere returns the folders of a cgroup in all trees.
func (c *cgroups) everywhere(name string) ([]string, error) {
	if c.unified {
		return []string{filepath.Join(c.mount, name)}, nil
	}
	dirs, err := filepath.Glob(filepath.Join(c.mount, "*", name))
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	return dirs, nil
}

// Waiting for the kernel to let go of a cgroup. It offers nothing to wait on.
const (
	cgroupRetry    = 5 * time.Millisecond
	cgroupPatience = 5 * time.Second
)

func removeCgroup(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, cgroupPatience)
	defer cancel()
	ticker := time.NewTicker(cgroupRetry)
	defer ticker.Stop()
	for {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return err
		}
	}
}

// removeParent removes the parent if no sandbox is left in it. The runtime makes
// it again if that is just about to change.
func (c *cgroups) removeParent() {
	dirs, _ := c.everywhere(c.parent)
	for _, dir := range dirs {
		_ = unix.Rmdir(dir) // busy: sandboxes run
	}
}
