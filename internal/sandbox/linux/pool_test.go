//go:build linux

package linux_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/sandbox/linux"
	"github.com/berth-dev/berth/internal/testbin"
)

// pooled is a backend with a pool that is being filled.
type pooled struct {
	*linux.Backend
	t    *testing.T
	dir  string
	kind string
	end  func() // of filling
}

func (p *pooled) open(size int) {
	p.t.Helper()
	b, err := linux.New(linux.Config{
		DataDir: p.dir, Binary: testbin.Path(p.t), Runtime: p.kind, Pool: size, Logger: slog.New(slog.NewTextHandler(p.t.Output(), nil)),
	})
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var filling sync.WaitGroup
	filling.Go(func() { b.Fill(ctx) })
	p.Backend, p.end = b, func() {
		cancel()
		filling.Wait()
	}
}

func (p *pooled) close() {
	p.t.Helper()
	p.end()
	if err := p.Close(); err != nil {
		p.t.Error(err)
	}
}

// holds waits until so many sandboxes are in the pool, whole.
func (p *pooled) holds(n int) {
	p.t.Helper()
	deadline, tick := time.After(30*time.Second), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for {
		names, err := filepath.Glob(filepath.Join(p.dir, "pool", "*", "run"))
		if err != nil {
			p.t.Fatal(err)
		}
		all, _ := filepath.Glob(filepath.Join(p.dir, "pool", "*"))
		if len(names) == n && len(all) == n {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			p.t.Fatalf("the pool holds %q, want %d", all, n)
		}
	}
}

func (p *pooled) inPool() int {
	all, _ := filepath.Glob(filepath.Join(p.dir, "pool", "*"))
	return len(all)
}

func (p *pooled) sh(box sandbox.Sandbox, command string) string {
	p.t.Helper()
	g, err := box.Guest(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	res, err := g.Exec(p.t.Context(), sandbox.Exec{Argv: []string{"bash", "-c", command}})
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.TrimSpace(string(res.Stdout) + string(res.Stderr))
}

func (p *pooled) create(spec sandbox.Spec) sandbox.Sandbox {
	p.t.Helper()
	box, err := p.Create(p.t.Context(), spec)
	if err != nil {
		p.t.Fatal(err)
	}
	if got := box.Ref(); got.ID != spec.ID || got.Session != spec.Session {
		p.t.Errorf("made %+v for %+v", got, spec)
	}
	return box
}

func specOf(session string) sandbox.Spec {
	return sandbox.Spec{ID: sandbox.ID(session), Session: session, Env: map[string]string{"WHOSE": session}}
}

func TestPool(t *testing.T) {
	t.Parallel()
	onRuntimes(t, func(t *testing.T, kind string) {
		p := &pooled{t: t, dir: dataDir(t), kind: kind}
		p.open(2)
		p.holds(2)

		// Two sessions get one each, with nothing in it but what is theirs.
		one := p.create(specOf("one"))
		two := p.create(specOf("two"))
		for box, want := range map[sandbox.Sandbox]string{one: "one", two: "two"} {
			if got := p.sh(box, "echo $WHOSE; ls -A /workspace /tmp | grep -v X11 | grep -v :; echo mine >> /workspace/f; cat /workspace/f"); got != want+"\n\nmine" && got != want+"\nmine" {
				t.Errorf("%s: %q", want, got)
			}
		}
		p.holds(2) // filled again

		// It is the session's as if it had been made for it: another server
		// adopts it, its files are kept, and it is removed whole.
		p.close()
		if n := p.inPool(); n != 0 {
			t.Errorf("%d sandboxes are left in the pool", n)
		}
		p.open(0)
		again, err := p.Attach(t.Context(), one.Ref())
		if err != nil {
			t.Fatal(err)
		}
		if got := p.sh(again, "cat /workspace/f; echo $WHOSE"); got != "mine\none" {
			t.Errorf("adopted: %q", got)
		}
		if err := again.Destroy(t.Context(), sandbox.KeepFiles); err != nil {
			t.Fatal(err)
		}
		if got := p.sh(p.create(specOf("one")), "cat /workspace/f"); got != "mine" {
			t.Errorf("started anew: %q", got)
		}
		clearAll(t, p.Backend)
		p.close()
	})
}

func TestPoolGivesOnlyWhatASessionWants(t *testing.T) {
	t.Parallel()
	needNamespaces(t)
	p := &pooled{t: t, dir: dataDir(t), kind: linux.Gvisor}
	p.open(1)
	p.holds(1)
	limits, shares, kept := specOf("limits"), specOf("shares"), specOf("kept")
	limits.Limits.MemoryBytes = 300 << 20
	shares.Shares = []sandbox.Share{{Path: "/mnt/notes"}}
	for _, spec := range []sandbox.Spec{limits, shares} {
		p.create(spec)
		if n := p.inPool(); n != 1 {
			t.Errorf("%s: the pool holds %d", spec.Session, n)
		}
	}
	// The first is the pool's, the second must have the files of the first.
	box := p.create(kept)
	p.sh(box, "echo mine > /workspace/f")
	if err := box.Destroy(t.Context(), sandbox.KeepFiles); err != nil {
		t.Fatal(err)
	}
	p.holds(1)
	if got := p.sh(p.create(kept), "cat /workspace/f"); got != "mine" {
		t.Errorf("its files: %q", got)
	}
	clearAll(t, p.Backend)
	p.close()
}

func TestPoolLosesNothingAndLeavesNothing(t *testing.T) {
	t.Parallel()
	needNamespaces(t)
	p := &pooled{t: t, dir: dataDir(t), kind: linux.Gvisor}
	p.open(1)
	p.holds(1)
	// One that dies is replaced.
	dead, _ := filepath.Glob(filepath.Join(p.dir, "pool", "*"))
	linux.KillPooled(p.Backend, dead[0])
	deadline, tick := time.After(30*time.Second), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for gone := false; !gone; {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("a dead sandbox stays in the pool")
		}
		_, err := os.Lstat(dead[0])
		gone = os.IsNotExist(err)
	}
	p.holds(1)
	// One that an earlier server left, which was killed, is removed.
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	stop := p.end
	p.open(0)
	p.end()
	if n := p.inPool(); n != 0 {
		t.Errorf("%d sandboxes of an earlier server are in the pool", n)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	stop()
}
