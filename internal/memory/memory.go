// Package memory keeps a memory store of the platform and a folder of a sandbox
// in step, by the rules of the official worker (contract §6.2):
//
//   - plan.go is the pure core: from what was last agreed, what is in the folder
//     and what is in the store it decides what has to be done;
//   - store.go and pass.go are the rim: one Store per session and store;
//   - folder is the folder on the host, in which everything was put by hostile
//     code.
//
// Three rules carry it. What was last agreed with the platform is on record
// outside the sandbox, so that a local edit and a remote one can be told apart
// after any crash. Every change is conditional on what it replaces, on both
// sides. And where both sides changed, the platform's version wins, and that is
// reported.
package memory

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
)

// Bounds of a store (contract §6.2).
const (
	MaxContent = 102_400 // of one memory, in bytes
	MaxFiles   = 10_000
)

// Marker is the reserved file at the root of the folder. A folder that has files
// but not the right marker is left alone: it may be anything.
const Marker = ".anthropic-memory-store"

func markerOf(store string) string { return "version 1\n" + store }

// Entry is one memory of a store.
type Entry struct {
	ID      string
	Path    string // absolute within the store, such as /notes/todo.md
	Content string // "" unless it was asked for
	SHA256  string // of the content, lower-case hex
}

// Remote is a store at the platform. Its errors wrap one of those below when the
// platform answered so; any other error means that it is not known whether a
// change was made. Changes are sent once. Safe for concurrent use.
type Remote interface {
	// List yields the entries page by page, with contents when full is set. A nil
	// return means that the list was read to its end.
	List(ctx context.Context, full bool, yield func([]Entry) error) error
	// Fetch reads one entry with its content.
	Fetch(ctx context.Context, id string) (Entry, error)
	// Create adds an entry and never replaces one.
	Create(ctx context.Context, path, content string) (Entry, error)
	// Update replaces a content that has the expected hash.
	Update(ctx context.Context, id, content, expected string) (Entry, error)
	// Delete removes an entry whose content has the expected hash.
	Delete(ctx context.Context, id, expected string) error
}

// What a Remote may be refused for.
var (
	ErrConflict = errors.New("the memory is not as expected")           // 409, 412
	ErrMissing  = errors.New("there is no such memory")                 // 404
	ErrInvalid  = errors.New("the platform does not take this content") // 400, 413, 422
	ErrDenied   = errors.New("the platform denies the access")          // 401, 403, or no credential at all
)

// File is what lies at a path of the folder.
type File struct {
	SHA256 string
	// Problem says why it cannot be a memory; SHA256 then changes with the file
	// and is no hash of it.
	Problem string
}

// Listing is the folder as it was found.
type Listing struct {
	Files  map[string]File // by path in the store, the marker left out
	Marker string          // content of the marker file, "" when there is none
	// Partial says that something could not be looked at: what is not in Files
	// may be there all the same.
	Partial bool
	// Odd are warnings of things that no path of a store can name, or that were
	// not looked at.
	Odd []Warning
}

// Folder is a folder of a sandbox as the host sees it. Anything in it may change
// at any time. Safe for concurrent use.
type Folder interface {
	List(ctx context.Context) (Listing, error)
	// Look returns what lies at one path; nil when nothing does.
	Look(path string) (*File, error)
	// Read returns a content, at most MaxContent bytes of UTF-8.
	Read(path string) (string, error)
	// Write puts a content where a file with the hash was lies, or nothing when
	// was is "". ErrChanged when something else is there.
	Write(path, content, was string) error
	// Remove removes a file with this hash. ErrChanged when something else is
	// there; nil when nothing is.
	Remove(path, was string) error
	// SetMarker writes the marker.
	SetMarker(content string) error
	// CheckMarker returns the marker as it is now.
	CheckMarker() (string, error)
	// Keep makes what was written and removed survive the host.
	Keep() error
}

// ErrChanged means that a file is not what it was when it was looked at.
var ErrChanged = errors.New("the file has changed meanwhile")

// Known is what is on record about one path.
type Known struct {
	// SHA256 is the content that both sides had last; "" when they never agreed.
	SHA256 string
	// Sent is a content that was sent and not heard of.
	Sent string
}

// Ledger keeps what was last agreed about one store, where nothing in the
// sandbox can reach it.
type Ledger interface {
	// Load returns everything on record. ready says that the store was once
	// downloaded to its end.
	Load(ctx context.Context) (known map[string]Known, ready bool, err error)
	// Save replaces rows; a zero Known removes its row.
	Save(ctx context.Context, rows map[string]Known, ready bool) error
}

// Hash is the hash of a content as the platform writes it.
func Hash(content string) string {
	sum := sha256.Sum256([]byte(content))
	return hex.EncodeToString(sum[:])
}
