package conformance

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/testbin"
)

var (
	only     = flag.String("cases", "", "regular expression of the cases to play")
	subjects = flag.String("subjects", "berth,go", "subjects to judge: berth, go, npm")
	seeds    = flag.Int("seeds", 3, "random mixtures of faults to play besides")
	seed     = flag.Uint64("seed", 0, "seed of the first mixture; 0 makes one up")
	write    = flag.Bool("write", false, "write the matrix into docs/conformance.md")
	slow     = flag.Bool("slow", false, "play the slow cases, too")
	patience = flag.Int("patience", 1, "how many times longer a case may take")
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

// npmWorker is the official worker of the TypeScript SDK, in a cache of its own.
func npmWorker(t *testing.T) (Subject, string) {
	t.Helper()
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			return Subject{}, program + " is not installed"
		}
	}
	node, err := exec.Command("node", "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	var major int
	if _, err := fmt.Sscanf(string(node), "v%d", &major); err != nil || major < 22 {
		return Subject{}, "it needs Node 22, and this is " + strings.TrimSpace(string(node))
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "berth-test", "npm")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"package.json", "worker.mjs"} {
		data, err := os.ReadFile(filepath.Join("npm", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	install := exec.Command("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", dir)
	if said, err := install.CombinedOutput(); err != nil {
		return Subject{}, "the package could not be installed: " + string(said)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "node_modules", "@anthropic-ai", "sdk", "package.json"))
	var module struct{ Version string }
	if err == nil {
		err = json.Unmarshal(raw, &module)
	}
	if err != nil {
		t.Fatal(err)
	}
	return Subject{
		Name: "npm SDK", Version: "@anthropic-ai/sdk " + module.Version + " on Node " + strings.TrimSpace(string(node)),
		Command: []string{"node", filepath.Join(dir, "worker.mjs")}, Processes: 4, Can: []string{"skills"}, Release: 2 * time.Second,
	}, ""
}

// chosen returns the subjects that the flags name.
func chosen(t *testing.T) (all []Subject) {
	t.Helper()
	for name := range strings.SplitSeq(*subjects, ",") {
		switch name {
		case "berth":
			if os.Getuid() != 0 {
				t.Log("Berth is left out: its sandboxes need root here")
				continue
			}
			all = append(all, Berth(testbin.Path(t), "this version"))
		case "go":
			all = append(all, goWorker(t))
		case "npm":
			s, missing := npmWorker(t)
			if missing != "" {
				t.Log("the worker of the TypeScript SDK is left out: " + missing)
				continue
			}
			all = append(all, s)
		default:
			t.Fatalf("there is no subject %q", name)
		}
	}
	return all
}

// TestWorkersKeepTheContract plays the table. Berth must keep all of it, also what
// goes beyond the contract. The official workers are judged to see that the kit is
// fair: each must keep most.
func TestWorkersKeepTheContract(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes minutes")
	}
	table, err := Table()
	if err != nil {
		t.Fatal(err)
	}
	mixtures, err := Mixtures(*seed, *seeds)
	if err != nil {
		t.Fatal(err)
	}
	if len(mixtures) > 0 {
		t.Logf("the first mixture is %q", mixtures[0].Name)
	}
	o := Options{
		Cases: append(table, mixtures...), Subjects: chosen(t), Patience: *patience, Slow: *slow, Match: regexp.MustCompile(*only),
		Progress: func(r Result) { tell(t, r) },
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
	for _, s := range report.Subjects {
		n := report.count(s.Name)
		switch failed := n[Fails] + n[Broken]; {
		case s.Name == "Berth" && failed+n[Beyond] > 0:
			t.Errorf("Berth fails %d cases, and misses in %d what goes beyond the contract", failed, n[Beyond])
		case failed > n[Passes]/4:
			t.Errorf("%s fails %d cases and passes %d: look at the kit first", s.Name, failed, n[Passes])
		}
	}
	if *write {
		writeMatrix(t, report)
	}
}

// tell logs a result, and keeps what a worker that failed has written.
func tell(t *testing.T, r Result) {
	t.Helper()
	t.Logf("%-8s %-7s %5.1fs %s %s", r.Subject, r.Verdict, r.Took.Seconds(), r.Case, r.Why)
	for _, b := range r.Breaches {
		t.Logf("           %s: %s [%s]", b.Check, b.What, b.Beyond)
	}
	if *logs != "" && r.Verdict != Passes && r.Log != "" {
		name := strings.NewReplacer("/", "_", " ", "_").Replace(r.Subject + " " + r.Case)
		if err := os.WriteFile(filepath.Join(*logs, name+".log"), []byte(r.Log), 0o600); err != nil {
			t.Error(err)
		}
	}
}

// The matrix stands between these lines of the document.
const (
	document    = "../docs/conformance.md"
	matrixBegin = "<!-- the matrix: make conformance writes it -->\n"
	matrixEnd   = "<!-- the end of the matrix -->\n"
)

// writeMatrix puts the report into the document.
func writeMatrix(t *testing.T, r *Report) {
	t.Helper()
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), matrixBegin)
	_, after, ok2 := strings.Cut(rest, matrixEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the matrix", document)
	}
	var b strings.Builder
	b.WriteString(before + matrixBegin + "\n")
	if err := r.Markdown(&b); err != nil {
		t.Fatal(err)
	}
	b.WriteString("\n" + matrixEnd + after)
	if err := os.WriteFile(document, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}
