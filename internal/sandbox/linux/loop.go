//go:build linux

package linux

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// disk is a file system in a file, mounted for one sandbox: its size is the
// limit of all that the sandbox writes. It is mounted in the runtime's mount
// namespace by way of a loop device that the kernel clears with its last user,
// so that nothing of it is left when the sandbox has ended, however it ended.
type disk struct {
	Image string `json:"image"`
	At    string `json:"at"`    // a folder to mount on
	Owner int    `json:"owner"` // of the folder workspace
	// Fresh are folders that begin empty: what an earlier run wrote outside the
	// workspace goes.
	Fresh []string `json:"fresh"`
	Clear []string `json:"clear,omitempty"` // places in the workspace that shares need
}

const (
	loopControl = "/dev/loop-control"
	loopBlock   = 4096
	// loopTries bounds the race for a free loop device with others.
	loopTries = 64
)

func (d disk) mount() error {
	image, err := os.OpenFile(d.Image, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("open the sandbox's disk: %w", err)
	}
	defer image.Close()
	if free, err := claim(image); err != nil || !free {
		return errors.Join(errors.New("the sandbox's disk is in use"), err)
	}
	device, err := attachLoop(image)
	if err != nil {
		return fmt.Errorf("attach the sandbox's disk: %w", err)
	}
	defer device.Close() // the mount holds it from then on
	// Inode tables are not written before they are used, which would take
	// space; space that files gave back goes back to the host.
	err = unix.Mount(device.Name(), d.At, "ext4", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOATIME, "noinit_itable,discard")
	if err != nil {
		return fmt.Errorf("mount the sandbox's disk: %w", err)
	}
	return d.lay()
}

// lay makes the folders.
func (d disk) lay() error {
	workspace := filepath.Join(d.At, workspaceName)
	err := os.Mkdir(workspace, 0o700)
	if err == nil {
		err = os.Lchown(workspace, d.Owner, d.Owner)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make workspace: %w", err)
	}
	if err := makeWay(workspace, d.Clear); err != nil {
		return err
	}
	for _, name := range d.Fresh {
		dir := filepath.Join(d.At, name)
		if err := errors.Join(removeAll(dir), os.Mkdir(dir, 0o700)); err != nil {
			return fmt.Errorf("clear the sandbox's disk: %w", err)
		}
	}
	return nil
}

// claim takes an image for as long as the file is open, which for a file that
// was attached means: as long as its loop device exists. Two mounts of one image
// would destroy it. It reports false when another one has it.
func claim(image *os.File) (bool, error) {
	err := unix.Flock(int(image.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

// attached reports whether a loop device still names a file.
func attached(image string) bool {
	names, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // the pattern is right
	for _, name := range names {
		if b, err := readBounded(name, 8<<10); err == nil && strings.TrimSpace(string(b)) == image {
			return true
		}
	}
	return false
}

// attachLoop gives a file a loop device that goes with its last user.
func attachLoop(image *os.File) (*os.File, error) {
	control, err := os.OpenFile(loopControl, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for range loopTries {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		device, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		err = configureLoop(device, image)
		if err == nil {
			return device, nil
		}
		_ = device.Close()
		if !errors.Is(err, unix.EBUSY) { // else another one was faster
			return nil, fmt.Errorf("configure %s: %w", device.Name(), err)
		}
	}
	return nil, fmt.Errorf("no loop device was free in %d tries", loopTries)
}

// configureLoop goes around the host's page cache where the file system below
// can: what is cached once needs no second copy.
func configureLoop(device, image *os.File) error {
	c := unix.LoopConfig{Fd: uint32(image.Fd()), Size: loopBlock}
	c.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	err := unix.IoctlLoopConfigure(int(device.Fd()), &c)
	if errors.Is(err, unix.EINVAL) {
		c.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(device.Fd()), &c)
	}
	return err
}
