package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/claude/local"
	"github.com/berth-dev/berth/internal/fault"
)

// TestOlderServerStopsWhenTheLockIsLost: the lock of a data directory is a file,
// and files get lost. A second server then comes up beside the first; from that
// moment the first can write nothing, leaves, and says why.
func TestOlderServerStopsWhenTheLockIsLost(t *testing.T) {
	t.Parallel()
	h := newHastyHouse(t, local.Options{LeaseTTL: 6 * time.Second}, everyStep)
	h.startCrashing("during:guest.Call=stop")
	s := h.session("every-step", "go")
	h.standsStill() // in the middle of a call
	older := h.serve
	if err := os.Remove(filepath.Join(h.dir, "lock")); err != nil {
		t.Fatal(err)
	}
	h.address = freeAddress()
	h.startUntil("/healthz")
	h.serve, older = older, h.serve
	h.goesOn()
	h.serve, older = older, h.serve
	h.eventually(30*time.Second, "the older server leaves", func() bool {
		select {
		case <-older.done:
			return true
		default:
			return false
		}
	})
	if code := older.cmd.ProcessState.ExitCode(); code != fault.ExitFailed || !strings.Contains(older.output(), "another process has taken over this data directory") {
		t.Errorf("the older server ended with %d:\n%s", code, older.output())
	}
	h.secondHalf(s)
	h.judge(s)
	h.nothingLeft(s)
}
