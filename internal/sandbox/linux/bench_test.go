//go:build linux

package linux_test

import (
	"fmt"
	"testing"

	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/sandbox/linux"
	"github.com/berth-dev/berth/internal/testbin"
)

// BenchmarkStart measures from Create to the guest's first answer, and the
// removal.
func BenchmarkStart(b *testing.B) {
	backend := openBench(b)
	for b.Loop() {
		box, err := backend.Create(b.Context(), crashSpec)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := box.Destroy(b.Context(), sandbox.Everything); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkDestroy measures the removal of an idle sandbox with its files.
func BenchmarkDestroy(b *testing.B) {
	backend := openBench(b)
	for b.Loop() {
		b.StopTimer()
		box, err := backend.Create(b.Context(), crashSpec)
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := box.Destroy(b.Context(), sandbox.Everything); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCall measures a bash call's round trip through the ledger's path.
func BenchmarkCall(b *testing.B) {
	g := benchGuest(b)
	n := 0
	for b.Loop() {
		n++
		id := fmt.Sprintf("c%d", n)
		if _, err := g.Call(b.Context(), bashCall(id, ":")); err != nil {
			b.Fatal(err)
		}
		if err := g.Acknowledge(b.Context(), id); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkExec measures the start of a process inside.
func BenchmarkExec(b *testing.B) {
	g := benchGuest(b)
	for b.Loop() {
		if _, err := g.Exec(b.Context(), sandbox.Exec{Argv: []string{"true"}}); err != nil {
			b.Fatal(err)
		}
	}
}

func openBench(b *testing.B) *linux.Backend {
	b.Helper()
	backend := open(b, testbin.Path(b), dataDir(b))
	b.Cleanup(func() {
		clearAll(b, backend)
		_ = backend.Close()
	})
	box, err := backend.Create(b.Context(), crashSpec) // stages the binary
	if err != nil {
		b.Fatal(err)
	}
	if err := box.Destroy(b.Context(), sandbox.Everything); err != nil {
		b.Fatal(err)
	}
	return backend
}

func benchGuest(b *testing.B) sandbox.Guest {
	b.Helper()
	box, err := openBench(b).Create(b.Context(), crashSpec)
	if err != nil {
		b.Fatal(err)
	}
	g, err := box.Guest(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	if _, err := g.Call(b.Context(), bashCall("first", ":")); err != nil {
		b.Fatal(err)
	}
	return g
}
