//go:build linux

package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
)

// What is here, and how it goes. A root goes in this order: the references to
// it, its record, its folder under another name, the folder's content; a crash
// between two steps leaves what the next sweep finds. Who uses a root is read
// from the records of sandboxes, after it was made sure that nobody is about to
// write one.

// List returns the images that are here, the one that was used last first.
func (s *Store) List(ctx context.Context) ([]sandbox.Image, error) {
	if err := s.sweepOnce(ctx); err != nil {
		return nil, err
	}
	roots, err := s.allRoots()
	if err != nil {
		return nil, err
	}
	refs, err := s.allRefs()
	if err != nil {
		return nil, err
	}
	used, err := s.opts.InUse(ctx)
	if err != nil {
		return nil, fmt.Errorf("find out which images are in use: %w", err)
	}
	out := make([]sandbox.Image, 0, len(roots))
	for name, r := range roots {
		img := sandbox.Image{
			ID: strings.TrimPrefix(name, rootPrefix), Digest: r.Digest, Platform: r.Platform, Bytes: r.Bytes, Files: r.Files,
			Layers: len(r.Layers), Made: r.Made, Used: r.used, Sandboxes: used[name], Lacks: r.Lacks,
		}
		for _, ref := range refs {
			if ref.Root == name {
				img.References = append(img.References, ref.Reference)
			}
		}
		slices.Sort(img.References)
		out = append(out, img)
	}
	slices.SortFunc(out, func(a, b sandbox.Image) int {
		if c := b.Used.Compare(a.Used); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out, nil
}

func (s *Store) one(ctx context.Context, root string) (sandbox.Image, error) {
	all, err := s.List(ctx)
	if err != nil {
		return sandbox.Image{}, err
	}
	for _, img := range all {
		if rootPrefix+img.ID == root {
			return img, nil
		}
	}
	return sandbox.Image{}, errNoImage(root)
}

func errNoImage(name string) error {
	return fault.New(fault.NotFound, "there is no image %.100q here", name).WithField("image").WithNext("see: berth images list")
}

// Remove removes an image by its id or by a reference to it. One that sandboxes
// use stays.
func (s *Store) Remove(ctx context.Context, text string) error {
	if err := s.sweepOnce(ctx); err != nil {
		return err
	}
	name := rootPrefix + text
	if strings.ContainsAny(text, "/:") || len(text) != 24 {
		ref, err := parseReference(text, s.opts.Insecure)
		if err != nil {
			return err
		}
		r, err := s.readRef(ref)
		if err != nil {
			return errNoImage(ref.text)
		}
		name = r.Root
	}
	if _, err := s.readRoot(name); err != nil {
		return errNoImage(text)
	}
	gone, err := s.collect(ctx, func(n string, _ rootRecord) bool { return n == name })
	if err != nil {
		return err
	}
	if gone.Images == 0 {
		return fault.New(fault.Conflict, "the image %.100q is in use", text).WithField("image").
			WithNext("end the sessions whose sandboxes use it")
	}
	return nil
}

// Collect removes images that no sandbox uses and none has used for some time,
// and layers that no image needs.
func (s *Store) Collect(ctx context.Context, unused time.Duration) (sandbox.Collected, error) {
	if err := s.sweepOnce(ctx); err != nil {
		return sandbox.Collected{}, err
	}
	before := s.opts.now().Add(-unused)
	return s.collect(ctx, func(_ string, r rootRecord) bool { return !r.used.After(before) })
}

// collect removes the roots that chosen accepts and nobody uses.
func (s *Store) collect(ctx context.Context, chosen func(string, rootRecord) bool) (sandbox.Collected, error) {
	var out sandbox.Collected
	doomed, err := s.condemn(ctx, chosen, &out)
	for _, dir := range doomed { // out of the turn: it takes its time
		err = errors.Join(err, removeTree(dir))
	}
	if out.Images > 0 || out.Layers > 0 {
		s.log.Info("images removed", "images", out.Images, "layers", out.Layers, "bytes", out.Bytes)
	}
	return out, err
}

// condemn decides, in the turn, and moves what goes out of the way.
func (s *Store) condemn(ctx context.Context, chosen func(string, rootRecord) bool, out *sandbox.Collected) (doomed []string, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.leave()
	roots, err := s.allRoots()
	if err != nil {
		return nil, err
	}
	refs, err := s.allRefs()
	if err != nil {
		return nil, err
	}
	held := s.heldNow() // before the records are read: who let go since has written one
	used, err := s.opts.InUse(ctx)
	if err != nil {
		return nil, fmt.Errorf("find out which images are in use: %w", err)
	}
	for name, r := range roots {
		if held[name] || used[name] > 0 || !chosen(name, r) {
			continue
		}
		for file, ref := range refs {
			if ref.Root != name {
				continue
			}
			if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return doomed, fmt.Errorf("remove image: %w", err)
			}
		}
		if err := os.Remove(s.rootFile(name)); err != nil {
			return doomed, fmt.Errorf("remove image: %w", err)
		}
		away := filepath.Join(s.tmp, fmt.Sprintf("gone-%s-%d", name, s.opts.now().UnixNano()))
		if err := os.Rename(filepath.Join(s.opts.Dir, name), away); err != nil {
			return doomed, fmt.Errorf("remove image: %w", err)
		}
		doomed = append(doomed, away)
		delete(roots, name)
		out.Images++
		out.Bytes += r.Bytes
	}
	needed := s.pinnedNow()
	for _, r := range roots {
		for _, d := range r.Layers {
			needed[blobName(d)] = true
		}
	}
	layers, freed, err := s.removeUnused(needed)
	out.Layers += layers
	out.Bytes += freed
	return doomed, err
}

func (s *Store) heldNow() map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]bool{}
	for name := range s.held {
		out[name] = true
	}
	return out
}

