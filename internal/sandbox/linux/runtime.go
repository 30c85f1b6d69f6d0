//go:build linux

package linux

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// runtime starts sandboxes and finds what runs of them. Stopping needs none:
// what runs is killed (process.go), what is left is removed (engine.go).
type runtime struct {
	engine engine
	runs   string // folder of the runtimes' state folders
	ids    identity
}

// launch is one start of a sandbox.
type launch struct {
	binary  string
	folder  folder
	stage   stage
	layer   string // where gVisor keeps the root's writable layer
	limited bool   // the bundle names a cgroup
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
	cmd.Args = r.engine.args(l)
	cmd.Env = []string{} // nothing of ours
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, log
	cmd.SysProcAttr = r.attributes()
	if err := cmd.Run(); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("run %s: %w", r.engine.isolation(), err)
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

// pid is the sandbox's first process as its runtime wrote it down, 0 when it did
// not. It is believed only of a process that is the sandbox's (owns).
func (f folder) pid() int {
	b, err := readBounded(f.path(pidName), 32)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	return pid
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
