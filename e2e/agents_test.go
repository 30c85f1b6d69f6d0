package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/claude/local"
)

// TestAgentsHaveSandboxesOfTheirOwnKind lets two agents with different settings
// look around in real sandboxes.
func TestAgentsHaveSandboxesOfTheirOwnKind(t *testing.T) {
	t.Parallel()
	const look = `echo "greeting=$GREETING files=$(ulimit -n) processes=$(ulimit -u) setups=$(wc -l < setups) by=$(cat by)"`
	scenario := func(name, expect string) string {
		return "name: " + name + "\nsteps:\n  - calls:\n" +
			"      - {tool: bash, input: {command: '" + strings.ReplaceAll(look, "'", "''") + "'}, expect: {text: '" + expect + "', error: false}}\n" +
			"      - {tool: bash, input: {command: 'echo $GREETING'}, expect: {error: false}}\n  - message: Done.\n"
	}
	h := newHouse(t, local.Options{},
		scenario("first", `greeting=hello world files=300 processes=99 setups=1 by=agent`),
		scenario("second", `greeting= files=4000 processes=200 setups=1 by=agent`),
		"name: broken\nsteps:\n  - calls:\n      - {tool: bash, input: {command: 'true'}, expect: {text: '(?s)set-up command.*exit status 7.*no luck', error: true}}\n  - message: Done.\n")
	h.start()
	setup := `echo x >> setups; id -un > by`
	settings := map[string][]string{
		"first":  {"--env", "GREETING=hello world", "--open-files", "300", "--processes", "99", "--memory", "512MiB", "--setup", setup},
		"second": {"--open-files", "4000", "--processes", "200", "--setup", setup},
		"broken": {"--setup", "echo no luck >&2; exit 7"},
	}
	for name, args := range settings {
		var agent, s struct{ ID string }
		h.post("/v1/agents", map[string]any{
			"name": name, "model": "claude-opus-5-5", "tools": []any{map[string]any{"type": "agent_toolset_20260401"}},
		}, &agent)
		if out, errs, code := h.berth(append([]string{"agents", "set", agent.ID}, args...)...); code != 0 {
			t.Fatalf("agents set: code %d\n%s%s", code, out, errs)
		}
		h.post("/v1/sessions", map[string]any{
			"agent": agent.ID, "environment_id": environment, "metadata": map[string]any{"scenario": name},
			"initial_events": []any{map[string]any{"type": "user.message", "content": []any{map[string]any{"type": "text", "text": "go"}}}},
		}, &s)
		h.finished(time.Minute, s.ID)
		out, _, code := h.berth("sessions", "events", s.ID)
		if told := strings.Contains(out, "set-up failed"); code != 0 || told != (name == "broken") {
			t.Errorf("events of %s: code %d\n%s", name, code, out)
		}
	}
}
