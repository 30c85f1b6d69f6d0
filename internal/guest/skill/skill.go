// Package skill unpacks the archives of skills by the rules of contract §6.1.
// Archives are hostile: nothing in them can name a place outside the folder of
// their skill, and their members, sizes and depths are bounded.
package skill

import (
	"context"
	"crypto/rand"
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

// Dir is the folder of all skills, below the workdir.
const Dir = "skills"

// Install unpacks the archive into Dir/<name> below workdir and replaces what
// was there. On failure nothing is left and the former skill stays. Only the
// last element of name counts. The archive may be a zip, or a tar that is
// plain or compressed by gzip or bzip2.
func Install(ctx context.Context, workdir *os.Root, name string, archive io.ReaderAt, size int64) (err error) {
	name, err = Base(name)
	if err != nil {
		return err
	}
	if err := workdir.MkdirAll(Dir, 0o755); err != nil {
		return fmt.Errorf("make folder of skills: %w", err)
	}
	skills, err := workdir.OpenRoot(Dir)
	if err != nil {
		return fmt.Errorf("open folder of skills: %w", err)
	}
	defer skills.Close()
	staging := ".unpack-" + rand.Text()
	if err := skills.Mkdir(staging, 0o700); err != nil {
		return fmt.Errorf("make folder to unpack to: %w", err)
	}
	defer func() { err = errors.Join(err, skills.RemoveAll(staging)) }()
	if err := unpackTo(ctx, skills, staging, archive, size); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	top, err := commonTop(skills, staging)
	if err != nil {
		return err
	}
	if err := skills.Chmod(top, 0o700); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	return swap(skills, top, name)
}

// Base reduces a skill's name to the name of its folder.
func Base(name string) (string, error) {
	b := path.Base(strings.TrimSpace(name))
	if b == "." || b == ".." || b == "/" || len(b) > 200 || strings.ContainsAny(b, "\\\x00") {
		return "", fmt.Errorf("skill name %.100q is not a folder's name", name)
	}
	return b, nil
}

func unpackTo(ctx context.Context, skills *os.Root, staging string, archive io.ReaderAt, size int64) error {
	dest, err := skills.OpenRoot(staging)
	if err != nil {
		return err
	}
	defer dest.Close()
	return unpack(ctx, &writer{ctx: ctx, root: dest, left: MaxBytes, dirs: map[string]bool{".": true}}, archive, size)
}

// commonTop returns the folder that becomes the skill: staging, or the only
// thing in it if that is a folder that holds something.
func commonTop(skills *os.Root, staging string) (string, error) {
	inside, err := names(skills, staging)
	if err != nil || len(inside) != 1 {
		return staging, err
	}
	top := path.Join(staging, inside[0])
	if fi, err := skills.Lstat(top); err != nil || !fi.IsDir() {
		return staging, err
	}
	if below, err := names(skills, top); err != nil || len(below) == 0 {
		return staging, err
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

// swap puts from in the place of to. Whoever looks at to sees the old skill,
// for an instant none, and then the new one.
func swap(skills *os.Root, from, to string) error {
	old := ".old-" + rand.Text()
	err := skills.Rename(to, old)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("set the former skill aside: %w", err)
	}
	replaced := err == nil
	if err := skills.Rename(from, to); err != nil {
		if replaced {
			err = errors.Join(err, skills.Rename(old, to))
		}
		return fmt.Errorf("put the skill in place: %w", err)
	}
	if !replaced {
		return nil
	}
	if err := skills.RemoveAll(old); err != nil {
		return fmt.Errorf("remove the former skill: %w", err)
	}
	return nil
}
