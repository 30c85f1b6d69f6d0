package local

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const hello = `{"type":"user.message","content":[{"type":"text","text":"hello"}]}`

func thinking(t testing.TB, m *fakeModel, change ...func(*MessagesOptions)) *MessagesBrain {
	t.Helper()
	o := MessagesOptions{APIKey: "sk-model", BaseURL: m.url}
	for _, f := range change {
		f(&o)
	}
	b, err := NewMessagesBrain(o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTheModelsCallsAreMadeAndItsResultsComeBack(t *testing.T) {
	m := newFakeModel(t,
		said("tool_use", "Let me look.", modelTool{Name: "bash", InputSchema: map[string]any{"command": "ls"}},
			modelTool{Name: "deploy", InputSchema: map[string]any{"env": "prod"}}),
		said("end_turn", "All done."))
	d := openDoor(t, Options{Brain: thinking(t, m)})
	id, f := d.session(`"system":"Be brief.","tools":[{"type":"agent_toolset_20260401","configs":[{"name":"grep","enabled":false}]},
		{"type":"custom","name":"deploy","description":"Deploys.","input_schema":{"type":"object","properties":{"env":{"type":"string"}}}}]`)
	d.events(id, hello)
	seen := f.idle("requires_action")
	want := []string{
		"user.message", "session.status_running", "span.model_request_start", "agent.message", "agent.tool_use", "agent.custom_tool_use",
		"span.model_request_end", "session.usage", "session.status_idle",
	}
	if diff := cmp.Diff(want, typesOf(seen[len(seen)-len(want):])); diff != "" {
		t.Errorf("events of the first round (-want +got):\n%s", diff)
	}
	call := func(typ string) string {
		for _, e := range seen {
			if e["type"] == typ {
				return e["id"].(string)
			}
		}
		return ""
	}
	d.events(id, `{"type":"user.custom_tool_result","custom_tool_use_id":"`+call("agent.custom_tool_use")+`","content":[{"type":"text","text":"deployed"}]}`)
	d.events(id, `{"type":"user.tool_result","tool_use_id":"`+call("agent.tool_use")+`","is_error":true,"content":[{"type":"text","text":"no such file"}]}`)
	last := f.idle("end_turn")
	if got := textOf(find(last, "agent.message")["content"]); got != "All done." {
		t.Errorf("the last message is %q", got)
	}

	asked := m.asked()
	var tools []string
	for _, tool := range asked[0]["tools"].([]any) {
		tools = append(tools, tool.(map[string]any)["name"].(string))
	}
	if diff := cmp.Diff([]string{"bash", "read", "write", "edit", "glob", "deploy"}, tools); diff != "" {
		t.Errorf("offered tools (-want +got):\n%s", diff)
	}
	if system := asked[0]["system"].(string); !strings.HasPrefix(system, "Be brief.") || !strings.Contains(system, "/workspace") {
		t.Errorf("system prompt %q", system)
	}
	text := func(s string) []any { return []any{map[string]any{"type": "text", "text": s}} }
	wantMessages := []any{
		map[string]any{"role": "user", "content": text("hello")},
		map[string]any{"role": "assistant", "content": append(text("Let me look."),
			map[string]any{"type": "tool_use", "id": call("agent.tool_use"), "name": "bash", "input": map[string]any{"command": "ls"}},
			map[string]any{"type": "tool_use", "id": call("agent.custom_tool_use"), "name": "deploy", "input": map[string]any{"env": "prod"}})},
		map[string]any{"role": "user", "content": []any{
			map[string]any{"type": "tool_result", "tool_use_id": call("agent.tool_use"), "is_error": true, "content": text("no such file")},
			map[string]any{"type": "tool_result", "tool_use_id": call("agent.custom_tool_use"), "content": text("deployed")},
		}},
	}
	if diff := cmp.Diff(wantMessages, asked[1]["messages"]); diff != "" {
		t.Errorf("second request (-want +got):\n%s", diff)
	}
	usage := d.want(200, "GET", "/v1/sessions/"+id, "").Body["usage"].(map[string]any)
	if usage["input_tokens"] != 20.0 || usage["output_tokens"] != 14.0 || usage["cache_read_input_tokens"] != 10.0 {
		t.Errorf("usage %v, want that of two requests", usage)
	}
}

func find(events []map[string]any, typ string) map[string]any {
	for _, e := range events {
		if e["type"] == typ {
			return e
		}
	}
	return nil
}

func TestADeniedCallIsToldToTheModel(t *testing.T) {
	m := newFakeModel(t,
		said("tool_use", modelTool{Name: "bash", InputSchema: map[string]any{"command": "rm -rf /"}}),
		said("end_turn", "Understood."))
	d := openDoor(t, Options{Brain: thinking(t, m)})
	id, f := d.session(`"tools":[{"type":"agent_toolset_20260401","default_config":{"permission_policy":{"type":"always_ask"}}}]`)
	d.events(id, hello)
	call := f.typ("agent.tool_use")
	if call["evaluated_permission"] != "ask" {
		t.Errorf("call %v, want one that asks", call)
	}
	f.idle("requires_action")
	d.events(id, `{"type":"user.tool_confirmation","tool_use_id":"`+call["id"].(string)+`","result":"deny","deny_message":"never"}`)
	f.idle("end_turn")
	results := m.asked()[1]["messages"].([]any)[2].(map[string]any)["content"].([]any)
	result := results[0].(map[string]any)
	if result["is_error"] != true || !strings.Contains(textOf(result["content"]), "never") {
		t.Errorf("the model hears %v, want an error that says why", result)
	}
}

func TestATransientModelErrorIsRetried(t *testing.T) {
	m := newFakeModel(t, refused(529), refused(429, "retry-after", "30"),
		func(w http.ResponseWriter, _ *http.Request) { // half a reply
			w.Header().Set("Content-Type", "text/event-stream")
			fmt.Fprint(w, "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"busy\"}}\n\n")
		},
		said("end_turn", "Back."))
	clock := NewManualClock(time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC))
	d := openDoor(t, Options{Brain: thinking(t, m), Clock: clock})
	id, f := d.session(`"tools":[]`)
	d.events(id, hello)
	for _, wait := range []struct {
		pause time.Duration
		typ   string
	}{{time.Second, "model_overloaded_error"}, {30 * time.Second, "model_rate_limited_error"}, {4 * time.Second, "model_overloaded_error"}} {
		e := f.typ("session.error")["error"].(map[string]any)
		if status := e["retry_status"].(map[string]any)["type"]; e["type"] != wait.typ || status != "retrying" {
			t.Errorf("error %v, want %s, retrying", e, wait.typ)
		}
		clock.AwaitAlarm(wait.pause)
		clock.Advance(wait.pause)
	}
	f.idle("end_turn")
}

func TestRetriesThatRunOutEndTheTurn(t *testing.T) {
	for name, replies := range map[string][]http.HandlerFunc{
		"too many":      {refused(500), refused(500)},
		"not retryable": {refused(400)},
	} {
		t.Run(name, func(t *testing.T) {
			clock := NewManualClock(time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC))
			m := newFakeModel(t, replies...)
			d := openDoor(t, Options{Brain: thinking(t, m, func(o *MessagesOptions) { o.Attempts = 2 }), Clock: clock})
			id, f := d.session(`"tools":[]`)
			d.events(id, hello)
			if len(replies) > 1 {
				f.typ("session.error")
				clock.AwaitAlarm(time.Second)
				clock.Advance(time.Minute)
			}
			seen := f.idle("retries_exhausted")
			e, _ := find(seen, "session.error")["error"].(map[string]any)
			if status, _ := e["retry_status"].(map[string]any); status["type"] != "exhausted" {
				t.Errorf("error %v, want one whose retries are exhausted", e)
			}
		})
	}
}

