package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/api"
	"github.com/berth-dev/berth/internal/app"
	"github.com/berth-dev/berth/internal/claude"
	"github.com/berth-dev/berth/internal/claude/local"
	"github.com/berth-dev/berth/internal/config"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/sandbox/sandboxtest"
)

// office is a server in this process, with sandboxes in memory and a local
// platform, and the command line of somebody who uses it.
type office struct {
	t     *testing.T
	fake  *sandboxtest.Fake
	admin *claude.Admin
	local *local.Server
	env   string // environment id
}

func newOffice(t *testing.T, configuration string) *office {
	t.Helper()
	const apiKey, envKey = "sk-ant-api-office-0123456789", "sk-ant-oat01-office-0123456789"
	o := &office{t: t, fake: sandboxtest.NewFake(), env: "env_office"}
	scenario, err := local.ParseScenario([]byte("name: one\nsteps:\n  - calls:\n      - {tool: bash, input: {command: ls}}\n  - message: Done.\n"))
	if err != nil {
		t.Fatal(err)
	}
	o.local = local.New(local.Options{
		APIKeys: []string{apiKey}, EnvironmentKeys: map[string]string{o.env: envKey}, Scenarios: []*local.Scenario{scenario}, Scenario: "one",
	})
	web := httptest.NewServer(o.local)
	dir := t.TempDir()
	file := filepath.Join(dir, "berth.yaml")
	if err := os.WriteFile(file, []byte(configuration), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"BERTH_CONFIG": file, "BERTH_DATA_DIR": dir, "BERTH_LISTEN": "127.0.0.1:0", "ANTHROPIC_BASE_URL": web.URL, "ANTHROPIC_API_KEY": apiKey,
		"ANTHROPIC_ENVIRONMENT_ID": o.env, "ANTHROPIC_ENVIRONMENT_KEY": envKey,
	} {
		t.Setenv(name, value)
	}
	cfg, err := config.Load(config.OS())
	if err == nil {
		err = cfg.Validate()
	}
	if err != nil {
		t.Fatal(err)
	}
	if o.admin, err = claude.NewAdmin(claude.AdminOptions{BaseURL: web.URL, APIKey: apiKey}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	server, err := app.New(ctx, app.Options{Config: cfg, Version: "test", Log: slog.New(slog.DiscardHandler), Backend: o.fake})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("BERTH_SERVER", "http://"+server.Addr())
	ran := make(chan error, 1)
	go func() { ran <- server.Run(ctx) }() // ends with the test
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := server.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		_ = o.local.Close() // always nil
		web.CloseClientConnections()
		web.Close()
	})
	return o
}

// berth runs a command with a standard input.
func (o *office) berth(stdin string, args ...string) (stdout, stderr string, code int) {
	o.t.Helper()
	var out, errs bytes.Buffer
	code = Main(Program{Version: "test", Args: args, Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errs})
	return out.String(), errs.String(), code
}

// set runs agents set and returns what it came to.
func (o *office) set(stdin string, args ...string) api.AgentSandbox {
	o.t.Helper()
	out, errs, code := o.berth(stdin, append([]string{"--json", "agents", "set"}, args...)...)
	var sb api.AgentSandbox
	if err := json.Unmarshal([]byte(out), &sb); code != 0 || err != nil {
		o.t.Fatalf("berth agents set %q: code %d, %v\n%s%s", args, code, err, out, errs)
	}
	return sb
}

