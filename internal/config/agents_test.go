package config

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/session"
)

const agentsFile = `
agents:
  - id: agent_1
    sandbox:
      image: host
      cpus: 0.5
      memory: 1GiB
      disk: 2GiB
      processes: 100
      open_files: 1000
      warm: 0s
      lifetime: 12h
      tool_timeout: 10m
      setup: |
        pip install x
        make
      setup_timeout: 1m30s
      env: {A: "1", B: two, C: ""}
  - name: Coder
    sandbox:
      cpus: 4
  - name: Idle
`

func TestAgentsHaveSettingsOfTheirOwn(t *testing.T) {
	c := mustLoad(t, world(nil, vars{"/srv/berth.yaml": agentsFile}))
	var want []session.AgentFile
	if err := json.Unmarshal([]byte(`[
		{"ID":"agent_1","Settings":{"image":"host","cpus":0.5,"memory":"1GiB","disk":"2GiB","processes":100,"open_files":1000,"warm":"0s","lifetime":"12h",
			"tool_timeout":"10m","setup":"pip install x\nmake\n","setup_timeout":"1m30s","env":{"A":"1","B":"two","C":""}}},
		{"Name":"Coder","Settings":{"cpus":4}},{"Name":"Idle"}]`), &want); err != nil {
		t.Fatal(err)
	}
	got := c.AgentFiles()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for agent, cpus := range map[[2]string]float64{{"agent_1", "Coder"}: 0.5, {"agent_2", "Coder"}: 4, {"agent_2", "Nobody"}: 0, {"", ""}: 0} {
		s := session.FileSettings(got, agent[0], agent[1])
		if has := s.CPUs != nil; has != (cpus > 0) || has && *s.CPUs != cpus {
			t.Errorf("%v gets %+v, want %v cpus", agent, s, cpus)
		}
	}
}

