//go:build linux

package server_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/guest/wire"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/tool"
)

func TestCommandsRunAsAnotherUserWithoutPrivileges(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("not root: commands keep the user; only no_new_privs is checked")
	}
	g := startProcess(t, "-uid", "1234", "-gid", "2345").attach(t)
	want := "NoNewPrivs: 1"
	if os.Getuid() == 0 {
		want = "1234\n2345\n2345\nCapPrm: 0000000000000000\nCapEff: 0000000000000000\nNoNewPrivs: 1"
	}
	script := `id -u; id -g; id -G; grep -E 'NoNewPrivs|CapEff|CapPrm' /proc/self/status | tr '\t' ' '`
	for from, got := range map[string]string{"bash": text(bash(t, g, "c1", script)), "exec": sh(t, g, script)} {
		if !strings.HasSuffix(got, want) {
			t.Errorf("%s: got:\n%s\nwant:\n%s", from, got, want)
		}
	}
}

func TestAgentCanNeitherSignalNorReadTheGuest(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("not root: the guest has no other user to protect itself from")
		return
	}
	s := startProcess(t)
	g := s.attach(t)
	for _, attack := range []string{
		"kill -9 %d", "kill -TERM %d", "cat /proc/%d/environ", "ls /proc/%d/fd", "cat /proc/%d/mem",
		"cat /proc/$PPID/environ #%d", "ls /proc/$PPID/fd/ #%d",
	} {
		command := fmt.Sprintf(attack, s.cmd.Process.Pid)
		if got := bash(t, g, attack, command); !got.IsError {
			t.Errorf("%s: %s", command, text(got))
		}
	}
	if err := g.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestCallRunsOnceAcrossTwoAttaches(t *testing.T) {
	s := startProcess(t)
	first := s.attach(t)
	instance := first.Instance()
	c := asking("once", "echo ran >> log; until [ -e go ]; do sleep 0.01; done; echo done")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := first.Call(ctx, c); !errors.Is(err, sandbox.ErrDisconnected) {
			t.Errorf("the broken connection gave %v", err)
		}
	})
	sh(t, first, "until [ -e log ]; do sleep 0.01; done")
	_ = first.Close()
	wg.Wait()
	cancel()

	second := s.attach(t)
	if second.Instance() != instance {
		t.Error("the instance changed")
	}
	sh(t, second, "touch go")
	want := tool.Text("done\n\n")
	for range 2 {
		if diff := cmp.Diff(want, call(t, second, c)); diff != "" {
			t.Error(diff)
		}
	}
	if got, err := second.Recall(t.Context(), "once"); err != nil || !cmp.Equal(got, want) {
		t.Errorf("recall: %v, %v", got, err)
	}
	if got := sh(t, second, "cat log"); got != "ran" {
		t.Errorf("it ran %q", got)
	}
	if err := second.Acknowledge(t.Context(), "once"); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Call(t.Context(), c); !errors.Is(err, sandbox.ErrAcknowledged) {
		t.Errorf("call after its acknowledgement: %v", err)
	}
	if _, err := second.Recall(t.Context(), "another"); !errors.Is(err, sandbox.ErrUnknownCall) {
		t.Errorf("recall of an unknown call: %v", err)
	}
}

func TestClientsKilledInTheMiddleOfAFrameDoNoHarm(t *testing.T) {
	s := startProcess(t)
	hello := wire.Padding + wire.HeaderSize
	for _, bytes := range []int{10, wire.Padding, hello + 10, hello + 100, hello + 130, hello + 200, hello + 500, hello + 3000} {
		client := exec.Command("/proc/self/exe", "dying-client", s.pipes.In, s.pipes.Out, fmt.Sprint(bytes))
		if err := client.Run(); client.ProcessState == nil || client.ProcessState.String() != "signal: killed" {
			t.Fatalf("the client ended with %v", err)
		}
		g := s.attach(t)
		if got := text(bash(t, g, fmt.Sprintf("alive-%d", bytes), "echo alive")); got != "alive" {
			t.Errorf("after %d bytes: %q", bytes, got)
		}
		_ = g.Close()
	}
	ran := strings.Fields(sh(t, s.attach(t), "cat ran"))
	seen := map[string]bool{}
	for _, id := range ran {
		if seen[id] {
			t.Errorf("call %s ran twice", id)
		}
		seen[id] = true
	}
	if len(ran) < 5 {
		t.Errorf("only %v ran: the clients died too early to prove anything", ran)
	}
}

