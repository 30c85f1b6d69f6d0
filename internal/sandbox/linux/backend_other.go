//go:build !linux

package linux

import (
	"fmt"
	"runtime"

	"github.com/berth-dev/berth/internal/sandbox"
)

// Backend exists on Linux only.
type Backend struct{ sandbox.Backend }

// New returns ErrUnsupported: this backend needs a Linux kernel.
func New(Config) (*Backend, error) {
	return nil, fmt.Errorf("linux sandboxes on %s: %w", runtime.GOOS, sandbox.ErrUnsupported)
}

// PrepareRuntime does nothing here.
func PrepareRuntime(args []string) ([]string, error) { return args, nil }
