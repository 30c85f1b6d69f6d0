//go:build linux

package linux

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/sandbox"
)

// idPattern is the form that sandbox.ID gives. It is checked before an id
// becomes part of a path.
var idPattern = regexp.MustCompile(`^b[0-9a-f]{24}$`)

// folder is the path of one sandbox's folder; see the package comment.
type folder string

func (f folder) path(name string) string { return filepath.Join(string(f), name) }
func (f folder) id() string              { return filepath.Base(string(f)) }

// run is the id under which the runtime knows the sandbox, and its cgroup: that
// of the folder, unless it was started for nobody in particular (pool.go).
func (f folder) run() string {
	b, err := readBounded(f.path(runName), 64)
	if id := strings.TrimSpace(string(b)); err == nil && idPattern.MatchString(id) {
		return id
	}
	return f.id()
}

// Names inside a folder.
const (
	recordName    = "spec.json"
	bundleName    = "bundle"
	inName        = "in"
	outName       = "out"
	logName       = "runtime.log"
	guestLogName  = "guest.log"
	overlayName   = "overlay"
	workName      = "overlay-work" // of the kernel, for the layer above
	rootName      = "root"         // where that layer is mounted over the image
	pidName       = "pid"          // written by the runtime
	workspaceName = "workspace"
	runName       = "run" // see folder.run
)

// record is what spec.json holds: enough to attach without asking anyone.
type record struct {
	Session string            `json:"session"`
	Image   string            `json:"image"`
	Env     map[string]string `json:"env,omitempty"`
	Limits  sandbox.Limits    `json:"limits"`
	Shares  []sandbox.Share   `json:"shares,omitempty"`
	Binary  string            `json:"binary"` // names of the files in use, which must stay
	Root    string            `json:"root"`
	Runtime string            `json:"runtime,omitempty"` // gVisor when empty
}

// maxRecord bounds spec.json when it is read.
const maxRecord = 1 << 20

// make lays the folder: everything but the runtime's configuration. An
// existing workspace is kept; it reports whether there was one.
func (f folder) make(r record, owner, agent int) (kept bool, err error) {
	if err := os.MkdirAll(string(f), 0o700); err != nil {
		return false, fmt.Errorf("make sandbox folder: %w", err)
	}
	for _, name := range []string{bundleName, overlayName, workName, rootName, diskName} {
		if err := os.Mkdir(f.path(name), 0o700); err != nil {
			return false, fmt.Errorf("make sandbox folder: %w", err)
		}
	}
	for _, name := range []string{inName, outName} {
		if err := unix.Mkfifo(f.path(name), 0o600); err != nil {
			return false, fmt.Errorf("make FIFO %s: %w", name, err)
		}
	}
	err = os.Mkdir(f.path(workspaceName), 0o700)
	kept = errors.Is(err, fs.ErrExist)
	if err != nil && !kept {
		return false, fmt.Errorf("make workspace: %w", err)
	}
	if !kept && agent != owner {
		if err := os.Lchown(f.path(workspaceName), agent, agent); err != nil {
			return false, fmt.Errorf("give the workspace to the agent: %w", err)
		}
	}
	if err := errors.Join(f.makeShares(r.Shares, owner, agent), f.makeMounts(r.Shares, owner)); err != nil {
		return kept, err
	}
	return kept, f.write(r)
}

// write writes spec.json.
func (f folder) write(r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	return writeFile(f.path(recordName), b)
}

// record reads spec.json; a folder without one is half-made.
func (f folder) record() (record, error) {
	var r record
	b, err := readBounded(f.path(recordName), maxRecord)
	if err != nil {
		return r, fmt.Errorf("read record: %w", err)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("read record of %s: %w", f.id(), err)
	}
	return r, nil
}

// clear removes what a run of the sandbox left, and keeps workspace, shares and
// record.
func (f folder) clear() error {
	for _, name := range []string{
		bundleName, overlayName, workName, rootName, diskName, mountsName, pidName, inName, outName, logName, guestLogName,
		runName, // last: the others are found by it
	} {
		if err := removeAll(f.path(name)); err != nil {
			return fmt.Errorf("clear sandbox folder: %w", err)
		}
	}
	return nil
}

// openPipes opens our ends of the FIFOs: to write to the guest and to read from
// it. Both are opened for reading and writing, so that neither end ever sees
// the other leave. The descriptors are our own; the sandbox's have other flags.
func (f folder) openPipes() (toGuest, fromGuest *os.File, err error) {
	toGuest, err = openPipe(f.path(inName))
	if err != nil {
		return nil, nil, err
	}
	fromGuest, err = openPipe(f.path(outName))
	if err != nil {
		_ = toGuest.Close()
		return nil, nil, err
	}
	return toGuest, fromGuest, nil
}

// pipeSize is what we ask the kernel for; it may give less.
const pipeSize = 1 << 20

func openPipe(path string) (*os.File, error) {
	p, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open FIFO: %w", err)
	}
	raw, err := p.SyscallConn()
	if err == nil { // a smaller pipe is only slower
		_ = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) })
	}
	return p, nil
}

// trimLogs empties logs that grew beyond maxLog. Little is ever written to them,
// but some of it at the agent's will.
func (f folder) trimLogs() {
	for _, name := range []string{logName, guestLogName} {
		if info, err := os.Lstat(f.path(name)); err == nil && info.Mode().IsRegular() && info.Size() > maxLog {
			_ = os.Truncate(f.path(name), 0)
		}
	}
}

// readBounded reads at most the first limit bytes of a file.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// writeFile writes a file that is either whole or absent after a crash.
func writeFile(path string, b []byte) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return nil
}

// removeAll is os.RemoveAll for trees that an agent made: an ordinary user
// cannot empty a folder without write permission, even one of their own. It
// never follows a symbolic link.
func removeAll(path string) error {
	err := os.RemoveAll(path)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	// Opening the folders on the way down, so that the walk gets everywhere.
	_ = filepath.WalkDir(path, func(p string, d fs.DirEntry, _ error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(path)
}
