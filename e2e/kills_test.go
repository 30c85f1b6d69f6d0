package e2e

import (
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/claude/local"
	"github.com/berth-dev/berth/internal/sandbox"
)

var (
	kills = flag.Int("kills", 3, "rounds of TestRandomKills")
	seed  = flag.Uint64("seed", 0, "of TestRandomKills; 0: another one each time")
)

// crowded is a life with many calls side by side; its last call reads what the
// others left.
const crowded = `
name: crowded
steps:
  - calls:
      - {tool: bash, input: {command: "echo a1 >> log; sleep 0.2; echo ok"}}
      - {tool: bash, input: {command: "echo a2 >> log; echo ok"}}
      - {tool: write, input: {file_path: /workspace/f, content: x}}
      - {tool: read, input: {file_path: /workspace/f}}
  - calls:
      - {tool: bash, input: {command: "echo b1 >> log; sleep 0.4; echo ok"}}
      - {tool: glob, input: {pattern: "*"}}
      - {tool: grep, input: {pattern: x}}
  - message: Halfway.
  - calls:
      - {tool: bash, input: {command: "echo c1 >> log; sleep 0.1; echo ok"}}
      - {tool: bash, input: {command: "echo c2 >> log; echo ok"}, permission: ask, person: {says: allow, after: 200ms}}
      - {tool: bash, input: {command: "echo c3 >> log; echo ok"}}
  - calls:
      - {tool: bash, input: {command: "cat log; echo said last"}}
  - terminate: true
`

// TestRandomKills kills servers and parts of sandboxes at random moments while
// sessions are at work, round after round on one data directory.
func TestRandomKills(t *testing.T) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("again with: go test ./e2e -run RandomKills -kills %d -seed %d", *kills, *seed)
	h := newHastyHouse(t, local.Options{LeaseTTL: 20 * time.Second}, crowded, everyStep)
	r := &rounds{house: h, rand: rand.New(rand.NewPCG(*seed, 0))}
	h.start()
	played := 0
	for ; played < *kills && !t.Failed(); played++ {
		r.play(3, 1+r.rand.IntN(4), true)
	}
	t.Logf("%d rounds, killed: %v", played, r.did)
	if t.Failed() {
		return
	}
	// What a server holds after a round in which it lived is what it held before.
	h.serve.end(syscall.SIGTERM)
	h.start()
	r.play(1, 0, false)
	before := h.holds()
	const more, connections = 5, 4 // connections of the platform's and ours come and go
	r.play(more, more, false)
	var after held
	h.eventuallyOr(2*time.Minute, func() bool { // idle connections are closed after a while
		after = h.holds()
		return after.files <= before.files+connections && after.goroutines <= before.goroutines+connections
	}, func() { t.Errorf("the server held %+v, and after more sessions %+v", before, after) })
	h.serve.end(syscall.SIGTERM)
	if left := h.allRemains(); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
}

// rounds plays sessions and kills.
type rounds struct {
	*house
	rand *rand.Rand
	did  map[string]int
	past string // logs of the servers of this round
}

// play lets sessions work, kills something so many times meanwhile, waits for
// their end and judges.
func (r *rounds) play(sessions, kills int, server bool) {
	r.t.Helper()
	r.past = ""
	var live []string
	for i := range sessions {
		live = append(live, r.session([]string{"crowded", "every-step"}[i%2], "go"))
	}
	told, done := map[string]bool{}, 0
	next := time.Now().Add(r.pause())
	r.eventuallyOr(6*time.Minute, func() bool {
		if kills > 0 && time.Now().After(next) {
			if r.kill(live[r.rand.IntN(len(live))], server) {
				kills--
			}
			next = time.Now().Add(r.pause())
		}
		done = 0
		for _, s := range live {
			report := r.platform.Scenario(s)
			switch {
			case len(report.Failures) > 0:
				r.t.Fatalf("the scenario failed: %v", report.Failures)
			case report.Done:
				done++
			case !told[s] && r.released(s):
				told[s] = true
				if _, err := r.platform.Send(s, map[string]any{"type": "user.message", "content": []any{map[string]any{"type": "text", "text": "go on"}}}); err != nil {
					r.t.Fatal(err)
				}
			}
		}
		return done == len(live)
	}, func() {
		for _, s := range live {
			r.t.Logf("%s: %+v, waits for %+v", s, r.platform.Works(s), r.look(s).Waiting)
		}
		r.t.Fatalf("%d of %d sessions ended\n%s%s", done, len(live), r.past, r.serve.output())
	})
	for _, s := range live {
		r.judge(s)
		r.nothingLeft(s)
	}
	if r.t.Failed() {
		r.t.Logf("the servers of this round but the last:\n%s", r.past)
	}
}

// released reports whether a session's work was given back: a message that comes
// while it is being given back may find nobody (contract §12.32).
func (r *rounds) released(s string) bool {
	w := r.platform.Works(s)
	return len(w) > 0 && w[len(w)-1].State == "stopped" && r.idle(s)
}

func (r *rounds) pause() time.Duration {
	return time.Duration(r.rand.IntN(1500)) * time.Millisecond
}

// kill kills something: the server half of the time, if it may. It reports
// whether there was something to kill.
func (r *rounds) kill(session string, server bool) bool {
	r.t.Helper()
	what := []string{"kernel", "gofer", "guest", "worker", "shell"}[r.rand.IntN(5)]
	if n := r.rand.IntN(10); server && n < 5 {
		what = "server"
	} else if server && n == 5 {
		what = "server, politely"
	}
	switch what {
	case "server", "server, politely":
		sig := syscall.SIGKILL
		if what != "server" {
			sig = syscall.SIGTERM
		}
		r.serve.end(sig)
		r.past += r.serve.output()
		r.spawn()
	default:
		if !parts[what](r.house, sandbox.ID(session)) {
			return false
		}
	}
	if r.did == nil {
		r.did = map[string]int{}
	}
	r.did[what]++
	r.past += fmt.Sprintf("--- killed: %s (%s)\n", what, session)
	return true
}

// held is what a server holds of this host.
type held struct {
	files      int
	goroutines int
}

var goroutines = regexp.MustCompile(`(?m)^go_goroutines (\d+)$`)

// holds counts what the running server holds.
func (h *house) holds() held {
	h.t.Helper()
	http.DefaultClient.CloseIdleConnections()
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", h.serve.cmd.Process.Pid))
	if err != nil {
		h.t.Fatal(err)
	}
	res, err := http.Get("http://" + h.address + "/metrics")
	if err != nil {
		h.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	m := goroutines.FindSubmatch(text)
	if err != nil || m == nil {
		h.t.Fatalf("no go_goroutines in the metrics: %v", err)
	}
	n, err := strconv.Atoi(string(m[1]))
	if err != nil {
		h.t.Fatal(err)
	}
	return held{len(files), n}
}

// allRemains is what the host has of all sandboxes of this house.
func (h *house) allRemains() []string {
	var found []string
	for _, pattern := range []string{filepath.Join(h.dir, "sandboxes", "*"), filepath.Join(h.dir, "pool", "*"), filepath.Join(h.dir, "run", "runsc", "*")} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			h.t.Fatal(err)
		}
		found = append(found, names...)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, h.dir+"/") {
			found = append(found, "mount "+line)
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		h.t.Fatal(err)
	}
	for _, p := range processes {
		if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), h.dir+"/") {
			found = append(found, "process "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return found
}
