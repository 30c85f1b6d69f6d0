//go:build linux

package linux

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
)

// isolationVM is what Kata isolates with, in Features; the others use
// namespaces.
const isolationVM = "vm"

// oci is a runtime that is a program of its own and understands the command
// line of runc.
type oci struct {
	kind   string // as configured: a name above, or a path
	path   string // the program
	binary string // our own, which makes the stage
	state  string
	hidden []string // mounts that it must not see
	ids    identity
}

// programs are the file names of the runtimes that are known by name, and how
// to get them.
var programs = map[string]struct{ file, fix string }{
	Runc: {"runc", "apt-get install runc, or your distribution's package of that name"},
	Crun: {"crun", "apt-get install crun, or your distribution's package of that name"},
	Kata: {"kata-runtime", "install Kata Containers with its OCI command line"},
}

const runtimeField = "sandbox.linux.runtime"

// findRuntime returns the program behind a configured runtime. It is looked for
// where it will run, so that an odd PATH of ours does not matter.
func findRuntime(kind string, dirs []string) (string, error) {
	if filepath.IsAbs(kind) {
		if info, err := os.Stat(kind); err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			return "", fault.Wrap(err, fault.Invalid, "%s is no program", kind).WithField(runtimeField).
				WithNext("give the path of an OCI runtime, or use %q", Gvisor)
		}
		return kind, nil
	}
	p, known := programs[kind]
	if !known {
		return "", fault.New(fault.Invalid, "unknown runtime %q", kind).WithField(runtimeField).
			WithNext("use %s, %s, %s, %s, or the absolute path of an OCI runtime", Gvisor, Runc, Crun, Kata)
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, p.file)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fault.New(fault.Unavailable, "the runtime %s is not installed", p.file).WithField(runtimeField).
		WithNext("%s; or set %s to %q, which needs nothing", p.fix, runtimeField, Gvisor)
}

func runtimeDirs() []string { return filepath.SplitList(strings.TrimPrefix(runtimePath, "PATH=")) }

// stateName is the name of a runtime's state folder: fixed for those with a
// name, by path for others.
func stateName(kind string) string {
	switch {
	case kind == Gvisor:
		return runtimeName
	case !filepath.IsAbs(kind):
		return kind
	}
	sum := sha256.Sum256([]byte(kind))
	return "oci-" + hex.EncodeToString(sum[:4])
}

func (o oci) isolation() string {
	if o.kind == Kata {
		return isolationVM
	}
	return sandbox.Namespaces
}

func (o oci) root(f folder, _ string) string { return f.path(rootName) }

func (o oci) mounts(s *stage, f folder, st storage, image string) {
	s.Overlay = &overlay{Lower: image, Upper: st.layer, Work: st.work, At: f.path(rootName), Owner: o.ids.host(0)}
	s.Hidden = o.hidden
}

// nonsense of the kernel that is of no use inside and tells about the host, or
// changes it; the lists are those of Docker and containerd.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// ownTasks is what the guest itself takes of the limit of processes, besides
// what the agent may have.
const ownTasks = 128

func (o oci) complete(s *specs.Spec, _ layout, limits sandbox.Limits) error {
	s.Version = "1.0.2" // all that is said below is older; some runtimes refuse what they do not know
	s.Mounts = append(s.Mounts,
		specs.Mount{
			Destination: "/dev/pts", Type: "devpts", Source: "devpts",
			Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"},
		},
		specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
	)
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = maskedPaths, readonlyPaths
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	if s.Linux.Resources != nil {
		s.Linux.Resources.Pids = &specs.LinuxPids{Limit: limits.Processes + ownTasks}
		s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	}
	profile, err := seccomp.GetDefaultProfile(s)
	if err != nil {
		return fmt.Errorf("make the system call filter: %w", err)
	}
	s.Linux.Seccomp = profile
	return nil
}

func (o oci) args(l launch) []string {
	args := []string{Launcher, l.stage.flag(), o.path, "--root=" + o.state, "--log=" + l.folder.path(logName), "--log-format=json"}
	return append(args, "run", "--detach", "--bundle="+l.folder.path(bundleName), "--pid-file="+l.folder.path(pidName), l.folder.run())
}

