package local

import (
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
)

const (
	maxStoreName        = 255
	maxStoreDescription = 1024
)

// memoryStores is the collection. Safe for concurrent use.
type memoryStores struct {
	now func() time.Time

	mu    sync.Mutex
	byID  map[string]*memoryStore
	order []string // ids, oldest first
}

func newMemoryStores(now func() time.Time) *memoryStores {
	return &memoryStores{now: now, byID: map[string]*memoryStore{}}
}

// storeCreate and storeUpdate are the bodies of the two POSTs.
type storeCreate struct {
	Name        string            `json:"name"`
	Description string            `json:"description"`
	Metadata    map[string]string `json:"metadata"`
}

type storeUpdate struct {
	Name        maybe[string]             `json:"name"`
	Description maybe[string]             `json:"description"`
	Metadata    maybe[map[string]*string] `json:"metadata"`
}

// storeReply is a store as replied.
type storeReply struct {
	ID          string            `json:"id"`
	Type        string            `json:"type"`
	Name        string            `json:"name"`
	Description string            `json:"description"`
	Metadata    map[string]string `json:"metadata"`
	CreatedAt   string            `json:"created_at"`
	UpdatedAt   string            `json:"updated_at"`
	ArchivedAt  any               `json:"archived_at"`
}

func (c *memoryStores) create(in storeCreate) (storeReply, *apiError) {
	if err := checkStore(in.Name, in.Description, in.Metadata); err != nil {
		return storeReply{}, err
	}
	now := c.now()
	s := &memoryStore{
		id: newID("memstore_"), now: c.now, created: now,
		name: in.Name, description: in.Description, metadata: orEmpty(in.Metadata), updated: now,
		memories: map[string]memory{}, paths: map[string]string{}, folders: map[string]int{},
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.byID[s.id] = s
	c.order = append(c.order, s.id)
	return s.reply(), nil
}

func (c *memoryStores) find(id string) (*memoryStore, *apiError) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.byID[id]
	if !ok {
		return nil, fail(404, "memory store %s was not found", id)
	}
	return s, nil
}

// all returns the stores that keep accepts, newest first.
func (c *memoryStores) all(keep func(created time.Time, archived bool) bool) []storeReply {
	c.mu.Lock()
	stores := make([]*memoryStore, 0, len(c.order))
	for _, id := range slices.Backward(c.order) {
		stores = append(stores, c.byID[id])
	}
	c.mu.Unlock()
	var found []storeReply
	for _, s := range stores {
		if r := s.reply(); keep(s.created, r.ArchivedAt != nil) {
			found = append(found, r)
		}
	}
	return found
}

// remove deletes a store with everything in it.
func (c *memoryStores) remove(id string) *apiError {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.byID[id]; !ok {
		return fail(404, "memory store %s was not found", id)
	}
	delete(c.byID, id)
	c.order = slices.DeleteFunc(c.order, func(o string) bool { return o == id })
	return nil
}

// Store implements memorySource.
func (c *memoryStores) Store(id string) (storeInfo, *apiError) {
	s, err := c.find(id)
	if err != nil {
		return storeInfo{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.writable(); err != nil {
		return storeInfo{}, err
	}
	return storeInfo{Name: s.name, Description: s.description}, nil
}

// change updates what the store says about itself.
func (s *memoryStore) change(in storeUpdate) (storeReply, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.writable(); err != nil {
		return storeReply{}, err
	}
	name, description, metadata := s.name, s.description, s.metadata
	if in.Name.given() {
		name = in.Name.Value
	}
	if in.Description.Sent {
		description = in.Description.Value // null and "" clear it
	}
	var err *apiError
	if in.Metadata.given() {
		if metadata, err = mergedMetadata(metadata, in.Metadata.Value); err != nil {
			return storeReply{}, err
		}
	}
	if err := checkStore(name, description, metadata); err != nil {
		return storeReply{}, err
	}
	s.name, s.description, s.metadata, s.updated = name, description, metadata, s.now()
	return s.replyLocked(), nil
}

// archive makes the store refuse writes and new attachments. It is idempotent.
func (s *memoryStore) archive() storeReply {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.archived.IsZero() {
		s.archived = s.now()
		s.updated = s.archived
	}
	return s.replyLocked()
}

func (s *memoryStore) reply() storeReply {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.replyLocked()
}

// replyLocked is reply for callers that hold the lock.
func (s *memoryStore) replyLocked() storeReply {
	return storeReply{
		ID: s.id, Type: "memory_store", Name: s.name, Description: s.description, Metadata: s.metadata,
		CreatedAt: stamp(s.created), UpdatedAt: stamp(s.updated), ArchivedAt: stampOrNil(s.archived),
	}
}

func checkStore(name, description string, metadata map[string]string) *apiError {
	if err := bounded("name", name, 1, maxStoreName); err != nil {
		return err
	}
	if strings.ContainsFunc(name, unicode.IsControl) {
		return fail(400, "name: must not contain control characters")
	}
	if err := bounded("description", description, 0, maxStoreDescription); err != nil {
		return err
	}
	return boundedMetadata(metadata)
}
