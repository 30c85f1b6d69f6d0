// Package testbin builds the real program for tests that run it. It is imported
// by tests only.
package testbin

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Env names a program to use instead of building one.
const Env = "BERTH_TEST_BINARY"

// Path returns the program's path. It is built at most once per test process,
// without cgo, into a folder that later test processes share; the go command's
// cache makes the second time fast.
func Path(t testing.TB) string {
	t.Helper()
	if path := os.Getenv(Env); path != "" {
		return path
	}
	path, err := build()
	if err != nil {
		t.Fatalf("build the program under test: %v", err)
	}
	return path
}

var build = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "berth-test")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(filepath.Join(dir, "lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	path := filepath.Join(dir, "berth")
	cmd := exec.Command("go", "build", "-o", path+".new", "./cmd/berth")
	cmd.Dir = strings.TrimSpace(string(out))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, said)
	}
	// A new file each time: another test process may be running the old one.
	return path, os.Rename(path+".new", path)
})
