// Package e2e runs the real program against the local platform: a berth serve
// process, gVisor sandboxes, signals and kill -9.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/access"
	"github.com/berth-dev/berth/internal/api"
	"github.com/berth-dev/berth/internal/claude/local"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/sandbox/linux"
	"github.com/berth-dev/berth/internal/testbin"
)

const environment = "env_e2e"

// house is a local platform in this process and a data directory for the berth
// serve processes that a test starts.
type house struct {
	t        *testing.T
	platform *local.Server
	url      string // of the platform
	apiKey   string
	envKey   string
	dir      string
	address  string   // of berth serve
	env      []string // more environment for serve
	serve    *process
}

// newHouse starts a platform. Scenarios are YAML; the first plays sessions that
// name none.
func newHouse(t *testing.T, o local.Options, scenarios ...string) *house {
	t.Helper()
	return newHouseAt(t, freeAddress(), o, scenarios...)
}

// newHouseAt is newHouse for tests that have to know the server's address first.
func newHouseAt(t *testing.T, address string, o local.Options, scenarios ...string) *house {
	t.Helper()
	h := &house{t: t, address: address, apiKey: "sk-ant-api-e2e-0123456789", envKey: "sk-ant-oat01-e2e-0123456789"}
	o.APIKeys = []string{h.apiKey}
	o.EnvironmentKeys = map[string]string{environment: h.envKey}
	o.StrictBeta, o.StrictDuplicates = true, true
	for i, text := range scenarios {
		sc, err := local.ParseScenario([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		o.Scenarios = append(o.Scenarios, sc)
		if i == 0 {
			o.Scenario = sc.Name
		}
	}
	h.platform = local.New(o)
	server := httptest.NewServer(h.platform)
	h.url = server.URL
	dir, err := os.MkdirTemp("", "berth-e2e-") // t.TempDir's names are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	h.dir = dir
	t.Cleanup(func() {
		if h.serve != nil {
			h.serve.end(syscall.SIGKILL)
		}
		h.platform.Close()
		server.CloseClientConnections()
		server.Close()
		h.sweep()
		os.RemoveAll(dir)
		if t.Failed() && h.serve != nil {
			t.Logf("log of the last berth serve:\n%s", h.serve.output())
		}
	})
	return h
}

// sweep removes every sandbox of the data directory.
func (h *house) sweep() {
	b := h.backend()
	if b == nil {
		return
	}
	defer b.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	ended, end := context.WithCancel(ctx)
	end()
	b.Fill(ended) // empties the pool
	refs, err := b.List(ctx)
	if err != nil {
		h.t.Errorf("list sandboxes: %v", err)
	}
	for _, ref := range refs {
		if err := b.Remove(ctx, ref, sandbox.Everything); err != nil {
			h.t.Errorf("remove %s: %v", ref.ID, err)
		}
	}
}

func (h *house) backend() *linux.Backend {
	b, err := linux.New(linux.Config{DataDir: h.dir, Binary: testbin.Path(h.t)})
	if err != nil {
		h.t.Errorf("open the backend: %v", err)
		return nil
	}
	return b
}

// process is a running berth.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}

	mu  sync.Mutex
	log bytes.Buffer
	err error
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// end sends a signal and waits for the process.
func (p *process) end(sig syscall.Signal) {
	_ = p.cmd.Process.Signal(sig) // it may have ended already
	<-p.done
}

// cleanEnv is an environment without anything of Berth's or Anthropic's.
func cleanEnv(more ...string) []string {
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.TempDir(), "NO_COLOR=1"}
	return append(env, more...)
}

// spawn starts berth.
func spawn(t *testing.T, dir string, env []string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(testbin.Path(t), args...), done: make(chan struct{})}
	p.cmd.Env, p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = env, dir, p, p
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the process
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	return p
}

// start runs berth serve with nothing but environment variables and waits until
// it is ready.
func (h *house) start() {
	h.t.Helper()
	h.startUntil("/readyz")
}

// spawn runs berth serve without waiting for anything.
func (h *house) spawn() {
	h.t.Helper()
	env := cleanEnv(
		"ANTHROPIC_BASE_URL="+h.url, "ANTHROPIC_ENVIRONMENT_ID="+environment, "ANTHROPIC_ENVIRONMENT_KEY="+h.envKey,
		"BERTH_DATA_DIR="+h.dir, "BERTH_LISTEN="+h.address, "BERTH_LOG_LEVEL=debug",
	)
	p := spawn(h.t, h.dir, append(env, h.env...), "serve")
	h.t.Cleanup(func() { p.end(syscall.SIGKILL) })
	h.serve = p
}

