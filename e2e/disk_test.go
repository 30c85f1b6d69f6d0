package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/claude/local"
)

// slowly is a session whose first call ends when it is told to.
const slowly = `
name: slowly
steps:
  - calls: [{tool: bash, input: {command: "echo one >> log; until test -e go; do sleep 0.05; done; head -c 20000 /dev/zero | tr '\\0' x"}, expect: {text: '^xxxx', error: false}}]
  - calls: [{tool: bash, input: {command: "cat log"}, expect: {text: '\Aone\n*\z', error: false}}]
  - message: Done.
`

// readyz returns what the server says of itself.
func (h *house) readyz() (int, string) {
	res, err := http.Get("http://" + h.address + "/readyz")
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, fmt.Sprint(string(body), err)
}

// TestFullDiskStopsNothingForGood fills the disk under a server in the middle of
// a call: nothing is posted that is not on record, everybody says what is wrong,
// and when there is room again the session goes on as if nothing had been.
func TestFullDiskStopsNothingForGood(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root mounts a small disk")
	}
	t.Parallel()
	h := newHouse(t, local.Options{}, slowly)
	small := filepath.Join(h.dir, "d")
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("berth-e2e", small, "tmpfs", 0, "size=512m"); err != nil {
		t.Skipf("no small disk can be mounted: %v", err)
	}
	parent := h.dir
	h.dir = small
	t.Cleanup(func() { // before the house tidies up
		if h.serve != nil {
			h.serve.end(syscall.SIGKILL)
		}
		h.sweep()
		if err := syscall.Unmount(small, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
		h.dir = parent
	})
	h.start()
	s := h.session("slowly", "go")
	h.eventually(30*time.Second, "the call runs", func() bool { return h.tryRead(s, "/workspace/log") != "" })
	ballast := h.fillDisk()
	h.sh(s, "ln -s / go") // a link in the folder itself needs no room
	h.eventually(30*time.Second, "the session says that it waits for storage", func() bool { return h.look(s).Waiting.For == "storage" })
	if show := h.look(s); !strings.Contains(show.Waiting.Detail, "disk of the data directory is full") || !strings.Contains(show.Waiting.Detail, "make room") {
		t.Errorf("it waits for %+v", show.Waiting)
	}
	if code, said := h.readyz(); code != http.StatusServiceUnavailable || !strings.Contains(said, "disk of the data directory is full") {
		t.Errorf("readyz: %d %s", code, said)
	}
	if n := len(h.log(s, "user.tool_result")); n != 0 {
		t.Errorf("%d results were posted that are not on record", n)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	h.finished(60*time.Second, s)
	if n := len(h.log(s, "user.tool_result")); n != 2 {
		t.Errorf("%d results, want 2", n)
	}
	h.eventually(30*time.Second, "the server is ready again", func() bool { code, _ := h.readyz(); return code == http.StatusOK })
	if strings.Contains(h.serve.output(), "panic") {
		t.Errorf("it panicked:\n%s", h.serve.output())
	}
}

// fillDisk leaves no room on the disk of the data directory.
func (h *house) fillDisk() string {
	h.t.Helper()
	path := filepath.Join(h.dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		h.t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 16
		} else if err != nil {
			h.t.Fatal(err)
		}
	}
	return path
}

// TestSlowDiskKeepsItsPromises lets every write take its time, a good part of what
// a lease lasts: whatever becomes of leases, each call is answered once.
func TestSlowDiskKeepsItsPromises(t *testing.T) {
	t.Parallel()
	h := newHastyHouse(t, local.Options{LeaseTTL: 3 * time.Second}, everyStep)
	h.startCrashing("before:records.Commit=hang:700ms")
	s := h.session("every-step", "go")
	h.secondHalf(s)
	h.judge(s)
	h.nothingLeft(s)
}

// TestDamagedDatabaseIsNamedByEverybody spoils the database of a server that was
// killed: the next one refuses to start and says what to do, doctor finds it, and
// the copy brings the session back.
func TestDamagedDatabaseIsNamedByEverybody(t *testing.T) {
	t.Parallel()
	h := newHouse(t, local.Options{}, hello)
	h.start()
	s := h.session("hello", "go")
	h.finished(60*time.Second, s)
	db := filepath.Join(h.dir, "berth.db")
	h.eventually(30*time.Second, "there is a copy", func() bool { _, err := os.Stat(db + ".copy"); return err == nil })
	h.serve.end(syscall.SIGKILL)
	f, err := os.OpenFile(db+"-wal", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("garbage"), 32+24+200); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	env := cleanEnv("BERTH_DATA_DIR="+h.dir, "BERTH_LISTEN="+h.address, "ANTHROPIC_BASE_URL="+h.url,
		"ANTHROPIC_ENVIRONMENT_ID="+environment, "ANTHROPIC_ENVIRONMENT_KEY="+h.envKey)
	for _, command := range [][]string{{"serve"}, {"doctor", "--offline"}} {
		out, errs, code := run(t, h.dir, env, command...)
		if said := out + errs; code != 1 || !strings.Contains(said, "is damaged") || !strings.Contains(said, "docs/recovery.md") || !strings.Contains(said, "berth.db.copy") {
			t.Errorf("%v: code %d\n%s", command, code, said)
		}
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		_ = os.Remove(db + suffix) // some of them may not be there
	}
	if err := os.Rename(db+".copy", db); err != nil {
		t.Fatal(err)
	}
	h.start()
	second := h.session("hello", "go")
	h.finished(60*time.Second, second)
}
