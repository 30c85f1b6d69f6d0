package local

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAgentReplyCarriesResolvedDefaults(t *testing.T) {
	d := openDoor(t, Options{})
	skill, version, err := d.srv.SeedSkill(SkillSeed{Name: "pdf-forms", Description: "Fills forms."})
	if err != nil {
		t.Fatal(err)
	}
	got := d.want(200, "POST", "/v1/agents", `{"name":"builder","model":"claude-opus-5-5",
		"tools":[{"type":"agent_toolset_20260401","configs":[{"name":"bash","permission_policy":{"type":"always_ask"}},
		                                                      {"name":"web_fetch","enabled":false,"url_sources":{"user_input":"none"}}]},
		         {"type":"mcp_toolset","mcp_server_name":"files"},
		         {"type":"custom","name":"deploy","description":"Deploys.","input_schema":{"type":"object"}}],
		"mcp_servers":[{"type":"url","name":"files","url":"https://mcp.example.com"}],
		"skills":[{"type":"custom","skill_id":"`+skill+`"}]}`).Body
	for _, volatile := range []string{"id", "created_at", "updated_at"} {
		delete(got, volatile)
	}
	allow, ask := map[string]any{"type": "always_allow"}, map[string]any{"type": "always_ask"}
	want := map[string]any{
		"type": "agent", "version": 1.0, "name": "builder", "description": nil, "system": nil,
		"model": map[string]any{"id": "claude-opus-5-5", "speed": "standard", "effort": map[string]any{"type": "high"}},
		"tools": []any{
			map[string]any{
				"type": "agent_toolset_20260401", "default_config": map[string]any{"enabled": true, "permission_policy": allow},
				"configs": []any{
					map[string]any{"type": "bash", "name": "bash", "enabled": true, "permission_policy": ask},
					map[string]any{
						"type": "web_fetch", "name": "web_fetch", "enabled": false, "permission_policy": allow,
						"url_sources": map[string]any{
							"user_input": map[string]any{"type": "none"}, "client_tool_results": nil, "server_tool_results": nil,
						},
					},
				},
			},
			map[string]any{
				"type": "mcp_toolset", "mcp_server_name": "files", "configs": []any{},
				"default_config": map[string]any{"enabled": true, "permission_policy": ask},
			},
			map[string]any{
				"type": "custom", "name": "deploy", "description": "Deploys.", "input_schema": map[string]any{"type": "object"},
			},
		},
		"mcp_servers": []any{map[string]any{"type": "url", "name": "files", "url": "https://mcp.example.com"}},
		"skills":      []any{map[string]any{"type": "custom", "skill_id": skill, "version": version}},
		"multiagent":  nil, "metadata": map[string]any{}, "execution_identity": map[string]any{"type": "service_account"},
		"archived_at": nil,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("agent (-want +got):\n%s", diff)
	}
}

func TestAgentCreateRefusesWhatTheContractRefuses(t *testing.T) {
	d := openDoor(t, Options{})
	tool := func(schema string) string {
		return `"tools":[{"type":"custom","name":"t","description":"d","input_schema":` + schema + `}]`
	}
	named := func(name string) string {
		return `"tools":[{"type":"custom","name":"` + name + `","description":"d","input_schema":{"type":"object"}}]`
	}
	tests := map[string]string{
		"no model":                `"model":null`,
		"a long name":             `"name":"` + strings.Repeat("n", 257) + `"`,
		"a long system prompt":    `"system":"` + strings.Repeat("s", 100_001) + `"`,
		"an unknown field":        `"colour":"red"`,
		"an unknown effort":       `"model":{"id":"m","effort":"huge"}`,
		"an unknown tool type":    `"tools":[{"type":"hammer"}]`,
		"an unknown stock tool":   `"tools":[{"type":"agent_toolset_20260401","configs":[{"name":"hammer"}]}]`,
		"a tool configured twice": `"tools":[{"type":"agent_toolset_20260401","configs":[{"name":"bash"},{"name":"bash"}]}]`,
		"an unknown policy":       `"tools":[{"type":"agent_toolset_20260401","default_config":{"permission_policy":{"type":"maybe"}}}]`,
		"a built-in tool name":    named("bash"),
		"a reserved prefix":       named("mcp__x"),
		"a space in a tool name":  named("a b"),
		"a tool without text":     `"tools":[{"type":"custom","name":"t","description":"","input_schema":{"type":"object"}}]`,
		"$ref in a schema":        tool(`{"type":"object","properties":{"a":{"items":[{"$ref":"#"}]}}}`),
		"oneOf at the top":        tool(`{"type":"object","oneOf":[]}`),
		"a schema of a string":    tool(`{"type":"string"}`),
		"a property with a space": tool(`{"type":"object","properties":{"a b":{}}}`),
		"the same tool twice":     `"tools":[` + strings.TrimSuffix(strings.Repeat(`{"type":"custom","name":"t","description":"d","input_schema":{"type":"object"}},`, 2), ",") + `]`,
		"an unreferenced server":  `"mcp_servers":[{"type":"url","name":"s","url":"https://x.example"}]`,
		"an undeclared server":    `"tools":[{"type":"mcp_toolset","mcp_server_name":"s"}]`,
		"an unknown skill":        `"skills":[{"type":"custom","skill_id":"skill_none"}]`,
		"an unknown team":         `"multiagent":{"type":"crowd"}`,
		"an empty team":           `"multiagent":{"type":"coordinator","agents":[]}`,
		"an unknown team mate":    `"multiagent":{"type":"coordinator","agents":["agent_none"]}`,
		"too many metadata pairs": `"metadata":{` + pairs(17) + `}`,
		"an empty domain list":    `"tools":[{"type":"agent_toolset_20260401","configs":[{"name":"web_search","allowed_domains":[]}]}]`,
		"domains on bash":         `"tools":[{"type":"agent_toolset_20260401","configs":[{"name":"bash","allowed_domains":["x.example"]}]}]`,
	}
	for name, field := range tests {
		t.Run(name, func(t *testing.T) {
			body := map[string]json.RawMessage{"name": []byte(`"n"`), "model": []byte(`"m"`)}
			if err := json.Unmarshal([]byte("{"+field+"}"), &body); err != nil {
				t.Fatal(err)
			}
			raw, err := json.Marshal(body)
			if err != nil {
				t.Fatal(err)
			}
			if got := d.call("POST", "/v1/agents", string(raw)); got.Status != 400 || got.errType() != "invalid_request_error" {
				t.Errorf("status %d %s, want 400 invalid_request_error", got.Status, got.Raw)
			}
		})
	}
}

