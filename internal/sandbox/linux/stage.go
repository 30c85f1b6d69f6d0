//go:build linux

package linux

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// stage is what a runtime finds mounted when it starts, in a mount namespace of
// its own: nothing of it is visible on the host, and all of it goes with the
// last process of the sandbox, however that one ended. PrepareRuntime makes it.
//
// The folders in Dirs are bound below a fresh tmpfs over Point, an existing
// folder, because a runtime's children are nobody on the host (identity.go) and
// a data folder that is closed to all but root would be closed to them. The
// zero stage changes nothing.
type stage struct {
	Point   string   `json:"point,omitempty"`
	Dirs    []string `json:"dirs,omitempty"`
	Disk    *disk    `json:"disk,omitempty"`    // made first
	Overlay *overlay `json:"overlay,omitempty"` // made before Dirs are bound
	Hidden  []string `json:"hidden,omitempty"`  // mounts that the runtime must not see
}

// overlay shows one folder writable without changing it: what is written goes
// to Upper.
type overlay struct {
	Lower string `json:"lower"`
	Upper string `json:"upper"`
	Work  string `json:"work"`
	At    string `json:"at"`    // a folder to mount on
	Owner int    `json:"owner"` // of the root inside
}

// inside translates a host path below one of the staged folders.
func (s stage) inside(path string) string {
	if s.Point == "" {
		return path
	}
	return filepath.Join(s.Point, path)
}

const stageFlag = "--berth-stage="

// changes reports whether there is anything to do.
func (s stage) changes() bool {
	return s.Point != "" || s.Disk != nil || s.Overlay != nil || len(s.Hidden) > 0
}

// flag is the stage as an argument.
func (s stage) flag() string {
	b, _ := json.Marshal(s) // strings cannot fail
	return stageFlag + string(b)
}

// Launcher is argv[0] of our own binary when it shall make a stage and become
// the program that follows in its arguments.
const Launcher = "berth-runtime"

// PrepareRuntime must be called by a process that is about to become a runtime,
// with its own arguments. It acts only on a command line that this package made.
// It returns the arguments that gVisor shall see, and does not return when the
// runtime is another program.
func PrepareRuntime(args []string) ([]string, error) {
	if len(args) < 2 || !strings.HasPrefix(args[1], stageFlag) {
		return args, nil
	}
	var s stage
	if err := json.Unmarshal([]byte(args[1][len(stageFlag):]), &s); err != nil {
		return nil, fmt.Errorf("read stage: %w", err)
	}
	if err := s.mount(); err != nil {
		return nil, err
	}
	rest := args[2:]
	if args[0] != Launcher {
		return append([]string{args[0]}, rest...), nil
	}
	if len(rest) == 0 {
		return nil, errors.New("no runtime to start")
	}
	err := unix.Exec(rest[0], rest, []string{runtimePath})
	return nil, fmt.Errorf("start %s: %w", rest[0], err)
}

// runtimePath is the environment of runtimes that are other programs.
const runtimePath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func (s stage) mount() error {
	if s.Disk != nil {
		if err := s.Disk.mount(); err != nil {
			return err
		}
	}
	if s.Overlay != nil {
		if err := s.Overlay.mount(); err != nil {
			return err
		}
	}
	if s.Point != "" {
		if err := s.show(); err != nil {
			return err
		}
	}
	for _, at := range s.Hidden {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) { // not mounted
			return fmt.Errorf("hide %s: %w", at, err)
		}
	}
	return nil
}

// show works through descriptors opened before Point is covered, because a
// data folder may lie below it.
func (s stage) show() error {
	fds := make([]int, len(s.Dirs))
	for i, dir := range s.Dirs {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", dir, err)
		}
		defer unix.Close(fd)
		fds[i] = fd
	}
	if err := unix.Mount("berth", s.Point, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0711,size=64k"); err != nil {
		return fmt.Errorf("mount stage on %s: %w", s.Point, err)
	}
	defer unix.Umask(unix.Umask(0)) // others must be able to pass
	for i, dir := range s.Dirs {
		at := s.inside(dir)
		if err := os.MkdirAll(at, 0o711); err != nil {
			return fmt.Errorf("make stage: %w", err)
		}
		if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fds[i]), at, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", dir, err)
		}
	}
	return nil
}

// mount names the folders by descriptors: a path may hold characters that mean
// something in mount options, and what is mounted tells its options inside.
func (o overlay) mount() error {
	// The root inside is this folder, as far as its owner goes.
	if err := errors.Join(os.Lchown(o.Upper, o.Owner, o.Owner), os.Chmod(o.Upper, 0o755)); err != nil {
		return fmt.Errorf("ready the writable layer: %w", err)
	}
	var fds [3]int
	for i, dir := range []string{o.Lower, o.Upper, o.Work} {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_DIRECTORY, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", dir, err)
		}
		defer unix.Close(fd)
		fds[i] = fd
	}
	options := fmt.Sprintf("lowerdir=/proc/self/fd/%d,upperdir=/proc/self/fd/%d,workdir=/proc/self/fd/%d", fds[0], fds[1], fds[2])
	// What is written lives no longer than the sandbox: nothing has to be
	// synced. Kernels before 5.10 cannot leave that out.
	err := unix.Mount("berth", o.At, "overlay", unix.MS_NODEV, options+",volatile")
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("berth", o.At, "overlay", unix.MS_NODEV, options)
	}
	if err != nil {
		return fmt.Errorf("mount the writable layer over %s (overlay file systems need a disk such as ext4, xfs or btrfs below): %w", o.Lower, err)
	}
	return nil
}

// stagePoints are folders that every Linux has and that the host image does
// not need.
var stagePoints = []string{"/mnt", "/media", "/srv", "/opt", "/tmp"}

// chooseStage is where the folders of one sandbox are shown to its processes.
func (r runtime) chooseStage(dataDir string, dirs ...string) (stage, error) {
	if r.ids.rootless || !r.ids.mapped() {
		return stage{}, nil
	}
	for _, point := range stagePoints {
		if info, err := os.Lstat(point); err != nil || !info.IsDir() || strings.HasPrefix(dataDir+"/", point+"/") {
			continue
		}
		return stage{Point: point, Dirs: dirs}, nil
	}
	return stage{}, fmt.Errorf("none of %s is a folder outside %s to mount on", strings.Join(stagePoints, ", "), dataDir)
}
