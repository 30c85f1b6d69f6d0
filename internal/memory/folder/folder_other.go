//go:build !linux

package folder

import (
	"github.com/berth-dev/berth/internal/memory"
	"github.com/berth-dev/berth/internal/sandbox"
)

// Open fails: shares need a Linux host.
func Open(sandbox.SharedDir, bool) (memory.Folder, error) { return nil, sandbox.ErrUnsupported }