func TestAnInterruptStopsTheModelAndTheNextTurnGoesOn(t *testing.T) {
	started, cancelled := make(chan struct{}), make(chan struct{})
	m := newFakeModel(t,
		said("tool_use", modelTool{Name: "bash", InputSchema: map[string]any{"command": "sleep 1000"}}),
		func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			_ = http.NewResponseController(w).Flush() // so that the client sees the beginning
			close(started)
			<-r.Context().Done()
			close(cancelled)
		},
		said("end_turn", "Fine."))
	d := openDoor(t, Options{Brain: thinking(t, m)})
	id, f := d.session(`"tools":[{"type":"agent_toolset_20260401"}]`)
	d.events(id, hello)
	f.idle("requires_action")
	d.events(id, `{"type":"user.interrupt"}`)
	f.idle("end_turn")
	d.events(id, `{"type":"user.message","content":[{"type":"text","text":"and now?"}]}`)
	<-started
	d.events(id, `{"type":"user.interrupt"}`)
	<-cancelled
	f.idle("end_turn")
	d.events(id, hello)
	f.idle("end_turn")
	var roles []string
	for _, msg := range m.asked()[2]["messages"].([]any) {
		msg := msg.(map[string]any)
		roles = append(roles, msg["role"].(string))
		for _, block := range msg["content"].([]any) {
			if b := block.(map[string]any); b["type"] == "tool_result" && (b["is_error"] != true || textOf(b["content"]) != interruptedText) {
				t.Errorf("the interrupted call has the result %v", b)
			}
		}
	}
	if diff := cmp.Diff([]string{"user", "assistant", "user"}, roles); diff != "" {
		t.Errorf("roles (-want +got):\n%s", diff)
	}
}

