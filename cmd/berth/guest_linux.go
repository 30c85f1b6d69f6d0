package main

import (
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/guest/server"
)

// guest runs our end inside a sandbox, when that is what args ask for.
func guest(args []string) (code int, ok bool) {
	if len(args) == 0 || args[0] != "guest" {
		return 0, false
	}
	// Where guest and agent must share a user, this is what keeps the agent's
	// commands out of our memory and descriptors. Elsewhere it cannot fail to
	// be true already.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	if len(args) > 1 && args[1] == "worker" {
		return server.WorkerMain(args[2:]), true
	}
	return server.Main(args[1:]), true
}
