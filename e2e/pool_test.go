package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/claude/local"
	"github.com/berth-dev/berth/internal/sandbox"
)

// pooled waits until the pool holds so many sandboxes.
func (h *house) pooled(n int) {
	h.t.Helper()
	var names []string
	h.eventuallyOr(60*time.Second, func() bool {
		names, _ = filepath.Glob(filepath.Join(h.dir, "pool", "*", "run"))
		return len(names) == n
	}, func() { h.t.Fatalf("the pool holds %q, want %d\n%s", names, n, h.serve.output()) })
}

// TestPoolThroughKillsAndAnEndInOrder: sessions that got a sandbox of the pool are
// adopted as all others, and what nobody got is there for no longer than its
// server.
func TestPoolThroughKillsAndAnEndInOrder(t *testing.T) {
	h := newHastyHouse(t, local.Options{LeaseTTL: 20 * time.Second}, everyStep)
	h.env = append(h.env, "BERTH_CONFIG="+h.file("pool.yaml", strings.Replace(hasty, "sandbox: {", "sandbox: {pool: 1, ", 1)))
	h.start()
	h.pooled(1)
	before, _ := filepath.Glob(filepath.Join(h.dir, "pool", "*"))

	s := h.session("every-step", "go")
	h.eventually(30*time.Second, "the session has a sandbox of the pool", func() bool {
		run, err := os.ReadFile(filepath.Join(h.dir, "sandboxes", sandbox.ID(s), "run"))
		return err == nil && string(run) == filepath.Base(before[0])
	})
	h.serve.end(syscall.SIGKILL)
	h.start()
	h.eventually(60*time.Second, "the session waits for a message", func() bool { return h.idle(s) && len(h.log(s, "agent.message")) > 0 })
	if _, err := h.platform.Send(s, map[string]any{"type": "user.message", "content": []any{map[string]any{"type": "text", "text": "go on"}}}); err != nil {
		t.Fatal(err)
	}
	h.finished(60*time.Second, s)
	h.judge(s)
	h.nothingLeft(s)
	h.pooled(1)
	h.serve.end(syscall.SIGTERM)
	if left := h.allRemains(); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
}
