package e2e

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/claude/local"
	"github.com/berth-dev/berth/internal/sandbox"
)

// The crash matrix: the real program is killed at every step that it takes for a
// session, and the next one goes on. What became of the calls is read from the
// platform and from the workspace, where each command leaves a line.

// everyStep is a life that takes every step: two turns' worth of calls, the
// release, the sleep of the sandbox, and after a message the end. The last call
// reads what the others left.
const everyStep = `
name: every-step
steps:
  - calls:
      - {tool: bash, input: {command: "echo one >> log; sleep 0.3; echo said one"}}
      - {tool: write, input: {file_path: /workspace/f, content: two}}
  - calls:
      - {tool: bash, input: {command: "echo three >> log; cat f; echo said three"}}
  - message: Half of it.
  - wait: message
  - calls:
      - {tool: bash, input: {command: "cat log f; echo said last"}}
  - terminate: true
`

// hasty is a configuration in which nothing waits.
const hasty = "sessions: {release_after: 0s, read_every: 5s, sweep_every: 10s}\nsandbox: {warm: 0s, limits: {memory: 256MiB}}\n"

// newHastyHouse is a house in which webhooks ring as well, so that nothing
// waits for the next poll.
func newHastyHouse(t *testing.T, o local.Options, scenarios ...string) *house {
	t.Helper()
	address := freeAddress()
	o.Webhooks.Endpoints = []local.Endpoint{{URL: "http://" + address + "/webhooks", Secret: hookKey}}
	o.Webhooks.RetryMin, o.Webhooks.RetryMax = 200*time.Millisecond, time.Second
	o.ReclaimAfter, o.RequestLog = time.Second, 100_000
	h := newHouseAt(t, address, o, scenarios...)
	h.env = []string{"WEBHOOK_SECRET=" + hookKey, "BERTH_CONFIG=" + h.file("berth.yaml", hasty)}
	return h
}

// startCrashing starts a server that stops itself at a point.
func (h *house) startCrashing(point string) {
	h.t.Helper()
	env := h.env
	h.env = append(slices.Clip(env), "BERTH_CRASH_AT="+point)
	h.spawn()
	h.env = env
}

// diesAtItsPoint waits until the server has killed itself.
func (h *house) diesAtItsPoint() {
	h.t.Helper()
	h.eventually(60*time.Second, "the server kills itself", func() bool {
		select {
		case <-h.serve.done:
			return true
		default:
			return false
		}
	})
	if ws, ok := h.serve.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
		h.t.Fatalf("the server ended by itself: %v\n%s", h.serve.err, h.serve.output())
	}
}

// TestServerKilledAtEveryStep kills the server once at each step of claim,
// acknowledgement, heartbeat, catch-up, start, run, finish, post,
// acknowledgement to the guest, release and sleep. No call is lost by that: the
// sandbox goes on, so each result is the tool's own, and the lease that the dead
// server held is adopted.
func TestServerKilledAtEveryStep(t *testing.T) {
	for i, c := range serverPoints {
		if !*full && i%3 != 0 && !c.always {
			continue
		}
		t.Run(c.point, func(t *testing.T) {
			t.Parallel()
			o := local.Options{LeaseTTL: 30 * time.Second}
			if c.claims == 0 {
				o.LeaseTTL = 5 * time.Second // it may have to lapse
			}
			h := newHastyHouse(t, o, everyStep)
			h.startCrashing(c.point)
			s := h.session("every-step", "go")
			h.diesAtItsPoint()
			h.startUntil("/healthz")
			h.secondHalf(s)
			j := h.judge(s)
			if len(j.lost) > 0 {
				t.Errorf("a killed server lost calls: %q", j.lost)
			}
			if w := h.platform.Works(s); c.claims != 0 && w[0].Claims != c.claims {
				t.Errorf("the first work item was claimed %d times, want %d", w[0].Claims, c.claims)
			}
			h.nothingLeft(s)
		})
	}
}

// full asks for all cases of the crash matrix instead of a selection.
var full = flag.Bool("full", false, "all cases of the crash matrix")

