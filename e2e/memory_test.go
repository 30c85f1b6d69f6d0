package e2e

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/claude/local"
)

// memories sends one request about memory stores with the API key.
func (h *house) memories(method, path string, body any) map[string]any {
	h.t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		h.t.Fatal(err)
	}
	req, err := http.NewRequest(method, h.url+path, bytes.NewReader(raw))
	if err != nil {
		h.t.Fatal(err)
	}
	req.Header = http.Header{"X-Api-Key": {h.apiKey}, "Anthropic-Beta": {"agent-memory-2026-07-22"}, "Anthropic-Version": {"2026-10-21"}}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode >= 300 {
		h.t.Fatalf("%s %s: %s %s %v", method, path, res.Status, answer, err)
	}
	var out map[string]any
	if err := json.Unmarshal(answer, &out); err != nil {
		h.t.Fatal(err)
	}
	return out
}

// store makes a memory store with these memories.
func (h *house) store(name string, contents map[string]string) string {
	h.t.Helper()
	id := h.memories(http.MethodPost, "/v1/memory_stores", map[string]any{"name": name})["id"].(string)
	for path, content := range contents {
		h.memories(http.MethodPost, "/v1/memory_stores/"+id+"/memories", map[string]any{"path": path, "content": content})
	}
	return id
}

// memory returns what a store has at a path, "" when nothing.
func (h *house) memory(store, path string) string {
	h.t.Helper()
	list := h.memories(http.MethodGet, "/v1/memory_stores/"+store+"/memories?view=full&path_prefix="+url.QueryEscape(path[:strings.LastIndexByte(path, '/')+1]), nil)
	for _, item := range list["data"].([]any) {
		if m := item.(map[string]any); m["path"] == path {
			return m["content"].(string)
		}
	}
	return ""
}

// remembering creates a session with memory stores that plays a scenario.
func (h *house) remembering(scenario string, access map[string]string) string {
	h.t.Helper()
	var agent, s struct{ ID string }
	h.post("/v1/agents", map[string]any{
		"name": "e2e", "model": "claude-opus-5-5", "tools": []any{map[string]any{"type": "agent_toolset_20260401"}},
	}, &agent)
	var resources []any
	for store, how := range access {
		resources = append(resources, map[string]any{"type": "memory_store", "memory_store_id": store, "access": how})
	}
	h.post("/v1/sessions", map[string]any{
		"agent": agent.ID, "environment_id": environment, "metadata": map[string]any{"scenario": scenario}, "resources": resources,
		"initial_events": []any{map[string]any{"type": "user.message", "content": []any{map[string]any{"type": "text", "text": "go"}}}},
	}, &s)
	return s.ID
}