func TestCancelStopsACommandThatIgnoresSignals(t *testing.T) {
	for name, command := range map[string]string{
		"in its session":      `trap '' INT TERM HUP; touch up; sleep 4711.5 & wait; sleep 4711.5`,
		"in one of its own":   `touch up; setsid sh -c "trap '' INT TERM HUP; sleep 4711.5; sleep 4711.5"`,
		"in the background":   `setsid sh -c 'sleep 4711.5; sleep 4711.5' & touch up; sleep 4711.5`,
		"with output in full": `touch up; yes`,
	} {
		t.Run(name, func(t *testing.T) {
			s := startProcess(t)
			g := s.attach(t)
			bash(t, g, "before", "setsid sleep 4712.5 & ")
			eventually(t, "an earlier command's process runs", func() bool { return len(sleepers(t, "4712.5")) == 1 })
			var wg sync.WaitGroup
			wg.Go(func() {
				want := tool.Error(`tool "bash" was stopped before it was done. It may have had some of its effects.`)
				if diff := cmp.Diff(want, call(t, g, asking("c", command))); diff != "" {
					t.Error(diff)
				}
			})
			sh(t, g, "until [ -e up ]; do sleep 0.01; done")
			if name != "with output in full" {
				eventually(t, "it sleeps", func() bool { return len(sleepers(t, "4711.5")) > 0 })
			}
			begin := time.Now()
			if err := g.Cancel(t.Context(), "c"); err != nil {
				t.Fatal(err)
			}
			wg.Wait()
			if took := time.Since(begin); took > time.Second {
				t.Errorf("it took %s", took)
			}
			eventually(t, "everything is gone", func() bool { return len(sleepers(t, "4711.5")) == 0 })
			before := sleepers(t, "4712.5")
			if len(before) != 1 {
				t.Error("what an earlier command left running was killed")
			}
			if got := text(bash(t, g, "after", "echo alive")); got != "alive" {
				t.Errorf("the next command: %q", got)
			}
			for _, pid := range before {
				sh(t, g, fmt.Sprintf("kill %d", pid))
			}
		})
	}
}

func TestBashTimeoutSpeaksFirstAndLeavesNothingBehind(t *testing.T) {
	g := startProcess(t).attach(t)
	got := call(t, g, tool.Call{
		ID: "a", Name: tool.Bash,
		Input: []byte(`{"command":"echo partial; setsid sleep 4713.5","timeout_ms":300}`),
	})
	want := tool.Error("partial\n\n[timed out]\nsession restarted after timeout")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	eventually(t, "what the command started is gone", func() bool { return len(sleepers(t, "4713.5")) == 0 })
}

func TestKilledWorkerIsAnHonestErrorAndIsReplaced(t *testing.T) {
	g := startProcess(t).attach(t)
	if got := text(bash(t, g, "a", "cd /; x=1; kill -9 $PPID; sleep 100")); !strings.Contains(got, "the tool process was killed") {
		t.Errorf("got %q", got)
	}
	if got := text(bash(t, g, "b", "echo again $x")); got != "again" {
		t.Errorf("the next command: %q", got)
	}
	// The result of the killed call is held like any other.
	if got := text(bash(t, g, "a", "echo run again")); !strings.Contains(got, "the tool process was killed") {
		t.Errorf("asked again: %q", got)
	}
}

func TestOrphansAreCollected(t *testing.T) {
	s := startProcess(t)
	g := s.attach(t)
	bash(t, g, "a", "for i in 1 2 3 4 5; do (setsid sleep 0.05 &); done; (setsid sleep 4714.5 &)")
	guest := s.cmd.Process.Pid
	// The long one shows that orphans come to the guest; no zombie stays there.
	var orphans []int
	eventually(t, "the orphan is adopted", func() bool {
		orphans = sleepers(t, "4714.5")
		return len(orphans) == 1 && children(t, guest)[orphans[0]] == "S"
	})
	eventually(t, "the short ones are over", func() bool { return len(sleepers(t, "0.05")) == 0 })
	eventually(t, "no zombie is left", func() bool {
		for _, state := range children(t, guest) {
			if state == "Z" {
				return false
			}
		}
		return true
	})
	if res, err := g.Exec(t.Context(), sandbox.Exec{Argv: []string{"sh", "-c", "exit 7"}}); err != nil || res.Code != 7 {
		t.Errorf("the guest lost the status of its own child: %+v, %v", res, err)
	}
	sh(t, g, fmt.Sprintf("kill %d", orphans[0]))
	eventually(t, "the long one is collected", func() bool { return len(children(t, guest)[orphans[0]]) == 0 })
}

// children returns the state of every child of a process.
func children(t *testing.T, parent int) map[int]string {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	states := map[int]string{}
	for _, f := range found {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		var pid, ppid int
		var state string
		head, rest, _ := strings.Cut(string(b), " (")
		_, _ = fmt.Sscan(head, &pid)
		if _, err := fmt.Sscan(rest[strings.LastIndex(rest, ")")+1:], &state, &ppid); err == nil && ppid == parent {
			states[pid] = state
		}
	}
	return states
}

func TestEnvironmentFileReachesCommands(t *testing.T) {
	file := filepath.Join(t.TempDir(), "env.json")
	if err := os.WriteFile(file, []byte(`{"FROM_FILE":"two\nlines","ANTHROPIC_API_KEY":"leak"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	g := startProcess(t, "-env-file", file).attach(t)
	got := text(bash(t, g, "a", `echo "$FROM_FILE"; env | grep -ci anthropic`))
	if !strings.HasPrefix(got, "two\nlines\n0") {
		t.Errorf("got %q", got)
	}
}
