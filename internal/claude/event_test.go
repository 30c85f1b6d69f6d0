package claude

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/session"
)

func TestDecodeEvent(t *testing.T) {
	at := time.Date(2026, 11, 23, 10, 0, 5, 123456000, time.UTC)
	for _, c := range []struct {
		raw  string
		want session.Event
	}{
		{
			`{"id":"sevt_1","type":"agent.tool_use","name":"bash","input":{"command":"ls"},"evaluated_permission":"ask",
		   "evaluation":{"type":"always_ask"},"session_thread_id":"sthr_1","processed_at":"2026-11-23T10:00:05.123456Z"}`,
			session.Event{
				ID: "sevt_1", Type: "agent.tool_use", Name: "bash", Input: json.RawMessage(`{"command":"ls"}`),
				Permission: "ask", Thread: "sthr_1", ProcessedAt: at,
			},
		},
		{
			`{"id":"sevt_2","type":"agent.custom_tool_use","name":"deploy","input":{},"evaluated_permission":"deny","processed_at":"2026-11-23T12:00:05.123456+02:00"}`,
			session.Event{ID: "sevt_2", Type: "agent.custom_tool_use", Name: "deploy", Input: json.RawMessage(`{}`), Permission: "deny", ProcessedAt: at},
		},
		{
			`{"id":"sevt_3","type":"agent.tool_use","name":"bash","input":{},"evaluated_permission":null,"session_thread_id":null,"processed_at":null}`,
			session.Event{ID: "sevt_3", Type: "agent.tool_use", Name: "bash", Input: json.RawMessage(`{}`)},
		},
		{
			`{"id":"sevt_4","type":"user.tool_result","tool_use_id":"sevt_1","is_error":false}`,
			session.Event{ID: "sevt_4", Type: "user.tool_result", Refers: "sevt_1"},
		},
		{
			`{"id":"sevt_5","type":"user.custom_tool_result","custom_tool_use_id":"sevt_2"}`,
			session.Event{ID: "sevt_5", Type: "user.custom_tool_result", Refers: "sevt_2"},
		},
		{
			`{"id":"sevt_6","type":"agent.tool_result","tool_use_id":"sevt_9"}`,
			session.Event{ID: "sevt_6", Type: "agent.tool_result", Refers: "sevt_9"},
		},
		{
			`{"id":"sevt_7","type":"agent.mcp_tool_result","mcp_tool_use_id":"sevt_8"}`,
			session.Event{ID: "sevt_7", Type: "agent.mcp_tool_result", Refers: "sevt_8"},
		},
		{
			`{"id":"sevt_8","type":"user.tool_confirmation","tool_use_id":"sevt_1","result":"allow"}`,
			session.Event{ID: "sevt_8", Type: "user.tool_confirmation", Refers: "sevt_1", Verdict: "allow"},
		},
		{
			`{"id":"sevt_9","type":"session.status_idle","stop_reason":{"type":"requires_action","event_ids":["sevt_1",7,"sevt_2"]},"stop_details":null}`,
			session.Event{ID: "sevt_9", Type: "session.status_idle", StopReason: "requires_action", Requires: []string{"sevt_1", "sevt_2"}},
		},
		{
			`{"id":"sevt_10","type":"session.status_idle","stop_reason":{"type":"end_turn"}}`,
			session.Event{ID: "sevt_10", Type: "session.status_idle", StopReason: "end_turn"},
		},
		{
			`{"id":"sevt_11","type":"session.thread_status_terminated","session_thread_id":"sthr_2","agent_name":"x"}`,
			session.Event{ID: "sevt_11", Type: "session.thread_status_terminated", Thread: "sthr_2"},
		},
		{
			`{"id":"sevt_12","type":"workflow_run.invented","name":{"not":"text"},"result":7}`,
			session.Event{ID: "sevt_12", Type: "workflow_run.invented"},
		},
		{`{"id":12,"type":["x"],"processed_at":"yesterday","session_thread_id":{}}`, session.Event{}},
		{`{}`, session.Event{}},
		{`{"type":"session.status_idle","stop_reason":"end_turn"}`, session.Event{Type: "session.status_idle"}},
	} {
		got, err := decodeEvent(json.RawMessage(c.raw))
		if err != nil {
			t.Errorf("%s: %v", c.raw, err)
			continue
		}
		c.want.Raw = json.RawMessage(c.raw)
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s: %s", c.raw, d)
		}
	}
}

