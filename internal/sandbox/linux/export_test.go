//go:build linux

package linux

// CgroupName is the parent cgroup of a data folder's sandboxes.
var CgroupName = cgroupName
