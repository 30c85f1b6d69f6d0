package sessiontest

import (
	"context"
	"maps"
	"slices"
	"strconv"

	"github.com/berth-dev/berth/internal/memory"
)

// Store is a memory store of a Claude. Its methods lock the platform.
type Store struct {
	claude  *Claude
	entries map[string]memory.Entry // by path
	made    int
}

// Store returns a memory store by its id, which exists from then on. It is
// attached to a session by SetInfo.
func (c *Claude) Store(id string) *Store {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stores == nil {
		c.stores = map[string]*Store{}
	}
	if c.stores[id] == nil {
		c.stores[id] = &Store{claude: c, entries: map[string]memory.Entry{}}
	}
	return c.stores[id]
}

// Put changes a memory as somebody else does; "" deletes it.
func (s *Store) Put(path, content string) {
	s.claude.mu.Lock()
	defer s.claude.mu.Unlock()
	s.put(path, content)
}

// Contents returns every memory by its path.
func (s *Store) Contents() map[string]string {
	s.claude.mu.Lock()
	defer s.claude.mu.Unlock()
	out := map[string]string{}
	for path, e := range s.entries {
		out[path] = e.Content
	}
	return out
}

func (s *Store) put(path, content string) memory.Entry {
	if content == "" {
		delete(s.entries, path)
		return memory.Entry{}
	}
	e, ok := s.entries[path]
	if !ok {
		s.made++
		e = memory.Entry{ID: "mem_" + strconv.Itoa(s.made), Path: path}
	}
	e.Content, e.SHA256 = content, memory.Hash(content)
	s.entries[path] = e
	return e
}

func (s *Store) find(id string) (memory.Entry, error) {
	for _, e := range s.entries {
		if e.ID == id {
			return e, nil
		}
	}
	return memory.Entry{}, memory.ErrMissing
}

// Memories implements session.Platform.
func (d door) Memories(store string) (memory.Remote, error) {
	s := d.Store(store)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.knobs.noToken {
		return nil, memory.ErrDenied
	}
	return attached{d, s}, nil
}

// NoToken makes work items carry no token for memory stores.
func (c *Claude) NoToken(none bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.knobs.noToken = none
}

// attached is a store as one work item sees it.
type attached struct {
	door  door
	store *Store
}

func (a attached) List(ctx context.Context, _ bool, yield func([]memory.Entry) error) error {
	var page []memory.Entry
	err := a.door.do(ctx, "memory.list", "", func() error {
		page = nil
		for _, path := range slices.Sorted(maps.Keys(a.store.entries)) {
			page = append(page, a.store.entries[path])
		}
		return nil
	})
	if err != nil {
		return err
	}
	return yield(page)
}

func (a attached) Fetch(ctx context.Context, id string) (e memory.Entry, err error) {
	err = a.door.do(ctx, "memory.fetch", "", func() (err error) { e, err = a.store.find(id); return err })
	return e, err
}

func (a attached) Create(ctx context.Context, path, content string) (e memory.Entry, err error) {
	err = a.door.do(ctx, "memory.create", "", func() error {
		if _, ok := a.store.entries[path]; ok {
			return memory.ErrConflict
		}
		e = a.store.put(path, content)
		return nil
	})
	return e, err
}

func (a attached) Update(ctx context.Context, id, content, expected string) (e memory.Entry, err error) {
	err = a.door.do(ctx, "memory.update", "", func() error {
		old, err := a.store.find(id)
		if err == nil && old.SHA256 != expected {
			err = memory.ErrConflict
		}
		if err == nil {
			e = a.store.put(old.Path, content)
		}
		return err
	})
	return e, err
}

func (a attached) Delete(ctx context.Context, id, expected string) error {
	return a.door.do(ctx, "memory.delete", "", func() error {
		old, err := a.store.find(id)
		if err == nil && old.SHA256 != expected {
			err = memory.ErrConflict
		}
		if err == nil {
			a.store.put(old.Path, "")
		}
		return err
	})
}
