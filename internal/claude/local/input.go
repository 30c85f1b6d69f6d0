package local

import (
	"encoding/json"
	"fmt"
	"strings"
)

// What clients may say to a session (contract §4.2). Reading an event is pure;
// whether it fits the session's state is decided in send.go.

// input is one validated event of a request.
type input struct {
	Type   string
	Call   string // of results and confirmations
	Thread string // of interrupts
	Result Result // of results
	Allow  bool   // of confirmations
	Reason string // of a denial
	// Fields is what the event's JSON holds beside type, id and processed_at.
	Fields map[string]any
}

const (
	maxInitialEvents = 50
	maxSystemBlocks  = 1000
	maxRubric        = 262_144
	maxDenyMessage   = 10_000
)

// readInputs validates the events of one request, in order.
func readInputs(raw []json.RawMessage, where string) ([]input, *apiError) {
	if len(raw) == 0 {
		return nil, fail(400, "%s: at least one event is required", where)
	}
	all := make([]input, len(raw))
	for i, r := range raw {
		in, err := readInput(r, fmt.Sprintf("%s.%d", where, i))
		if err != nil {
			return nil, err
		}
		all[i] = in
		if in.Type != "system.message" {
			continue
		}
		if i != len(raw)-1 || i == 0 || !strings.HasPrefix(all[i-1].Type, "user.") {
			return nil, fail(400, "%s.%d: a system.message must be the last event, right after a user event", where, i)
		}
	}
	return all, nil
}

// readInitial is readInputs for the initial_events of a session.
func readInitial(raw []json.RawMessage) ([]input, *apiError) {
	if len(raw) > maxInitialEvents {
		return nil, fail(400, "initial_events: at most %d events, got %d", maxInitialEvents, len(raw))
	}
	if len(raw) == 0 {
		return nil, nil
	}
	all, err := readInputs(raw, "initial_events")
	outcomes := 0
	for i, in := range all {
		switch in.Type {
		case "user.message":
		case "user.define_outcome":
			outcomes++
		default:
			return nil, fail(400, "initial_events.%d: only user.message and user.define_outcome are allowed", i)
		}
	}
	if outcomes > 1 {
		return nil, fail(400, "initial_events: at most one user.define_outcome")
	}
	return all, err
}

func readInput(raw json.RawMessage, at string) (input, *apiError) {
	switch typ := typeOf(raw); typ {
	case "user.message", "system.message":
		return readMessage(raw, typ, at)
	case "user.interrupt":
		return readInterrupt(raw, at)
	case "user.tool_confirmation":
		return readConfirmation(raw, at)
	case "user.tool_result", "user.custom_tool_result":
		return readResult(raw, typ, at)
	case "user.define_outcome":
		return readOutcome(raw, at)
	default:
		return input{}, fail(400, "%s.type: %q is not an event that can be sent", at, typ)
	}
}

func readMessage(raw json.RawMessage, typ, at string) (input, *apiError) {
	var b struct {
		Type    string            `json:"type"`
		Content []json.RawMessage `json:"content"`
	}
	if err := strict(raw, &b, at); err != nil {
		return input{}, err
	}
	allowed := messageBlocks
	if typ == "system.message" {
		allowed = systemBlocks
		if len(b.Content) > maxSystemBlocks {
			return input{}, fail(400, "%s.content: at most %d blocks", at, maxSystemBlocks)
		}
	}
	if len(b.Content) == 0 {
		return input{}, fail(400, "%s.content: at least one block is required", at)
	}
	content, err := checkContent(b.Content, allowed, at+".content")
	return input{Type: typ, Fields: map[string]any{"content": content}}, err
}

func readInterrupt(raw json.RawMessage, at string) (input, *apiError) {
	var b struct {
		Type   string        `json:"type"`
		Thread maybe[string] `json:"session_thread_id"`
	}
	if err := strict(raw, &b, at); err != nil {
		return input{}, err
	}
	in := input{Type: b.Type, Thread: b.Thread.Value, Fields: map[string]any{}}
	if in.Thread != "" {
		in.Fields["session_thread_id"] = in.Thread
	}
	return in, nil
}

