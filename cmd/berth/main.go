// Command berth runs the sandboxes of Claude Managed Agents on infrastructure
// you own.
package main

import (
	_ "gvisor.dev/gvisor/runsc/cli/maincli"
)

func main() {}
