//go:build linux

package claude

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/claude/local"
	"github.com/berth-dev/berth/internal/memory"
	disk "github.com/berth-dev/berth/internal/memory/folder"
	"github.com/berth-dev/berth/internal/sandbox"
)

// agreed is a memory.Ledger that outlives the processes of a test.
type agreed struct {
	mu    sync.Mutex
	rows  map[string]memory.Known
	ready bool
}

func (a *agreed) Load(context.Context) (map[string]memory.Known, bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.rows), a.ready, nil
}

func (a *agreed) Save(_ context.Context, rows map[string]memory.Known, ready bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.rows == nil {
		a.rows = map[string]memory.Known{}
	}
	maps.Copy(a.rows, rows)
	maps.DeleteFunc(a.rows, func(_ string, k memory.Known) bool { return k == memory.Known{} })
	a.ready = ready
	return nil
}

// desk is a folder that is kept in step with a shelf's store.
type desk struct {
	t        *testing.T
	dir      string
	ledger   *agreed
	remote   memory.Remote
	warnings []string
}

func newDesk(t *testing.T, s *shelf) *desk {
	return &desk{t: t, dir: t.TempDir(), ledger: &agreed{}, remote: s.memories(t, s.store)}
}

func (d *desk) store() *memory.Store {
	d.t.Helper()
	f, err := disk.Open(sandbox.SharedDir{Dir: d.dir, UID: os.Geteuid(), GID: os.Getegid()}, false)
	if err != nil {
		d.t.Fatal(err)
	}
	return memory.New(memory.Options{
		ID: "memstore_1", Remote: d.remote, Folder: f, Ledger: d.ledger, Now: time.Now,
		Report: func(r memory.Report) {
			for _, w := range r.Warnings {
				d.warnings = append(d.warnings, w.Path+": "+w.Text)
			}
		},
	})
}

func (d *desk) write(name, content string) {
	d.t.Helper()
	path := filepath.Join(d.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func (d *desk) files() map[string]string {
	out := map[string]string{}
	_ = filepath.WalkDir(d.dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && e.Name() != memory.Marker {
			b, _ := os.ReadFile(path)
			out[strings.TrimPrefix(path, d.dir)] = string(b)
		}
		return nil
	})
	return out
}

func (d *desk) contents() map[string]string {
	d.t.Helper()
	out := map[string]string{}
	if err := d.remote.List(d.t.Context(), true, func(page []memory.Entry) error {
		for _, e := range page {
			out[e.Path] = e.Content
		}
		return nil
	}); err != nil {
		d.t.Fatal(err)
	}
	return out
}

// TestAFaultOfThePlatformCostsNoMemory lets each request of a synchronization
// fail in each way, and then both sides agree on what the agent left.
func TestAFaultOfThePlatformCostsNoMemory(t *testing.T) {
	t.Parallel()
	for _, on := range []string{"memory.list", "memory.get", "memory.create", "memory.update", "memory.delete"} {
		for _, fault := range []local.Fault{
			{Kind: local.Drop},
			{Kind: local.Reset},
			{Kind: local.SendCode, Status: 500},
			{Kind: local.SendCode, Status: 429},
			{Kind: local.SendCode, Status: 409},
			{Kind: local.Hang, Delay: 100 * time.Millisecond},
			{Kind: local.SlowBody, Delay: 50 * time.Millisecond},
		} {
			t.Run(fmt.Sprint(on, "/", fault.Kind, fault.Status), func(t *testing.T) {
				t.Parallel()
				s := newShelf(t)
				d := newDesk(t, s)
				one, two := d.store(), newDesk(t, s)
				for _, path := range []string{"/a", "/b", "/c", "/keep"} {
					if _, err := d.remote.Create(t.Context(), path, "first"); err != nil {
						t.Fatal(err)
					}
				}
				if err := one.Open(t.Context()); err != nil {
					t.Fatal(err)
				}
				theirs := two.store()
				if err := theirs.Open(t.Context()); err != nil {
					t.Fatal(err)
				}
				two.write("b", "theirs")
				if err := theirs.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
				d.write("a", "mine")
				d.write("d/new", "mine")
				if err := os.Remove(filepath.Join(d.dir, "c")); err != nil {
					t.Fatal(err)
				}
				fault.On = on
				if err := s.srv.Inject(fault); err != nil {
					t.Fatal(err)
				}
				_ = one.Sync(t.Context()) // which may fail
				d.write("a", "newer")
				d.write("d/new", "newer")
				if err := d.store().Finish(t.Context()); err != nil { // by a new process
					t.Fatal(err)
				}
				s.srv.ClearFaults()
				want := map[string]string{"/a": "newer", "/b": "theirs", "/d/new": "newer", "/keep": "first"}
				if diff := cmp.Diff(want, d.contents()); diff != "" {
					t.Errorf("platform (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(want, d.files()); diff != "" {
					t.Errorf("folder (-want +got):\n%s", diff)
				}
				if len(d.warnings) > 0 {
					t.Errorf("warnings %q", d.warnings)
				}
			})
		}
	}
}

func TestTwoSessionsWithOneStoreMeetAtThePlatform(t *testing.T) {
	s := newShelf(t)
	left, right := newDesk(t, s), newDesk(t, s)
	one, two := left.store(), right.store()
	for _, st := range []*memory.Store{one, two} {
		if err := st.Open(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 50 { // more than a page
		left.write(fmt.Sprint("left", i), "l")
		right.write(fmt.Sprint("right", i), "r")
	}
	left.write("same", "left")
	right.write("same", "right")
	for _, st := range []*memory.Store{one, two, one} {
		if err := st.Finish(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(left.files(), right.files()); diff != "" || len(left.files()) != 101 {
		t.Errorf("%d files; left and right differ:\n%s", len(left.files()), diff)
	}
	if left.files()["/same"] != "left" || len(right.warnings) != 1 || !strings.Contains(right.warnings[0], "/same: it was changed both here and at the platform") {
		t.Errorf("same is %q; the right side was told %q", left.files()["/same"], right.warnings)
	}
}