func TestAnUnreadableGateStaysShut(t *testing.T) {
	for _, raw := range []string{
		`{"type":"agent.tool_use","evaluated_permission":{"type":"allow"}}`,
		`{"type":"agent.custom_tool_use","evaluated_permission":true}`,
		`{"type":"agent.tool_use","evaluated_permission":["allow"]}`,
	} {
		if e, err := decodeEvent(json.RawMessage(raw)); err != nil || e.Permission == "" || e.Permission == "allow" {
			t.Errorf("%s: permission %q, %v", raw, e.Permission, err)
		}
	}
	e, err := decodeEvent(json.RawMessage(`{"type":"user.tool_confirmation","tool_use_id":"sevt_1","result":{"allow":true}}`))
	if err != nil || e.Verdict == "" || e.Verdict == "allow" {
		t.Errorf("verdict %q, %v", e.Verdict, err)
	}
}

// The SDK's typed events are the second opinion on what the members are called.
func TestDecodeEventAgreesWithTheSDK(t *testing.T) {
	for _, raw := range []string{
		`{"id":"sevt_1","type":"agent.tool_use","name":"bash","input":{"a":1},"evaluated_permission":"ask","session_thread_id":"sthr_1","processed_at":"2026-11-23T10:00:05Z"}`,
		`{"id":"sevt_2","type":"agent.custom_tool_use","name":"deploy","input":{},"session_thread_id":"sthr_1","processed_at":"2026-11-23T10:00:05Z"}`,
		`{"id":"sevt_3","type":"user.tool_result","tool_use_id":"sevt_1","content":[],"processed_at":"2026-11-23T10:00:05Z"}`,
		`{"id":"sevt_4","type":"user.custom_tool_result","custom_tool_use_id":"sevt_2","content":[],"processed_at":"2026-11-23T10:00:05Z"}`,
		`{"id":"sevt_5","type":"user.tool_confirmation","tool_use_id":"sevt_1","result":"deny","processed_at":"2026-11-23T10:00:05Z"}`,
		`{"id":"sevt_6","type":"session.status_idle","stop_reason":{"type":"requires_action","event_ids":["sevt_1"]},"processed_at":"2026-11-23T10:00:05Z"}`,
		`{"id":"sevt_7","type":"session.thread_status_terminated","session_thread_id":"sthr_1","agent_name":"a","processed_at":"2026-11-23T10:00:05Z"}`,
		`{"id":"sevt_8","type":"user.interrupt","session_thread_id":"sthr_1","processed_at":"2026-11-23T10:00:05Z"}`,
		`{"id":"sevt_9","type":"session.deleted","processed_at":"2026-11-23T10:00:05Z"}`,
	} {
		got, err := decodeEvent(json.RawMessage(raw))
		if err != nil {
			t.Fatal(err)
		}
		var sdk anthropic.BetaManagedAgentsSessionEventUnion
		if err := json.Unmarshal([]byte(raw), &sdk); err != nil {
			t.Fatal(err)
		}
		want := session.Event{
			ID: sdk.ID, Type: sdk.Type, Thread: sdk.SessionThreadID, ProcessedAt: sdk.ProcessedAt.UTC(),
			Name: sdk.Name, Input: got.Input, Permission: string(sdk.EvaluatedPermission),
			Refers:     sdk.ToolUseID + sdk.CustomToolUseID,
			StopReason: sdk.StopReason.Type, Requires: sdk.StopReason.EventIDs, Raw: json.RawMessage(raw),
		}
		if sdk.Type == "user.tool_confirmation" {
			want.Verdict = string(sdk.AsUserToolConfirmation().Result)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", raw, d)
		}
	}
}

func FuzzDecodeEvent(f *testing.F) {
	f.Add([]byte(`{"id":"sevt_1","type":"agent.tool_use","name":"bash","input":{},"evaluated_permission":"ask"}`))
	f.Add([]byte(`{"type":"session.status_idle","stop_reason":{"type":"x","event_ids":[1,"a"]}}`))
	f.Add([]byte(`{"type":"user.tool_confirmation","result":[]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := decodeEvent(raw)
		if err != nil {
			return
		}
		if !json.Valid(e.Raw) || len(e.Input) > 0 && !json.Valid(e.Input) {
			t.Fatalf("decoded %q to JSON that is none", raw)
		}
	})
}

func FuzzSecret(f *testing.F) {
	f.Add(secretFor("sk-ant-req-1"))
	f.Add("!!")
	f.Add("eyJzZXNzaW9uc190b2tlbiI6ImFcbmIifQ==")
	f.Fuzz(func(t *testing.T, secret string) {
		if token := sessionsToken(secret); token != "" && !bearer(token).usable() {
			t.Fatalf("token %q cannot be sent", token)
		}
	})
}