func TestAgentsAreSetFromTheCommandLineAndTheirSandboxesAreMadeSo(t *testing.T) {
	o := newOffice(t, "agents: [{name: Reviewer, sandbox: {cpus: 3, env: {FROM: file}}}]\n")
	agent, err := o.admin.CreateAgent(t.Context(), claude.Agent{Name: "Reviewer", Model: "claude-opus-5-5"})
	if err != nil {
		t.Fatal(err)
	}
	sb := o.set("", agent, "--memory", "4GiB", "--env", "A=x;y=z, w", "--env", "EMPTY=", "--warm", "1m30s", "--setup", "make deps")
	if sb.Effective.Memory != 4<<30 || sb.Effective.CPUs != 3 || sb.Effective.Env["A"] != "x;y=z, w" || sb.Sources["env.EMPTY"] != "set" || sb.Sources["cpus"] != "file" {
		t.Errorf("set: %+v", sb)
	}
	if sb = o.set("", agent, "--unset", "setup", "--unset", "env.A", "--cpus", "1.5"); sb.Effective.Setup != "" || sb.Effective.CPUs != 1.5 || sb.Revision != 2 {
		t.Errorf("unset: %+v", sb)
	}

	session, err := o.admin.CreateSession(t.Context(), claude.NewSession{Agent: agent, Environment: o.env, Message: "go"})
	if err != nil {
		t.Fatal(err)
	}
	deadline, tick := time.After(time.Minute), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for !o.local.Scenario(session).Done {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("the session is not done: %+v", o.local.Scenario(session))
		}
	}
	made := o.fake.Creates()
	if len(made) != 1 || made[0].Limits != (sandbox.Limits{MemoryBytes: 4 << 30, CPUs: 1.5, Processes: 512, OpenFiles: 8192, DiskBytes: 10 << 30}) ||
		len(made[0].Env) != 2 || made[0].Env["FROM"] != "file" {
		t.Errorf("made %+v", made)
	}

	out, _, code := o.berth("", "agents", "list")
	if code != 0 || !strings.Contains(out, agent) || !strings.Contains(out, "Reviewer") || !strings.Contains(out, "1 of 1") || !strings.Contains(out, "memory") {
		t.Errorf("list: code %d\n%s", code, out)
	}
	o.set("", agent, "--disk", "1GiB")
	out, _, code = o.berth("", "agents", "show", agent)
	for _, want := range []string{"Reviewer", "claude-opus-5-5", "4GiB", "1m30s", "configuration file", "server's default", session, "differs until it is replaced: disk"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("show: code %d, no %q in\n%s", code, want, out)
		}
	}
	if out, _, code = o.berth("", "sessions", "show", session); code != 0 || !strings.Contains(out, "1.5 cpus") {
		t.Errorf("sessions show: code %d\n%s", code, out)
	}
	if out, _, code = o.berth("", "sessions", "events", session); code != 0 || !strings.Contains(out, "settings of the agent changed (disk)") {
		t.Errorf("sessions events: code %d\n%s", code, out)
	}

	sb = o.set("processes: 99\nenv: {B: b}\n", agent, "--file", "-", "--cpus", "2")
	if sb.Effective.Processes != 99 || sb.Effective.CPUs != 2 || sb.Sources["memory"] != "server" || len(sb.Set.Env) != 1 {
		t.Errorf("from a file: %+v", sb)
	}
}

func TestWhatCannotBeSetIsSaidWithItsName(t *testing.T) {
	o := newOffice(t, "{}")
	for _, c := range []struct {
		args []string
		says string
		code int
	}{
		{[]string{"agent_1"}, "nothing is to be set", fault.ExitUsage},
		{[]string{"agent_1", "--cpus", "1000"}, "cpus: 1000 is more", fault.ExitUsage},
		{[]string{"agent_1", "--cpus", "NaN"}, "", fault.ExitUsage},
		{[]string{"agent_1", "--memory", "much"}, "is not a size", fault.ExitUsage},
		{[]string{"agent_1", "--warm", "5"}, "is not a duration", fault.ExitUsage},
		{[]string{"agent_1", "--env", "A"}, "NAME=VALUE", fault.ExitUsage},
		{[]string{"agent_1", "--env", "ANTHROPIC_API_KEY=x"}, "env.ANTHROPIC_API_KEY", fault.ExitUsage},
		{[]string{"agent_1", "--env", "K=sk-ant-oat01-office-0123456789"}, "env.K: the value looks like a credential", fault.ExitUsage},
		{[]string{"agent_1", "--unset", "cpu"}, "cpus", fault.ExitUsage},
		{[]string{"Reviewer", "--cpus", "1"}, "is not an agent's id", fault.ExitUsage},
		{[]string{"agent_1", "--file", "/nowhere/x.yaml"}, "--file", fault.ExitUsage},
		{[]string{"agent_1", "--file", "-"}, "unknown key", fault.ExitUsage},
	} {
		out, errs, code := o.berth("cpu: 1\n", append([]string{"agents", "set"}, c.args...)...)
		if code != c.code || !strings.Contains(errs, c.says) || out != "" || strings.Contains(errs, "office-0123456789") {
			t.Errorf("%q: code %d\n%s%s\nwant %d and %q", c.args, code, out, errs, c.code, c.says)
		}
	}
	out, _, code := o.berth("", "agents", "show", "agent_1")
	if code != 0 || !strings.Contains(out, "nothing is known of this id yet") || strings.Contains(out, " set\n") {
		t.Errorf("show: code %d\n%s", code, out)
	}
}
