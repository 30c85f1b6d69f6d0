package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/claude/local"
)

func TestSkillsAreInTheSandbox(t *testing.T) {
	t.Parallel()
	h := newHouse(t, local.Options{}, `
name: skilled
steps:
  - calls:
      - {tool: bash, input: {command: "cat /workspace/skills/greet/SKILL.md; bash /workspace/skills/greet/run.sh"}, expect: {text: '(?s)How to greet.*hello', error: false}}
      - {tool: bash, input: {command: "(echo x > /workspace/skills/greet/SKILL.md; rm -rf /workspace/skills/greet; mv /workspace/skills /workspace/other; touch /workspace/skills/new) 2>/dev/null; ls /workspace/skills/greet"}, expect: {text: '(?s)SKILL.md.*run.sh', error: false}}
      - {tool: write, input: {file_path: skills/greet/SKILL.md, content: x}, expect: {text: read-only, error: true}}
      - {tool: read, input: {file_path: skills/greet/SKILL.md}, expect: {text: How to greet, error: false}}
  - message: Done.
`)
	skill, _, err := h.platform.SeedSkill(local.SkillSeed{Name: "greet", Files: map[string]string{
		"SKILL.md": "# How to greet\n", "run.sh": "#!/bin/bash\necho hello\n",
	}})
	if err != nil {
		t.Fatal(err)
	}
	h.start()
	var agent, s struct{ ID string }
	h.post("/v1/agents", map[string]any{
		"name": "e2e", "model": "claude-opus-5-5", "tools": []any{map[string]any{"type": "agent_toolset_20260401"}},
		"skills": []any{map[string]any{"type": "custom", "skill_id": skill}},
	}, &agent)
	h.post("/v1/sessions", map[string]any{
		"agent": agent.ID, "environment_id": environment,
		"initial_events": []any{map[string]any{"type": "user.message", "content": []any{map[string]any{"type": "text", "text": "go"}}}},
	}, &s)
	h.finished(30*time.Second, s.ID)
}

// TestDemoWithAModel lets a pretended model behind the Messages API work in a
// real sandbox.
func TestDemoWithAModel(t *testing.T) {
	t.Parallel()
	requests := 0
	model := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/messages" || r.Header.Get("X-Api-Key") != "sk-ant-api03-pretended" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		requests++
		w.Header().Set("Content-Type", "text/event-stream")
		send := func(event string, data any) {
			b, err := json.Marshal(data)
			if err != nil {
				panic(err)
			}
			fmt.Fprintf(w, "event: %s\ndata: %s\n\n", event, b)
		}
		block, delta, stop := map[string]any{"type": "text", "text": ""}, map[string]any{"type": "text_delta", "text": "The answer is in the file."}, "end_turn"
		if requests == 1 {
			block = map[string]any{"type": "tool_use", "id": "toolu_1", "name": "bash", "input": map[string]any{}}
			delta = map[string]any{"type": "input_json_delta", "partial_json": `{"command":"echo from-the-sandbox-$((6*7))"}`}
			stop = "tool_use"
		}
		send("message_start", map[string]any{"type": "message_start", "message": map[string]any{
			"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": []any{}, "usage": map[string]any{"input_tokens": 10, "output_tokens": 1},
		}})
		send("content_block_start", map[string]any{"type": "content_block_start", "index": 0, "content_block": block})
		send("content_block_delta", map[string]any{"type": "content_block_delta", "index": 0, "delta": delta})
		send("content_block_stop", map[string]any{"type": "content_block_stop", "index": 0})
		send("message_delta", map[string]any{"type": "message_delta", "delta": map[string]any{"stop_reason": stop}, "usage": map[string]any{"output_tokens": 5}})
		send("message_stop", map[string]any{"type": "message_stop"})
	}))
	defer model.Close()
	env := cleanEnv("ANTHROPIC_API_KEY=sk-ant-api03-pretended", "ANTHROPIC_BASE_URL="+model.URL)
	out, errs, code := run(t, t.TempDir(), env, "demo", "--exit", "--model", "claude-test", "--task", "Compute it.")
	if code != 0 || !strings.Contains(out, "from-the-sandbox-42") || !strings.Contains(out, "The answer is in the file.") {
		t.Fatalf("code %d after %d model requests\n%s%s", code, requests, out, errs)
	}
	if strings.Contains(out+errs, "sk-ant-api03-pretended") {
		t.Error("the demo shows the API key")
	}
	if _, errs, code := run(t, t.TempDir(), cleanEnv(), "demo", "--model", "claude-test", "--task", "x"); code != 2 || !strings.Contains(errs, "ANTHROPIC_API_KEY") {
		t.Errorf("without a key: code %d, %s", code, errs)
	}
}

func TestSandboxCoolsDownAndKeepsItsFiles(t *testing.T) {
	t.Parallel()
	h := newHouse(t, local.Options{}, `
name: nap
steps:
  - calls: [{tool: bash, input: {command: "echo kept > /workspace/note; sleep 100 & echo $$ > /tmp/pid"}, expect: {error: false}}]
  - wait: message
  - calls: [{tool: bash, input: {command: "cat /workspace/note; ls /tmp/pid"}, expect: {text: '(?s)kept.*No such file', error: true}}]
  - message: Done.
`)
	h.env = []string{"BERTH_CONFIG=" + h.file("berth.yaml", "sessions: {release_after: 0s}\nsandbox: {warm: 1s}\n")}
	h.start()
	s := h.session("nap", "go")
	h.eventually(30*time.Second, "the session is parked", func() bool {
		return len(h.platform.Works(s)) > 0 && h.platform.Works(s)[0].State == "stopped" && h.show(s).Phase == "parked"
	})
	if show := h.show(s); show.Sandbox != nil {
		t.Errorf("a parked session has the sandbox %+v", show.Sandbox)
	}
	if _, err := h.platform.Send(s, map[string]any{"type": "user.message", "content": []any{map[string]any{"type": "text", "text": "again"}}}); err != nil {
		t.Fatal(err)
	}
	h.finished(30*time.Second, s)
	if w := h.platform.Works(s); len(w) != 2 {
		t.Errorf("%d work items, want 2", len(w))
	}
}
