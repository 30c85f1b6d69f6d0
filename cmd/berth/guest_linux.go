package main

import "github.com/berth-dev/berth/internal/guest/server"

// guest runs our end inside a sandbox, when that is what args ask for.
func guest(args []string) (code int, ok bool) {
	switch {
	case len(args) == 0 || args[0] != "guest":
		return 0, false
	case len(args) > 1 && args[1] == "worker":
		return server.WorkerMain(args[2:]), true
	}
	return server.Main(args[1:]), true
}
