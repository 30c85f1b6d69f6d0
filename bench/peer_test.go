// Package bench measures Berth against a peer in the same run: the worker of the
// official Go SDK, which runs commands as plain processes beside itself, one
// session at a time. Figures are ratios; both sides face the same platform on
// the same machine.
//
//	go test ./bench -run '^$' -bench . -benchtime 1x
package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/lib/environments"
	"github.com/anthropics/anthropic-sdk-go/v2/option"

	"github.com/berth-dev/berth/internal/app"
	"github.com/berth-dev/berth/internal/claude"
	"github.com/berth-dev/berth/internal/claude/local"
	"github.com/berth-dev/berth/internal/config"
	"github.com/berth-dev/berth/internal/sandbox/linux"
	"github.com/berth-dev/berth/internal/testbin"
)

const (
	environment = "env_bench"
	apiKey      = "sk-ant-api-bench-0123456789"
	envKey      = "sk-ant-oat01-bench-0123456789"
)

// stage is a platform and what serves it.
type stage struct {
	b        *testing.B
	platform *local.Server
	url      string
	admin    *claude.Admin
}

func newStage(b *testing.B, scenario string) *stage {
	b.Helper()
	sc, err := local.ParseScenario([]byte(scenario))
	if err != nil {
		b.Fatal(err)
	}
	s := &stage{b: b, platform: local.New(local.Options{
		APIKeys: []string{apiKey}, EnvironmentKeys: map[string]string{environment: envKey},
		Scenarios: []*local.Scenario{sc}, Scenario: sc.Name, AckIdempotent: true, StopRequeues: true,
	})}
	server := httptest.NewServer(s.platform)
	b.Cleanup(func() {
		s.platform.Close()
		server.CloseClientConnections()
		server.Close()
	})
	s.url = server.URL
	if s.admin, err = claude.NewAdmin(claude.AdminOptions{BaseURL: s.url, APIKey: apiKey}); err != nil {
		b.Fatal(err)
	}
	return s
}

// berth serves the stage with real gVisor sandboxes.
func (s *stage) berth() {
	s.b.Helper()
	dir, err := os.MkdirTemp("", "berth-bench-")
	if err != nil {
		s.b.Fatal(err)
	}
	src := config.OS()
	src.Getenv = func(name string) string {
		return map[string]string{
			"BERTH_DATA_DIR": dir, "BERTH_LISTEN": "127.0.0.1:0", "ANTHROPIC_BASE_URL": s.url,
			"ANTHROPIC_ENVIRONMENT_ID": environment, "ANTHROPIC_ENVIRONMENT_KEY": envKey,
		}[name]
	}
	c, err := config.Load(src)
	if err != nil {
		s.b.Fatal(err)
	}
	c.Sessions.Capacity, c.Sessions.ReleaseAfter = 32, 0
	backend, err := linux.New(linux.Config{DataDir: dir, Binary: testbin.Path(s.b)})
	if err != nil {
		s.b.Skip("no Linux sandboxes here: ", err)
	}
	a, err := app.New(s.b.Context(), app.Options{Config: c, Log: slog.New(slog.DiscardHandler), Backend: backend})
	if err != nil {
		s.b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }() // awaited below
	s.b.Cleanup(func() {
		cancel()
		<-done
		if err := a.Purge(context.Background()); err != nil {
			s.b.Error(err)
		}
		a.Close()
		os.RemoveAll(dir)
	})
}

