package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"gvisor.dev/gvisor/runsc/cli/maincli"

	"github.com/berth-dev/berth/internal/sandbox/linux"
)

// handOver never returns when this program was started as a runtime: to be
// gVisor, or to become another one. It must come first in main: gVisor reads the
// arguments as its own.
func handOver() {
	if !isRuntime(os.Args) {
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

// isRuntime knows the names under which gVisor starts itself: such that begin
// with runsc, and none at all for the helper that unmounts its /proc.
func isRuntime(args []string) bool {
	if args[0] == "/proc/self/exe" {
		return len(args) > 1 && args[1] == "umount"
	}
	return args[0] == linux.Launcher || strings.HasPrefix(filepath.Base(args[0]), "runsc")
}
