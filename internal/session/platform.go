package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/berth-dev/berth/internal/memory"
)

// This file is the session's side of the door to Claude: the words in which it
// asks and hears. internal/claude implements the interfaces with the official
// SDK; tests implement them with fakes.

// Item is one claimed work item (contract §2.2).
type Item struct {
	ID          string // work_…
	Environment string // env_…
	Type        string // "session"; anything else is finished without a sandbox
	Session     string // sesn_…, when Type is "session"
	Secret      string // as received from poll; the only place it ever appears
}

// Platform is Claude as one work item sees it: every call carries that item's
// own credential. Safe for concurrent use. Errors are *Refusal when the platform
// answered, and anything else when it did not.
type Platform interface {
	// Info reads the session with its agent.
	Info(ctx context.Context) (Info, error)
	// Stream opens the live event stream. It returns once the connection is
	// established: events that happen later arrive on it (contract §4.7: no
	// replay).
	Stream(ctx context.Context) (Stream, error)
	// History lists the events that were created at or after since (zero: all),
	// oldest first and page by page, those that are still queued among them. An
	// event keeps its place when it is processed later. It stops at yield's
	// first error. A nil return means that the list was read to its end.
	History(ctx context.Context, since time.Time, yield func([]Event) error) error
	// Answer sends results in one request. It does not retry: the caller
	// reconciles first (contract §12.15).
	Answer(ctx context.Context, answers ...Answer) error
	// Heartbeat extends the lease; expected is NoHeartbeat or the last token,
	// byte for byte (contract §3.3). It does not retry.
	Heartbeat(ctx context.Context, expected string, timeout time.Duration) (Beat, error)
	// Stop ends the work item; a 409 is success (contract §3.2). It outlives
	// ctx's cancellation by at most 10 s.
	Stop(ctx context.Context, force bool) error
	SkillSource
	// Memories opens a memory store that is attached to the session. It makes no
	// request. An error wraps memory.ErrDenied when the work item carries no
	// token for it (contract §3.8).
	Memories(store string) (memory.Remote, error)
}

// NoHeartbeat claims a lease that nobody holds (contract §3.3).
const NoHeartbeat = "NO_HEARTBEAT"

// Info is the part of a session that Berth uses.
type Info struct {
	ID           string
	Status       string // idle, running, rescheduling, terminated
	Archived     bool
	Title        string
	Environment  string
	AgentID      string
	AgentName    string
	AgentVersion int64
	Model        string
	Metadata     map[string]string
	Skills       []Skill
	Memories     []Memory
	// CustomTools are the names of the custom tools that the agent declares.
	CustomTools []string
}

// Skill names one skill of an agent (contract §6.1).
type Skill struct {
	ID      string
	Type    string // anthropic or custom
	Version string // "" means latest
}

// Memory is an attached memory store (contract §6.2).
type Memory struct {
	Store     string
	Name      string
	MountPath string
	ReadOnly  bool
}

// Stream is a live event stream. Next blocks; io.EOF when the platform closed it
// in an orderly way. Not safe for concurrent use, except Close.
type Stream interface {
	Next() (Event, error)
	Close() error
}

// Event is one event of a session in the words that the machine needs, with the
// original beside it.
type Event struct {
	ID          string
	Type        string
	ProcessedAt time.Time // zero while it is queued and not yet processed
	Thread      string    // session_thread_id, "" for the primary thread
	// Name, Input and Permission belong to agent.tool_use and
	// agent.custom_tool_use. Permission is "" when absent.
	Name       string
	Input      json.RawMessage
	Permission string
	// Refers is the call that a result or a confirmation speaks about.
	Refers string
	// Verdict is the result of a user.tool_confirmation: allow or deny.
	Verdict string
	// StopReason and Requires belong to session.status_idle.
	StopReason string
	Requires   []string
	// Raw is the event as received.
	Raw json.RawMessage
}

// Answer is one result to be sent.
type Answer struct {
	Call    string // the event id of the call
	Custom  bool   // user.custom_tool_result instead of user.tool_result
	Content json.RawMessage
	IsError bool
}

// Beat is the platform's reply to a heartbeat.
type Beat struct {
	Token    string // last_heartbeat, to be echoed byte for byte
	Extended bool   // lease_extended
	State    string // queued, starting, active, stopping, stopped
	TTL      time.Duration
}

// Refusal is an error that the platform answered with.
type Refusal struct {
	Status     int    // HTTP
	Type       string // error.type
	Code       string // error.details.error_code
	Message    string
	RequestID  string
	RetryAfter time.Duration // 0 when not given
	Retry      *bool         // x-should-retry, nil when absent; wins over the status
}

// Error names the status, the message and the request id.
func (r *Refusal) Error() string {
	s := fmt.Sprintf("the platform answered %d %s: %s", r.Status, r.Type, r.Message)
	if r.RequestID != "" {
		s += " (request-id " + r.RequestID + ")"
	}
	return s
}

// Retryable reports whether the same request may succeed later: no answer at
// all, 408, 409, 429 and 5xx, unless x-should-retry says otherwise (contract
// §1.4). That header speaks of the request and not of the session: a server's own
// failure is never a reason to give a session up, whatever stands there (§3.3).
func Retryable(err error) bool {
	if err == nil {
		return false
	}
	var r *Refusal
	if !errors.As(err, &r) {
		return true
	}
	if r.Retry != nil && (*r.Retry || r.Status < 500) {
		return *r.Retry
	}
	switch r.Status {
	case 408, 409, 429:
		return true
	}
	return r.Status >= 500
}

// Gone reports whether the platform itself says that what was asked for does not
// exist: a 404 in its own words, not one of something in between.
func Gone(err error) bool {
	var r *Refusal
	return errors.As(err, &r) && r.Status == 404 && r.Type == "not_found_error"
}

// StatusOf returns the HTTP status of a refusal and 0 for anything else.
func StatusOf(err error) int {
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r.Status
	}
	return 0
}
