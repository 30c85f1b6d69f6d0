//go:build linux

package bench

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Each side serves in turn, so that what else the machine does falls on both.
const (
	rounds  = 4
	perTurn = 100 // steps that are measured in each round
	warmUp  = 15  // steps before them: they start the sandbox and the shell
)

// BenchmarkCalls is the round trip of calls in a session that runs: from the
// platform's event of the first call of a step to its event of the last result.
func BenchmarkCalls(b *testing.B) {
	const read = "{tool: read, input: {file_path: bench.txt}, expect: {text: some text}}"
	for _, c := range []struct {
		name, what, aim string
		calls           []string
	}{
		{"read", "`read` of a small file", "≤ 1.3", []string{read}},
		{"bash", "`bash` with `echo`", "≤ 1.3", []string{"{tool: bash, input: {command: 'echo hello'}, expect: {text: hello}}"}},
		{"parallel", "eight `read` side by side", "< 1", []string{read, read, read, read, read, read, read, read}},
	} {
		b.Run(c.name, func(b *testing.B) {
			scenario := "name: calls\nsteps:\n" +
				"  - calls: [{tool: write, input: {file_path: bench.txt, content: some text}, expect: {error: false}}]\n" +
				strings.Repeat("  - calls: ["+strings.Join(c.calls, ", ")+"]\n", warmUp+perTurn)
			measure := func(serve func(*stage)) []time.Duration {
				s := newStage(b, scenario)
				serve(s)
				ids := s.create(1)
				s.finish(ids)
				d := steps(s.events(ids[0]))
				s.end()
				return d[1+warmUp:]
			}
			for b.Loop() {
				var berth, bare, worker []time.Duration
				for range rounds {
					berth = append(berth, measure((*stage).berth)...)
					bare = append(bare, measure((*stage).bare)...)
					worker = append(worker, measure((*stage).worker)...)
				}
				compare(b, c.what, c.aim, berth, worker)
				alone, peer := percentile(bare, .5), percentile(worker, .5)
				b.ReportMetric(float64(alone)/float64(peer), "p50-ratio-without-gvisor")
				rows = append(rows, row{"— the same without gVisor, p50", inMS(alone), inMS(peer), fmt.Sprintf("%.2f", float64(alone)/float64(peer)), ""})
			}
		})
	}
}

// steps returns how long each step of a session took: the calls that were made
// together.
func steps(events []happened) []time.Duration {
	var out []time.Duration
	open := map[string]bool{}
	var began time.Time
	for _, e := range events {
		switch e.Type {
		case "agent.tool_use":
			if len(open) == 0 {
				began = e.ProcessedAt
			}
			open[e.ID] = true
		case "user.tool_result":
			if delete(open, e.ToolUseID); len(open) == 0 {
				out = append(out, e.ProcessedAt.Sub(began))
			}
		}
	}
	return out
}

// BenchmarkStart is the time from the claim of a session to its first result,
// when nothing of it runs yet. The worker starts nothing but a shell.
func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		berth, worker := starts(b, (*stage).berth, 0), starts(b, (*stage).worker, 0)
		compare(b, "claim to first result, cold", "p50 < 400 ms", berth, worker)
	}
}

// BenchmarkPooled is the same with a sandbox that is ready.
func BenchmarkPooled(b *testing.B) {
	for b.Loop() {
		berth, worker := starts(b, (*stage).berth, 1), starts(b, (*stage).worker, 0)
		compare(b, "claim to first result, from the pool", "p50 < 60 ms", berth, worker)
	}
}

// starts measures sessions one after the other.
func starts(b *testing.B, serve func(*stage), pool int) []time.Duration {
	b.Helper()
	const n = 20
	const scenario = "name: start\nsteps:\n  - calls: [{tool: bash, input: {command: 'echo hello'}, expect: {text: hello}}]\n"
	s := newStage(b, scenario, fmt.Sprintf("sandbox: {pool: %d}\n", pool))
	serve(s)
	var out []time.Duration
	for range 1 + n {
		s.await("the pool is full", func() bool {
			ready, _ := filepath.Glob(filepath.Join(s.dir, "pool", "*", "run"))
			return len(ready) >= pool
		})
		ids := s.create(1)
		s.finish(ids)
		claimed := s.acknowledged(ids[0])
		for _, e := range s.events(ids[0]) {
			if e.Type == "user.tool_result" {
				out = append(out, e.ProcessedAt.Sub(claimed))
			}
		}
	}
	s.end()
	return out[1:]
}

// BenchmarkSessions is many sessions at once. The worker serves them one after
// the other; what a control plane wins is the time that commands wait for
// something, so there is a case with and one without such a wait.
func BenchmarkSessions(b *testing.B) {
	const sessions, calls = 50, 20
	for _, c := range []struct{ name, what, command, aim string }{
		{"waiting", "commands that wait 100 ms", "sleep 0.1; echo done", "≤ 0.1"},
		{"busy", "commands that do nothing", "echo done", ""},
	} {
		b.Run(c.name, func(b *testing.B) {
			scenario := "name: many\nsteps:\n" +
				strings.Repeat("  - calls: [{tool: bash, input: {command: '"+c.command+"'}, expect: {text: done}}]\n", calls)
			measure := func(serve func(*stage)) (took time.Duration, failed int, peak int64) {
				s := newStage(b, scenario)
				serve(s)
				s.finish(s.create(1)) // it has polled and is at work
				began := time.Now()
				ids := s.create(sessions)
				s.finish(ids)
				took = time.Since(began)
				peak = peakMemory(b, s.served.Process.Pid)
				for _, id := range ids {
					results := 0
					for _, e := range s.events(id) {
						if e.Type == "user.tool_result" {
							results++
							if e.IsError {
								failed++
							}
						}
					}
					if results != calls {
						b.Errorf("session %s has %d results, want %d", id, results, calls)
					}
				}
				s.end()
				return took, failed, peak
			}
			for b.Loop() {
				berth, failed, peak := measure((*stage).berth)
				worker, _, _ := measure((*stage).worker)
				if failed > 0 {
					b.Errorf("%d calls failed", failed)
				}
				ratio := berth.Seconds() / worker.Seconds()
				b.ReportMetric(berth.Seconds(), "berth-s")
				b.ReportMetric(worker.Seconds(), "worker-s")
				b.ReportMetric(ratio, "ratio")
				b.ReportMetric(float64(peak)/1e6, "peak-MB")
				rows = append(rows,
					row{fmt.Sprintf("%d sessions at once, %d %s each", sessions, calls, c.what), inSeconds(berth), inSeconds(worker), fmt.Sprintf("%.2f", ratio), c.aim},
					row{"— errors; peak memory of the control plane", fmt.Sprintf("%d; %s", failed, inMB(peak)), "", "", "0"})
			}
		})
	}
}

func inSeconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
