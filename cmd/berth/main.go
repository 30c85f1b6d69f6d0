// Command berth runs the sandboxes of Claude Managed Agents on infrastructure
// you own.
package main

import (
	"os"

	"github.com/berth-dev/berth/internal/cli"
)

// version is set by the linker in releases.
var version = "dev"

func main() {
	handOver() // the gVisor runtime, when this program was started as that
	if code, ok := guest(os.Args[1:]); ok {
		os.Exit(code)
	}
	os.Exit(cli.Main(cli.Program{Version: version, Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}))
}
