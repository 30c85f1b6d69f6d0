//go:build linux

package linux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/sandbox"
)

// What a sandbox writes lies in its folder: without a limit in plain folders,
// with one in a disk of that size (loop.go), which is a sparse file that takes
// what is in it. Images begin as copies of one that was made before, which
// takes a few milliseconds.

const (
	diskName = "disk"     // where it is mounted, for the sandbox alone
	diskFile = "disk.img" // kept with the workspace that is in it

	minDiskLimit = 64 << 20
	// Inodes for files of 32 KiB on average; no part is reserved for anyone.
	bytesPerInode = 32 << 10
	makeTimeout   = 20 * time.Second
)

// disks makes limited disks. Nil where the host cannot.
type disks struct {
	dir  string // templates
	mkfs string
}

// openDisks finds out whether the size of what sandboxes write can be limited.
// The error says in one sentence why this host does not.
func openDisks(dir string, ids identity) (*disks, error) {
	if ids.rootless {
		return nil, errors.New("limited disks need root")
	}
	f, err := os.OpenFile(loopControl, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("limited disks need loop devices: %w", err)
	}
	_ = f.Close()
	for _, bin := range runtimeDirs() {
		mkfs := filepath.Join(bin, "mkfs.ext4")
		if info, err := os.Stat(mkfs); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			d := &disks{dir: dir, mkfs: mkfs}
			if err := d.tidy(maxTemplates); err != nil {
				return nil, err
			}
			return d, nil
		}
	}
	return nil, errors.New("limited disks need the program mkfs.ext4")
}

// storage is where a sandbox's files are, in paths as the runtime's mount
// namespace has them.
type storage struct {
	layer     string // the root's writable layer
	work      string
	workspace string
	disk      *disk // nil: plain folders
}

// storage says where the files of a sandbox are that is about to start.
func (f folder) storage(ids identity) storage {
	if !f.limited() {
		return storage{layer: f.path(overlayName), work: f.path(workName), workspace: f.path(workspaceName)}
	}
	at := f.path(diskName)
	return storage{
		layer: filepath.Join(at, overlayName), work: filepath.Join(at, workName), workspace: filepath.Join(at, workspaceName),
		disk: &disk{
			Image: f.path(diskFile), At: at, Owner: ids.host(ids.agent), Fresh: []string{overlayName, workName},
		},
	}
}

// limited reports whether a sandbox's files are on a disk of their own.
func (f folder) limited() bool {
	_, err := os.Lstat(f.path(diskFile))
	return err == nil
}

// readyDisk gives a new sandbox a disk if its limits want one. A workspace that
// has files already stays where it is, in a plain folder or on a disk, which
// keeps the size that it was made with: to grow it, the kernel asks for a
// capability that even root may lack.
func (b *Backend) readyDisk(ctx context.Context, f folder, limit int64) error {
	if limit <= 0 || b.disks == nil || f.limited() {
		return nil
	}
	files, err := os.ReadDir(f.path(workspaceName))
	if err != nil {
		return fmt.Errorf("read workspace: %w", err)
	}
	if len(files) > 0 {
		return nil
	}
	template, err := b.template(ctx, limit)
	if err != nil {
		return err
	}
	making := f.path(diskFile + ".making")
	if err := errors.Join(removeAll(making), copySparse(template, making), os.Rename(making, f.path(diskFile))); err != nil {
		return fmt.Errorf("make the sandbox's disk: %w", err)
	}
	return nil
}

// template returns the empty image of a size. One at a time is made.
func (b *Backend) template(ctx context.Context, size int64) (string, error) {
	path := filepath.Join(b.disks.dir, "ext4-"+strconv.FormatInt(size, 10))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	select {
	case <-b.preparing:
		defer func() { b.preparing <- struct{}{} }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := b.disks.tidy(maxTemplates - 1); err != nil {
		return "", err
	}
	return path, b.disks.make(ctx, path, size)
}

// maxTemplates bounds the sizes that are kept at hand.
const maxTemplates = 16

// tidy removes templates beyond a number, and what a crash left of one.
func (d *disks) tidy(room int) error {
	names, err := filepath.Glob(filepath.Join(d.dir, "*"))
	if err != nil {
		return fmt.Errorf("list disk templates: %w", err)
	}
	for i, name := range names {
		if filepath.Ext(name) == ".making" || i >= room {
			if err := removeAll(name); err != nil {
				return fmt.Errorf("remove a disk template: %w", err)
			}
		}
	}
	return nil
}

func (d *disks) make(ctx context.Context, path string, size int64) error {
	ctx, cancel := context.WithTimeout(ctx, makeTimeout)
	defer cancel()
	making := path + ".making"
	if err := errors.Join(os.WriteFile(making, nil, 0o600), os.Truncate(making, size)); err != nil {
		return fmt.Errorf("make a disk template: %w", err)
	}
	cmd := exec.CommandContext(ctx, d.mkfs, "-q", "-F", "-b", strconv.Itoa(loopBlock), "-i", strconv.Itoa(bytesPerInode), "-m", "0",
		"-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", making)
	cmd.Env = []string{runtimePath}
	// It ends with us, so that the next server finds nobody at work on the file;
	// the kernel means the thread that started it.
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make a disk template: mkfs.ext4: %w: %s", err, firstLine(said))
	}
	if err := os.Rename(making, path); err != nil {
		return fmt.Errorf("make a disk template: %w", err)
	}
	return nil
}

// copySparse copies a file without its holes.
func copySparse(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil { // shares blocks
		return dst.Close()
	}
	return errors.Join(copyData(dst, src, info.Size()), dst.Truncate(info.Size()), dst.Close())
}

func copyData(dst, src *os.File, size int64) error {
	for at := int64(0); at < size; {
		begin, err := unix.Seek(int(src.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // nothing more
			return nil
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(src.Fd()), begin, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(dst, begin), io.NewSectionReader(src, begin, end-begin)); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// Waiting for the kernel to write back and let go of a disk.
const detachRetry = 2 * time.Millisecond

// detached waits until nothing uses a sandbox's disk any more. Its processes
// have ended; the kernel unmounts what they had when it comes to it.
func (f folder) detached(ctx context.Context) error {
	if !f.limited() {
		return nil
	}
	ticker := time.NewTicker(detachRetry)
	defer ticker.Stop()
	for {
		if free, err := f.released(); err != nil || free {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("the sandbox's disk is still in use: %w", context.Cause(ctx))
		}
	}
}

func (f folder) released() (bool, error) {
	image, err := os.OpenFile(f.path(diskFile), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false, fmt.Errorf("open the sandbox's disk: %w", err)
	}
	defer image.Close()
	if free, err := claim(image); err != nil || !free {
		return false, err
	}
	// The kernel lets go of the file a moment before it forgets the device.
	return !attached(f.path(diskFile)), nil
}

// diskUse is what a disk holds on the host's. An image gives space back as files
// are removed.
func (f folder) diskUse() (used, size int64, err error) {
	info, err := os.Lstat(f.path(diskFile))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512, info.Size(), nil
}

func (b *Backend) checkDiskLimit() sandbox.Info {
	const name = "disk limit"
	if b.disks == nil {
		fix := "install e2fsprogs, and give a container /dev/loop-control and loop devices"
		if b.runtime.ids.rootless {
			fix = "run as root"
		}
		return reduced(name, fix, "what a sandbox writes is not limited: %v", b.undisked)
	}
	return ok(name, "a limit of disk is enforced by a file system in a file for each sandbox")
}