func TestWhatIsWrongWithAnAgentIsSaidWithItsPlace(t *testing.T) {
	for text, want := range map[string]string{
		"agents: [{id: Coder}]":                                         "agents[0].id",
		"agents: [{}]":                                                  "agents[0]",
		"agents: [{id: agent_1, name: x}]":                              "agents[0]",
		"agents: [{id: agent_1}, {id: agent_1}]":                        "agents[1]",
		"agents: [{name: a}, {name: b}, {name: a}]":                     "agents[2]",
		"agents: [{name: a, sandbox: {cpus: 1000}}]":                    "agents[0].sandbox.cpus",
		"agents: [{name: a, sandbox: {lifetime: 1s}}]":                  "agents[0].sandbox.lifetime",
		"agents: [{name: a, sandbox: {env: {ANTHROPIC_X: y}}}]":         "agents[0].sandbox.env.ANTHROPIC_X",
		"agents: [{name: a, sandbox: {env: {K: my-secret-token-123}}}]": "agents[0].sandbox.env.K",
		"sandbox: {lifetime: 30s}":                                      "sandbox.lifetime",
	} {
		env := vars{"ANTHROPIC_ENVIRONMENT_ID": "env_1", "ANTHROPIC_ENVIRONMENT_KEY": "k", "HOME": "/home/ada", "BERTH_TOKEN": "my-secret-token-123"}
		err := mustLoad(t, world(env, vars{"/srv/berth.yaml": text})).Validate()
		var problems Problems
		if !errors.As(err, &problems) || len(problems) != 1 || problems[0].Error.Field != want || strings.Contains(err.Error(), "my-secret") {
			t.Errorf("%s: %v, want a problem with %s", text, err, want)
		}
	}
	for text, want := range map[string]string{
		"agents: {id: agent_1}":                           "agents: want a list",
		"agents: [{id: agent_1, sandbx: {}}]":             `did you mean "sandbox"`,
		"agents: [{id: agent_1, sandbox: {cpu: 1}}]":      `did you mean "cpus"`,
		"agents: [{id: agent_1, sandbox: {cpus: two}}]":   "agents[0].sandbox.cpus: want a number",
		"agents: [{id: agent_1, sandbox: {memory: 1}}]":   "agents[0].sandbox.memory",
		"agents: [{id: agent_1, sandbox: {warm: 5}}]":     "agents[0].sandbox.warm",
		"agents: [{id: agent_1, sandbox: {env: [A]}}]":    "agents[0].sandbox.env: want names",
		"agents: [{id: agent_1, sandbox: {env: {A: 1}}}]": "agents[0].sandbox.env.A: want text",
	} {
		if _, err := Load(world(nil, vars{"/srv/berth.yaml": text})); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// The bounds in the reference are those that are held.
func TestBoundsOfAgentsAreWhatTheReferenceSays(t *testing.T) {
	v := reflect.ValueOf(AgentSandbox{})
	checked := 0
	for _, f := range fields(v, "") {
		for _, bound := range []string{"min", "max"} {
			text := f.tag.Get(bound)
			if text == "" {
				continue
			}
			checked++
			for _, outside := range []bool{false, true} {
				limit, err := parse(f.plain(), text)
				if err != nil {
					t.Fatal(err)
				}
				p := reflect.New(f.plain())
				p.Elem().Set(limit)
				step := map[bool]int64{true: -1, false: 1}[bound == "min"]
				switch {
				case !outside:
				case p.Elem().CanInt() && p.Elem().Int()+step >= 0:
					p.Elem().SetInt(p.Elem().Int() + step)
				case p.Elem().CanFloat():
					p.Elem().SetFloat(p.Elem().Float() + float64(step)/100)
				default:
					continue // below nothing is nothing
				}
				var a AgentSandbox
				reflect.ValueOf(&a).Elem().FieldByIndex(fieldIndex(t, f.path)).Set(p)
				s := a.Settings()
				if err := s.Check(nil); (err != nil) != outside {
					t.Errorf("%s = %v: %v", f.path, p.Elem(), err)
				}
			}
		}
	}
	if checked < 16 {
		t.Errorf("only %d bounds", checked)
	}
	var names []string
	for _, f := range fields(v, "") {
		if f.path != "env" {
			names = append(names, f.path)
		}
	}
	if d := cmp.Diff(session.SettingNames(), names); d != "" {
		t.Errorf("settings are not the same here and there:\n%s", d)
	}
}

func fieldIndex(t *testing.T, name string) []int {
	typ := reflect.TypeFor[AgentSandbox]()
	for i := range typ.NumField() {
		if typ.Field(i).Tag.Get("yaml") == name {
			return []int{i}
		}
	}
	t.Fatalf("no field %s", name)
	return nil
}

func TestSettingsOfOneAgentAreReadFromAFile(t *testing.T) {
	got, err := ReadSettings("agent.yaml", []byte("cpus: 2\nenv:\n  A: b\n"))
	cpus := 2.0
	if d := cmp.Diff(session.Settings{CPUs: &cpus, Env: map[string]string{"A": "b"}}, got); err != nil || d != "" {
		t.Errorf("%v\n%s", err, d)
	}
	for text, want := range map[string]string{"cpus: x": "agent.yaml", "id: agent_1": "unknown key", "a: [": "agent.yaml", "cpus: 1\n---\ncpus: 2": "more than one document", strings.Repeat("#", 1<<20+1): "larger"} {
		if _, err := ReadSettings("agent.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20s: %v, want %q", text, err, want)
		}
	}
}

func TestSecretsAreFoundInText(t *testing.T) {
	c := Config{
		APIKey:       NewSecret("sk-api-0123", "x"),
		Environments: []Environment{{Key: NewSecret("envkey-0123", "x"), SigningKeys: []Secret{NewSecret("whsec-0123", "x")}}},
		Access:       Access{Token: NewSecret("short", "x")},
	}
	for text, want := range map[string]bool{"a sk-api-0123 b": true, "envkey-0123": true, "whsec-0123": true, "short": false, "": false, "sk-api-012": false} {
		if got := c.Secret(text); got != want {
			t.Errorf("Secret(%q) = %v", text, got)
		}
	}
}