func pairs(n int) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf(`"k%d":"v"`, i))
	}
	return strings.Join(all, ",")
}

func TestAgentUpdateMakesAVersionOnlyWhenSomethingChanges(t *testing.T) {
	d := openDoor(t, Options{})
	id := d.want(200, "POST", "/v1/agents", `{"name":"n","model":{"id":"m","effort":"low"},"system":"s","metadata":{"a":"1","b":"2"},
		"tools":[{"type":"custom","name":"t","description":"d","input_schema":{"type":"object","properties":{"x":{"type":"string"}}}}]}`).Body["id"].(string)
	path := "/v1/agents/" + id

	for _, noop := range []string{
		`{}`, `{"name":"n"}`, `{"model":"m"}`, `{"metadata":{"a":"1","z":null}}`,
		`{"tools":[{"name":"t","type":"custom","input_schema":{"properties":{"x":{"type":"string"}},"type":"object"},"description":"d"}]}`,
	} {
		if got := d.want(200, "POST", path, noop).Body["version"]; got != 1.0 {
			t.Errorf("after %s the version is %v, want 1", noop, got)
		}
	}
	got := d.want(200, "POST", path, `{"version":1,"system":null,"metadata":{"a":null,"c":"3"}}`).Body
	if diff := cmp.Diff(map[string]any{"b": "2", "c": "3"}, got["metadata"]); diff != "" {
		t.Errorf("merged metadata (-want +got):\n%s", diff)
	}
	if got["version"] != 2.0 || got["system"] != nil {
		t.Errorf("version %v system %v, want 2 and nil", got["version"], got["system"])
	}
	if got := d.call("POST", path, `{"version":1,"name":"late"}`); got.Status != 409 || got.errType() != "conflict_error" {
		t.Errorf("an update of an old version: %d %s, want 409", got.Status, got.Raw)
	}
	if got := d.want(200, "GET", path+"?version=1", "").Body["system"]; got != "s" {
		t.Errorf("version 1 now has the system prompt %v", got)
	}
	d.want(404, "GET", path+"?version=3", "")
	if got := d.want(200, "GET", path+"/versions", "").Body["data"].([]any); len(got) != 2 {
		t.Errorf("%d versions, want 2", len(got))
	}
}

func TestAnArchivedAgentRefusesUpdatesAndNewSessions(t *testing.T) {
	d := openDoor(t, Options{})
	id := d.want(200, "POST", "/v1/agents", `{"name":"n","model":"m"}`).Body["id"].(string)
	first := d.want(200, "POST", "/v1/agents/"+id+"/archive", "").Body["archived_at"]
	if again := d.want(200, "POST", "/v1/agents/"+id+"/archive", "").Body["archived_at"]; first == nil || again != first {
		t.Errorf("archived at %v, then at %v", first, again)
	}
	d.want(400, "POST", "/v1/agents/"+id, `{"name":"x"}`)
	if _, err := d.srv.agents.Agent(id, 0, nil); err == nil || err.Status != 400 {
		t.Errorf("snapshot of an archived agent: %v, want a 400", err)
	}
	if got := d.want(200, "GET", "/v1/agents", "").Body["data"].([]any); len(got) != 0 {
		t.Errorf("the list shows %d archived agents", len(got))
	}
	if got := d.want(200, "GET", "/v1/agents?include_archived=true", "").Body["data"].([]any); len(got) != 1 {
		t.Errorf("the list with archived agents has %d", len(got))
	}
}

