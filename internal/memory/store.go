package memory

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// Options make a Store.
type Options struct {
	ID       string // memstore_…
	ReadOnly bool
	Remote   Remote
	Folder   Folder
	Ledger   Ledger
	// Report hears of what people should know. It must not block.
	Report func(Report)
	Now    func() time.Time
}

// Report is what one pass came to.
type Report struct {
	Sent, Deleted, Fetched, Removed int // of files
	Warnings                        []Warning
}

// Store keeps one store and one folder in step. Its methods may be called from
// anywhere; they take turns.
type Store struct {
	o    Options
	turn chan struct{} // holds the one token

	known   map[string]Known
	ready   bool
	loaded  bool
	unsaved map[string]Known     // rows that the ledger lacks
	touched bool                 // the folder was changed since the last save
	refused map[string]string    // what the platform would not take, by path
	missing map[string]time.Time // see facts
	warned  map[string]string    // by path, what was warned of
}

// New returns a Store that has done nothing yet.
func New(o Options) *Store {
	s := &Store{
		o: o, turn: make(chan struct{}, 1), unsaved: map[string]Known{},
		refused: map[string]string{}, missing: map[string]time.Time{}, warned: map[string]string{},
	}
	s.turn <- struct{}{}
	return s
}

// ErrFolder means that the folder holds files without the right marker. Nothing
// is read from it or written to it.
var ErrFolder = errors.New("the folder has files but not the marker of this store, so it is left alone; empty it to have it filled again")

// Pauses between attempts.
const (
	pauseFirst = 250 * time.Millisecond
	pauseMost  = 5 * time.Second
)

// pause waits before attempt n+1; false when ctx ends first.
func pause(ctx context.Context, n int) bool {
	d := min(pauseFirst<<min(n-1, 10), pauseMost)
	t := time.NewTimer(d/2 + rand.N(d/2))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Open brings the folder up to date before anything looks at it: it downloads
// the store, or catches up with what happened while nobody synchronized. It tries
// until ctx ends, unless trying again cannot help. A nil return means that the
// folder has everything that the store has, but for what cannot be a file.
func (s *Store) Open(ctx context.Context) error {
	if !s.begin(ctx) {
		return context.Cause(ctx)
	}
	defer s.end()
	for n := 1; ; n++ {
		done, err := s.pass(ctx, mode{})
		switch {
		case err == nil && done.fetched:
			return nil
		case err == nil:
			err = errors.New("some memories could not be fetched")
		case errors.Is(err, ErrDenied), errors.Is(err, ErrMissing), errors.Is(err, ErrFolder):
			return fmt.Errorf("open memory store %s: %w", s.o.ID, err)
		}
		if !pause(ctx, n) {
			return fmt.Errorf("open memory store %s: %w", s.o.ID, err)
		}
	}
}

// Ready reports whether the store was once downloaded to its end, by this
// process or by an earlier one: the folder is then worth more than none.
func (s *Store) Ready(ctx context.Context) bool {
	if !s.begin(ctx) {
		return false
	}
	defer s.end()
	return s.load(ctx) == nil && s.ready
}

// Sync makes one pass in both directions.
func (s *Store) Sync(ctx context.Context) error {
	if !s.begin(ctx) {
		return context.Cause(ctx)
	}
	defer s.end()
	_, err := s.pass(ctx, mode{})
	return err
}

// Finish is the last synchronization of a clean end: it goes on until both sides
// agree or ctx ends, and does not wait before it deletes.
func (s *Store) Finish(ctx context.Context) error { return s.until(ctx, mode{final: true}) }

// Flush sends what was written here, and does nothing else. It goes on until all
// of it is sent or ctx ends.
func (s *Store) Flush(ctx context.Context) error { return s.until(ctx, mode{flush: true}) }

// passes bounds how often until tries: what does not settle by then will not.
const passes = 20

func (s *Store) until(ctx context.Context, m mode) error {
	if !s.begin(ctx) {
		return context.Cause(ctx)
	}
	defer s.end()
	for n := 1; ; n++ {
		done, err := s.pass(ctx, m)
		switch {
		case err == nil && !done.again:
			return nil
		case errors.Is(err, ErrDenied), errors.Is(err, ErrMissing), errors.Is(err, ErrFolder):
			return err
		case err == nil:
			err = errors.New("some changes are not settled")
		}
		if n >= passes || !pause(ctx, n) {
			return fmt.Errorf("synchronize memory store %s: %w", s.o.ID, err)
		}
	}
}

// begin waits for this caller's turn.
func (s *Store) begin(ctx context.Context) bool {
	select {
	case <-s.turn:
		return true
	case <-ctx.Done():
		return false
	}
}

func (s *Store) end() { s.turn <- struct{}{} }

// load reads what is on record, once.
func (s *Store) load(ctx context.Context) error {
	if s.loaded {
		return nil
	}
	known, ready, err := s.o.Ledger.Load(ctx)
	if err != nil {
		return fmt.Errorf("read what was last agreed: %w", err)
	}
	if known == nil {
		known = map[string]Known{}
	}
	s.known, s.ready, s.loaded = known, ready, true
	return nil
}

// note changes what is known about a path; save puts it on record.
func (s *Store) note(path string, k Known) {
	if s.known[path] == k {
		return
	}
	if k == (Known{}) {
		delete(s.known, path)
	} else {
		s.known[path] = k
	}
	s.unsaved[path] = k
}

// save puts on record what is known. It outlives ctx a little: what was done is
// worth knowing.
func (s *Store) save(ctx context.Context, ready bool) error {
	if len(s.unsaved) == 0 && ready == s.ready {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), saveWithin)
	defer cancel()
	if s.touched { // a file that the host lost would look like an edit
		if err := s.o.Folder.Keep(); err != nil {
			return fmt.Errorf("keep what was written: %w", err)
		}
		s.touched = false
	}
	if err := s.o.Ledger.Save(ctx, s.unsaved, ready); err != nil {
		return fmt.Errorf("record what is agreed: %w", err)
	}
	s.ready = ready
	clear(s.unsaved)
	return nil
}

const saveWithin = 10 * time.Second

// warn keeps the warnings that were not given before.
func (s *Store) warn(r *Report, all []Warning) {
	for _, w := range all {
		key := w.of + w.Text
		if s.warned[w.Path] == key {
			continue
		}
		s.warned[w.Path] = key
		r.Warnings = append(r.Warnings, w)
	}
}
