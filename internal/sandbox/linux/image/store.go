//go:build linux

package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
)

// Store holds images and makes roots from them. Safe for concurrent use.
type Store struct {
	opts     Options
	platform v1.Platform
	dial     *dialer
	log      *slog.Logger

	roots, refs, blobs, tmp string // folders below Options.Dir

	// turn holds a token while nobody decides what exists: whoever takes a root
	// for use, puts one in place or removes one has it meanwhile. It is never
	// held while something is loaded or unpacked.
	turn    chan struct{}
	pulls   sync.WaitGroup
	closing chan struct{}

	mu      sync.Mutex
	closed  bool
	swept   bool
	flights map[string]*flight
	held    map[string]int       // roots that a Create is about to put on record
	pinned  map[string]int       // blobs that a pull is about to use
	failed  map[string]time.Time // when a tag could last not be looked up
}

// flight is one pull. It goes on when those who wait for it have left: a pull
// that takes longer than its callers wait would never end otherwise.
type flight struct {
	ref      reference
	fresh    bool // somebody asked for it, and not a sandbox that has another at hand
	progress progress
	done     chan struct{} // closed after root and err were set
	root     string
	err      error
}

// Open opens the folder of images. It starts nothing and removes nothing.
func Open(o Options) (*Store, error) {
	platform, err := parsePlatform(o.Platform)
	if err != nil {
		return nil, err
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = defaultMaxBytes
	}
	if o.PullTimeout <= 0 {
		o.PullTimeout = defaultPull
	}
	if o.retry.attempts <= 0 {
		o.retry = retry{attempts: 4, first: time.Second, stall: time.Minute}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.now == nil {
		o.now = time.Now
	}
	if o.InUse == nil {
		o.InUse = func(context.Context) (map[string]int, error) { return nil, nil }
	}
	cache := filepath.Join(o.Dir, "cache")
	s := &Store{
		opts: o, platform: platform, dial: newDialer(o), log: o.Logger,
		roots: filepath.Join(cache, "roots"), refs: filepath.Join(cache, "refs"),
		blobs: filepath.Join(cache, "blobs"), tmp: filepath.Join(cache, "tmp"),
		turn: make(chan struct{}, 1), closing: make(chan struct{}),
		flights: map[string]*flight{}, held: map[string]int{}, pinned: map[string]int{}, failed: map[string]time.Time{},
	}
	s.turn <- struct{}{}
	for _, d := range []string{s.roots, s.refs, s.blobs, s.tmp} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make image folder: %w", err)
		}
	}
	return s, nil
}

var errClosed = errors.New("the image store is closed")

// Close ends all pulls and waits for them.
func (s *Store) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	if first {
		close(s.closing)
	}
	s.pulls.Wait()
	return nil
}

// Check returns the error that Ensure would give for a reference that cannot be
// read or is not allowed, without looking for the image.
func (s *Store) Check(text string) error {
	_, err := s.parse(text)
	return err
}

// Probe returns the digest that a reference stands for now. It pulls nothing.
func (s *Store) Probe(ctx context.Context, text string) (string, error) {
	ref, err := s.parse(text)
	if err != nil {
		return "", err
	}
	img, err := s.resolve(ctx, ref, true)
	if err != nil {
		return "", err
	}
	if img.close != nil {
		img.close()
	}
	return img.digest, nil
}

func (s *Store) parse(text string) (reference, error) {
	ref, err := parseReference(text, s.opts.Insecure)
	if err != nil {
		return ref, err
	}
	return ref, ref.allowed(s.opts.Trusted, s.opts.Folders)
}

// Ensure returns the root of an image, pulling it when it is not here. Until
// release is called the root is in use whatever InUse says. When ctx ends the
// pull goes on, for the next caller.
func (s *Store) Ensure(ctx context.Context, text string, report Report) (_ Root, release func(), err error) {
	ref, err := s.parse(text)
	if err != nil {
		return Root{}, nil, err
	}
	return s.get(ctx, ref, false, report)
}

