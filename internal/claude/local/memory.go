package local

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// A memory store holds texts at paths, and the history of every change to them
// (contract §2.6, §6.2):
//
//   - a path belongs to one memory, and no memory lies above or below another;
//   - a change may demand the hash of what it replaces (409 otherwise);
//   - every change adds a version that names its author, and only redaction
//     touches a version again; what changes nothing adds none.
//
// memory_paths.go holds the rules of paths and listings, memory_stores.go the
// stores themselves, memory_routes.go the API with its rules of access.

// Bounds of memories (contract §6.2).
const (
	maxMemoryBytes = 102_400
	maxMemories    = 10_000
)

// memoryStore is one store with its memories and their history. Its own lock
// guards it, so that sessions that share nothing do not wait for each other.
type memoryStore struct {
	id      string
	now     func() time.Time
	created time.Time

	mu          sync.Mutex
	name        string
	description string
	metadata    map[string]string
	updated     time.Time
	archived    time.Time
	memories    map[string]memory // by id
	paths       map[string]string // path to id
	folders     map[string]int    // how many memories lie below a path
	versions    []memoryVersion   // oldest first
}

// memory is the present state of one memory; version holds the content.
type memory struct {
	id      string
	path    string
	created time.Time
	version memoryVersion
}

// memoryVersion is one change. Only redaction alters it.
type memoryVersion struct {
	id        string
	memory    string
	operation string // created, modified, deleted
	path      string
	content   string
	sha256    string
	created   time.Time
	by        actor

	redacted   time.Time
	redactedBy actor
}

// actor is who made a change: a session or an API key.
type actor struct {
	Type    string `json:"type"`
	Session string `json:"session_id,omitempty"`
	KeyID   string `json:"api_key_id,omitempty"`
}

// memoryChange is the body of an update.
type memoryChange struct {
	Content      maybe[string]       `json:"content"`
	Path         maybe[string]       `json:"path"`
	Precondition maybe[precondition] `json:"precondition"`
}

type precondition struct {
	Type   string `json:"type"`
	SHA256 string `json:"content_sha256"`
}

func hashOf(content string) string {
	sum := sha256.Sum256([]byte(content))
	return hex.EncodeToString(sum[:])
}

