//go:build linux

package linux

import "context"

// CgroupName is the parent cgroup of a data folder's sandboxes.
var CgroupName = cgroupName

// WorkspaceOf is where a sandbox's workspace lies on the host.
func WorkspaceOf(b *Backend, id string) string { return b.folder(id).path(workspaceName) }

// Kernel is the process on the host whose end ends a sandbox, 0 when none runs.
func Kernel(b *Backend, id string) (int, error) {
	found, err := b.runtime.processes(b.folder(id).target())
	for _, p := range found {
		if p.name == kernelName || p.pid == b.folder(id).pid() {
			return p.pid, nil
		}
	}
	return 0, err
}

// KillPooled kills a sandbox of the pool.
func KillPooled(b *Backend, dir string) {
	_ = b.runtime.kill(context.Background(), folder(dir))
}