// worker serves the stage with the official worker.
func (s *stage) worker() {
	idle := time.Millisecond // it holds its only slot for so long after a turn
	client := anthropic.NewClient(option.WithoutEnvironmentDefaults(), option.WithBaseURL(s.url))
	w := environments.NewEnvironmentWorker(client, environments.EnvironmentWorkerOptions{
		EnvironmentID: environment, EnvironmentKey: envKey, Workdir: s.b.TempDir(), MaxIdle: &idle, Logger: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }() // awaited below
	s.b.Cleanup(func() {
		cancel()
		<-done
	})
}

// sessions runs n sessions at once and returns how long the last one took.
func (s *stage) sessions(n int) (ids []string, took time.Duration) {
	s.b.Helper()
	ctx := s.b.Context()
	agent, err := s.admin.CreateAgent(ctx, claude.Agent{Name: "bench", Model: "claude-opus-5-5"})
	if err != nil {
		s.b.Fatal(err)
	}
	began := time.Now()
	for range n {
		id, err := s.admin.CreateSession(ctx, claude.NewSession{Agent: agent, Environment: environment, Message: "go"})
		if err != nil {
			s.b.Fatal(err)
		}
		ids = append(ids, id)
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for _, id := range ids {
		for {
			r := s.platform.Scenario(id)
			if len(r.Failures) > 0 {
				s.b.Fatal(r.Failures)
			}
			if r.Done {
				break
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				s.b.Fatal(ctx.Err())
			}
		}
	}
	return ids, time.Since(began)
}

// calls returns how long each call of a session took, from the platform's event
// of the call to its event of the result.
func (s *stage) calls(id string) []time.Duration {
	s.b.Helper()
	req, err := http.NewRequestWithContext(s.b.Context(), http.MethodGet, s.url+"/v1/sessions/"+id+"/events?limit=1000", nil)
	if err != nil {
		s.b.Fatal(err)
	}
	req.Header.Set("X-Api-Key", apiKey)
	req.Header.Set("anthropic-beta", "managed-agents-2026-04-01")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.b.Fatal(err)
	}
	defer res.Body.Close()
	var page struct {
		Data []struct {
			ID          string    `json:"id"`
			Type        string    `json:"type"`
			ToolUseID   string    `json:"tool_use_id"`
			ProcessedAt time.Time `json:"processed_at"`
		}
	}
	if err := json.NewDecoder(res.Body).Decode(&page); err != nil {
		s.b.Fatal(err)
	}
	began := map[string]time.Time{}
	var out []time.Duration
	for _, e := range page.Data {
		switch e.Type {
		case "agent.tool_use":
			began[e.ID] = e.ProcessedAt
		case "user.tool_result":
			out = append(out, e.ProcessedAt.Sub(began[e.ToolUseID]))
		}
	}
	return out
}

func percentile(d []time.Duration, p float64) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[min(int(float64(len(d))*p), len(d)-1)]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// BenchmarkCall is the round trip of one short command in a session that runs:
// what the ledger, the sandbox and the guest cost beside plain processes.
func BenchmarkCall(b *testing.B) {
	const n = 200
	scenario := "name: calls\nsteps:\n"
	for range n {
		scenario += "  - calls: [{tool: bash, input: {command: 'echo hello'}, expect: {text: hello}}]\n"
	}
	measure := func(serve func(*stage)) (p50, p99 time.Duration) {
		s := newStage(b, scenario)
		serve(s)
		ids, _ := s.sessions(1)
		d := s.calls(ids[0])[10:] // the first ones start the sandbox and the shell
		return percentile(d, .5), percentile(d, .99)
	}
	for b.Loop() {
		berth50, berth99 := measure((*stage).berth)
		peer50, peer99 := measure((*stage).worker)
		b.ReportMetric(ms(berth50), "berth-p50-ms")
		b.ReportMetric(ms(berth99), "berth-p99-ms")
		b.ReportMetric(ms(peer50), "worker-p50-ms")
		b.ReportMetric(ms(peer99), "worker-p99-ms")
		b.ReportMetric(ms(berth50)/ms(peer50), "p50-ratio")
		b.ReportMetric(ms(berth99)/ms(peer99), "p99-ratio")
	}
}

// BenchmarkSessions is the time for several sessions that each wait for a slow
// command: the worker serves one at a time.
func BenchmarkSessions(b *testing.B) {
	const scenario = "name: slow\nsteps:\n  - calls: [{tool: bash, input: {command: 'sleep 1; echo done'}, expect: {text: done}}]\n"
	for _, n := range []int{1, 8} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			measure := func(serve func(*stage)) time.Duration {
				s := newStage(b, scenario)
				serve(s)
				_, took := s.sessions(n)
				return took
			}
			for b.Loop() {
				berth, peer := measure((*stage).berth), measure((*stage).worker)
				b.ReportMetric(berth.Seconds(), "berth-s")
				b.ReportMetric(peer.Seconds(), "worker-s")
				b.ReportMetric(berth.Seconds()/peer.Seconds(), "ratio")
			}
		})
	}
}
