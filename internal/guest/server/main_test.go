package server_test

import (
	"os"
	"slices"
	"testing"

	"github.com/berth-dev/berth/internal/guest/server"
)

// TestMain lets the test binary be the guest and its worker, as the berth
// binary is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "guest" {
		if args := os.Args[2:]; slices.Index(args, "worker") == 0 {
			os.Exit(server.WorkerMain(args[1:]))
		}
		os.Exit(server.Main(os.Args[2:]))
	}
	os.Exit(m.Run())
}
