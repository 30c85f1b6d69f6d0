package conformance

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/berth-dev/berth/internal/app"
)

// addresses counts the servers of this process: loopback is a whole network, so
// no port has to be guessed free.
var addresses atomic.Int32

// Berth is the real program at path, with its real sandboxes, as a subject.
func Berth(path, version string) Subject {
	return Subject{
		Name: "Berth", Version: version, Command: []string{path, "serve"}, Slots: 4,
		Can: []string{"skills", "memory", "webhooks", "restart"}, Release: 3 * time.Second,
		Prepare: prepareBerth,
		Cleanup: func(ctx context.Context, dir string) error {
			app.Reclaim(ctx, data(dir)) // sandboxes outlive the server
			return os.RemoveAll(dir)
		},
	}
}

func data(dir string) string { return filepath.Join(dir, "d") }

// berthSettings make it quick to let go, and to look again.
const berthSettings = "sessions: {capacity: 32, release_after: 1s, read_every: 5s, sweep_every: 10s}\n"

func prepareBerth(dir string) (Setup, error) {
	n := int(addresses.Add(1))
	address := fmt.Sprintf("127.%d.%d.%d:7072", 1+os.Getpid()%250, 1+n/250%250, 1+n%250)
	file := filepath.Join(dir, "berth.yaml")
	if err := os.WriteFile(file, []byte(berthSettings), 0o600); err != nil {
		return Setup{}, fmt.Errorf("write the configuration: %w", err)
	}
	return Setup{
		Env:     []string{"BERTH_CONFIG=" + file, "BERTH_DATA_DIR=" + data(dir), "BERTH_LISTEN=" + address},
		Webhook: "http://" + address + "/webhooks",
	}, nil
}
