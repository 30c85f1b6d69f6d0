// Package sandbox holds the contracts between a session and the place where its
// tools run. Implementations live in folders below; each passes sandboxtest.
package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"time"

	"github.com/berth-dev/berth/internal/tool"
)

// Backend makes sandboxes of one kind. Safe for concurrent use.
type Backend interface {
	// Name is the constant that configuration, API and store know this kind by.
	Name() string
	// Features says what this kind can do on this host.
	Features() Features
	// Create makes and starts the sandbox with s.ID and returns when its guest
	// answers. It is idempotent on s.ID: a running sandbox with that id is
	// returned as it is. Files left in its workspace by an earlier sandbox with
	// the same id are kept. On error nothing is left running.
	Create(ctx context.Context, s Spec) (Sandbox, error)
	// Attach finds a sandbox that an earlier process created. ErrGone when it
	// no longer runs.
	Attach(ctx context.Context, ref Ref) (Sandbox, error)
	// List returns everything on this host that this backend made under its
	// data directory, running or not, for the sweeper.
	List(ctx context.Context) ([]Ref, error)
	// Remove ends a sandbox that List returned and removes what it has on the
	// host, running or not. It does what Sandbox.Destroy does, and is idempotent.
	Remove(ctx context.Context, ref Ref, how Removal) error
	// Close releases what the process holds; sandboxes keep running.
	Close() error
}

// Sandbox is one isolated place. Safe for concurrent use.
type Sandbox interface {
	// Ref is small, serialisable and enough for Attach.
	Ref() Ref
	// Guest returns the connection to our end inside. The same Guest is
	// returned while its connection lives; after it broke, the next call
	// connects anew.
	Guest(ctx context.Context) (Guest, error)
	// Wait blocks until the sandbox has ended, by itself or by Destroy.
	Wait(ctx context.Context) (Exit, error)
	// Destroy ends all processes and removes every trace on the host. With
	// KeepFiles the workspace folder stays for a later Create with the same id.
	// It is idempotent: nil when the sandbox is already gone.
	Destroy(ctx context.Context, how Removal) error
}

// Removal says what Destroy leaves behind.
type Removal int

// The two ways to remove a sandbox.
const (
	Everything Removal = iota // the workspace too
	KeepFiles                 // processes end, the workspace stays
)

// Spec describes a sandbox to be made.
type Spec struct {
	ID      string            // from ID(); fixed length, so that no id is a prefix of another
	Session string            // the session it belongs to, as a label
	Image   string            // "host", or what else the backend can make a sandbox from (docs/images.md)
	Env     map[string]string // environment of the agent's commands; never a credential
	Limits  Limits
	Shares  []Share // at most MaxShares
	// Pulling hears of the progress of a pull that Create has to wait for; it may
	// be nil.
	Pulling func(ImageProgress)
}

// MaxShares bounds the shares of one sandbox.
const MaxShares = 16

// Share is a folder that the host and the inside of a sandbox see at the same
// time: what one writes the other sees. The file tools reach it as they reach
// the workspace.
type Share struct {
	// Path is where it is inside: clean, absolute, below /mnt or /workspace.
	// What the workspace already has there, and is no empty folder, is kept
	// beside it as <name>.aside-N.
	Path string `json:"path"`
	// Dir is a folder of the host, which must belong to nobody inside: such a
	// share is read-only, and several sandboxes may show the same folder. When
	// it is "" the backend makes a folder that lives as long as the workspace.
	Dir string `json:"dir,omitempty"`
	// ReadOnly keeps the inside from changing anything.
	ReadOnly bool `json:"read_only,omitempty"`
}

// Sharer is an optional power of a Sandbox: it shows folders of the host.
type Sharer interface {
	// Shared returns the host's folder behind a share that has no Dir of its
	// own; ErrUnknownShare when the sandbox was made without it. It stays valid
	// as long as the workspace.
	Shared(path string) (SharedDir, error)
}

// SharedDir is the host's side of a share. What is in it was put there by
// hostile code: links must not be followed, and anything may change at any time.
type SharedDir struct {
	Dir string
	// UID and GID are the agent's on the host: what it shall be able to change
	// has to belong to them.
	UID, GID int
}

// Limits bound what a sandbox may use. Zero means the backend's default.
type Limits struct {
	MemoryBytes int64   `json:"memory_bytes"`
	CPUs        float64 `json:"cpus"`
	Processes   int64   `json:"processes"`
	OpenFiles   uint64  `json:"open_files"`
	DiskBytes   int64   `json:"disk_bytes"` // all that is written, in and outside the workspace; see Features.Disk
}

// Ref identifies a sandbox across processes.
type Ref struct {
	ID      string `json:"id"`
	Backend string `json:"backend"`
	Session string `json:"session"`
}

// Exit tells how a sandbox ended.
type Exit struct {
	Code   int    // exit status of the first process, -1 when unknown
	Reason string // "exited", "killed", "out of memory", "destroyed"
}

