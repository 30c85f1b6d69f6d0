//go:build linux

package linux

// CgroupName is the parent cgroup of a data folder's sandboxes.
var CgroupName = cgroupName

// WorkspaceOf is where a sandbox's workspace lies on the host.
func WorkspaceOf(b *Backend, id string) string { return b.folder(id).path(workspaceName) }
