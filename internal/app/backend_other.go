//go:build !linux

package app

import (
	"log/slog"

	"github.com/berth-dev/berth/internal/config"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
)

// fits has nothing to say without a backend.
func fits(string) error { return nil }

// newBackend fails: Linux sandboxes need a Linux host.
func newBackend(config.Config, *slog.Logger) (sandbox.Backend, error) {
	return nil, fault.New(fault.Unsupported, "sandboxes need a Linux host").WithNext("run berth serve on Linux; the other commands work here")
}
