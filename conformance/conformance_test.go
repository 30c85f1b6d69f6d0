package conformance

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/app"
	"github.com/berth-dev/berth/internal/testbin"
)

var (
	only     = flag.String("cases", "", "regular expression of the cases to play")
	subjects = flag.String("subjects", "berth,go", "subjects to judge: berth, go, npm")
	slow     = flag.Bool("slow", false, "play the slow cases, too")
	logs     = flag.String("logs", "", "folder for the logs of workers whose cases failed")
)

// goWorker is the official worker of the Go SDK.
func goWorker(t *testing.T) Subject {
	t.Helper()
	path := filepath.Join(t.TempDir(), "gosdk")
	build := exec.Command("go", "build", "-o", path, "./gosdk")
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the worker of the Go SDK: %v: %s", err, said)
	}
	version, err := exec.Command(path, "version").Output()
	if err != nil {
		t.Fatal(err)
	}
	return Subject{
		Name: "Go SDK", Version: strings.TrimSpace(string(version)), Command: []string{path}, Processes: 12,
		Can: []string{"skills"}, Release: 2 * time.Second,
	}
}

// addresses counts the berth servers of this test process: loopback is a whole
// network, so no port has to be guessed free.
var addresses atomic.Int32

// berth is the real program, with its real sandboxes.
func berth(t *testing.T) Subject {
	t.Helper()
	return Subject{
		Name: "Berth", Version: "this version", Command: []string{testbin.Path(t), "serve"}, Slots: 16,
		Can: []string{"skills", "webhooks", "restart"}, Release: 3 * time.Second,
		Prepare: func(dir string) (Setup, error) {
			n := int(addresses.Add(1))
			address := fmt.Sprintf("127.%d.%d.%d:7072", 1+os.Getpid()%250, 1+n/250%250, 1+n%250)
			config := filepath.Join(dir, "berth.yaml")
			data := filepath.Join(dir, "d")
			err := os.WriteFile(config, []byte("sessions: {capacity: 32, release_after: 1s, read_every: 5s, sweep_every: 10s}\n"), 0o600)
			return Setup{
				Env:     []string{"BERTH_CONFIG=" + config, "BERTH_DATA_DIR=" + data, "BERTH_LISTEN=" + address, "BERTH_LOG_LEVEL=debug"},
				Webhook: "http://" + address + "/webhooks",
			}, err
		},
		Cleanup: func(ctx context.Context, dir string) error {
			app.Reclaim(ctx, filepath.Join(dir, "d"))
			return os.RemoveAll(dir)
		},
	}
}

func TestWorkersKeepTheContract(t *testing.T) {
	table, err := Table()
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Cases: table, Slow: *slow, Match: regexp.MustCompile(*only)}
	for _, name := range strings.Split(*subjects, ",") {
		switch name {
		case "berth":
			o.Subjects = append(o.Subjects, berth(t))
		case "go":
			o.Subjects = append(o.Subjects, goWorker(t))
		default:
			t.Fatalf("there is no subject %q", name)
		}
	}
	o.Progress = func(r Result) {
		t.Logf("%-8s %-7s %5.1fs %s %s", r.Subject, r.Verdict, r.Took.Seconds(), r.Case, r.Why)
		for _, b := range r.Breaches {
			t.Logf("           %s: %s [%s]", b.Check, b.What, b.Beyond)
		}
		if *logs != "" && r.Verdict != Passes && r.Log != "" {
			name := strings.NewReplacer("/", "_", " ", "_").Replace(r.Subject + " " + r.Case)
			_ = os.WriteFile(filepath.Join(*logs, name+".log"), []byte(r.Log), 0o600)
		}
	}
	began := time.Now()
	report, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	if err := report.Text(&text); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s\n%s", time.Since(began).Round(time.Second), text.String())
}
