package wire

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/berth-dev/berth/internal/sandbox"
)

// Version is the protocol that this build speaks, and the only one so far.
const Version = 1

// Bounds of messages, in bytes.
const (
	MaxInput   = 8 << 20  // a call's input; a model writes far less in one turn
	MaxMessage = 32 << 20 // any other message: a result of tool.MaxResultBytes with room for its JSON
	MaxOutput  = 1 << 20  // of Exec, per stream
	MaxStdin   = 1 << 20  // of Exec
)

// Hello begins an epoch.
type Hello struct {
	MinVersion int               `json:"min_version"`
	MaxVersion int               `json:"max_version"`
	Env        map[string]string `json:"env,omitempty"` // of the agent's commands
}

// Welcome answers a Hello.
type Welcome struct {
	Version  int    `json:"version"`
	Instance string `json:"instance"`
	Error    string `json:"error,omitempty"` // why there is no session
}

// Agree picks the version of a session from the other end's hello.
func Agree(h Hello) (int, error) {
	if h.MinVersion > Version || h.MaxVersion < Version {
		return 0, fmt.Errorf("the guest speaks version %d, the client %d to %d", Version, h.MinVersion, h.MaxVersion)
	}
	return Version, nil
}

// Op names what a stream is for.
type Op string

// The operations. "Body" is what the initiator sends after the request,
// "answer" what comes back before the trailer.
const (
	OpCall     Op = "call"     // ID, Name, Shell, Timeout; body: input; answer: tool.Result
	OpRecall   Op = "recall"   // ID; answer: tool.Result
	OpCancel   Op = "cancel"   // ID
	OpAck      Op = "ack"      // body: JSON list of ids
	OpExec     Op = "exec"     // body: sandbox.Exec; answer: sandbox.ExecResult
	OpTerminal Op = "terminal" // Size; body: keys; answer: output; trailer: Exit
	OpResize   Op = "resize"   // Stream, Size
	OpPing     Op = "ping"
	OpPrepare  Op = "prepare" // answered when a shell is ready
)

// Request is the payload of an Open frame.
type Request struct {
	Op      Op            `json:"op"`
	ID      string        `json:"id,omitempty"`
	Name    string        `json:"name,omitempty"`
	Shell   string        `json:"shell,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"`
	Stream  uint32        `json:"stream,omitempty"`
	Size    sandbox.Size  `json:"size,omitzero"`
	// Env is set by the guest towards its worker only: the environment of a
	// shell that this may start.
	Env map[string]string `json:"env,omitempty"`
}

// Code says how a stream ended.
type Code string

// The codes of a Trailer.
const (
	OK           Code = ""
	Unknown      Code = "unknown_call"
	Acknowledged Code = "acknowledged"
	Busy         Code = "busy"
	Invalid      Code = "invalid"
	Internal     Code = "internal"
)

// Trailer is the payload of an End frame.
type Trailer struct {
	Code    Code   `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
	Exit    int    `json:"exit,omitempty"`
}

const maxMessageText = 4 << 10

// encode marshals the small messages of this package, which always fit a frame
// except a Hello with a very large environment.
func encode(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode message: %w", err)
	}
	if len(b) > MaxPayload {
		return nil, fmt.Errorf("encode message: %d bytes, more than a frame's %d", len(b), MaxPayload)
	}
	return b, nil
}

func (t Trailer) encode() []byte {
	if len(t.Message) > maxMessageText {
		t.Message = t.Message[:maxMessageText]
	}
	b, err := encode(t)
	if err != nil { // a struct of short strings
		return []byte(`{"code":"internal"}`)
	}
	return b
}
