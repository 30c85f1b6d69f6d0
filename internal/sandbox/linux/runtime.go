//go:build linux

package linux

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// runtime starts gVisor: our own binary under another name. Stopping needs no
// runtime: what runs is killed (process.go), what is left is removed here.
type runtime struct {
	state string // the runtime's state folder
	ids   identity
}

// runtimeName is argv[0] of the runtime and the beginning of its children's.
const runtimeName = "runsc"

// launch is one start of a sandbox.
type launch struct {
	binary  string
	folder  folder
	stage   stage
	limited bool // the bundle names a cgroup
}

// args is the command line that starts a sandbox and leaves it running.
func (r runtime) args(l launch) []string {
	args := []string{
		runtimeName,
		"--root=" + r.state,
		"--log=" + l.folder.path(logName),
		"--platform=systrap",
		"--network=none",
		"--gofer-network-namespace=new", // the default one is a mount that nobody removes
		"--overlay2=root:dir=" + l.folder.path(overlayName),
		"--file-access=exclusive",
		"--file-access-mounts=exclusive", // but see sharedMount
		"--host-uds=none",
		"--host-fifo=none",
		"--host-settings=ignore",
	}
	if !l.limited {
		args = append(args, "--ignore-cgroups")
	}
	args = append(args, "run", "--detach", "--bundle="+l.folder.path(bundleName), l.folder.id())
	return l.stage.wrap(args)
}

// run starts a sandbox and returns when its first process runs. When ctx ends
// early, or on error, processes may be left: the caller ends them.
func (r runtime) run(ctx context.Context, l launch) error {
	stdin, stdout, err := l.folder.openPipes()
	if err != nil {
		return err
	}
	defer stdin.Close()
	defer stdout.Close()
	log, err := os.OpenFile(l.folder.path(guestLogName), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open guest log: %w", err)
	}
	defer log.Close()

	cmd := exec.CommandContext(ctx, l.binary)
	cmd.Args = r.args(l)
	cmd.Env = []string{} // nothing of ours
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, log
	cmd.SysProcAttr = r.attributes()
	if err := cmd.Run(); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("run gVisor: %w", err)
	}
	return nil
}

// attributes puts the runtime into a session and namespaces of its own: a mount
// namespace, so that what it mounts goes when it goes, and for an ordinary user
// a user namespace in which they are root.
func (r runtime) attributes() *syscall.SysProcAttr {
	if !r.ids.rootless {
		return &syscall.SysProcAttr{Setsid: true, Unshareflags: syscall.CLONE_NEWNS}
	}
	return &syscall.SysProcAttr{
		Setsid:      true,
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
}

// forget removes what the runtime remembers of a sandbox whose processes have
// ended.
func (r runtime) forget(id string) error {
	names, err := filepath.Glob(filepath.Join(r.state, id+"_sandbox:*"))
	if err != nil {
		return fmt.Errorf("find runtime state: %w", err)
	}
	for _, name := range append(names, filepath.Join(r.state, "runsc-"+id+".sock")) {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove runtime state: %w", err)
		}
	}
	return nil
}

const (
	maxLog       = 256 << 10 // read of a log, in bytes
	maxDiagnosis = 600
)

// diagnosis is one line on why a sandbox did not start, from what the runtime
// and the guest wrote. "" when they wrote nothing.
func (f folder) diagnosis() string {
	var said []string
	if b, err := readBounded(f.path(logName), maxLog); err == nil {
		said = append(said, runtimeErrors(b)...)
	}
	if b, err := readBounded(f.path(guestLogName), maxLog); err == nil {
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		said = append(said, lines[max(0, len(lines)-3):]...)
	}
	text := strings.Join(strings.Fields(strings.Join(said, "; ")), " ")
	return strings.Trim(text[:min(len(text), maxDiagnosis)], "; ")
}

// runtimeErrors returns the messages of a runtime's log: JSON objects that
// stand behind each other. The first is the cause, the others follow from it.
func runtimeErrors(b []byte) []string {
	var said []string
	for d := json.NewDecoder(bytes.NewReader(b)); len(said) < 3; {
		var line struct {
			Msg string `json:"msg"`
		}
		if d.Decode(&line) != nil {
			break
		}
		said = append(said, line.Msg)
	}
	return said
}

// stage is a place that the runtime's children can reach. They are nobody on
// the host (identity.go), and a data folder that is closed to all but root
// would be closed to them. So the runtime, in its own mount namespace, first
// binds the folders that they need below a fresh tmpfs over Point, an existing
// folder; PrepareRuntime does it. The zero stage changes nothing.
type stage struct {
	Point string   `json:"point"`
	Dirs  []string `json:"dirs"`
}

// inside translates a host path below one of the staged folders.
func (s stage) inside(path string) string {
	if s.Point == "" {
		return path
	}
	return filepath.Join(s.Point, path)
}

const stageFlag = "--berth-stage="

func (s stage) wrap(args []string) []string {
	if s.Point == "" {
		return args
	}
	b, _ := json.Marshal(s) // strings cannot fail
	return append([]string{args[0], stageFlag + string(b)}, args[1:]...)
}

// PrepareRuntime must be called by a process that is about to become the gVisor
// runtime, with its own arguments; it returns those that the runtime shall see.
// It acts only on a command line that this package made.
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
	return append([]string{args[0]}, args[2:]...), nil
}

// mount works through descriptors opened before Point is covered, because a
// data folder may lie below it.
func (s stage) mount() error {
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