// serverPoints are the steps in the order of a session's life, and how often the
// work item has to be claimed if the server dies there: once more only where it
// was not acknowledged yet. 0 is for what happens while the first heartbeat is on
// its way: if the platform took it and its token was not stored, nobody can go on
// with the lease, and it has to lapse.
var serverPoints = []struct {
	point  string
	claims int
	always bool // also without -full
}{
	{"after:queue.Poll", 2, false},
	{"after:records.Commit.work.claimed", 2, true},
	{"after:queue.Ack", 1, false},
	{"before:platform.Heartbeat", 1, false},
	{"after:platform.Heartbeat", 0, true},
	{"after:records.Commit.beat", 1, false},
	{"before:platform.Info", 0, false},
	{"after:platform.Info", 0, false},
	{"after:platform.Stream", 0, false},
	{"after:platform.History", 0, false},
	{"before:records.Commit.call.seen", 0, false},
	{"after:records.Commit.call.seen", 0, false},
	{"during:backend.Create", 1, false},
	{"after:backend.Create", 1, true},
	{"after:sandbox.Guest", 1, false},
	{"before:records.Commit.sandbox.ready", 1, false},
	{"after:records.Commit.sandbox.ready", 1, false},
	{"before:records.Commit.call.started", 1, false},
	{"after:records.Commit.call.started", 1, true},
	{"before:guest.Call", 1, false},
	{"during:guest.Call", 1, true},
	{"after:guest.Call", 1, false},
	{"before:records.Commit.call.finished", 1, false},
	{"after:records.Commit.call.finished", 1, false},
	{"before:platform.Answer", 1, false},
	{"after:platform.Answer", 1, true},
	{"before:records.Commit.call.posted", 1, false},
	{"after:records.Commit.call.posted", 1, false},
	{"before:guest.Acknowledge", 1, false},
	{"after:guest.Acknowledge", 1, false},
	{"after:platform.Answer#3", 1, false},
	{"before:platform.Stop", 1, false},
	{"after:platform.Stop", 1, true},
	{"before:records.Commit.work.stopped", 1, false},
	{"after:records.Commit.work.stopped", 1, false},
	{"before:sandbox.Destroy", 1, false},
	{"after:sandbox.Destroy", 1, true},
	{"before:records.Commit.sandbox.removed", 1, false},
	{"after:records.Commit.sandbox.removed", 1, false},
}

// TestServerKilledWhileItTakesOver kills a server in the middle of a call and the
// next one in the middle of taking over.
func TestServerKilledWhileItTakesOver(t *testing.T) {
	for i, point := range []string{
		"after:records.OpenWork", "before:platform.Heartbeat", "after:records.Commit.work.adopted", "after:records.LiveSessions",
		"after:backend.List", "before:backend.Attach", "after:backend.Attach", "after:sandbox.Guest", "before:records.Commit.sandbox.adopted",
		"after:records.Commit.sandbox.adopted", "before:guest.Recall", "after:guest.Recall", "after:platform.History",
	} {
		if !*full && i%4 != 0 {
			continue
		}
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			h := newHastyHouse(t, local.Options{LeaseTTL: 5 * time.Second}, everyStep)
			h.startCrashing("during:guest.Call")
			s := h.session("every-step", "go")
			h.diesAtItsPoint()
			h.startCrashing(point)
			h.diesAtItsPoint()
			h.startUntil("/healthz")
			h.secondHalf(s)
			if j := h.judge(s); len(j.lost) > 0 && h.platform.Works(s)[0].Claims == 1 {
				t.Errorf("killed servers lost calls: %q", j.lost)
			}
			h.nothingLeft(s)
		})
	}
}

// secondHalf waits for the sleep of a session that plays everyStep, wakes it with
// a message and waits for its end.
func (h *house) secondHalf(s string) {
	h.t.Helper()
	h.eventually(60*time.Second, "the first half is over and the sandbox sleeps", func() bool {
		w := h.platform.Works(s)
		return len(w) > 0 && w[len(w)-1].State == "stopped" && len(h.log(s, "agent.message")) > 0 && h.look(s).Phase == "parked"
	})
	if _, err := h.platform.Send(s, map[string]any{"type": "user.message", "content": []any{map[string]any{"type": "text", "text": "go on"}}}); err != nil {
		h.t.Fatal(err)
	}
	h.finished(60*time.Second, s)
}

// judgement is what became of a session's calls.
type judgement struct {
	lost []string // texts of error results: what the model was told
	last string   // the last result
}

// honest is what a model may be told of a call that broke off.
var honest = regexp.MustCompile(`not known how far|was not run|stopped before it was done|may have had some of its effects|no longer available|may be incomplete, and shells were restarted|could not be started|bash session terminated`)