func TestASnapshotIsFixedAndTakesOverrides(t *testing.T) {
	d := openDoor(t, Options{})
	member := d.want(200, "POST", "/v1/agents", `{"name":"member","model":"m"}`).Body["id"].(string)
	id := d.want(200, "POST", "/v1/agents", `{"name":"lead","model":"m","system":"s",
		"multiagent":{"type":"coordinator","agents":["`+member+`",{"type":"self"},{"type":"advisor","model":"claude-opus-5-5"}]}}`).Body["id"].(string)

	s, err := d.srv.agents.Agent(id, 0, map[string]json.RawMessage{"system": []byte(`null`), "model": []byte(`{"id":"other"}`)})
	if err != nil {
		t.Fatal(err)
	}
	d.want(200, "POST", "/v1/agents/"+id, `{"name":"renamed"}`)
	if s["name"] != "lead" || s["system"] != nil || s["model"].(map[string]any)["id"] != "other" {
		t.Errorf("snapshot %v, want the old name and the overrides", s)
	}
	var names []any
	for _, m := range s["multiagent"].(map[string]any)["agents"].([]any) {
		m := m.(map[string]any)
		names = append(names, m["type"], m["name"])
	}
	if diff := cmp.Diff([]any{"agent", "member", "agent", "lead", "advisor", nil}, names); diff != "" {
		t.Errorf("team (-want +got):\n%s", diff)
	}
	for _, over := range []string{`{"colour":1}`, `{"tools":[{"type":"hammer"}]}`} {
		var m map[string]json.RawMessage
		if err := json.Unmarshal([]byte(over), &m); err != nil {
			t.Fatal(err)
		}
		if _, err := d.srv.agents.Agent(id, 1, m); err == nil || err.Status != 400 {
			t.Errorf("overrides %s: %v, want a 400", over, err)
		}
	}
}

func TestASessionMayOverrideItsAgent(t *testing.T) {
	d := openDoor(t, Options{})
	env := d.want(200, "POST", "/v1/environments", `{"name":"e","config":{"type":"self_hosted"}}`).Body["id"].(string)
	id := d.want(200, "POST", "/v1/agents", `{"name":"n","model":"m","system":"s","multiagent":{"type":"multiagent_20261001"},
		"tools":[{"type":"agent_toolset_20260401"}]}`).Body["id"].(string)
	session := d.want(200, "POST", "/v1/sessions", `{"environment_id":"`+env+`","agent":{"type":"agent_with_overrides","id":"`+id+`","version":1,
		"model":"other","system":null,"tools":[{"type":"custom","name":"t","description":"d","input_schema":{"type":"object"}}]}}`).Body
	agent := session["agent"].(map[string]any)
	tool := agent["tools"].([]any)[0].(map[string]any)
	if agent["model"].(map[string]any)["id"] != "other" || agent["system"] != nil || tool["name"] != "t" || agent["version"] != 1.0 {
		t.Errorf("the session's agent is %v", agent)
	}
	if got := d.want(200, "GET", "/v1/agents/"+id, "").Body; got["system"] != "s" || got["version"] != 1.0 {
		t.Errorf("the override changed the agent to %v", got)
	}
}

func TestATeamIsOneLevelDeep(t *testing.T) {
	d := openDoor(t, Options{})
	lead := d.want(200, "POST", "/v1/agents", `{"name":"lead","model":"m","multiagent":{"type":"multiagent_20261001"}}`).Body
	want := map[string]any{
		"type":      "multiagent_20261001",
		"workflows": map[string]any{"type": "enabled", "inline_agents": map[string]any{"type": "enabled"}, "predefined_agents": []any{}},
		"subagents": map[string]any{"type": "enabled", "inline_agents": map[string]any{"type": "enabled"}, "predefined_agents": []any{}},
		"advisor":   map[string]any{"type": "disabled"},
	}
	if diff := cmp.Diff(want, lead["multiagent"]); diff != "" {
		t.Errorf("defaults of the team (-want +got):\n%s", diff)
	}
	d.want(400, "POST", "/v1/agents", `{"name":"boss","model":"m","multiagent":{"type":"coordinator","agents":["`+lead["id"].(string)+`"]}}`)
}

func TestACursorBelongsToItsList(t *testing.T) {
	d := openDoor(t, Options{})
	for range 3 {
		d.want(200, "POST", "/v1/agents", `{"name":"n","model":"m"}`)
	}
	first := d.want(200, "GET", "/v1/agents?limit=2", "").Body
	next, _ := first["next_page"].(string)
	if got := d.want(200, "GET", "/v1/agents?limit=2&page="+next, "").Body; len(got["data"].([]any)) != 1 || got["next_page"] != nil {
		t.Errorf("second page %v, want one agent and no next page", got)
	}
	d.want(400, "GET", "/v1/agents?include_archived=true&page="+next, "")
	d.want(400, "GET", "/v1/agents?limit=101", "")
	d.want(400, "GET", "/v1/agents?limit=0", "")
}
