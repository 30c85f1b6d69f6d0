//go:build linux

package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/lib/environments"
	"github.com/anthropics/anthropic-sdk-go/v2/option"

	"github.com/berth-dev/berth/internal/claude"
	"github.com/berth-dev/berth/internal/claude/local"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/sandbox/linux"
	"github.com/berth-dev/berth/internal/testbin"
)

const (
	environment = "env_bench"
	apiKey      = "sk-ant-api-bench-0123456789"
	envKey      = "sk-ant-oat01-bench-0123456789"
	workerEnv   = "BERTH_BENCH_WORKER" // makes this program the official worker
	patience    = 10 * time.Minute
)

// stage is a platform and what serves it.
type stage struct {
	b        *testing.B
	platform *local.Server
	url      string
	admin    *claude.Admin
	agent    string
	served   *exec.Cmd
	stop     func() // ends a server in this process
	dir      string // of the server
}

// newStage lays a stage; settings are lines of berth.yaml besides the usual ones.
func newStage(b *testing.B, scenario string, settings ...string) *stage {
	b.Helper()
	dir, err := os.MkdirTemp("", "berth-bench-") // short, for sockets
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "berth.yaml"), []byte("sessions: {capacity: 64}\n"+strings.Join(settings, "")), 0o600); err != nil {
		b.Fatal(err)
	}
	sc, err := local.ParseScenario([]byte(scenario))
	if err != nil {
		b.Fatal(err)
	}
	s := &stage{b: b, dir: dir, platform: local.New(local.Options{
		APIKeys: []string{apiKey}, EnvironmentKeys: map[string]string{environment: envKey},
		Scenarios: []*local.Scenario{sc}, Scenario: sc.Name, AckIdempotent: true, StopRequeues: true,
	})}
	server := httptest.NewServer(s.platform)
	s.url = server.URL
	b.Cleanup(func() {
		s.end()
		s.platform.Close()
		server.CloseClientConnections()
		server.Close()
	})
	if s.admin, err = claude.NewAdmin(claude.AdminOptions{BaseURL: s.url, APIKey: apiKey}); err != nil {
		b.Fatal(err)
	}
	if s.agent, err = s.admin.CreateAgent(b.Context(), claude.Agent{Name: "bench", Model: "claude-opus-5-5"}); err != nil {
		b.Fatal(err)
	}
	return s
}

// houses tells the servers of this process apart: loopback is a whole network.
var houses atomic.Int32

// acknowledged returns when the session's work item was claimed.
func (s *stage) acknowledged(id string) time.Time {
	s.b.Helper()
	var page struct {
		Data []struct {
			Data struct {
				ID string `json:"id"`
			} `json:"data"`
			At time.Time `json:"acknowledged_at"`
		} `json:"data"`
	}
	s.get("/v1/environments/"+environment+"/work?limit=100", &page)
	for _, w := range page.Data {
		if w.Data.ID == id {
			return w.At
		}
	}
	s.b.Fatal("no work item of ", id)
	return time.Time{}
}

// berth serves the stage with berth serve and real gVisor sandboxes. Of its
// settings only the capacity is not the default, which depends on the machine.
func (s *stage) berth() {
	s.b.Helper()
	n := int(houses.Add(1))
	address := fmt.Sprintf("127.%d.%d.%d:7070", 1+os.Getpid()%250, 1+n/250, 1+n%250)
	s.start(testbin.Path(s.b), []string{"serve"},
		"ANTHROPIC_BASE_URL="+s.url, "ANTHROPIC_ENVIRONMENT_ID="+environment, "ANTHROPIC_ENVIRONMENT_KEY="+envKey,
		"BERTH_DATA_DIR="+s.dir, "BERTH_LISTEN="+address, "BERTH_CONFIG="+filepath.Join(s.dir, "berth.yaml"))
	s.await("berth serve is ready", func() bool {
		res, err := http.Get("http://" + address + "/readyz")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
}

// worker serves the stage with the official worker.
func (s *stage) worker() {
	s.b.Helper()
	self, err := os.Executable()
	if err != nil {
		s.b.Fatal(err)
	}
	s.start(self, nil, workerEnv+"="+s.url)
}

// start runs a server of either kind in a folder of its own.
func (s *stage) start(program string, args []string, env ...string) {
	s.b.Helper()
	s.served = exec.Command(program, args...)
	s.served.Dir = s.dir
	s.served.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir}, env...)
	var said bytes.Buffer
	s.served.Stderr = &said
	if err := s.served.Start(); err != nil {
		s.b.Fatal(err)
	}
	s.b.Cleanup(func() {
		if s.b.Failed() {
			s.b.Logf("the last words of %s:\n%s", program, said.Bytes()[max(0, said.Len()-8<<10):])
		}
	})
}