// Pull looks a reference up anew and pulls what it stands for now.
func (s *Store) Pull(ctx context.Context, text string, report Report) (sandbox.Image, error) {
	ref, err := s.parse(text)
	if err != nil {
		return sandbox.Image{}, err
	}
	root, release, err := s.get(ctx, ref, true, report)
	if err != nil {
		return sandbox.Image{}, err
	}
	defer release()
	return s.one(ctx, root.Name)
}

func (s *Store) get(ctx context.Context, ref reference, fresh bool, report Report) (Root, func(), error) {
	if err := s.sweepOnce(ctx); err != nil {
		return Root{}, nil, err
	}
	// A root that was just made may be removed before it is taken; not for long.
	for range 3 {
		if !fresh {
			root, release, err := s.cached(ctx, ref)
			if root.Name != "" || err != nil {
				return root, release, err
			}
		}
		f, err := s.join(ref, fresh)
		if err != nil {
			return Root{}, nil, err
		}
		if err := f.wait(ctx, report); err != nil {
			root, release, ok := s.makeDo(ctx, ref, fresh, f)
			if !ok {
				return Root{}, nil, err
			}
			s.log.Warn("image not looked up, the one at hand is used", "image", ref.text, "err", err)
			return root, release, nil
		}
		root, release, err := s.take(ctx, f.root)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return root, release, err
		}
	}
	return Root{}, nil, fault.New(fault.Conflict, "the image %s is removed again and again", ref.text).WithField("image").WithNext("try again")
}

// cached takes what a reference stood for, if it is here and still counts.
func (s *Store) cached(ctx context.Context, ref reference) (Root, func(), error) {
	r, known := s.readRef(ref)
	if known != nil || !s.current(ref, r) {
		return Root{}, nil, nil //nolint:nilerr // it is looked up anew
	}
	root, release, err := s.take(ctx, r.Root)
	if errors.Is(err, fs.ErrNotExist) {
		return Root{}, nil, nil
	}
	return root, release, err
}

// current reports whether a record can be believed without asking.
func (s *Store) current(ref reference, r refRecord) bool {
	if r.Root != rootName(r.Digest, s.opts.Owners) {
		return false // made for other owners, or in an old way
	}
	if ref.local() {
		stamp, err := stampOf(ref)
		return err != nil || stamp == r.Stamp // what was taken over before is used when its source is gone
	}
	if ref.pinned() || s.opts.Refresh <= 0 {
		return true
	}
	s.mu.Lock()
	last := s.failed[ref.text]
	s.mu.Unlock()
	if r.Checked.After(last) {
		last = r.Checked
	}
	return s.opts.now().Sub(last) < s.opts.Refresh
}

// makeDo takes what is here when a tag could not be looked up anew: a registry
// that is down stops no sandbox whose image was pulled before.
func (s *Store) makeDo(ctx context.Context, ref reference, fresh bool, f *flight) (Root, func(), bool) {
	select {
	case <-f.done:
	default:
		return Root{}, nil, false // ctx ended
	}
	r, err := s.readRef(ref)
	if fresh || err != nil || r.Root != rootName(r.Digest, s.opts.Owners) {
		return Root{}, nil, false
	}
	root, release, err := s.take(ctx, r.Root)
	if err != nil {
		return Root{}, nil, false
	}
	s.mu.Lock()
	s.failed[ref.text] = s.opts.now()
	s.mu.Unlock()
	return root, release, true
}

// take holds a complete root, so that it is not collected.
func (s *Store) take(ctx context.Context, name string) (Root, func(), error) {
	if err := s.enter(ctx); err != nil {
		return Root{}, nil, err
	}
	defer s.leave()
	r, err := s.readRoot(name)
	if err != nil {
		return Root{}, nil, fmt.Errorf("use image: %w", err)
	}
	now := s.opts.now()
	if err := os.Chtimes(s.rootFile(name), now, now); err != nil {
		s.log.Warn("use of an image not noted", "root", name, "err", err)
	}
	s.mu.Lock()
	s.held[name]++
	s.mu.Unlock()
	return Root{Name: name, Env: r.Env, Lacks: r.Lacks}, sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.held[name]--; s.held[name] == 0 {
			delete(s.held, name)
		}
	}), nil
}

