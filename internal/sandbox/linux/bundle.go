//go:build linux

package linux

import (
	"fmt"
	"math"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-dev/berth/internal/sandbox"
)

// Paths inside a sandbox.
const (
	guestPath     = "/.berth/guest"
	workspacePath = "/workspace"
)

// layout is where things are, in paths as the runtime sees them.
type layout struct {
	root      string   // the image's root folder, read-only
	binds     []string // host folders shown read-only under their own path
	guest     string   // our binary
	workspace string
	mounts    string // shown as /mnt, "" when no share is below it
	shares    []mountedShare
	cgroup    string // cgroup path, "" when there are no limits
	unified   bool   // the cgroup is of version 2
	ids       identity
}

// guestCapabilities is what our end needs to start commands as the agent, to
// end them, and to install files for them.
var guestCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
}

// capabilities are none where the agent is the same user as the guest.
func capabilities(ids identity) *specs.LinuxCapabilities {
	if ids.rootless {
		return &specs.LinuxCapabilities{}
	}
	return &specs.LinuxCapabilities{
		Bounding: guestCapabilities, Effective: guestCapabilities, Permitted: guestCapabilities,
	}
}

// hostname is the same in every sandbox: it tells nothing about the host.
const hostname = "berth"

// ociSpec describes a sandbox to the runtime, in what all runtimes share (see
// bundle for the rest). It is pure: the golden files in testdata show all of
// what it says.
func ociSpec(l layout, limits sandbox.Limits) *specs.Spec {
	s := &specs.Spec{
		Version:  specs.Version,
		Hostname: hostname,
		Root:     &specs.Root{Path: l.root},
		Process: &specs.Process{
			Args:            guestArgs(l.ids, l.shares),
			Cwd:             "/",
			Env:             []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
			Capabilities:    capabilities(l.ids),
			NoNewPrivileges: true,
			Rlimits:         rlimits(limits),
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=0755"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "noexec", "mode=1777"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.NetworkNamespace},
			},
		},
	}
	for _, dir := range l.binds {
		s.Mounts = append(s.Mounts, bind(dir, dir, "ro"))
	}
	s.Mounts = append(s.Mounts, bind(l.guest, guestPath, "ro"), bind(l.workspace, workspacePath, "rw"))
	if l.mounts != "" {
		s.Mounts = append(s.Mounts, bind(l.mounts, mountsPath, "ro"))
	}
	for _, sh := range l.shares {
		s.Mounts = append(s.Mounts, bind(sh.source, sh.Path, sh.mode()))
	}
	if l.ids.mapped() {
		ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: uint32(l.ids.base), Size: idCount}}
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		s.Linux.UIDMappings, s.Linux.GIDMappings = ids, ids
	}
	if l.cgroup != "" {
		s.Linux.CgroupsPath = l.cgroup
		s.Linux.Resources = resources(limits)
	}
	return s
}

func bind(source, destination, mode string) specs.Mount {
	return specs.Mount{
		Destination: destination, Type: "bind", Source: source, Options: []string{"rbind", mode, "nosuid", "nodev"},
	}
}

// rlimits bound each process, and with RLIMIT_NPROC the agent's user as a
// whole: inside gVisor processes are not the host's, so that a cgroup could
// only kill them all where this refuses one more.
func rlimits(l sandbox.Limits) []specs.POSIXRlimit {
	all := func(kind string, n uint64) specs.POSIXRlimit {
		return specs.POSIXRlimit{Type: kind, Soft: n, Hard: n}
	}
	return []specs.POSIXRlimit{
		all("RLIMIT_CORE", 0),
		all("RLIMIT_NOFILE", l.OpenFiles),
		all("RLIMIT_NPROC", uint64(l.Processes)),
	}
}

const cpuPeriod = 100_000 // microseconds

// hostTasks is how many tasks of the host a sandbox needs for n processes
// inside: the runtime's own threads, and at most a few for each process. The
// limit that bites is RLIMIT_NPROC; this one protects the host from a runtime
// that went wrong.
func hostTasks(n int64) int64 { return 1024 + 4*n }

func resources(l sandbox.Limits) *specs.LinuxResources {
	period, quota := uint64(cpuPeriod), int64(math.Round(l.CPUs*cpuPeriod))
	return &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &l.MemoryBytes},
		CPU:    &specs.LinuxCPU{Period: &period, Quota: &quota},
		Pids:   &specs.LinuxPids{Limit: hostTasks(l.Processes)},
	}
}

// guestArgs is the guest's command line: whom commands run as, and what the file
// tools may reach beside the workspace. An ordinary user's sandbox has one user,
// who runs both (identity.go).
func guestArgs(ids identity, shares []mountedShare) []string {
	agent := ids.agent
	if ids.rootless {
		agent = -1 // as the guest
	}
	args := []string{
		guestPath, "guest", "-workdir=" + workspacePath, fmt.Sprintf("-uid=%d", agent), fmt.Sprintf("-gid=%d", agent),
	}
	for _, sh := range shares {
		args = append(args, "-share="+sh.mode()+":"+sh.Path)
	}
	return args
}
