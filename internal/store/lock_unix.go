//go:build unix

package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/berth-dev/berth/internal/fault"
)

// lockDir takes the lock of a data directory. The kernel frees it when the
// process ends, however it ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "the data directory cannot be written").WithField("data_dir").
			WithNext("set BERTH_DATA_DIR to a folder that you may write to")
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(f.Name())
		f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		return nil, fault.New(fault.Conflict, "the data directory %s is in use by another berth (process %s)", dir, strings.TrimSpace(string(holder))).
			WithField("data_dir").WithNext("stop that process, or set BERTH_DATA_DIR to another folder")
	}
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0) // for the message above only
	}
	return f, nil
}