func (s *Store) enter(ctx context.Context) error {
	select {
	case <-s.turn:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *Store) leave() { s.turn <- struct{}{} }

// join returns the pull of a reference, beginning it when none runs.
func (s *Store) join(ref reference, fresh bool) (*flight, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosed
	}
	if f := s.flights[ref.text]; f != nil {
		return f, nil
	}
	f := &flight{ref: ref, fresh: fresh, done: make(chan struct{})}
	f.progress.now.Reference, f.progress.now.Step = ref.text, sandbox.ImageResolving
	s.flights[ref.text] = f
	s.pulls.Go(func() { s.fly(f) })
	return f, nil
}

func (s *Store) fly(f *flight) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), s.opts.PullTimeout,
		fault.New(fault.Timeout, "the image %s was not pulled within %s", f.ref.text, s.opts.PullTimeout).WithField("image").
			WithNext("raise sandbox.images.pull_timeout, or pull from a nearer registry"))
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var talk sync.WaitGroup
	talk.Go(func() {
		ticker := time.NewTicker(logInterval)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				p := f.progress.get()
				s.log.Info("pulling image", "image", p.Reference, "step", p.Step, "layer", p.Layer, "layers", p.Layers, "done", p.Done, "total", p.Total)
			case <-s.closing:
				stop(errClosed)
				return
			case <-ctx.Done():
				return
			}
		}
	})
	begun := s.opts.now()
	f.root, f.err = s.pull(ctx, f)
	stop(nil)
	talk.Wait()
	if f.err == nil {
		s.log.Info("image ready", "image", f.ref.text, "root", f.root, "dur", s.opts.now().Sub(begun))
	}
	s.mu.Lock()
	delete(s.flights, f.ref.text)
	if f.err == nil {
		delete(s.failed, f.ref.text)
	}
	s.mu.Unlock()
	close(f.done)
}

// wait waits for the end of a pull and reports on the way.
func (f *flight) wait(ctx context.Context, report Report) error {
	ticker := time.NewTicker(progressInterval)
	defer ticker.Stop()
	var last sandbox.ImageProgress
	tell := func() {
		if now := f.progress.get(); report != nil && now != last {
			last = now
			report(now)
		}
	}
	for {
		select {
		case <-f.done:
			tell()
			return f.err
		case <-ctx.Done():
			return fault.Wrap(context.Cause(ctx), fault.Timeout, "the image %s is still being pulled (%s)", f.ref.text, f.progress.get()).
				WithField("image").WithNext("try again in a while; the pull goes on. berth images pull shows how far it is")
		case <-ticker.C:
			tell()
		}
	}
}

// pull looks a reference up and makes its root, unless that is here already.
func (s *Store) pull(ctx context.Context, f *flight) (string, error) {
	img, err := s.resolve(ctx, f.ref, f.fresh)
	if err != nil {
		return "", err
	}
	if img.close != nil {
		defer img.close()
	}
	name := rootName(img.digest, s.opts.Owners)
	if _, err := s.readRoot(name); err != nil {
		if err := s.build(ctx, f, img, name); err != nil {
			return "", onDisk(err, s.opts.Dir)
		}
	}
	if err := s.enter(ctx); err != nil {
		return "", err
	}
	defer s.leave()
	return name, onDisk(s.writeRecord(s.refFile(f.ref), refRecord{
		Reference: f.ref.text, Platform: platformName(s.platform), Root: name, Digest: img.digest, Stamp: img.stamp, Checked: s.opts.now(),
	}), s.opts.Dir)
}

// resolve finds what a reference stands for. When an image is at hand for the
// case that this fails, it fails soon.
func (s *Store) resolve(ctx context.Context, ref reference, fresh bool) (*found, error) {
	if ref.local() {
		return s.local(ctx, ref)
	}
	if r, err := s.readRef(ref); err == nil && !fresh {
		if _, err := s.readRoot(r.Root); err == nil {
			soon, cancel := context.WithTimeoutCause(ctx, refreshWithin, errors.New("no answer in time"))
			defer cancel()
			img, err := s.dial.resolve(soon, ref, s.platform, 1)
			if err != nil || r.Root == rootName(img.digest, s.opts.Owners) {
				return img, err
			}
		}
	}
	return s.dial.resolve(ctx, ref, s.platform, s.opts.retry.attempts)
}
