package app

import (
	"log/slog"
	"path/filepath"

	"github.com/berth-dev/berth/internal/config"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/sandbox/linux"
)

// fits reports whether a data directory's name is short enough.
func fits(dir string) error {
	if len(dir) > linux.MaxDataDir {
		return fault.New(fault.Invalid, "the name of the data directory has more than %d bytes: %s", linux.MaxDataDir, dir)
	}
	return nil
}

// newBackend makes the configured sandbox backend.
func newBackend(c config.Config, log *slog.Logger) (sandbox.Backend, error) {
	dir, err := filepath.Abs(c.DataDir)
	if err != nil {
		return nil, err
	}
	i := c.Sandbox.Images
	b, err := linux.New(linux.Config{
		DataDir: dir, Runtime: c.Sandbox.Linux.Runtime, Defaults: c.Sandbox.Limits.Sandbox(), Pool: c.Sandbox.Pool, Logger: log,
		Images: linux.Images{
			Default: c.Sandbox.Image, Platform: i.Platform, DockerConfig: i.DockerConfig, Insecure: config.Names(i.Insecure),
			Folders: config.Names(i.Folders), Refresh: i.Refresh, Keep: i.Keep, MaxBytes: int64(i.MaxSize), PullTimeout: i.PullTimeout,
		},
	})
	if err != nil {
		return nil, err // not b: a nil *Backend is not a nil Backend
	}
	return b, nil
}
