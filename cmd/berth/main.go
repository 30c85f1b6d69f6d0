// Command berth runs the sandboxes of Claude Managed Agents on infrastructure
// you own.
package main

import (
	"fmt"
	"os"
)

func main() {
	handOver()
	if code, ok := guest(os.Args[1:]); ok {
		os.Exit(code)
	}
	fmt.Fprintln(os.Stderr, "usage: berth guest [worker]")
	os.Exit(2)
}
