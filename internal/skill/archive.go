package skill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// Bounds of one archive (contract §6.1, except depth).
const (
	MaxMembers = 10_000
	MaxBytes   = 1 << 30 // unpacked
	maxDepth   = 64
	maxName    = 4096
)

// Unpack writes the archive below root/dir, a folder that it makes. It may be a
// zip, or a tar that is plain or compressed by gzip or bzip2. It returns the
// folder that is the skill: dir, or the single folder at the archive's top.
// After an error what was written is the caller's to remove.
func Unpack(ctx context.Context, root *os.Root, dir string, archive io.ReaderAt, size int64) (top string, err error) {
	if err := root.Mkdir(dir, 0o755); err != nil {
		return "", fmt.Errorf("make folder to unpack to: %w", err)
	}
	dest, err := root.OpenRoot(dir)
	if err != nil {
		return "", fmt.Errorf("open folder to unpack to: %w", err)
	}
	defer dest.Close()
	w := &writer{ctx: ctx, root: dest, left: MaxBytes, dirs: map[string]bool{".": true}}
	if err := unpack(ctx, w, archive, size); err != nil {
		return "", fmt.Errorf("unpack: %w", err)
	}
	if top, err = commonTop(root, dir); err != nil {
		return "", err
	}
	if err := root.Chmod(top, 0o755); err != nil { // whatever the umask is
		return "", fmt.Errorf("set mode: %w", err)
	}
	return top, nil
}

// Base reduces a skill's name to the name of its folder. Names with a dot in
// front are our own.
func Base(name string) (string, error) {
	b := path.Base(strings.TrimSpace(name))
	if strings.HasPrefix(b, ".") || b == "/" || len(b) > 200 || strings.ContainsAny(b, "\\\x00") {
		return "", fmt.Errorf("the skill's name %.100q is not a folder's name", name)
	}
	return b, nil
}

// commonTop returns the folder that becomes the skill: dir, or the only thing in
// it if that is a folder that holds something.
func commonTop(root *os.Root, dir string) (string, error) {
	inside, err := names(root, dir)
	if err != nil || len(inside) != 1 {
		return dir, err
	}
	top := path.Join(dir, inside[0])
	if fi, err := root.Lstat(top); err != nil || !fi.IsDir() {
		return dir, err
	}
	if below, err := names(root, top); err != nil || len(below) == 0 {
		return dir, err
	}
	return top, nil
}

func names(root *os.Root, dir string) ([]string, error) {
	f, err := root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list, err := f.Readdirnames(2) // enough to tell one from more
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return list, err
}
