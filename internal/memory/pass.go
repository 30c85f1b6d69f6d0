package memory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
)

// How many requests are under way at once (contract §6.2).
const (
	fetchesAtOnce = 16
	uploadsAtOnce = 8
	flushesAtOnce = 32
)

// mode is what kind of pass is made.
type mode struct {
	final bool
	flush bool
}

// outcome is how a pass ended.
type outcome struct {
	fetched bool // everything that had to come was fetched
	again   bool // something is not settled: another pass may settle it
}

// pass brings both sides closer together. Its error says that it could not be
// made, or not to its end; what it did is noted all the same.
func (s *Store) pass(ctx context.Context, m mode) (out outcome, err error) {
	if err := s.load(ctx); err != nil {
		return out, err
	}
	var r Report
	defer func() {
		if r.Sent+r.Deleted+r.Fetched+r.Removed+len(r.Warnings) > 0 {
			s.o.Report(r)
		}
	}()
	l, err := s.o.Folder.List(ctx)
	if err != nil {
		return out, fmt.Errorf("look through the folder: %w", err)
	}
	if l.Marker != markerOf(s.o.ID) {
		if len(l.Files)+len(l.Odd) > 0 || l.Partial {
			return out, ErrFolder
		}
		if m.flush {
			return out, nil // there is nothing to send
		}
		return s.rebuild(ctx, &r)
	}
	s.warn(&r, l.Odd)
	if m.flush && !s.dirty(l) {
		return out, nil
	}
	remote, err := s.list(ctx, &r)
	if err != nil {
		return out, err
	}
	for path, k := range settle(s.known, remote) {
		s.note(path, k)
	}
	if len(l.Files) == 0 && !l.Partial && s.agreed() > 1 && !m.flush {
		return s.rebuild(ctx, &r) // a wiped folder is not a set of deletions
	}
	p := plan(s.o.Now(), facts{
		known: s.known, local: l.Files, partial: l.Partial, remote: remote, refused: s.refused, missing: s.missing,
	}, rules{readOnly: s.o.ReadOnly, final: m.final, flush: m.flush})
	if !m.flush {
		s.missing = p.missing
	}
	maps.DeleteFunc(s.refused, func(path, sha string) bool { return l.Files[path].SHA256 != sha })
	for path, k := range p.agreed {
		s.note(path, k)
	}
	s.warn(&r, p.warnings)
	out.fetched = true
	err = s.carryOut(ctx, p, m, &r, &out)
	out.again = out.again || p.held > 0 && m.final || !out.fetched
	return out, errors.Join(err, s.save(ctx, s.ready || err == nil && out.fetched && !m.flush))
}

// dirty reports whether the folder has something that was not sent.
func (s *Store) dirty(l Listing) bool {
	if s.o.ReadOnly {
		return false
	}
	for path, f := range l.Files {
		k := s.known[path]
		if f.Problem == "" && (f.SHA256 != k.SHA256 || k.Sent != "") && s.refused[path] != f.SHA256 {
			return true
		}
	}
	return false
}

func (s *Store) agreed() int {
	n := 0
	for _, k := range s.known {
		if k.SHA256 != "" {
			n++
		}
	}
	return n
}

// list reads what the store has, without contents.
func (s *Store) list(ctx context.Context, r *Report) (map[string]Entry, error) {
	remote := map[string]Entry{}
	err := s.o.Remote.List(ctx, false, func(page []Entry) error {
		for _, e := range page {
			if s.usable(e, r) {
				remote[e.Path] = e
			}
		}
		return nil
	})
	return remote, err
}

// usable reports whether an entry can be a file here.
func (s *Store) usable(e Entry, r *Report) bool {
	if err := CheckPath(e.Path); err != nil {
		s.warn(r, []Warning{{Path: e.Path, Text: "the platform has it, and it cannot be a file: " + err.Error()}})
		return false
	}
	return e.ID != "" && e.SHA256 != ""
}

