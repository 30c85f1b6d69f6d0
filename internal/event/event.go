// Package event holds the typed events that Berth keeps about sessions, and the
// in-process bus that tells readers that there is more to read. The durable log
// is the store's: an event exists once the transaction that made it committed.
package event

import (
	"encoding/json"
	"time"
)

// Type names what happened. Types that mirror the platform's own events carry
// the prefix "claude." and the platform's type.
type Type string

// Berth's own events. The set grows; readers ignore types they do not know.
const (
	WorkClaimed     Type = "work.claimed"
	WorkAdopted     Type = "work.adopted"
	WorkStopped     Type = "work.stopped"
	WorkLost        Type = "work.lost"
	CallSeen        Type = "call.seen"
	CallHeld        Type = "call.held"
	CallStarted     Type = "call.started"
	CallFinished    Type = "call.finished"
	CallPosted      Type = "call.posted"
	CallSettled     Type = "call.settled"
	SandboxStarting Type = "sandbox.starting"
	ImagePulling    Type = "sandbox.pulling"
	SandboxReady    Type = "sandbox.ready"
	SandboxAdopted  Type = "sandbox.adopted"
	SandboxFailed   Type = "sandbox.failed"
	SandboxLost     Type = "sandbox.lost"
	SandboxRemoved  Type = "sandbox.removed"
	SetupDone       Type = "sandbox.setup_done"
	SetupFailed     Type = "sandbox.setup_failed"
	AgentChanged    Type = "agent.changed"
	SkillInstalled  Type = "skill.installed"
	SkillFailed     Type = "skill.failed"
	MemorySynced    Type = "memory.synced"
	MemoryConflict  Type = "memory.conflict"
	MemoryFailed    Type = "memory.failed"
	SessionWaiting  Type = "session.waiting"
	SessionEnded    Type = "session.ended"
	WebhookReceived Type = "webhook.received"
	Warning         Type = "warning"
)

// ClaudePrefix marks mirrored platform events.
const ClaudePrefix = "claude."

// Event is one entry of the log. Seq is set by the store and grows without
// reuse; it is the cursor of every feed.
type Event struct {
	Seq     int64           `json:"seq"`
	At      time.Time       `json:"at"`
	Session string          `json:"session,omitempty"`
	Type    Type            `json:"type"`
	Source  string          `json:"source,omitempty"` // the platform's event id, for mirrored ones
	Data    json.RawMessage `json:"data,omitempty"`
}

// New returns an event with data encoded as JSON. Data that cannot be encoded
// is a programming mistake and is replaced by its error text.
func New(at time.Time, session string, t Type, data any) Event {
	e := Event{At: at.UTC(), Session: session, Type: t}
	if data != nil {
		b, err := json.Marshal(data)
		if err != nil {
			b, _ = json.Marshal(map[string]string{"encoding_error": err.Error()})
		}
		e.Data = b
	}
	return e
}