// end stops the server and removes what it left.
func (s *stage) end() {
	if s.stop != nil {
		s.stop()
		s.stop = nil
	}
	if s.served != nil {
		_ = s.served.Process.Signal(syscall.SIGTERM)
		_ = s.served.Wait()
		s.served = nil
		s.sweep()
	}
	os.RemoveAll(s.dir)
}

// sweep removes the sandboxes that berth serve leaves to its successor.
func (s *stage) sweep() {
	if _, err := os.Stat(filepath.Join(s.dir, "berth.db")); err != nil {
		return
	}
	backend, err := linux.New(linux.Config{DataDir: s.dir, Binary: testbin.Path(s.b)})
	if err != nil {
		s.b.Error(err)
		return
	}
	defer backend.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	refs, err := backend.List(ctx)
	if err != nil {
		s.b.Error(err)
	}
	var all sync.WaitGroup
	for _, ref := range refs {
		all.Go(func() {
			if err := backend.Remove(ctx, ref, sandbox.Everything); err != nil {
				s.b.Error(err)
			}
		})
	}
	all.Wait()
}

// serveWorker is this program as the official worker.
func serveWorker() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	idle := time.Millisecond // it holds its only slot for so long after a turn
	dir, err := os.Getwd()
	if err != nil {
		return 1
	}
	client := anthropic.NewClient(option.WithoutEnvironmentDefaults(), option.WithBaseURL(os.Getenv(workerEnv)))
	w := environments.NewEnvironmentWorker(client, environments.EnvironmentWorkerOptions{
		EnvironmentID: environment, EnvironmentKey: envKey, Workdir: dir, MaxIdle: &idle, Logger: slog.New(slog.DiscardHandler),
	})
	if err := w.Run(ctx); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// await polls until a claim is true.
func (s *stage) await(claim string, done func() bool) {
	s.b.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(patience)
	defer late.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-late.C:
			s.b.Fatal("not within ", patience, ": ", claim)
		}
	}
}

// create begins n sessions.
func (s *stage) create(n int) []string {
	s.b.Helper()
	ids := make([]string, n)
	for i := range ids {
		id, err := s.admin.CreateSession(s.b.Context(), claude.NewSession{Agent: s.agent, Environment: environment, Message: "go"})
		if err != nil {
			s.b.Fatal(err)
		}
		ids[i] = id
	}
	return ids
}

// finish waits until the sessions' scenarios have run.
func (s *stage) finish(ids []string) {
	s.b.Helper()
	for _, id := range ids {
		s.await("session "+id+" is done", func() bool {
			r := s.platform.Scenario(id)
			if len(r.Failures) > 0 {
				s.b.Fatal(r.Failures)
			}
			return r.Done
		})
	}
}

// happened is an event of the platform.
type happened struct {
	ID          string    `json:"id"`
	Type        string    `json:"type"`
	ToolUseID   string    `json:"tool_use_id"`
	IsError     bool      `json:"is_error"`
	ProcessedAt time.Time `json:"processed_at"`
}

// events returns the events of a session in their order.
func (s *stage) events(id string) []happened {
	s.b.Helper()
	var all []happened
	for page := ""; ; {
		var answer struct {
			Data     []happened `json:"data"`
			NextPage string     `json:"next_page"`
		}
		query := "?limit=1000"
		if page != "" {
			query += "&page=" + page
		}
		s.get("/v1/sessions/"+id+"/events"+query, &answer)
		all = append(all, answer.Data...)
		if page = answer.NextPage; page == "" {
			return all
		}
	}
}

// get asks the platform.
func (s *stage) get(path string, into any) {
	s.b.Helper()
	req, err := http.NewRequestWithContext(s.b.Context(), http.MethodGet, s.url+path, nil)
	if err != nil {
		s.b.Fatal(err)
	}
	if strings.HasPrefix(path, "/v1/environments/") {
		req.Header.Set("Authorization", "Bearer "+envKey)
	} else {
		req.Header.Set("X-Api-Key", apiKey)
	}
	req.Header.Set("anthropic-beta", "managed-agents-2026-04-01")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.b.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		s.b.Fatalf("%s: %s %s %v", path, res.Status, body, err)
	}
	if err := json.Unmarshal(body, into); err != nil {
		s.b.Fatal(err)
	}
}
