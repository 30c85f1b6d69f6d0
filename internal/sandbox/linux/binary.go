//go:build linux

package linux

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// stageBinary copies a program into dir under the hash of its content and
// returns that name. Sandboxes run from the copy: they survive an upgrade and
// the end of a program that `go run` made.
func stageBinary(binary, dir string) (string, error) {
	src, err := os.Open(binary)
	if err != nil {
		return "", fmt.Errorf("open own binary: %w", err)
	}
	defer src.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, src); err != nil {
		return "", fmt.Errorf("hash own binary: %w", err)
	}
	name := "berth-" + hex.EncodeToString(hash.Sum(nil)[:12])
	if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
		return name, nil
	}
	if _, err := src.Seek(0, io.SeekStart); err != nil {
		return "", fmt.Errorf("stage own binary: %w", err)
	}
	tmp, err := os.CreateTemp(dir, "making-")
	if err != nil {
		return "", fmt.Errorf("stage own binary: %w", err)
	}
	defer os.Remove(tmp.Name()) // when it was not moved into place
	_, err = io.Copy(tmp, src)  // shares blocks where the file system can
	err = errors.Join(err, tmp.Chmod(0o755), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		return "", fmt.Errorf("stage own binary: %w", err)
	}
	return name, nil
}

// sweep removes what lies in dir and is not in use.
func sweep(dir string, used map[string]bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("sweep %s: %w", filepath.Base(dir), err)
	}
	for _, e := range entries {
		if used[e.Name()] {
			continue
		}
		if err := removeAll(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("sweep %s: %w", filepath.Base(dir), err)
		}
	}
	return nil
}
