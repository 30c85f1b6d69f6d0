//go:build linux

// Package bench measures Berth against a peer in the same run: the worker of the
// official Go SDK, which runs commands as plain processes beside itself, one
// session at a time. Both are processes of their own with the settings that they
// come with, and both face the same local platform, which runs in the process of
// the benchmark. Figures are ratios where there is a peer.
//
//	make bench        measures all and writes the table of docs/benchmarks.md
//	go test ./bench -run '^$' -bench Calls -benchtime 1x
package bench

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var write = flag.String("write", "", "the document whose table of figures is written anew")

func TestMain(m *testing.M) {
	if os.Getenv(workerEnv) != "" {
		os.Exit(serveWorker())
	}
	flag.Parse()
	began := load()
	code := m.Run()
	if code == 0 && *write != "" && len(rows) > 0 {
		if err := publish(*write, began); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// row is one line of the table.
type row struct {
	what, berth, worker, ratio, aim string
}

var rows []row

// compare notes a figure of both sides, and its p50 and p99 as metrics.
func compare(b *testing.B, what, aim string, berth, worker []time.Duration) {
	b.Helper()
	for _, p := range []struct {
		name string
		at   float64
	}{{"p50", .5}, {"p99", .99}} {
		ours, theirs := percentile(berth, p.at), percentile(worker, p.at)
		ratio := float64(ours) / float64(theirs)
		b.ReportMetric(ms(ours), "berth-"+p.name+"-ms")
		b.ReportMetric(ms(theirs), "worker-"+p.name+"-ms")
		b.ReportMetric(ratio, p.name+"-ratio")
		rows = append(rows, row{what + ", " + p.name, inMS(ours), inMS(theirs), fmt.Sprintf("%.2f", ratio), aim})
		aim = ""
	}
}

// publish writes the table between the markers of a document.
func publish(path, began string) error {
	const from, to = "<!-- figures -->", "<!-- /figures -->"
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, rest, found := bytes.Cut(old, []byte(from))
	_, tail, closed := bytes.Cut(rest, []byte(to))
	if !found || !closed {
		return fmt.Errorf("%s has no %s … %s", path, from, to)
	}
	var t strings.Builder
	fmt.Fprintf(&t, "\n%s\n\n", conditions(began))
	t.WriteString("| measured | Berth | worker | ratio | aim |\n| --- | ---: | ---: | ---: | ---: |\n")
	for _, r := range rows {
		fmt.Fprintf(&t, "| %s | %s | %s | %s | %s |\n", r.what, r.berth, r.worker, r.ratio, r.aim)
	}
	t.WriteString("\n")
	return os.WriteFile(path, slices.Concat(head, []byte(from), []byte(t.String()), []byte(to), tail), 0o644)
}

// conditions says on what the figures were taken.
func conditions(began string) string {
	var u unix.Utsname
	kernel := "unknown"
	if unix.Uname(&u) == nil {
		kernel, _, _ = strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
	}
	cpu, memory := "unknown", "unknown"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		cpu = field(string(b), "model name")
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		memory = field(string(b), "MemTotal")
	}
	sdk, gvisor := "unknown", "unknown"
	if b, err := os.ReadFile("../go.mod"); err == nil {
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			switch {
			case len(f) < 2:
			case f[0] == "gvisor.dev/gvisor":
				gvisor = f[1]
			case f[0] == "github.com/anthropics/anthropic-sdk-go/v2":
				sdk = f[1]
			}
		}
	}
	return strings.Join([]string{
		"Taken on " + time.Now().UTC().Format("2006-01-02") + " with Linux " + kernel + " on " + runtime.GOARCH + ",",
		fmt.Sprintf("%d cores (%s), %s of memory; load before and after: %s and %s;", runtime.NumCPU(), cpu, memory, began, load()),
		"built with " + runtime.Version() + ", gVisor " + gvisor + ", against the worker of anthropic-sdk-go " + sdk + ".",
	}, "\n")
}

func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:3], " ")
}

// field returns the value of a "name: value" line.
func field(text, name string) string {
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

func percentile(d []time.Duration, p float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Sorted(slices.Values(d))
	return d[min(int(float64(len(d))*p), len(d)-1)]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func inMS(d time.Duration) string { return fmt.Sprintf("%.2f ms", ms(d)) }

func inMB(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
