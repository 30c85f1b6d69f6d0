//go:build linux

package linux_test

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/sandbox/linux"
	"github.com/berth-dev/berth/internal/sandbox/sandboxtest"
	"github.com/berth-dev/berth/internal/testbin"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	needNamespaces(t)
	binary, dir := testbin.Path(t), dataDir(t)
	sandboxtest.Run(t, func(t *testing.T) sandbox.Backend { return open(t, binary, dir) })
}

func TestConformanceOfOtherRuntimes(t *testing.T) {
	t.Parallel()
	binary := testbin.Path(t)
	for _, kind := range []string{linux.Runc, linux.Crun} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			needRuntime(t, kind)
			dir := dataDir(t)
			sandboxtest.Run(t, func(t *testing.T) sandbox.Backend { return openWith(t, binary, dir, kind) })
		})
	}
}

// needRuntime skips a test where a runtime other than gVisor cannot be used.
func needRuntime(t *testing.T, kind string) {
	t.Helper()
	if testing.Short() {
		t.Skip("our part is the same with every runtime")
	}
	if os.Geteuid() != 0 {
		t.Skip("runtimes other than gVisor need root")
	}
	if _, err := exec.LookPath(kind); err != nil {
		t.Skipf("%s is not installed", kind)
	}
}

// dataDir is a folder with a short path, as the backend needs it. It and all
// that runs in it are gone after the test.
func dataDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "berth-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove data folder: %v", err)
		}
		for _, tree := range []string{"*", "."} {
			if left, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup", tree, linux.CgroupName(dir))); len(left) > 0 {
				t.Errorf("cgroups left behind: %q", left)
			}
		}
	})
	return dir
}

func open(t testing.TB, binary, dir string) *linux.Backend {
	t.Helper()
	return openWith(t, binary, dir, linux.Gvisor)
}

func openWith(t testing.TB, binary, dir, kind string) *linux.Backend {
	t.Helper()
	b, err := linux.New(linux.Config{
		DataDir: dir, Binary: binary, Runtime: kind, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}