// create adds a memory. It never replaces one.
func (s *memoryStore) create(path, content string, by actor) (memory, *apiError) {
	if err := checkMemoryPath(path); err != nil {
		return memory{}, err
	}
	if err := checkMemoryContent(content); err != nil {
		return memory{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.writable(); err != nil {
		return memory{}, err
	}
	if err := s.free(path); err != nil {
		return memory{}, err
	}
	if len(s.memories) >= maxMemories {
		return memory{}, fail(400, "the store holds %d memories and takes no more", maxMemories)
	}
	m := memory{id: newID("mem_"), path: path, created: s.now()}
	m.version = s.record(m.id, "created", path, content, by)
	s.memories[m.id] = m
	s.occupy(path, m.id)
	return m, nil
}

// update changes content, path or both. If both are already as wanted nothing
// happens, even when the precondition does not hold.
func (s *memoryStore) update(id string, in memoryChange, by actor) (memory, *apiError) {
	if p := in.Precondition; p.Sent && (p.Value.Type != "content_sha256" || !isSHA256(p.Value.SHA256)) {
		return memory{}, fail(400, "precondition: must be of type content_sha256 with 64 lower-case hexadecimal digits")
	}
	if !in.Content.given() && !in.Path.given() {
		return memory{}, fail(400, "send content, path or both")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.memory(id)
	if err != nil {
		return memory{}, err
	}
	path, content := m.path, m.version.content
	if in.Path.given() {
		path = in.Path.Value
		if err := checkMemoryPath(path); err != nil {
			return memory{}, err
		}
	}
	if in.Content.given() {
		content = in.Content.Value
		if err := checkMemoryContent(content); err != nil {
			return memory{}, err
		}
	}
	if err := s.writable(); err != nil {
		return memory{}, err
	}
	if path == m.path && content == m.version.content {
		return m, nil
	}
	if in.Precondition.Sent {
		if err := m.expect(in.Precondition.Value.SHA256); err != nil {
			return memory{}, err
		}
	}
	s.vacate(m.path)
	if err := s.free(path); err != nil {
		s.occupy(m.path, id)
		return memory{}, err
	}
	s.occupy(path, id)
	m.path = path
	m.version = s.record(id, "modified", path, content, by)
	s.memories[id] = m
	return m, nil
}

// remove deletes a memory, in an archived store too; its history stays.
// expected may be "".
func (s *memoryStore) remove(id, expected string, by actor) *apiError {
	if expected != "" && !isSHA256(expected) {
		return fail(400, "expected_content_sha256: must be 64 lower-case hexadecimal digits")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.memory(id)
	if err != nil {
		return err
	}
	if expected != "" {
		if err := m.expect(expected); err != nil {
			return err
		}
	}
	s.record(id, "deleted", m.path, "", by)
	delete(s.memories, id)
	s.vacate(m.path)
	return nil
}

func (s *memoryStore) get(id string) (memory, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.memory(id)
}

// history returns the versions that keep accepts, newest first.
func (s *memoryStore) history(keep func(memoryVersion) bool) []memoryVersion {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []memoryVersion
	for _, v := range slices.Backward(s.versions) {
		if keep(v) {
			found = append(found, v)
		}
	}
	return found
}

func (s *memoryStore) version(id string) (memoryVersion, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(id)
	if err != nil {
		return memoryVersion{}, err
	}
	return *v, nil
}

// redact erases what a version held, for ever; a second time changes nothing.
// The version that a memory shows now is refused: change or delete the memory
// first.
func (s *memoryStore) redact(id string, by actor) (memoryVersion, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(id)
	if err != nil {
		return memoryVersion{}, err
	}
	if m, ok := s.memories[v.memory]; ok && m.version.id == id {
		return memoryVersion{}, fail(400, "%s is the present version of %s; change or delete the memory first", id, v.memory)
	}
	if v.redacted.IsZero() {
		v.path, v.content, v.sha256 = "", "", ""
		v.redacted, v.redactedBy = s.now(), by
	}
	return *v, nil
}

// The rest is for callers that hold the lock.

func (s *memoryStore) writable() *apiError {
	if !s.archived.IsZero() {
		return fail(400, "memory store %s is archived", s.id)
	}
	return nil
}

func (s *memoryStore) memory(id string) (memory, *apiError) {
	m, ok := s.memories[id]
	if !ok {
		return m, fail(404, "memory %s was not found", id)
	}
	return m, nil
}

func (s *memoryStore) find(id string) (*memoryVersion, *apiError) {
	i := slices.IndexFunc(s.versions, func(v memoryVersion) bool { return v.id == id })
	if i < 0 {
		return nil, fail(404, "memory version %s was not found", id)
	}
	return &s.versions[i], nil
}

// occupy and vacate keep the index of paths.
func (s *memoryStore) occupy(path, id string) {
	s.paths[path] = id
	for dir := range ancestors(path) {
		s.folders[dir]++
	}
}

func (s *memoryStore) vacate(path string) {
	delete(s.paths, path)
	for dir := range ancestors(path) {
		if s.folders[dir]--; s.folders[dir] == 0 {
			delete(s.folders, dir)
		}
	}
}

// free checks that no memory is at path, above it or below it.
func (s *memoryStore) free(path string) *apiError {
	taken := ""
	if _, ok := s.paths[path]; ok {
		taken = path
	}
	for dir := range ancestors(path) {
		if _, ok := s.paths[dir]; ok {
			taken = dir
		}
	}
	if s.folders[path] > 0 {
		for below := range s.paths {
			if strings.HasPrefix(below, path+"/") {
				taken = below
				break
			}
		}
	}
	if taken == "" {
		return nil
	}
	return &apiError{
		Status: 409, Type: typePathConflict,
		Message: fmt.Sprintf("the path %s is in use or overlaps the path of another memory", path),
		Details: map[string]any{"conflicting_path": taken, "conflicting_memory_id": s.paths[taken]},
	}
}

// typePathConflict is the error whose details stand beside its message.
const typePathConflict = "memory_path_conflict_error"

func (m memory) expect(sha256 string) *apiError {
	if m.version.sha256 == sha256 {
		return nil
	}
	return &apiError{
		Status: 409, Type: "memory_precondition_failed_error",
		Message: "the content of the memory is not the expected one; retrieve it and try again",
	}
}

func (s *memoryStore) record(memory, operation, path, content string, by actor) memoryVersion {
	v := memoryVersion{
		id: newID("memver_"), memory: memory, operation: operation, path: path, content: content, sha256: hashOf(content),
		created: s.now(), by: by,
	}
	s.versions = append(s.versions, v)
	return v
}
