package memory_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/berth-dev/berth/internal/memory"
)

// world is everything around a Store: a platform, a folder and a record, with
// faults. A process that has crashed can do nothing more.
type world struct {
	mu      sync.Mutex
	now     time.Time
	ids     int
	store   map[string]memory.Entry // at the platform, by path
	files   map[string]string       // in the folder
	odd     map[string]string       // what is in the folder and cannot be a memory: why
	marker  string
	partial bool
	rows    map[string]memory.Known
	ready   bool

	dead    bool
	budget  int                  // operations until the crash; negative: never
	fate    func(op string) fate // of a request
	applied map[string]int       // how often a content was written to the platform by us
	calls   map[string]int       // requests by kind
	reports []memory.Report
	broken  error // of the record
}

type fate int

const (
	arrives fate = iota
	lost         // on the way there
	unheard      // on the way back
	conflict
	invalid
	denied
)

var errNoAnswer = errors.New("no answer")

func newWorld() *world {
	return &world{
		now: time.Unix(1_800_000_000, 0), store: map[string]memory.Entry{}, files: map[string]string{}, odd: map[string]string{},
		rows: map[string]memory.Known{}, budget: -1, applied: map[string]int{}, calls: map[string]int{},
	}
}

// process is a Store as a new process makes it.
func (w *world) process(readOnly bool) *memory.Store {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dead, w.budget = false, -1
	return memory.New(memory.Options{
		ID: "memstore_1", ReadOnly: readOnly, Remote: remote{w}, Folder: disk{w}, Ledger: record{w},
		Now:    func() time.Time { return w.now },
		Report: func(r memory.Report) { w.mu.Lock(); w.reports = append(w.reports, r); w.mu.Unlock() },
	})
}

func (w *world) warnings() (out []string) {
	for _, r := range w.reports {
		for _, x := range r.Warnings {
			out = append(out, x.Path+": "+x.Text)
		}
	}
	return out
}

// put changes the platform's side as somebody else does; "" deletes.
func (w *world) put(path, content string) {
	if content == "" {
		delete(w.store, path)
		return
	}
	e, ok := w.store[path]
	if !ok {
		w.ids++
		e = memory.Entry{ID: fmt.Sprint("mem_", w.ids), Path: path}
	}
	e.Content, e.SHA256 = content, memory.Hash(content)
	w.store[path] = e
}

// contents is the platform's side.
func (w *world) contents() map[string]string {
	out := map[string]string{}
	for p, e := range w.store {
		out[p] = e.Content
	}
	return out
}

// step counts an operation; an error means that the process is dead.
func (w *world) step() error {
	if w.budget == 0 {
		w.dead = true
	}
	w.budget--
	if w.dead {
		return errors.New("the process is dead")
	}
	return nil
}

type remote struct{ *world }

// do makes a request.
func (w remote) do(ctx context.Context, op string, change func() error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	wasDead := w.dead
	if err := w.step(); err != nil {
		if !wasDead && w.ids%2 == 0 { // it died with the request on its way
			_ = change()
		}
		return err
	}
	w.calls[op]++
	f := arrives
	if w.fate != nil {
		f = w.fate(op)
	}
	switch f {
	case lost:
		return errNoAnswer
	case unheard:
		_ = change()
		return errNoAnswer
	case conflict:
		return memory.ErrConflict
	case invalid:
		return memory.ErrInvalid
	case denied:
		return memory.ErrDenied
	}
	return change()
}

func (w remote) List(ctx context.Context, full bool, yield func([]memory.Entry) error) error {
	var page []memory.Entry
	err := w.do(ctx, "list", func() error {
		page = nil
		for _, p := range slices.Sorted(maps.Keys(w.store)) {
			e := w.store[p]
			if !full {
				e.Content = ""
			}
			page = append(page, e)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return yield(page)
}

func (w remote) find(id string) (memory.Entry, error) {
	for _, e := range w.store {
		if e.ID == id {
			return e, nil
		}
	}
	return memory.Entry{}, memory.ErrMissing
}

func (w remote) Fetch(ctx context.Context, id string) (e memory.Entry, err error) {
	err = w.do(ctx, "fetch", func() (err error) { e, err = w.find(id); return err })
	return e, err
}

func (w remote) Create(ctx context.Context, path, content string) (e memory.Entry, err error) {
	err = w.do(ctx, "create", func() error {
		if _, ok := w.store[path]; ok {
			return memory.ErrConflict
		}
		w.put(path, content)
		w.applied[path+"="+content]++
		e = w.store[path]
		return nil
	})
	return e, err
}

func (w remote) Update(ctx context.Context, id, content, expected string) (e memory.Entry, err error) {
	err = w.do(ctx, "update", func() error {
		old, err := w.find(id)
		switch {
		case err != nil:
			return err
		case old.SHA256 != expected && old.SHA256 != memory.Hash(content):
			return memory.ErrConflict
		}
		w.put(old.Path, content)
		w.applied[old.Path+"="+content]++
		e = w.store[old.Path]
		return nil
	})
	return e, err
}

func (w remote) Delete(ctx context.Context, id, expected string) error {
	return w.do(ctx, "delete", func() error {
		old, err := w.find(id)
		switch {
		case err != nil:
			return err
		case old.SHA256 != expected:
			return memory.ErrConflict
		}
		w.put(old.Path, "")
		return nil
	})
}

type disk struct{ *world }

func (w disk) List(context.Context) (memory.Listing, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := memory.Listing{Files: map[string]memory.File{}, Marker: w.marker, Partial: w.partial}
	for p, c := range w.files {
		l.Files[p] = memory.File{SHA256: memory.Hash(c)}
	}
	for p, why := range w.odd {
		l.Files[p] = memory.File{SHA256: "odd " + why, Problem: why}
	}
	return l, w.step()
}

func (w disk) at(path string) *memory.File {
	if c, ok := w.files[path]; ok {
		return &memory.File{SHA256: memory.Hash(c)}
	}
	if why, ok := w.odd[path]; ok {
		return &memory.File{SHA256: "odd " + why, Problem: why}
	}
	return nil
}

func (w disk) Look(path string) (*memory.File, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.at(path), w.step()
}

func (w disk) Read(path string) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c, ok := w.files[path]
	if !ok {
		return "", errors.New("it is gone")
	}
	return c, w.step()
}

func (w disk) Write(path, content, was string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.step(); err != nil {
		return err
	}
	f := w.at(path)
	if was == "" && f != nil || was != "" && (f == nil || f.SHA256 != was) {
		return memory.ErrChanged
	}
	w.files[path] = content
	delete(w.odd, path)
	return nil
}

func (w disk) Remove(path, was string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.step(); err != nil {
		return err
	}
	if f := w.at(path); f != nil && f.SHA256 != was {
		return memory.ErrChanged
	}
	delete(w.files, path)
	return nil
}

func (w disk) SetMarker(content string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.step(); err != nil {
		return err
	}
	w.marker = content
	return nil
}

func (w disk) CheckMarker() (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.marker, w.step()
}

func (w disk) Keep() error { return nil }

type record struct{ *world }

func (w record) Load(context.Context) (map[string]memory.Known, bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.rows), w.ready, w.step()
}

func (w record) Save(_ context.Context, rows map[string]memory.Known, ready bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := errors.Join(w.broken, w.step()); err != nil {
		return err
	}
	for p, k := range rows {
		if k == (memory.Known{}) {
			delete(w.rows, p)
		} else {
			w.rows[p] = k
		}
	}
	w.ready = ready
	return nil
}
