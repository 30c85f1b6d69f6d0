// Package tool holds the words of a tool call: what is asked for and what comes
// back. It knows nothing about who asks or where the call runs.
package tool

import (
	"encoding/json"
	"fmt"
	"time"
)

// Stock names of the built-in toolset (agent_toolset_20260401, contract §5)
// that a self-hosted environment answers.
const (
	Bash  = "bash"
	Read  = "read"
	Write = "write"
	Edit  = "edit"
	Glob  = "glob"
	Grep  = "grep"
)

// Stock lists the built-in tools in catalogue order.
func Stock() []string { return []string{Bash, Read, Write, Edit, Glob, Grep} }

// Bounds for results. A result above MaxResultBytes is replaced by an error
// result that says so, because the platform refuses requests over 32 MB
// (contract §4.3) and a refused result would leave its session waiting.
const (
	MaxResultBytes  = 24 << 20
	MaxResultBlocks = 100
	MaxTextBytes    = 1 << 20
)

// EmptyText stands for an empty result: the platform rejects empty text blocks
// (contract §4.3).
const EmptyText = "(no output)"

// Call is one tool call as the guest hears of it.
type Call struct {
	ID    string          `json:"id"`    // the event id of the call (sevt_…); the key of idempotency
	Name  string          `json:"name"`  // tool name
	Input json.RawMessage `json:"input"` // the agent's JSON, unchanged
	// Shell names the persistent shell that a bash call runs in: one per
	// session thread, "" for the primary thread.
	Shell string `json:"shell,omitempty"`
	// Timeout bounds the run; zero means the guest's default (120 s,
	// contract §3.4).
	Timeout time.Duration `json:"timeout,omitempty"`
}

// Result is what a call came to. It is immutable once made.
type Result struct {
	Content []Block `json:"content"`
	IsError bool    `json:"is_error,omitempty"`
}

// Block is one content block of a result (contract §4.3): text, or any other
// type in the platform's own JSON form.
type Block struct {
	Type string          // "text", "image", "document", "search_result"
	Text string          // for text
	Raw  json.RawMessage // the whole block, for every other type
}

// MarshalJSON writes the platform's form.
func (b Block) MarshalJSON() ([]byte, error) {
	if b.Type == "text" {
		return json.Marshal(struct {
			Type string `json:"type"`
			Text string `json:"text"`
		}{b.Type, b.Text})
	}
	if len(b.Raw) == 0 {
		return nil, fmt.Errorf("a %q block has no content", b.Type)
	}
	return b.Raw, nil
}

// UnmarshalJSON reads the platform's form and keeps what it does not know.
func (b *Block) UnmarshalJSON(data []byte) error {
	var head struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return err
	}
	*b = Block{Type: head.Type}
	if head.Type == "text" {
		b.Text = head.Text
		return nil
	}
	b.Raw = append(json.RawMessage(nil), data...)
	return nil
}

// Text returns a successful result with one text block.
func Text(s string) Result { return Result{Content: []Block{{Type: "text", Text: s}}} }

// Error returns an error result whose text the model reads.
func Error(s string) Result {
	r := Text(s)
	r.IsError = true
	return r
}