// rebuild fills an empty folder with everything that the store has. Nothing is
// deleted or sent because of it: what was known is forgotten first.
func (s *Store) rebuild(ctx context.Context, r *Report) (out outcome, err error) {
	for path := range maps.Clone(s.known) {
		s.note(path, Known{})
	}
	clear(s.missing)
	if err := s.save(ctx, false); err != nil {
		return out, err
	}
	if err := s.o.Folder.SetMarker(markerOf(s.o.ID)); err != nil {
		return out, fmt.Errorf("mark the folder: %w", err)
	}
	err = s.o.Remote.List(ctx, true, func(page []Entry) error {
		for _, e := range page {
			if s.usable(e, r) {
				s.put(pull{entry: e}, e.Content, r)
			}
		}
		return s.save(ctx, false)
	})
	out.fetched = err == nil
	return out, errors.Join(err, s.save(ctx, err == nil))
}

// put writes an entry's content to the folder. What cannot be written is
// reported and tried again by the next pass.
func (s *Store) put(p pull, content string, r *Report) {
	var err error
	e := p.entry
	if Hash(content) != e.SHA256 {
		err = errors.New("its content does not have the hash that the platform says")
	} else {
		err = s.o.Folder.Write(e.Path, content, p.was)
		s.touched = true
	}
	if err == nil {
		s.note(e.Path, Known{SHA256: e.SHA256})
		r.Fetched++
	} else if !errors.Is(err, ErrChanged) {
		s.warn(r, []Warning{{Path: e.Path, Text: "it could not be written: " + err.Error(), of: e.SHA256}})
	}
}

// carryOut does what was planned. Room is made first: no file lies below another.
func (s *Store) carryOut(ctx context.Context, p steps, m mode, r *Report, out *outcome) error {
	for _, d := range p.removes {
		switch err := s.o.Folder.Remove(d.path, d.was); {
		case err == nil:
			s.note(d.path, Known{})
			s.touched = true
			r.Removed++
		case !errors.Is(err, ErrChanged): // else the next pass sees what it is now
			s.warn(r, []Warning{{Path: d.path, Text: "it was deleted at the platform and could not be removed here: " + err.Error(), of: d.was}})
		}
	}
	var errs []error
	for _, d := range p.deletes {
		if err := s.delete(ctx, d, r, out); err != nil {
			errs = append(errs, err)
			if stops(ctx, err) {
				return err
			}
		}
	}
	errs = append(errs, s.pull(ctx, p.pulls, r, out), s.upload(ctx, p.uploads, m, r, out))
	return errors.Join(errs...)
}

// stops reports whether the rest of a pass need not be tried.
func stops(ctx context.Context, err error) bool { return ctx.Err() != nil || errors.Is(err, ErrDenied) }

// delete removes an entry whose file is still missing.
func (s *Store) delete(ctx context.Context, d deletion, r *Report, out *outcome) error {
	if !s.gone(d.path) {
		return nil
	}
	err := s.o.Remote.Delete(ctx, d.id, d.was)
	out.again = true
	switch {
	case err == nil, errors.Is(err, ErrMissing):
		s.note(d.path, Known{})
		delete(s.missing, d.path)
		r.Deleted++
	case errors.Is(err, ErrConflict):
		delete(s.missing, d.path) // the next pass restores what it is now
	case errors.Is(err, ErrInvalid):
		delete(s.missing, d.path)
		s.warn(r, []Warning{{Path: d.path, Text: "the platform does not delete it: " + err.Error(), of: d.was}})
	default:
		return err // it is not known whether it was done: the next listing tells
	}
	return nil
}

// gone reports whether a file is certainly missing, from a folder that was not
// wiped meanwhile.
func (s *Store) gone(path string) bool {
	marker, err := s.o.Folder.CheckMarker()
	if err != nil || marker != markerOf(s.o.ID) {
		return false
	}
	file, err := s.o.Folder.Look(path)
	return err == nil && file == nil
}

// pull fetches and writes, several at once.
func (s *Store) pull(ctx context.Context, pulls []pull, r *Report, out *outcome) error {
	return s.each(ctx, len(pulls), fetchesAtOnce, func(ctx context.Context, i int, locked func(func())) error {
		p := pulls[i]
		e, err := s.o.Remote.Fetch(ctx, p.entry.ID)
		var fatal error
		locked(func() {
			switch {
			case err == nil && e.Path == p.entry.Path && e.SHA256 == p.entry.SHA256:
				s.put(p, e.Content, r)
			case err == nil, errors.Is(err, ErrMissing):
				out.fetched, out.again = false, true // it changed since it was listed
			default:
				out.fetched, fatal = false, err
			}
		})
		return fatal
	})
}