// forgetTimeout bounds the runtime's own removal.
const forgetTimeout = 10 * time.Second

// forget lets the runtime remove what it made, as only it knows all of it, and
// then what it left of its state.
func (o oci) forget(ctx context.Context, id string) error {
	dir := filepath.Join(o.state, id)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if o.path == "" {
		return removeAll(dir)
	}
	ctx, cancel := context.WithTimeout(ctx, forgetTimeout)
	defer cancel()
	s := stage{Hidden: o.hidden}
	cmd := exec.CommandContext(ctx, o.binary)
	cmd.Args = []string{Launcher, s.flag(), o.path, "--root=" + o.state, "delete", "--force", id}
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Unshareflags: syscall.CLONE_NEWNS}
	// It may say that there is nothing to delete, of a state that is half made.
	said, failed := cmd.CombinedOutput()
	if o.kind != Runc && o.kind != Crun && failed != nil { // which leave only what we know of
		return fmt.Errorf("delete %s: %w: %s", id, failed, firstLine(said))
	}
	if err := removeAll(dir); err != nil {
		return fmt.Errorf("remove runtime state: %w", err)
	}
	return nil
}

func (o oci) check(ctx context.Context) sandbox.Info {
	const name = "runtime"
	version, err := o.version(ctx)
	if err != nil {
		return lacking(name, "check that "+o.path+" --version works", "%s does not run: %v", o.path, err)
	}
	if o.kind == Kata {
		return ok(name, "%s: a virtual machine for each sandbox", version)
	}
	return reduced(name, "for work that you do not trust set "+runtimeField+" to "+Gvisor,
		"%s: sandboxes share the host's kernel, behind namespaces and a filter of system calls", version)
}

func (o oci) version(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, forgetTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, o.path, "--version")
	cmd.Env = []string{runtimePath}
	said, err := cmd.Output()
	if err != nil {
		return "", err
	}
	return firstLine(said), nil
}

func firstLine(b []byte) string {
	line, _, _ := bytes.Cut(bytes.TrimSpace(b), []byte("\n"))
	return string(line[:min(len(line), 200)])
}

// hybridMounts are the mounts because of which crun refuses to run on a host
// with both versions of cgroups: the second one, which has no controller that
// limits need.
func hybridMounts(mount string) []string {
	at := filepath.Join(mount, "unified")
	if _, err := os.Stat(filepath.Join(at, "cgroup.controllers")); err != nil {
		return nil
	}
	return []string{at}
}

// understands reports whether a program has the command line of runc.
func understands(path string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), forgetTimeout)
	defer cancel()
	return exec.CommandContext(ctx, path, "run", "--help").Run() == nil
}

// newOCI finds a runtime and refuses where it would isolate less than it
// should.
func newOCI(kind string, ids identity, limits *cgroups, unlimited error) (oci, error) {
	path, err := findRuntime(kind, runtimeDirs())
	if err != nil {
		return oci{}, err
	}
	next := fmt.Sprintf("or set %s to %q", runtimeField, Gvisor)
	switch {
	case ids.rootless:
		return oci{}, fault.New(fault.Unsupported, "the runtime %s needs root", kind).WithField(runtimeField).WithNext("run as root, %s", next)
	case kind != Kata && !ids.mapped():
		return oci{}, fault.New(fault.Unsupported, "with the runtime %s root inside would be root outside, because there is no room for %d user ids",
			kind, idCount).WithField(runtimeField).WithNext("give the container a larger id range, %s", next)
	case limits == nil:
		return oci{}, fault.Wrap(unlimited, fault.Unsupported, "the runtime %s needs cgroups", kind).WithField(runtimeField).
			WithNext("mount them writable with the controllers %s, %s", strings.Join(controllers, ", "), next)
	}
	o := oci{kind: kind, path: path, ids: ids}
	if filepath.Base(path) == Crun {
		o.hidden = hybridMounts(limits.mount)
	}
	if kind == Kata && !understands(path) {
		return oci{}, fault.New(fault.Unsupported, "%s has no OCI command line", path).WithField(runtimeField).
			WithNext("install a release of Kata Containers that has \"kata-runtime run\", %s", next)
	}
	return o, nil
}
