package local

import (
	"context"
	"errors"
	"time"
)

// Brain is what thinks for an agent. The server calls Run in a goroutine of its
// own whenever a session that is not yet at work has input: a user.message or a
// user.define_outcome. One Run is one turn, across any number of tool calls:
//
//	running ── Run ──► Message, Thinking, Call, Wait … ──► return ──► idle
//
// When Run returns nil, calls that it left open are waited for, and the session
// becomes idle with the reason given to [Turn.Stop], by default end_turn. Any
// other error than the ones below becomes a session.error, and the session idle
// with retries_exhausted. Messages that arrived meanwhile start the next turn.
//
// The context ends with the cause [ErrInterrupted] when somebody interrupts the
// session, with [ErrSessionOver] when it is terminated, archived or deleted.
// Everything a turn emits after that is refused with the same error; Run should
// return soon. Runs of different sessions are concurrent, those of one session
// are not.
type Brain interface {
	Run(ctx context.Context, t *Turn) error
}

// Why a turn ends early.
var (
	ErrInterrupted = errors.New("the session was interrupted")
	ErrSessionOver = errors.New("the session is over")
	errClosed      = errors.New("the server is closing")
)

// Event is one entry of a session's log. It is a value to read: Fields is shared.
type Event struct {
	ID          string
	Type        string
	ProcessedAt time.Time // zero while it is queued
	Thread      string    // the child thread that it belongs to, "" for the primary one
	// Fields holds everything else of the JSON object: content, name, input, ….
	Fields map[string]any
}

// Text returns the text blocks of the event's content, joined by newlines.
func (e Event) Text() string { return textOf(e.Fields["content"]) }

// CallKind says who offers a tool.
type CallKind string

// The kinds of calls.
const (
	BuiltIn CallKind = ""       // agent.tool_use: the agent toolset
	Custom  CallKind = "custom" // agent.custom_tool_use: declared by the agent
	MCP     CallKind = "mcp"    // agent.mcp_tool_use: always run by the platform
)

// Call is one tool call that a turn makes.
type Call struct {
	Kind  CallKind
	Name  string
	Input any // encodes to a JSON object; nil is {}
	// Server names the MCP server of an MCP call.
	Server string
	// Permission is allow, ask or deny; "" follows the agent's policy for the
	// tool. Custom calls are not governed: "" leaves it out of the event.
	Permission string
	// Thread is the child thread that calls, "" for the primary one.
	Thread string
	// Served is the result when the platform itself runs the call, as it does for
	// web_search, web_fetch and MCP. These kinds get an empty answer when it is
	// nil; for any other call nil means that a client must answer.
	Served *Result
}

// Result is what became of a call.
type Result struct {
	Call        string // its event id
	Content     []any  // decoded content blocks
	IsError     bool
	Denied      bool // by the policy or by a person; Content says why
	Interrupted bool // settled without an answer: no content
}

// Text returns the text blocks of the result, joined by newlines.
func (r Result) Text() string { return textOf(r.Content) }

// TextResult is a result of one text block, for Call.Served.
func TextResult(text string, isError bool) *Result {
	return &Result{Content: textContent(text), IsError: isError}
}

// Tokens counts the tokens of one model request.
type Tokens struct {
	Input         int
	Output        int
	CacheRead     int
	CacheCreation int
}

// textContent returns text as content blocks; empty text has no blocks, as empty
// text blocks are invalid (contract §4.3).
func textContent(text string) []any {
	if text == "" {
		return []any{}
	}
	return []any{map[string]any{"type": "text", "text": text}}
}

func textOf(content any) string {
	blocks, _ := content.([]any)
	text, first := "", true
	for _, b := range blocks {
		block, _ := b.(map[string]any)
		if t, ok := block["text"].(string); ok && block["type"] == "text" {
			if !first {
				text += "\n"
			}
			text, first = text+t, false
		}
	}
	return text
}
