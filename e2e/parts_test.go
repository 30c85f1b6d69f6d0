package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/claude/local"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/testbin"
)

// The other half of the crash matrix: the server lives, and a part of the
// sandbox is killed while the server stands still at a step.

// parts are what a sandbox consists of, and how each is killed.
var parts = map[string]func(h *house, id string) bool{
	"kernel": func(h *house, id string) bool { return h.killProcess(id, "runsc-sandbox") },
	"gofer":  func(h *house, id string) bool { return h.killProcess(id, "runsc-gofer") },
	"guest":  func(h *house, id string) bool { return h.killInside(id, "guest") },
	"worker": func(h *house, id string) bool { return h.killInside(id, "exe") },
	"shell":  func(h *house, id string) bool { return h.killInside(id, "bash") },
}

// killProcess kills a process of a sandbox on the host.
func (h *house) killProcess(id, name string) bool {
	for _, p := range h.processes(id) {
		if p.name == name {
			return syscall.Kill(p.pid, syscall.SIGKILL) == nil
		}
	}
	return false
}

// runsc runs the runtime's own command on a sandbox.
func (h *house) runsc(args ...string) ([]byte, error) {
	cmd := exec.CommandContext(h.t.Context(), testbin.Path(h.t))
	cmd.Args = append([]string{"runsc", "--root=" + h.dir + "/run/runsc"}, args...)
	return cmd.Output()
}

// killInside kills a process inside a sandbox with the runtime's own means,
// which are those of a root inside. It reports whether there was one.
func (h *house) killInside(id, name string) bool {
	list, err := h.runsc("ps", id)
	if err != nil {
		return false
	}
	for lines := bufio.NewScanner(bytes.NewReader(list)); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) < 2 || f[len(f)-1] != name {
			continue
		}
		if f[1] == "1" {
			_, err = h.runsc("kill", id, "KILL")
		} else {
			_, err = h.runsc("kill", "--pid", f[1], id, "KILL")
		}
		return err == nil
	}
	return false
}

// standsStill waits until the server has stopped itself at its point.
func (h *house) standsStill() {
	h.t.Helper()
	h.eventually(60*time.Second, "the server stands still", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", h.serve.cmd.Process.Pid))
		if err != nil {
			h.t.Fatalf("the server ended: %v\n%s", err, h.serve.output())
		}
		_, rest, _ := bytes.Cut(b, []byte(") "))
		return bytes.HasPrefix(rest, []byte("T"))
	})
}

// goesOn lets it continue.
func (h *house) goesOn() {
	h.t.Helper()
	if err := h.serve.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		h.t.Fatal(err)
	}
}

// sandboxPoints are the steps at which there is a sandbox.
var sandboxPoints = []string{
	"after:backend.Create",
	"after:sandbox.Guest",
	"after:records.Commit.sandbox.ready",
	"before:records.Commit.call.started",
	"before:guest.Call",
	"during:guest.Call",
	"after:guest.Call",
	"before:records.Commit.call.finished",
	"before:platform.Answer",
	"before:guest.Acknowledge",
	"before:guest.Call#3",
	"before:platform.Stop",
	"before:sandbox.Destroy",
}

// TestPartOfTheSandboxKilledAtEveryStep kills the runtime's kernel, its gofer,
// the guest, the guest's worker and the agent's shell. What ran is lost, and the
// model is told so; what had a result keeps it; nothing runs twice, and the
// session goes on in what the part is replaced by.
func TestPartOfTheSandboxKilledAtEveryStep(t *testing.T) {
	n := 0
	for _, point := range sandboxPoints {
		for _, part := range []string{"kernel", "gofer", "guest", "worker", "shell"} {
			if n++; !*full && n%6 != 0 && !(point == "during:guest.Call") {
				continue
			}
			t.Run(part+" "+point, func(t *testing.T) {
				t.Parallel()
				h := newHastyHouse(t, local.Options{LeaseTTL: 30 * time.Second}, everyStep)
				h.startCrashing(point + "=stop")
				s := h.session("every-step", "go")
				h.standsStill()
				hit := parts[part](h, sandbox.ID(s))
				h.goesOn()
				h.secondHalf(s)
				j := h.judge(s)
				if len(j.lost) > 0 && !hit {
					t.Errorf("nothing was killed, and calls were lost: %q", j.lost)
				}
				if point == "during:guest.Call" && part != "shell" && !hit { // the shell may not be there yet
					t.Errorf("there was no %s to kill", part)
				}
				if w := h.platform.Works(s); w[0].Claims != 1 {
					t.Errorf("the first work item was claimed %d times", w[0].Claims)
				}
				t.Logf("killed: %v; the model was told: %q", hit, j.lost)
				h.nothingLeft(s)
			})
		}
	}
}
