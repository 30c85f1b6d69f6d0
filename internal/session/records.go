package session

import (
	"context"
	"time"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/memory"
	"github.com/berth-dev/berth/internal/sandbox"
)

// Phase is where a session stands here, as opposed to its status at the
// platform.
type Phase string

// The phases of a session.
const (
	Active Phase = "active" // a work item is held
	Warm   Phase = "warm"   // no work item; the sandbox still runs
	Parked Phase = "parked" // no sandbox; the workspace is kept
	Over   Phase = "over"   // ended; nothing is left but the records
)

// Record is what is stored about a session beside its calls.
type Record struct {
	ID           string
	Environment  string
	Agent        string
	AgentName    string
	AgentVersion int64
	Model        string
	Title        string
	Phase        Phase
	Memo         Memo
	Waiting      Waiting
	Backend      string
	Sandbox      *sandbox.Ref // nil when none runs
	SandboxSince time.Time
	CreatedAt    time.Time
	UpdatedAt    time.Time
	EndedAt      time.Time
	EndReason    string
	// Profile is what the sandbox was made with, and Revision that of its agent's
	// settings; nil when none runs.
	Profile  *Profile
	Revision int64
}

// WorkState is where a work item stands here.
type WorkState string

// The states of a work item.
const (
	WorkClaimed WorkState = "claimed" // acknowledged, or about to be; no beat yet
	WorkHeld    WorkState = "held"    // its lease was extended at least once
	WorkStopped WorkState = "stopped" // we ended it
	WorkLost    WorkState = "lost"    // the lease went to somebody else, or lapsed
)

// Work is the stored form of a claimed work item. A process that starts finds
// here what an earlier one held.
type Work struct {
	ID          string
	Session     string
	Environment string
	State       WorkState
	Secret      []byte // sealed
	Token       string // last_heartbeat, to be echoed byte for byte; "" before the first
	TTL         time.Duration
	BeatAt      time.Time // when the last successful beat was sent
	ClaimedAt   time.Time
	EndedAt     time.Time
	Why         string
}

// Change is one transaction: a state change and its events commit together.
// Nil and empty members are left alone.
type Change struct {
	At         time.Time
	Session    *Record        // replaces the row
	NewSession *Record        // is added unless the session is known
	Work       *Work          // replaces the row; a nil Secret erases the stored one
	Calls      []*Call        // replace rows; nil Input and Content keep what is stored
	CallsOf    string         // the session that Calls belong to
	Agent      *AgentSettings // replaces the row with the revision before; else ErrStale
	Memory     *MemoryChange
	Events     []event.Event
}

// MemoryChange is what is newly agreed about a session's memory store. What is on
// record about it goes when the session is over.
type MemoryChange struct {
	Session string
	Store   string
	Rows    map[string]memory.Known // by path; a zero one is removed
	Ready   bool                    // the store was downloaded to its end
}

// Records is the durable side of sessions. Every write is fenced: it fails once
// another process has taken over the data directory. Safe for concurrent use.
type Records interface {
	// LoadSession returns a session and all its calls in order of Seq; inputs and
	// contents only of the open ones. fault.NotFound when there is none.
	LoadSession(ctx context.Context, id string) (Record, []Call, error)
	// LoadCall returns one call with its input and content. fault.NotFound when
	// there is none.
	LoadCall(ctx context.Context, session, id string) (Call, error)
	// OpenWork returns the items that an earlier process held.
	OpenWork(ctx context.Context) ([]Work, error)
	// LiveSessions returns the sessions that are not over.
	LiveSessions(ctx context.Context) ([]Record, error)
	// LoadMemory returns what was last agreed about a session's memory store, and
	// whether it was ever downloaded to its end.
	LoadMemory(ctx context.Context, session, store string) (known map[string]memory.Known, ready bool, err error)
	// AgentSettings returns what was set for an agent; with revision 0 when
	// nothing ever was.
	AgentSettings(ctx context.Context, agent string) (AgentSettings, error)
	// Commit stores a change. ErrStale, and nothing is stored, when c.Agent does
	// not follow the revision on record.
	Commit(ctx context.Context, c Change) error
}

// Sealer keeps secrets unreadable at rest.
type Sealer interface {
	Seal(plain []byte) ([]byte, error)
	Open(sealed []byte) ([]byte, error)
}
