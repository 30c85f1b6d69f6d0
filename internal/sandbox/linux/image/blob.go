//go:build linux

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/berth-dev/berth/internal/fault"
)

// Layers of a registry are kept as they came, under their digest: another image
// that has one does not load it again.

func blobName(digest string) string { return strings.Replace(digest, ":", "-", 1) }

func (s *Store) blobPath(digest string) string { return filepath.Join(s.blobs, blobName(digest)) }

// fetchAll loads the layers that are not here yet, a few at a time, and makes
// them read from here.
func (s *Store) fetchAll(ctx context.Context, ref reference, f *found, p *progress) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 3)
	begun := map[string]bool{}
	for i := range f.layers {
		l := &f.layers[i]
		from := l.open
		path := s.blobPath(l.digest)
		l.open = func(context.Context) (io.ReadCloser, error) { return os.Open(path) }
		if begun[l.digest] {
			continue // one layer twice in one image
		}
		begun[l.digest] = true
		if info, err := os.Stat(path); err == nil && (l.size == 0 || info.Size() == l.size) {
			p.skip(l.size)
			continue
		}
		wg.Go(func() {
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
			case <-ctx.Done():
				return
			}
			if err := s.fetch(ctx, ref, l.digest, l.size, from, p); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

type opener func(ctx context.Context) (io.ReadCloser, error)

// fetch loads one layer. A connection that breaks or stalls is met with another
// try, from the beginning; content that is whole and wrong is not.
func (s *Store) fetch(ctx context.Context, ref reference, digest string, size int64, open opener, p *progress) error {
	for attempt := 0; ; attempt++ {
		err, again := s.fetchOnce(ctx, digest, size, open, p)
		if err == nil {
			return nil
		}
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		if !again || attempt+1 >= s.opts.retry.attempts {
			return onDisk(explain(ctx, err, ref), s.opts.Dir)
		}
		s.log.Warn("layer not loaded, trying again", "image", ref.text, "layer", digest, "err", err)
		if !s.opts.retry.pause(ctx, attempt) {
			return context.Cause(ctx)
		}
	}
}

var errStalled = errors.New("the connection brought nothing any more")

func (s *Store) fetchOnce(ctx context.Context, digest string, size int64, open opener, p *progress) (err error, again bool) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(s.opts.retry.stall, func() { cancel(errStalled) })
	defer watchdog.Stop()
	r, err := open(ctx)
	if err != nil {
		return stalledOr(ctx, err), errors.Is(context.Cause(ctx), errStalled)
	}
	defer r.Close()
	tmp, err := os.CreateTemp(s.tmp, "layer-")
	if err != nil {
		return fmt.Errorf("keep layer: %w", err), false
	}
	defer os.Remove(tmp.Name()) // when it was not moved into place
	defer tmp.Close()
	var got int64
	in := newDigester(&watched{ctx: ctx, r: r, read: func(n int64) {
		watchdog.Reset(s.opts.retry.stall)
		got += n
		p.add(n)
	}})
	_, err = io.Copy(tmp, io.LimitReader(in, size+1))
	if err != nil && isFull(err) {
		p.add(-got)
		return err, false
	}
	sum := in.sum()
	if in.size == size && sum == digest {
		if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
			return fmt.Errorf("keep layer: %w", err), false
		}
		return os.Rename(tmp.Name(), s.blobPath(digest)), false
	}
	p.add(-got)
	switch {
	case in.size > size:
		return fault.New(fault.Unavailable, "a layer of the image is longer than the %d bytes that its manifest says", size).
			WithField("image").WithNext("pull it again; if that does not help, push it anew"), false
	case in.size == size:
		return corrupt("layer", digest, sum), false
	case err == nil:
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("load layer: %w", stalledOr(ctx, err)), true
}

func stalledOr(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errStalled) {
		return cause
	}
	return err
}

// removeUnused removes the layers that no image needs any more.
func (s *Store) removeUnused(needed map[string]bool) (removed int, freed int64, err error) {
	entries, err := os.ReadDir(s.blobs)
	if err != nil {
		return 0, 0, fmt.Errorf("list layers: %w", err)
	}
	for _, e := range entries {
		if needed[e.Name()] {
			continue
		}
		info, err := e.Info()
		if err != nil {
			continue // it went away
		}
		if err := os.Remove(filepath.Join(s.blobs, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return removed, freed, fmt.Errorf("remove layer: %w", err)
		}
		removed++
		freed += info.Size()
	}
	return removed, freed, nil
}