func TestMemoryStoresAreInTheSandbox(t *testing.T) {
	t.Parallel()
	h := newHouse(t, local.Options{}, `
name: writer
steps:
  - calls:
      - {tool: bash, input: {command: "cat /mnt/memory/team-notes/x.md && echo second >> /mnt/memory/team-notes/x.md && mkdir -p /mnt/memory/team-notes/d && echo new > /mnt/memory/team-notes/d/y.md"}, expect: {text: first, error: false}}
  - calls:
      - {tool: read, input: {file_path: /mnt/memory/facts/f.md}, expect: {text: fixed, error: false}}
      - {tool: bash, input: {command: "echo changed > /mnt/memory/facts/f.md"}, expect: {text: "(Permission denied|Read-only)", error: true}}
      - {tool: write, input: {file_path: /mnt/memory/facts/g.md, content: x}, expect: {text: read-only, error: true}}
      - {tool: bash, input: {command: "rm /mnt/memory/facts/f.md"}, expect: {error: true}}
  - calls:
      - {tool: bash, input: {command: "cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -c 'sk-an[t]-'; grep -rl 'sk-an[t]-' /mnt /workspace /tmp; true"}, expect: {text: '^0\s*$', error: false}}
  - message: Done.
`, `
name: reader
steps:
  - calls:
      - {tool: bash, input: {command: "cat /mnt/memory/team-notes/x.md /mnt/memory/team-notes/d/y.md; echo third > /mnt/memory/team-notes/z.md"}, expect: {text: '(?s)first.*second.*new', error: false}}
  - message: Done.
`)
	h.env = []string{"BERTH_CONFIG=" + h.file("berth.yaml", "sessions: {release_after: 0s}\n")}
	notes := h.store("Team notes", map[string]string{"/x.md": "first\n"})
	facts := h.store("Facts", map[string]string{"/f.md": "fixed\n"})
	h.start()
	access := map[string]string{notes: "read_write", facts: "read_only"}
	writer := h.remembering("writer", access)
	h.finished(60*time.Second, writer)
	stopped := func(s string) func() bool {
		return func() bool { return len(h.platform.Works(s)) > 0 && h.platform.Works(s)[0].State == "stopped" }
	}
	h.eventually(30*time.Second, "the work is given back", stopped(writer))
	for path, want := range map[string]string{"/x.md": "first\nsecond\n", "/d/y.md": "new\n"} {
		if got := h.memory(notes, path); got != want {
			t.Errorf("%s is %q at the platform, want %q", path, got, want)
		}
	}
	if got := h.memory(facts, "/f.md"); got != "fixed\n" {
		t.Errorf("the read-only memory is %q", got)
	}

	// Another session with the same stores, while the first one's sandbox is warm.
	reader := h.remembering("reader", access)
	h.finished(60*time.Second, reader)
	h.eventually(30*time.Second, "the work is given back", stopped(reader))
	if got := h.memory(notes, "/z.md"); got != "third\n" {
		t.Errorf("/z.md is %q at the platform", got)
	}
}

func TestAMemoryThatWasNotSentOutlivesTheServer(t *testing.T) {
	t.Parallel()
	h := newHouse(t, local.Options{}, `
name: killed
steps:
  - calls:
      - {tool: bash, input: {command: "echo mine >> /mnt/memory/notes/x.md; echo new > /mnt/memory/notes/y.md; rm /mnt/memory/notes/old.md"}, expect: {error: false}}
  - wait: message
  - calls:
      - {tool: bash, input: {command: "cat /mnt/memory/notes/x.md"}, expect: {text: mine, error: false}}
  - message: Done.
`)
	h.env = []string{"BERTH_CONFIG=" + h.file("berth.yaml", "sessions: {release_after: 3s, memory_sync: 10m}\n")}
	store := h.store("notes", map[string]string{"/x.md": "first\n", "/old.md": "old\n", "/keep.md": "kept\n"})
	if err := h.platform.Inject(local.Fault{Kind: local.SendCode, On: "memory.create", Status: 503, Times: 2}); err != nil {
		t.Fatal(err)
	}
	h.start()
	s := h.remembering("killed", map[string]string{store: "read_write"})
	h.eventually(60*time.Second, "the call is answered", func() bool { return len(h.log(s, "user.tool_result")) == 1 })
	h.serve.end(syscall.SIGKILL)
	if got := h.memory(store, "/x.md"); got != "first\n" {
		t.Fatalf("/x.md is %q: it was sent before the server was killed", got)
	}
	h.start()
	h.eventually(60*time.Second, "the work is given back", func() bool { return h.platform.Works(s)[0].State == "stopped" })
	want := map[string]string{"/x.md": "first\nmine\n", "/y.md": "new\n", "/old.md": "", "/keep.md": "kept\n"}
	for path, content := range want {
		if got := h.memory(store, path); got != content {
			t.Errorf("%s is %q at the platform, want %q", path, got, content)
		}
	}
	if _, err := h.platform.Send(s, map[string]any{"type": "user.message", "content": []any{map[string]any{"type": "text", "text": "again"}}}); err != nil {
		t.Fatal(err)
	}
	h.finished(60*time.Second, s)
}
