//go:build linux

package server_test

import (
	"os"
	"slices"
	"testing"

	"github.com/berth-dev/berth/internal/guest/server"
)

// TestMain lets the test binary be the guest and its worker, as the berth
// binary is, and a client that dies.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) < 2:
	case os.Args[1] == "guest" && slices.Index(os.Args, "worker") == 2:
		os.Exit(server.WorkerMain(os.Args[3:]))
	case os.Args[1] == "guest":
		os.Exit(server.Main(os.Args[2:]))
	case os.Args[1] == "dying-client":
		dyingClient(os.Args[2:])
	}
	os.Exit(m.Run())
}