// Features says what a backend can do on this host. It drives documentation,
// API and doctor.
type Features struct {
	Isolation  string `json:"isolation"`  // "gvisor", "vm", Namespaces, …
	Linux      bool   `json:"linux"`      // a full Linux with processes
	Terminal   bool   `json:"terminal"`   // Guest.Terminal works
	Checkpoint bool   `json:"checkpoint"` // processes can be saved and restored
	Limits     bool   `json:"limits"`     // Spec.Limits are enforced, but for
	Disk       bool   `json:"disk"`       // … DiskBytes
	Shares     bool   `json:"shares"`     // Spec.Shares are shown; its sandboxes are Sharers
	Note       string `json:"note,omitempty"`
}

// Namespaces is the isolation of backends whose sandboxes share the host's
// kernel. What the kernel says of the whole machine is said inside, too, and a
// lack of memory ends the process that wants it, not the sandbox.
const Namespaces = "namespaces"

// ID derives a sandbox id from a session id: "b" and 24 hex digits. One session
// has one sandbox, across work items and restarts.
func ID(session string) string {
	sum := sha256.Sum256([]byte(session))
	return "b" + hex.EncodeToString(sum[:12])
}

// Guest is our end inside a sandbox. Safe for concurrent use. What it returns
// was produced beside hostile code: it is bounded, and nothing in it is trusted.
type Guest interface {
	// Instance identifies this run of the guest: it changes when the guest or
	// its sandbox is started anew, so that the ledger can tell "the guest never
	// heard of this call" from "the guest that ran this call is gone".
	Instance() string
	// Ping makes one round trip to our end inside, whatever else runs there.
	Ping(ctx context.Context) error
	// Call runs a tool and blocks until its result is there. It is idempotent
	// on c.ID: a running call is attached to, a finished one returns the same
	// result again until it is acknowledged. Cancelling ctx only stops waiting;
	// Cancel stops the work. ErrDisconnected when the connection broke: the
	// call goes on inside, and Call on a new Guest attaches to it.
	Call(ctx context.Context, c tool.Call) (tool.Result, error)
	// Recall attaches to a call without starting it: ErrUnknownCall when this
	// guest instance never heard of it.
	Recall(ctx context.Context, id string) (tool.Result, error)
	// Cancel stops a running call. Its Call returns a cancelled error result.
	// No error for unknown or finished calls.
	Cancel(ctx context.Context, id string) error
	// Acknowledge lets the guest drop the results of these calls. It keeps
	// their ids, so that a late Call with one of them never runs it again.
	Acknowledge(ctx context.Context, ids ...string) error
	// Exec runs argv outside the ledger, for people and set-up.
	Exec(ctx context.Context, e Exec) (ExecResult, error)
	// Terminal opens an interactive shell.
	Terminal(ctx context.Context, size Size) (Terminal, error)
	// Close drops the connection; the guest and its calls go on.
	Close() error
}

// Exec is a one-shot command. Argv[0] is looked up in PATH. Output beyond
// MaxOutput bytes per stream is cut from the front.
type Exec struct {
	Argv    []string          `json:"argv"`
	Dir     string            `json:"dir,omitempty"` // default /workspace
	Env     map[string]string `json:"env,omitempty"`
	Stdin   []byte            `json:"stdin,omitempty"` // at most 1 MiB
	Timeout time.Duration     `json:"timeout,omitempty"`
}

// ExecResult is the outcome of Exec.
type ExecResult struct {
	Stdout    []byte `json:"stdout"`
	Stderr    []byte `json:"stderr"`
	Code      int    `json:"code"` // -1 when killed
	TimedOut  bool   `json:"timed_out,omitempty"`
	Truncated bool   `json:"truncated,omitempty"`
}

// Size is a terminal's size in character cells.
type Size struct {
	Cols uint16 `json:"cols"`
	Rows uint16 `json:"rows"`
}

// Terminal is an interactive shell inside a sandbox. Read and Write are one
// byte stream each; Read returns io.EOF after the shell ended.
type Terminal interface {
	io.ReadWriteCloser
	Resize(Size) error
	// Wait blocks until the shell has ended and returns its exit status.
	Wait(ctx context.Context) (int, error)
}

// Info is one finding about a host, for doctor.
type Info struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Warn bool   `json:"warn,omitempty"` // it works, but with less than it could
	Text string `json:"text"`
	Fix  string `json:"fix,omitempty"`
}

// Doctor is an optional power of a Backend: it checks what this host lacks.
type Doctor interface {
	Check(ctx context.Context) []Info
}

// Pool is an optional power of a Backend: it keeps sandboxes ready, so that the
// next Create finds one running. Fill does so until ctx ends, and removes those
// that nobody got, of earlier processes too, even when ctx has ended already. It
// runs once at a time.
type Pool interface {
	Fill(ctx context.Context)
}

// ImageChecker is an optional power of a Backend: it says, without looking for
// the image, whether it could make a sandbox of one with this name. The error is
// a fault that tells what it takes.
type ImageChecker interface {
	CheckImage(image string) error
}

// MarshalRef and UnmarshalRef are the stored form of a Ref.
func MarshalRef(r Ref) string {
	b, _ := json.Marshal(r) // a struct of strings cannot fail
	return string(b)
}

// UnmarshalRef parses what MarshalRef wrote.
func UnmarshalRef(s string) (Ref, error) {
	var r Ref
	err := json.Unmarshal([]byte(s), &r)
	return r, err
}
