//go:build linux

package linux

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/sandbox"
)

// What a host needs at least.
const (
	minKernelMajor, minKernelMinor = 5, 4 // process handles that can be waited for
	minDisk                        = 2 << 30
	probeTimeout                   = 20 * time.Second
)

// Check implements sandbox.Doctor. Its last word is a sandbox that it starts
// and removes.
func (b *Backend) Check(ctx context.Context) []sandbox.Info {
	return []sandbox.Info{
		checkKernel(), b.runtime.engine.check(ctx), b.checkUser(), checkNamespaces(), b.checkLimits(), checkResource(), b.checkDisk(), b.checkDiskLimit(), checkShell(), b.checkImage(ctx),
		b.checkStart(ctx),
	}
}

func ok(name, format string, args ...any) sandbox.Info {
	return sandbox.Info{Name: name, OK: true, Text: fmt.Sprintf(format, args...)}
}

func lacking(name, fix, format string, args ...any) sandbox.Info {
	return sandbox.Info{Name: name, Text: fmt.Sprintf(format, args...), Fix: fix}
}

// reduced is a finding that costs something but stops nothing.
func reduced(name, fix, format string, args ...any) sandbox.Info {
	return sandbox.Info{Name: name, OK: true, Warn: true, Text: fmt.Sprintf(format, args...), Fix: fix}
}

func checkKernel() sandbox.Info {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return lacking("kernel", "run on Linux", "the kernel does not tell its version: %v", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	major, minor := kernelVersion(release)
	if major < minKernelMajor || major == minKernelMajor && minor < minKernelMinor {
		return lacking("kernel", "upgrade the kernel", "Linux %s is older than %d.%d", release, minKernelMajor, minKernelMinor)
	}
	return ok("kernel", "Linux %s", release)
}

// kernelVersion reads "6.18.44-generic"; what it cannot read is 0.
func kernelVersion(release string) (major, minor int) {
	_, _ = fmt.Sscanf(release, "%d.%d", &major, &minor)
	return major, minor
}

func (b *Backend) checkUser() sandbox.Info {
	ids := b.runtime.ids
	switch {
	case ids.rootless:
		return reduced("user", "run as root for limits and a separate user for the agent's commands",
			"run by user %d: sandboxes work, but guest and agent share one user id and nothing limits memory and CPU", ids.base)
	case !ids.mapped():
		return lacking("user", "give the container a larger id range",
			"root without room for %d more ids: root inside a sandbox is root out here", idCount)
	}
	return ok("user", "root; users inside are %d to %d on the host", ids.base, ids.base+idCount-1)
}

func checkNamespaces() sandbox.Info {
	const name = "namespaces"
	if n := readInt("/proc/sys/user/max_user_namespaces"); n == 0 {
		return lacking(name, "sysctl -w user.max_user_namespaces=15000", "user namespaces are switched off")
	}
	if os.Geteuid() == 0 {
		return ok(name, "user namespaces can be made")
	}
	if readInt("/proc/sys/kernel/unprivileged_userns_clone") == 0 {
		return lacking(name, "sysctl -w kernel.unprivileged_userns_clone=1", "ordinary users may not make user namespaces")
	}
	if readInt("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == 1 {
		return lacking(name, "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for this program",
			"AppArmor restricts user namespaces of ordinary users")
	}
	return ok(name, "user namespaces can be made by ordinary users")
}

// readInt returns a number in a file, -1 when there is none.
func readInt(path string) int {
	b, err := readBounded(path, 64)
	if err != nil {
		return -1
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return -1
	}
	return n
}

func (b *Backend) checkLimits() sandbox.Info {
	const name = "limits"
	if b.limits == nil {
		fix := "mount cgroups with the controllers " + strings.Join(controllers, ", ") + ", writable"
		if b.runtime.ids.rootless {
			fix = "run as root"
		}
		return reduced(name, fix, "memory and CPU are not limited: %v", b.unlimited)
	}
	version := "1"
	if b.limits.unified {
		version = "2"
	}
	return ok(name, "memory, CPU and processes are limited by cgroups, version %s", version)
}

// checkResource tells of a capability that even root may lack, and whose lack
// is harmless.
func checkResource() sandbox.Info {
	const name = "resources"
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return lacking(name, "report this", "the limit of open files is unknown: %v", err)
	}
	if limit.Max < 65536 {
		return reduced(name, "raise the limit of open files (LimitNOFILE= or ulimit -n) to 65536",
			"at most %d files may be open in all of a sandbox", limit.Max)
	}
	b, _ := readBounded("/proc/self/status", 16<<10)
	for line := range strings.Lines(string(b)) {
		if value, found := strings.CutPrefix(line, "CapEff:"); found {
			caps, _ := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if os.Geteuid() == 0 && caps&(1<<unix.CAP_SYS_RESOURCE) == 0 {
				return ok(name, "CAP_SYS_RESOURCE is missing, which costs a little speed under memory pressure")
			}
		}
	}
	return ok(name, "up to %d open files", limit.Max)
}

func (b *Backend) checkDisk() sandbox.Info {
	const name = "disk"
	var s unix.Statfs_t
	if err := unix.Statfs(b.cfg.DataDir, &s); err != nil {
		return lacking(name, "check the data folder", "the disk of %s is unknown: %v", b.cfg.DataDir, err)
	}
	free := s.Bavail * uint64(s.Bsize)
	if free < minDisk {
		return lacking(name, "free some space or move the data folder", "only %d MiB are free in %s", free>>20, b.cfg.DataDir)
	}
	return ok(name, "%d MiB are free in %s", free>>20, b.cfg.DataDir)
}

func checkShell() sandbox.Info {
	const name = "host image"
	if info, err := os.Stat("/bin/bash"); err != nil || info.Mode()&0o001 == 0 {
		return lacking(name, "install bash", "the host has no /bin/bash, which the bash tool needs")
	}
	return ok(name, "the host's programs can be used, with bash")
}

// checkStart starts a sandbox and removes it: the only proof that the kernel
// lets the runtime work.
func (b *Backend) checkStart(ctx context.Context) sandbox.Info {
	const name = "start"
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	begun := time.Now()
	box, err := b.Create(ctx, sandbox.Spec{ID: sandbox.ID(fmt.Sprintf("doctor %d", os.Getpid())), Session: "doctor"})
	took := time.Since(begun)
	if err == nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		err = errors.Join(err, box.Destroy(clean, sandbox.Everything))
	}
	if err != nil {
		return lacking(name, "see the message; a kernel without seccomp, or ptrace for gVisor, cannot run sandboxes", "no sandbox starts: %v", err)
	}
	return ok(name, "a sandbox started in %d ms", took.Milliseconds())
}