func readConfirmation(raw json.RawMessage, at string) (input, *apiError) {
	var b struct {
		Type   string        `json:"type"`
		Call   string        `json:"tool_use_id"`
		Result string        `json:"result"`
		Deny   maybe[string] `json:"deny_message"`
	}
	if err := strict(raw, &b, at); err != nil {
		return input{}, err
	}
	if err := bounded(at+".tool_use_id", b.Call, 1, 128); err != nil {
		return input{}, err
	}
	if b.Result != "allow" && b.Result != "deny" {
		return input{}, fail(400, "%s.result: must be \"allow\" or \"deny\"", at)
	}
	in := input{
		Type: b.Type, Call: b.Call, Allow: b.Result == "allow", Reason: b.Deny.Value,
		Fields: map[string]any{"tool_use_id": b.Call, "result": b.Result},
	}
	if b.Deny.given() {
		if in.Allow {
			return input{}, fail(400, "%s.deny_message: only allowed with the result \"deny\"", at)
		}
		if err := bounded(at+".deny_message", in.Reason, 0, maxDenyMessage); err != nil {
			return input{}, err
		}
		in.Fields["deny_message"] = in.Reason
	}
	return in, nil
}

func readResult(raw json.RawMessage, typ, at string) (input, *apiError) {
	var b struct {
		Type    string                   `json:"type"`
		Call    maybe[string]            `json:"tool_use_id"`
		Custom  maybe[string]            `json:"custom_tool_use_id"`
		Content maybe[[]json.RawMessage] `json:"content"`
		IsError maybe[bool]              `json:"is_error"`
	}
	if err := strict(raw, &b, at); err != nil {
		return input{}, err
	}
	name, id, other := "tool_use_id", b.Call, b.Custom
	if typ == "user.custom_tool_result" {
		name, id, other = "custom_tool_use_id", b.Custom, b.Call
	}
	if other.Sent {
		return input{}, fail(400, "%s: the call of a %s is named by %s", at, typ, name)
	}
	if err := bounded(at+"."+name, id.Value, 1, 128); err != nil {
		return input{}, err
	}
	in := input{Type: typ, Call: id.Value, Fields: map[string]any{name: id.Value}}
	if b.Content.given() {
		content, err := checkContent(b.Content.Value, resultBlocks, at+".content")
		if err != nil {
			return input{}, err
		}
		in.Result.Content, in.Fields["content"] = content, content
	}
	if b.IsError.given() {
		in.Result.IsError, in.Fields["is_error"] = b.IsError.Value, b.IsError.Value
	}
	return in, nil
}

func readOutcome(raw json.RawMessage, at string) (input, *apiError) {
	var b struct {
		Type        string `json:"type"`
		Description string `json:"description"`
		Rubric      *struct {
			Type    string `json:"type"`
			Content string `json:"content"`
			FileID  string `json:"file_id"`
		} `json:"rubric"`
		MaxIterations maybe[int] `json:"max_iterations"`
	}
	if err := strict(raw, &b, at); err != nil {
		return input{}, err
	}
	if b.Description == "" || b.Rubric == nil {
		return input{}, fail(400, "%s: description and rubric are required", at)
	}
	iterations := 3
	if b.MaxIterations.given() {
		iterations = b.MaxIterations.Value
	}
	if iterations < 1 || iterations > 20 {
		return input{}, fail(400, "%s.max_iterations: must be from 1 to 20", at)
	}
	rubric := map[string]any{"type": b.Rubric.Type}
	switch b.Rubric.Type {
	case "text":
		if err := bounded(at+".rubric.content", b.Rubric.Content, 1, maxRubric); err != nil {
			return input{}, err
		}
		rubric["content"] = b.Rubric.Content
	case "file":
		if err := bounded(at+".rubric.file_id", b.Rubric.FileID, 1, 128); err != nil {
			return input{}, err
		}
		rubric["file_id"] = b.Rubric.FileID
	default:
		return input{}, fail(400, "%s.rubric.type: must be \"text\" or \"file\"", at)
	}
	return input{Type: b.Type, Fields: map[string]any{
		"description": b.Description, "rubric": rubric, "max_iterations": iterations,
	}}, nil
}
