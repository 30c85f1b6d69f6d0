package claude

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/berth-dev/berth/internal/session"
)

// unreadable stands for a permission or a verdict that is there but is not a
// string: it is no "allow", and so the call is held (contract §12.14).
const unreadable = "unreadable"

// decodeEvent reads one event. It knows the few members that a session acts on
// and is indifferent to the rest, so that event types and members to come pass
// through; a member of an unexpected kind counts as absent, except where that
// would open a gate. raw must not be changed afterwards. The only errors are
// JSON that is malformed or not an object.
func decodeEvent(raw json.RawMessage) (session.Event, error) {
	var f fields
	if err := json.Unmarshal(raw, &f); err != nil {
		return session.Event{}, err
	}
	if f == nil {
		return session.Event{}, errors.New("the event is null")
	}
	e := session.Event{
		ID:     f.text("id"),
		Type:   f.text("type"),
		Thread: f.text("session_thread_id"),
		Raw:    raw,
	}
	if at, err := time.Parse(time.RFC3339Nano, f.text("processed_at")); err == nil {
		e.ProcessedAt = at.UTC()
	}
	switch e.Type {
	case "agent.tool_use", "agent.custom_tool_use":
		e.Name = f.text("name")
		e.Input = f["input"]
		e.Permission = f.gate("evaluated_permission")
	case "user.tool_result", "agent.tool_result":
		e.Refers = f.text("tool_use_id")
	case "user.custom_tool_result":
		e.Refers = f.text("custom_tool_use_id")
	case "agent.mcp_tool_result":
		e.Refers = f.text("mcp_tool_use_id")
	case "user.tool_confirmation":
		e.Refers = f.text("tool_use_id")
		e.Verdict = f.gate("result")
	case "session.status_idle":
		reason := f.object("stop_reason")
		e.StopReason = reason.text("type")
		e.Requires = reason.texts("event_ids")
	}
	return e, nil
}

// gate reads a member on which it depends whether a call may run.
func (f fields) gate(name string) string {
	if s := f.text(name); s != "" || !f.has(name) {
		return s
	}
	return unreadable
}

// texts reads an array of strings and leaves out what is none.
func (f fields) texts(name string) []string {
	var list []json.RawMessage
	if json.Unmarshal(f[name], &list) != nil {
		return nil
	}
	var out []string
	for _, raw := range list {
		if s := text(raw); s != "" {
			out = append(out, s)
		}
	}
	return out
}
