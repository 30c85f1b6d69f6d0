package local

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// A reply of the Messages API arrives as server-sent events: message_start,
// then for every block a start, deltas and a stop, then message_delta and
// message_stop. What ends before message_stop is not a reply.

// Bounds of one reply.
const (
	maxReplyBytes  = 64 << 20
	maxReplyBlocks = 1000
)

// modelReply is a whole reply.
type modelReply struct {
	blocks     []replyBlock
	stopReason string
	refusal    struct {
		Category    *string `json:"category"`
		Explanation *string `json:"explanation"`
	}
	used Tokens
}

type replyBlock struct {
	Type string `json:"type"`
	Text string `json:"text"`
	Name string `json:"name"`

	partial []byte // of the text, or of the input's JSON
	input   map[string]any
}

// replyEvent is any event of the stream; each uses some of the fields.
type replyEvent struct {
	Type    string `json:"type"`
	Index   int    `json:"index"`
	Message struct {
		Usage replyUsage `json:"usage"`
	} `json:"message"`
	Usage        replyUsage `json:"usage"`
	ContentBlock replyBlock `json:"content_block"`
	Delta        struct {
		Type        string          `json:"type"`
		Text        string          `json:"text"`
		PartialJSON string          `json:"partial_json"`
		StopReason  string          `json:"stop_reason"`
		StopDetails json.RawMessage `json:"stop_details"`
	} `json:"delta"`
	Error *struct {
		Type    string `json:"type"`
		Message string `json:"message"`
	} `json:"error"`
}

// replyUsage counts tokens. Pointers, since the last event repeats only some.
type replyUsage struct {
	Input         *int `json:"input_tokens"`
	Output        *int `json:"output_tokens"`
	CacheRead     *int `json:"cache_read_input_tokens"`
	CacheCreation *int `json:"cache_creation_input_tokens"`
}

func (u replyUsage) into(t *Tokens) {
	for from, to := range map[*int]*int{u.Input: &t.Input, u.Output: &t.Output, u.CacheRead: &t.CacheRead, u.CacheCreation: &t.CacheCreation} {
		if from != nil {
			*to = *from
		}
	}
}

// readReply reads a stream to its end. An error event becomes a *modelError.
func readReply(body io.Reader) (*modelReply, error) {
	lines := bufio.NewScanner(io.LimitReader(body, maxReplyBytes))
	lines.Buffer(make([]byte, 64<<10), maxReplyBytes)
	reply := &modelReply{}
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data:"))
		if !ok {
			continue // event names repeat the type; comments and blanks carry nothing
		}
		var e replyEvent
		if err := json.Unmarshal(data, &e); err != nil {
			return nil, fmt.Errorf("decode stream: %w", err)
		}
		done, err := reply.take(&e)
		if err != nil || done {
			return reply, err
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read stream: %w", err)
	}
	return nil, fmt.Errorf("read stream: %w", io.ErrUnexpectedEOF)
}

// take adds one event to the reply.
func (r *modelReply) take(e *replyEvent) (done bool, err error) {
	switch e.Type {
	case "message_start":
		e.Message.Usage.into(&r.used)
	case "content_block_start":
		if e.Index != len(r.blocks) || e.Index >= maxReplyBlocks {
			return false, fmt.Errorf("decode stream: block %d after %d blocks", e.Index, len(r.blocks))
		}
		r.blocks = append(r.blocks, replyBlock{Type: e.ContentBlock.Type, Text: e.ContentBlock.Text, Name: e.ContentBlock.Name})
	case "content_block_delta":
		if e.Index < 0 || e.Index >= len(r.blocks) {
			return false, fmt.Errorf("decode stream: a delta of the unknown block %d", e.Index)
		}
		block := &r.blocks[e.Index]
		switch e.Delta.Type {
		case "text_delta":
			block.partial = append(block.partial, e.Delta.Text...)
		case "input_json_delta":
			block.partial = append(block.partial, e.Delta.PartialJSON...)
		}
	case "content_block_stop":
		if e.Index < 0 || e.Index >= len(r.blocks) {
			return false, fmt.Errorf("decode stream: the end of the unknown block %d", e.Index)
		}
		r.blocks[e.Index].finish()
	case "message_delta":
		e.Usage.into(&r.used)
		r.stopReason = e.Delta.StopReason
		if !isNull(e.Delta.StopDetails) {
			if err := json.Unmarshal(e.Delta.StopDetails, &r.refusal); err != nil {
				return false, fmt.Errorf("decode stop_details: %w", err)
			}
		}
	case "message_stop":
		return true, r.complete()
	case "error":
		if e.Error == nil {
			return false, errors.New("decode stream: an error event without an error")
		}
		return false, failure(statusOfType(e.Error.Type), e.Error.Type, e.Error.Message)
	}
	return false, nil
}

// finish ends a block. A call cut off by max_tokens has no whole input; it keeps
// none, and complete reports it.
func (b *replyBlock) finish() {
	switch b.Type {
	case "text":
		b.Text += string(b.partial)
	case "tool_use":
		if len(b.partial) == 0 {
			b.partial = []byte("{}")
		}
		if json.Unmarshal(b.partial, &b.input) != nil {
			b.input = nil
		}
	}
}

// complete checks that every call can be made.
func (r *modelReply) complete() error {
	for i := range r.blocks {
		if b := &r.blocks[i]; b.Type == "tool_use" && b.input == nil {
			return &modelError{
				event:   "model_request_failed_error",
				message: fmt.Sprintf("the reply ended (%s) inside the input of a call of %s", r.stopReason, b.Name),
			}
		}
	}
	return nil
}

func statusOfType(typ string) int {
	for status, t := range statusTypes {
		if t == typ && status != 412 {
			return status
		}
	}
	return 500
}