func TestATurnHasABoundOfModelRequests(t *testing.T) {
	loop := said("tool_use", modelTool{Name: "bash", InputSchema: map[string]any{"command": "true"}})
	m := newFakeModel(t, loop, loop)
	d := openDoor(t, Options{Brain: thinking(t, m, func(o *MessagesOptions) { o.MaxRequests = 2 })})
	id, f := d.session(`"tools":[{"type":"agent_toolset_20260401"}]`)
	d.events(id, hello)
	for range 2 {
		call := f.typ("agent.tool_use")["id"].(string)
		d.events(id, `{"type":"user.tool_result","tool_use_id":"`+call+`"}`)
	}
	e := find(f.idle("retries_exhausted"), "session.error")["error"].(map[string]any)
	if e["type"] != "tool_use_limit_reached_error" {
		t.Errorf("error %v, want tool_use_limit_reached_error", e)
	}
}

func TestARefusalEndsTheTurnWithItsReason(t *testing.T) {
	m := newFakeModel(t, said("refusal"))
	d := openDoor(t, Options{Brain: thinking(t, m)})
	id, f := d.session(`"tools":[]`)
	d.events(id, hello)
	seen := f.idle("refusal")
	want := map[string]any{"type": "refusal", "category": "cyber", "explanation": "no"}
	if diff := cmp.Diff(want, seen[len(seen)-1]["stop_details"]); diff != "" {
		t.Errorf("stop details (-want +got):\n%s", diff)
	}
}

func TestTheModelHearsOfSkillsAndMemory(t *testing.T) {
	m := newFakeModel(t, said("end_turn", "ok"))
	d := openDoor(t, Options{Brain: thinking(t, m, func(o *MessagesOptions) { o.Model = "claude-haiku-5-5" })})
	skill, _, err := d.srv.SeedSkill(SkillSeed{Name: "pdf-forms", Description: "Fills forms."})
	if err != nil {
		t.Fatal(err)
	}
	store := strings.TrimPrefix(d.store(), "/v1/memory_stores/")
	env := d.want(200, "POST", "/v1/environments", `{"name":"e","config":{"type":"self_hosted"}}`).Body["id"].(string)
	a := d.want(200, "POST", "/v1/agents", `{"name":"n","model":{"id":"claude-opus-5-5","effort":"low"},"skills":[{"type":"custom","skill_id":"`+skill+`"}]}`).Body["id"].(string)
	id := d.want(200, "POST", "/v1/sessions", `{"agent":"`+a+`","environment_id":"`+env+`",
		"resources":[{"type":"memory_store","memory_store_id":"`+store+`","access":"read_only","instructions":"Look here first."}]}`).Body["id"].(string)
	f := d.follow(id)
	d.events(id, hello)
	f.idle("end_turn")
	asked := m.asked()[0]
	system, _ := asked["system"].(string)
	for _, part := range []string{"skills/pdf-forms: Fills forms.", "/mnt/memory/team-notes", "read_only", "Look here first."} {
		if !strings.Contains(system, part) {
			t.Errorf("the system prompt does not say %q:\n%s", part, system)
		}
	}
	if effort := asked["output_config"].(map[string]any)["effort"]; effort != "low" || asked["model"] != "claude-haiku-5-5" {
		t.Errorf("effort %v model %v", effort, asked["model"])
	}
}

func TestAReplyThatIsCutOffIsNoReply(t *testing.T) {
	whole := httptest.NewRecorder()
	said("tool_use", "text", modelTool{Name: "bash", InputSchema: map[string]any{"command": "ls"}})(whole, nil)
	stream := whole.Body.String()
	if _, err := readReply(strings.NewReader(stream)); err != nil {
		t.Fatalf("the whole reply: %v", err)
	}
	for n := range len(stream) - len("data: {\"type\":\"message_stop\"}\n\n") {
		if _, err := readReply(strings.NewReader(stream[:n])); err == nil {
			t.Fatalf("the first %d of %d bytes were taken for a reply", n, len(stream))
		}
	}
}

func TestABrainNeedsAKeyAndAURL(t *testing.T) {
	if _, err := NewMessagesBrain(MessagesOptions{}); err == nil {
		t.Error("no key: no error")
	}
	if _, err := NewMessagesBrain(MessagesOptions{APIKey: "k", BaseURL: "ftp://x"}); err == nil {
		t.Error("an ftp URL: no error")
	}
	b, err := NewMessagesBrain(MessagesOptions{APIKey: "sk-secret"})
	if err != nil {
		t.Fatal(err)
	}
	if s := fmt.Sprintf("%+v", b); strings.Contains(s, "sk-secret") {
		t.Errorf("the key can be printed: %s", s)
	}
}