// upload sends files, several at once. What is sent is on record before, so that
// it is known again whatever becomes of the answer.
func (s *Store) upload(ctx context.Context, uploads []upload, m mode, r *Report, out *outcome) error {
	if len(uploads) == 0 {
		return nil
	}
	for _, u := range uploads {
		k := s.known[u.path]
		k.Sent = u.sha
		s.note(u.path, k)
	}
	if err := s.save(ctx, s.ready); err != nil {
		return err
	}
	atOnce := uploadsAtOnce
	if m.final || m.flush {
		atOnce = flushesAtOnce
	}
	return s.each(ctx, len(uploads), atOnce, func(ctx context.Context, i int, locked func(func())) error {
		u := uploads[i]
		content, err := s.o.Folder.Read(u.path)
		var failed error
		if err != nil || Hash(content) != u.sha {
			locked(func() { out.again = true }) // it has changed: the next pass sends what it is now
		} else {
			e, err := s.send(ctx, u, content)
			locked(func() { failed = s.sent(u, e, err, r, out) })
		}
		return failed
	})
}

// send creates or updates; an entry that was deleted meanwhile is created again,
// because the file is now the only copy.
func (s *Store) send(ctx context.Context, u upload, content string) (Entry, error) {
	if u.id != "" {
		e, err := s.o.Remote.Update(ctx, u.id, content, u.was)
		if !errors.Is(err, ErrMissing) {
			return e, err
		}
	}
	return s.o.Remote.Create(ctx, u.path, content)
}

// sent notes what became of an upload.
func (s *Store) sent(u upload, e Entry, err error, r *Report, out *outcome) error {
	switch {
	case err == nil:
		s.note(u.path, Known{SHA256: u.sha})
		r.Sent++
		if e.SHA256 != u.sha {
			out.again = true // somebody was faster: the next listing tells
		}
		return nil
	case errors.Is(err, ErrConflict):
		// Somebody else was faster, or it was an earlier attempt of ours: the
		// next listing tells them apart.
		out.again = true
		return nil
	case errors.Is(err, ErrInvalid):
		s.refused[u.path] = u.sha
		s.note(u.path, Known{SHA256: s.known[u.path].SHA256})
		s.warn(r, []Warning{{Path: u.path, Text: "the platform does not take it, so it is not kept until it changes: " + err.Error(), of: u.sha}})
		return nil
	case errors.Is(err, ErrDenied), errors.Is(err, ErrMissing):
		return err
	}
	out.again = true
	return err
}

// each runs f for 0…n-1, a few at a time, and returns the first error. locked
// guards what the runs share.
func (s *Store) each(ctx context.Context, n, atOnce int, f func(ctx context.Context, i int, locked func(func())) error) error {
	var (
		mu    sync.Mutex
		wg    sync.WaitGroup
		first error
		next  int
		stop  bool
	)
	locked := func(do func()) {
		mu.Lock()
		defer mu.Unlock()
		do()
	}
	for range min(n, atOnce) {
		wg.Go(func() {
			for {
				i := -1
				locked(func() {
					if next < n && !stop && ctx.Err() == nil {
						i = next
						next++
					}
				})
				if i < 0 {
					return
				}
				if err := f(ctx, i, locked); err != nil {
					locked(func() {
						if first == nil {
							first = err
						}
						stop = stop || stops(ctx, err)
					})
				}
			}
		})
	}
	wg.Wait()
	if first == nil && next < n {
		first = context.Cause(ctx)
	}
	return first
}

// Pending returns the paths of the folder that were not sent, for a last report.
func (s *Store) Pending(ctx context.Context) []string {
	if s.o.ReadOnly || !s.begin(ctx) {
		return nil
	}
	defer s.end()
	l, err := s.o.Folder.List(ctx)
	if err != nil || s.load(ctx) != nil || l.Marker != markerOf(s.o.ID) {
		return nil
	}
	var out []string
	for _, path := range slices.Sorted(maps.Keys(l.Files)) {
		if f := l.Files[path]; f.Problem == "" && f.SHA256 != s.known[path].SHA256 && s.refused[path] != f.SHA256 {
			out = append(out, path)
		}
	}
	return out
}