// startUntil waits for an answer at a path alone.
func (h *house) startUntil(path string) {
	h.t.Helper()
	h.spawn()
	h.eventually(20*time.Second, "berth serve is ready", func() bool {
		select {
		case <-h.serve.done:
			h.t.Fatalf("berth serve ended: %v\n%s", h.serve.err, h.serve.output())
		default:
		}
		res, err := http.Get("http://" + h.address + path)
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
}

// houses counts the houses of this test process.
var houses atomic.Int32

// freeAddress returns an address that no other house has: loopback is a whole
// network, so no port has to be guessed free.
func freeAddress() string {
	n := int(houses.Add(1))
	return fmt.Sprintf("127.%d.%d.%d:7070", 1+os.Getpid()%250, 1+n/250%250, 1+n%250)
}

// session creates a session that plays a scenario.
func (h *house) session(scenario, message string) string {
	h.t.Helper()
	var agent struct{ ID string }
	h.post("/v1/agents", map[string]any{
		"name": "e2e", "model": "claude-opus-5-5", "tools": []any{map[string]any{"type": "agent_toolset_20260401"}},
	}, &agent)
	var s struct{ ID string }
	h.post("/v1/sessions", map[string]any{
		"agent": agent.ID, "environment_id": environment, "metadata": map[string]any{"scenario": scenario},
		"initial_events": []any{map[string]any{"type": "user.message", "content": []any{map[string]any{"type": "text", "text": message}}}},
	}, &s)
	return s.ID
}

// post sends one request with the API key.
func (h *house) post(path string, body, out any) {
	h.t.Helper()
	h.upstream(http.MethodPost, path, body, out)
}

func (h *house) upstream(method, path string, body, out any) {
	h.t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		h.t.Fatal(err)
	}
	req, err := http.NewRequest(method, h.url+path, bytes.NewReader(raw))
	if err != nil {
		h.t.Fatal(err)
	}
	req.Header.Set("X-Api-Key", h.apiKey)
	req.Header.Set("anthropic-beta", "managed-agents-2026-04-01")
	req.Header.Set("anthropic-version", "2026-10-21")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode >= 300 {
		h.t.Fatalf("%s %s: %s %s %v", method, path, res.Status, answer, err)
	}
	if out != nil {
		if err := json.Unmarshal(answer, out); err != nil {
			h.t.Fatal(err)
		}
	}
}

// platformEvent is what tests look at in the platform's log.
type platformEvent struct {
	ID        string `json:"id"`
	Type      string `json:"type"`
	ToolUseID string `json:"tool_use_id"`
	Name      string `json:"name"`
	Input     struct {
		Command string `json:"command"`
		Path    string `json:"file_path"`
	} `json:"input"`
	IsError bool `json:"is_error"`
	Content []struct {
		Text string `json:"text"`
	} `json:"content"`
	StopReason struct {
		Type string `json:"type"`
	} `json:"stop_reason"`
}

// log returns the platform's event log of a session.
func (h *house) log(session string, types ...string) []platformEvent {
	h.t.Helper()
	query := "?limit=1000"
	for _, typ := range types {
		query += "&types[]=" + typ
	}
	var page struct{ Data []platformEvent }
	h.upstream(http.MethodGet, "/v1/sessions/"+session+"/events"+query, nil, &page)
	return page.Data
}

// finished waits until a session's scenario is done and fails when it did not go
// as written.
func (h *house) finished(within time.Duration, session string) local.Report {
	h.t.Helper()
	var r local.Report
	h.eventually(within, "session "+session+" is done", func() bool {
		r = h.platform.Scenario(session)
		return r.Done || len(r.Failures) > 0
	})
	if len(r.Failures) > 0 {
		h.t.Fatalf("the scenario failed: %s", strings.Join(r.Failures, "; "))
	}
	return r
}

// eventually polls a condition that another process brings about.
func (h *house) eventually(within time.Duration, what string, ok func() bool) {
	h.t.Helper()
	h.eventuallyOr(within, ok, func() {
		log := ""
		if h.serve != nil {
			log = h.serve.output()
		}
		h.t.Fatalf("not within %s: %s\n%s", within, what, log)
	})
}

// eventuallyOr polls a condition, and says so when it did not come about.
func (h *house) eventuallyOr(within time.Duration, ok func() bool, late func()) {
	h.t.Helper()
	deadline := time.After(within)
	tick := time.NewTicker(15 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			late()
			return
		}
	}
}

// berth runs a command against this house's server and returns what it wrote.
func (h *house) berth(args ...string) (stdout, stderr string, code int) {
	h.t.Helper()
	return run(h.t, h.dir, cleanEnv("BERTH_DATA_DIR="+h.dir, "BERTH_SERVER=http://"+h.address), args...)
}

func run(t *testing.T, dir string, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, testbin.Path(t), args...)
	var out, errs bytes.Buffer
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = env, dir, &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("berth %s: %v", strings.Join(args, " "), err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// sh runs a shell command in a session's sandbox, beside the agent's own.
func (h *house) sh(session, command string) string {
	h.t.Helper()
	out, errs, code := h.berth("exec", session, "--", "/bin/bash", "-c", command)
	if code != 0 {
		h.t.Fatalf("exec %q: code %d\n%s%s", command, code, out, errs)
	}
	return out
}

// tryRead returns a file of a sandbox, "" when it is not there.
func (h *house) tryRead(session, path string) string {
	out, _, code := h.berth("exec", session, "--", "/bin/cat", path)
	if code != 0 {
		return ""
	}
	return out
}

// show returns a session as the command line shows it.
func (h *house) show(session string) api.Session {
	h.t.Helper()
	out, errs, code := h.berth("--json", "sessions", "show", session)
	if code != 0 {
		h.t.Fatalf("sessions show: code %d: %s%s", code, out, errs)
	}
	var s api.Session
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		h.t.Fatal(err)
	}
	return s
}

// look returns a session as the API shows it, empty while there is none or no
// server; unlike show it starts no process.
func (h *house) look(session string) (s api.Session) {
	token, _ := os.ReadFile(filepath.Join(h.dir, access.TokenFile)) // made at the first start
	req, err := http.NewRequest(http.MethodGet, "http://"+h.address+"/api/v1/sessions/"+session, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return s
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusOK {
		_ = json.NewDecoder(res.Body).Decode(&s) // cut off: the server died
	}
	return s
}

// sandboxes returns the folders of sandboxes in the data directory.
func (h *house) sandboxes() []string {
	entries, err := os.ReadDir(filepath.Join(h.dir, "sandboxes"))
	if err != nil && !os.IsNotExist(err) {
		h.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