func (s *Store) pinnedNow() map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]bool{}
	for name := range s.pinned {
		out[name] = true
	}
	return out
}

// sweepOnce removes, at the first use after a start, what a process left that
// died in the middle.
func (s *Store) sweepOnce(ctx context.Context) error {
	s.mu.Lock()
	done := s.swept
	s.mu.Unlock()
	if done {
		return nil
	}
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.leave()
	s.mu.Lock()
	done, s.swept = s.swept, true
	s.mu.Unlock()
	if done {
		return nil
	}
	if err := s.sweep(ctx); err != nil {
		s.log.Warn("remains of images not removed", "err", err)
	}
	return nil
}

// sweep is called in the turn, before anything is pulled.
func (s *Store) sweep(ctx context.Context) error {
	left, err := os.ReadDir(s.tmp)
	if err != nil {
		return fmt.Errorf("sweep images: %w", err)
	}
	var errs []error
	for _, e := range left {
		errs = append(errs, removeTree(filepath.Join(s.tmp, e.Name())))
	}
	used, err := s.opts.InUse(ctx)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	folders, err := filepath.Glob(filepath.Join(s.opts.Dir, rootPrefix+"*"))
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, dir := range folders {
		if name := filepath.Base(dir); used[name] == 0 {
			if _, err := s.readRoot(name); errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, s.discard(dir))
			}
		}
	}
	names, err := recordNames(s.roots)
	errs = append(errs, err)
	for _, name := range names {
		if _, err := s.readRoot(name); errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, os.Remove(s.rootFile(name)))
		}
	}
	return errors.Join(errs...)
}

// discard removes a root folder that counts for nothing.
func (s *Store) discard(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return removeTree(dir)
}

// removeTree is os.RemoveAll for folders that may be closed to their owner, who
// is not root.
func removeTree(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, _ error) error { // opening them on the way down
		if d != nil && d.IsDir() {
			_ = os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}
