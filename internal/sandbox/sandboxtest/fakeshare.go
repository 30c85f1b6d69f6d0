package sandboxtest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"

	"github.com/berth-dev/berth/internal/sandbox"
)

// Share puts the folders of shares below dir. Without it they are only names.
func (f *Fake) Share(dir string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.shareRoot = dir
}

// Shareless makes the fake a backend without shares.
func (f *Fake) Shareless() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.shareless = true
}

// Shared returns the folder of a share, whether the sandbox runs or not.
func (f *Fake) Shared(id, path string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.shared(id, path)
}

func (f *Fake) shared(id, path string) string {
	if f.shareRoot == "" {
		return "/fake/" + id + path
	}
	sum := sha256.Sum256([]byte(path))
	return filepath.Join(f.shareRoot, id, hex.EncodeToString(sum[:6]))
}

// makeShares lays the folders of a new sandbox. With f.mu.
func (f *Fake) makeShares(s sandbox.Spec) error {
	for _, sh := range s.Shares {
		switch {
		case f.shareless:
			return fmt.Errorf("share %s: %w", sh.Path, sandbox.ErrUnsupported)
		case f.shareRoot == "":
			continue
		}
		if err := os.MkdirAll(f.shared(s.ID, sh.Path), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// forget removes what outlives a sandbox. With f.mu.
func (f *Fake) forget(id string) {
	delete(f.workspaces, id)
	if f.shareRoot != "" {
		_ = os.RemoveAll(filepath.Join(f.shareRoot, id)) // a temporary folder of the test
	}
}

// Shared implements sandbox.Sharer.
func (b *box) Shared(path string) (sandbox.SharedDir, error) {
	for _, sh := range b.shares {
		if sh.Path == path && sh.Dir == "" {
			return sandbox.SharedDir{Dir: b.fake.Shared(b.ref.ID, path), UID: os.Geteuid(), GID: os.Getegid()}, nil
		}
	}
	return sandbox.SharedDir{}, fmt.Errorf("share %s: %w", path, sandbox.ErrUnknownShare)
}
