package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"gvisor.dev/gvisor/runsc/cli/maincli"

	"github.com/berth-dev/berth/internal/sandbox/linux"
)

// handOver never returns when this program was started as the gVisor runtime.
// It must come first in main: gVisor starts itself under names that begin with
// runsc, and reads the arguments as its own.
func handOver() {
	if !strings.HasPrefix(filepath.Base(os.Args[0]), "runsc") {
		return
	}
	args, err := linux.PrepareRuntime(os.Args)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Args = args
	maincli.Main()
	os.Exit(0)
}
