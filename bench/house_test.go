//go:build linux

package bench

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/app"
	"github.com/berth-dev/berth/internal/config"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/sandbox/sandboxtest"
)

// BenchmarkIntake is how many sessions a second come through intake, and through
// their whole life with one call, when a sandbox costs nothing. The platform
// works in the same process and has its share of the time.
func BenchmarkIntake(b *testing.B) {
	const n = 500
	const scenario = "name: one\nsteps:\n  - calls: [{tool: bash, input: {command: 'echo hello'}}]\n"
	for b.Loop() {
		s := newStage(b, scenario)
		ids := s.create(n) // they wait in the platform's queue
		stop := s.inProcess(b, 2*n, sandboxtest.NewFake())
		began := time.Now()
		s.await("all are claimed", func() bool {
			var stats struct {
				Depth   int `json:"depth"`
				Pending int `json:"pending"`
			}
			s.get("/v1/environments/"+environment+"/work/stats", &stats)
			return stats.Depth+stats.Pending == 0
		})
		claimed := time.Since(began)
		s.finish(ids)
		done := time.Since(began)
		stop()
		s.end()
		b.ReportMetric(n/claimed.Seconds(), "claims/s")
		b.ReportMetric(n/done.Seconds(), "sessions/s")
		rows = append(rows,
			row{"sessions claimed a second, no-op sandbox", fmt.Sprintf("%.0f", n/claimed.Seconds()), "", "", "≥ 500"},
			row{"sessions served a second, one call each, no-op sandbox", fmt.Sprintf("%.0f", n/done.Seconds()), "", "", ""})
	}
}

// inProcess serves the stage from this process with sandboxes of another kind.
func (s *stage) inProcess(b *testing.B, capacity int, backend sandbox.Backend) (stop func()) {
	b.Helper()
	src := config.OS()
	src.Getenv = func(name string) string {
		return map[string]string{
			"BERTH_DATA_DIR": s.dir, "BERTH_LISTEN": "127.0.0.1:0", "ANTHROPIC_BASE_URL": s.url,
			"ANTHROPIC_ENVIRONMENT_ID": environment, "ANTHROPIC_ENVIRONMENT_KEY": envKey,
		}[name]
	}
	c, err := config.Load(src)
	if err != nil {
		b.Fatal(err)
	}
	c.Sessions.Capacity = capacity
	a, err := app.New(b.Context(), app.Options{Config: c, Log: slog.New(slog.DiscardHandler), Backend: backend})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }() // awaited by stop
	return func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
		if err := a.Close(); err != nil {
			b.Error(err)
		}
	}
}

// BenchmarkIdle is the memory of a control plane that has nothing to do, and of
// a sandbox whose session has nothing to do.
func BenchmarkIdle(b *testing.B) {
	const scenario = "name: idle\nsteps:\n  - calls: [{tool: bash, input: {command: 'echo hello'}, expect: {text: hello}}]\n"
	for b.Loop() {
		s := newStage(b, scenario)
		s.berth()
		quiet := time.NewTimer(3 * time.Second)
		<-quiet.C
		resident, private := memory(b, s.served.Process.Pid)
		ids := s.create(1)
		s.finish(ids)
		box := sandboxMemory(b, sandbox.ID(ids[0]))
		s.end()
		b.ReportMetric(float64(resident)/1e6, "berth-MB")
		b.ReportMetric(float64(private)/1e6, "berth-private-MB")
		b.ReportMetric(float64(box)/1e6, "sandbox-MB")
		rows = append(rows,
			row{"memory of an idle control plane, resident", inMB(resident), "", "", "< 80 MB"},
			row{"— of it not shared with files", inMB(private), "", "", ""},
			row{"memory of an idle sandbox (proportional set)", inMB(box), "", "", ""})
	}
}

// memory returns what a process has resident, and how much of it is its own.
func memory(b *testing.B, pid int) (resident, private int64) {
	b.Helper()
	status := proc(b, pid, "status")
	return kilobytes(status, "VmRSS"), kilobytes(status, "RssAnon")
}

func peakMemory(b *testing.B, pid int) int64 {
	b.Helper()
	return kilobytes(proc(b, pid, "status"), "VmHWM")
}

func proc(b *testing.B, pid int, name string) string {
	b.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), name))
	if err != nil {
		b.Fatal(err)
	}
	return string(text)
}

func kilobytes(text, name string) int64 {
	number, _, _ := strings.Cut(field(text, name), " ")
	n, _ := strconv.ParseInt(number, 10, 64)
	return n * 1024
}

// sandboxMemory adds up the proportional set sizes of a sandbox's processes: the
// ones that carry its id, and everything below them.
func sandboxMemory(b *testing.B, id string) int64 {
	b.Helper()
	parents, ours := map[int]int{}, map[int]bool{}
	folders, err := fs.Glob(os.DirFS("/proc"), "[0-9]*")
	if err != nil {
		b.Fatal(err)
	}
	for _, name := range folders {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", name, "stat"))
		if err != nil {
			continue // it has ended
		}
		if f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])); len(f) > 1 {
			parents[pid], _ = strconv.Atoi(f[1])
		}
		args, _ := os.ReadFile(filepath.Join("/proc", name, "cmdline"))
		ours[pid] = strings.Contains(string(args), id)
	}
	var sum int64
	for pid := range parents {
		for up := pid; up > 1; up = parents[up] {
			if !ours[up] {
				continue
			}
			if rollup, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup")); err == nil {
				sum += kilobytes(string(rollup), "Pss")
			}
			break
		}
	}
	return sum
}
