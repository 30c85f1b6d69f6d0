package skill

import (
	"errors"
	"os"
	"path"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/fault"
)

// syncAll writes what was changed in the cache's file system to its disk: one
// call for thousands of small files.
func syncAll(root *os.Root) error {
	f, err := root.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	return onFD(f, unix.Syncfs)
}

// link gives a file of one tree a name in another one.
func link(from *os.Root, cached string, to *os.Root, at string) error {
	src, err := from.Open(path.Dir(cached))
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := to.Open(path.Dir(at))
	if err != nil {
		return err
	}
	defer dst.Close()
	return onFD(src, func(s int) error {
		return onFD(dst, func(d int) error {
			return unix.Linkat(s, path.Base(cached), d, path.Base(at), 0)
		})
	})
}

func onFD(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = do(int(fd)) }); err != nil {
		return err
	}
	return failed
}

// noSpace says in words that the disk is full.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fault.Wrap(err, fault.Unavailable, "the disk of the data directory is full: the skill could not be unpacked").WithField("data_dir")
	}
	return err
}
