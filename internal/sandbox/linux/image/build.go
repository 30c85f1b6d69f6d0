//go:build linux

package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
)

// build loads and unpacks an image and puts its root in place.
func (s *Store) build(ctx context.Context, f *flight, img *found, name string) error {
	var total int64
	for _, l := range img.layers {
		total += l.size
	}
	if total > s.opts.MaxBytes {
		return (&tree{limit: s.opts.MaxBytes}).tooLarge()
	}
	var kept []string
	if img.remote {
		for _, l := range img.layers {
			kept = append(kept, l.digest)
		}
		defer s.pin(kept)()
		if err := s.roomFor(total); err != nil {
			return err
		}
		f.progress.step(sandbox.ImageLoading, 0, len(img.layers), total)
		if err := s.fetchAll(ctx, f.ref, img, &f.progress); err != nil {
			return err
		}
	}
	tmp, err := os.MkdirTemp(s.tmp, "root-")
	if err != nil {
		return fmt.Errorf("make root folder: %w", err)
	}
	defer os.RemoveAll(tmp) // when it was not moved into place
	f.progress.step(sandbox.ImageUnpacking, 0, len(img.layers), total)
	record, err := s.unpack(ctx, img, tmp, &f.progress)
	if err != nil {
		return err
	}
	record.Layers, record.Made = kept, s.opts.now()
	return s.place(ctx, tmp, name, record)
}

// roomFor refuses what cannot fit before it is loaded.
func (s *Store) roomFor(size int64) error {
	var st unix.Statfs_t
	if unix.Statfs(s.opts.Dir, &st) != nil || int64(st.Bavail)*st.Bsize > size {
		return nil //nolint:nilerr // where nobody knows how much room there is, the attempt will tell
	}
	return onDisk(errNoSpace, s.opts.Dir)
}

// pin keeps blobs until its result is called.
func (s *Store) pin(digests []string) func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range digests {
		s.pinned[blobName(d)]++
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, d := range digests {
			if s.pinned[blobName(d)]--; s.pinned[blobName(d)] == 0 {
				delete(s.pinned, blobName(d))
			}
		}
	}
}

// unpack fills a folder with a root.
func (s *Store) unpack(ctx context.Context, img *found, dir string, p *progress) (rootRecord, error) {
	r := rootRecord{Digest: img.digest, Platform: img.platform}
	var err error
	if r.Env, err = environment(img.config); err != nil {
		return r, err
	}
	t, err := openTree(dir, s.opts.Owners, s.opts.MaxBytes)
	if err != nil {
		return r, err
	}
	defer t.Close()
	if img.copyFrom != "" {
		err = copyFolder(ctx, img.copyFrom, t, p.add)
	}
	for _, l := range img.layers {
		if err != nil {
			break
		}
		p.nextLayer()
		err = l.apply(ctx, t, p.add)
	}
	if err != nil {
		return r, unpackError(ctx, err)
	}
	r.Lacks = inspect(t, userOf(img.config), t.read("etc/passwd"))
	if err := errors.Join(furnish(t), t.finish()); err != nil {
		return r, unpackError(ctx, err)
	}
	r.Bytes, r.Files = t.written, t.entries
	return r, nil
}

// unpackError is what is wrong with an image that cannot be unpacked.
func unpackError(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if isFull(err) || errors.As(err, new(*fault.Error)) {
		return err
	}
	return fault.Wrap(err, fault.Invalid, "the image cannot be unpacked").WithField("image").
		WithNext("see the server's log; build the image again if it is yours")
}

func userOf(c *v1.ConfigFile) string {
	if c == nil {
		return ""
	}
	return c.Config.User
}

// place makes a root complete: it is on the disk before it has its name, and
// has its name before its record says that it counts.
func (s *Store) place(ctx context.Context, tmp, name string, r rootRecord) error {
	if err := syncAll(tmp); err != nil {
		return fmt.Errorf("sync root folder: %w", err)
	}
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.leave()
	if _, err := s.readRoot(name); err == nil {
		return nil // another reference to the same image was faster
	}
	at := filepath.Join(s.opts.Dir, name)
	if err := s.discard(at); err != nil {
		return err
	}
	if err := os.Rename(tmp, at); err != nil {
		return fmt.Errorf("put root in place: %w", err)
	}
	if err := syncFolder(s.opts.Dir); err != nil {
		return fmt.Errorf("put root in place: %w", err)
	}
	if r.Lacks != "" {
		s.log.Warn("image lacks something", "root", name, "lacks", r.Lacks)
	}
	return s.writeRecord(s.rootFile(name), r)
}