// judge holds the log of a session against the promises: each call has one
// result; an error says honestly what is not known; and the lines that commands
// left are there once for each that succeeded and at most once for the others.
func (h *house) judge(s string) judgement {
	h.t.Helper()
	var j judgement
	shown := false                                             // the last call showed what the others left
	commands, results := map[string]string{}, map[string]int{} // by call
	asked, unwritten := map[string]platformEvent{}, map[string]bool{}
	strange := map[string][]string{} // by the file that the call was about
	for _, e := range h.log(s, "agent.tool_use", "user.tool_result", "agent.tool_result") {
		switch e.Type {
		case "agent.tool_use":
			asked[e.ID] = e
			commands[e.ID] = e.Input.Command
			results[e.ID] += 0
		default:
			results[e.ToolUseID]++
			text := ""
			for _, c := range e.Content {
				text += c.Text
			}
			j.last, shown = text, !e.IsError
			if !e.IsError {
				continue
			}
			j.lost = append(j.lost, text)
			call := asked[e.ToolUseID]
			if call.Name == "write" {
				unwritten[call.Input.Path] = true
			}
			if !honest.MatchString(text) {
				strange[call.Input.Path] = append(strange[call.Input.Path], text)
			}
			commands[e.ToolUseID] = "" // its line may be there or not
		}
	}
	for path, texts := range strange {
		for _, text := range texts {
			// A file whose write broke off, as the model knows, need not be there.
			if !unwritten[path] || !strings.Contains(text, "no such file") {
				h.t.Errorf("the model was told %q", text)
			}
		}
	}
	for id, n := range results {
		if n != 1 {
			h.t.Errorf("call %s has %d results", id, n)
		}
	}
	if !shown {
		return j
	}
	lines := map[string]int{}
	for line := range strings.Lines(j.last) {
		lines[strings.TrimSpace(line)]++
	}
	for line, n := range lines {
		if n > 1 {
			h.t.Errorf("a command ran %d times: it left %q\n%s", n, line, j.last)
		}
	}
	for id, command := range commands {
		if m := leaves.FindStringSubmatch(command); m != nil && lines[m[1]] != 1 {
			h.t.Errorf("call %s succeeded and left nothing: %q\n%s", id, m[1], j.last)
		}
	}
	return j
}

var leaves = regexp.MustCompile(`echo (\S+) >> log`)

// nothingLeft waits until the host has nothing of a session that is over: no
// folder, process, mount, cgroup, loop device or named network namespace.
func (h *house) nothingLeft(s string) {
	h.t.Helper()
	var left []string
	h.eventuallyOr(15*time.Second, func() bool {
		left = h.remains(s)
		return len(left) == 0 && h.look(s).Phase == "over"
	}, func() { h.t.Errorf("left over, phase %s: %q", h.look(s).Phase, left) })
}

// remains is what the host has of a session.
func (h *house) remains(session string) []string {
	id := sandbox.ID(session)
	var found []string
	for _, pattern := range []string{
		filepath.Join(h.dir, "sandboxes", id+"*"), filepath.Join(h.dir, "run", "runsc", "*"+id+"*"),
		"/sys/fs/cgroup/*/berth-*/" + id, "/sys/fs/cgroup/berth-*/" + id, "/run/netns/*" + id + "*",
	} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			h.t.Fatal(err)
		}
		found = append(found, names...)
	}
	for _, p := range h.processes(id) {
		found = append(found, fmt.Sprintf("process %d %s", p.pid, p.name))
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, id) {
			found = append(found, "mount "+line)
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // there may be no loop devices at all
	for _, l := range loops {
		if file, err := os.ReadFile(l); err == nil && strings.Contains(string(file), h.dir+"/sandboxes/") {
			found = append(found, "loop device of "+string(file))
		}
	}
	return found
}

// hostProcess is a process of a sandbox on the host.
type hostProcess struct {
	pid  int
	name string // runsc-sandbox, runsc-gofer, runsc
}

// processes returns the processes of a sandbox of this house.
func (h *house) processes(id string) []hostProcess {
	var found []hostProcess
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		h.t.Fatal(err)
	}
	for _, d := range dirs {
		b, err := os.ReadFile(d)
		if err != nil || !strings.HasPrefix(string(b), "runsc") {
			continue
		}
		if text := string(b); strings.Contains(text, "--root="+h.dir+"/") && strings.HasSuffix(strings.TrimRight(text, "\x00"), "\x00"+id) {
			var pid int
			fmt.Sscan(filepath.Base(filepath.Dir(d)), &pid)
			name, _, _ := strings.Cut(text, "\x00")
			found = append(found, hostProcess{pid, name})
		}
	}
	return found
}
