package session_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/session/sessiontest"
	"github.com/berth-dev/berth/internal/tool"
)

// set changes the settings of the test's agent.
func (h *house) set(text string) {
	h.t.Helper()
	if _, err := h.keeper.PatchAgent(h.t.Context(), "agent_1", settings(h.t, text), nil, session.AnyRevision); err != nil {
		h.t.Fatal(err)
	}
}

// again is one more turn.
func (h *house) again(command string) {
	h.claude.Do(func(l *sessiontest.Log) { bash(command)(l); l.Idle() })
}

func (h *house) count(typ event.Type) int {
	n := 0
	for _, t := range h.records.Events(sesn) {
		if t == typ {
			n++
		}
	}
	return n
}

func TestASandboxIsMadeWithItsAgentsSettings(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		h.cfg.Agents = []session.AgentFile{{Name: "tester", Settings: settings(t, `{"cpus":3,"processes":99}`)}}
		h.reopen(func() {})
		h.set(`{"image":"host","cpus":4,"memory":"1GiB","disk":"2GiB","tool_timeout":"7s","env":{"A":"1"}}`)
		if _, err := h.keeper.PatchAgent(h.t.Context(), "agent_2", settings(t, `{"cpus":1}`), nil, session.AnyRevision); err != nil {
			t.Fatal(err)
		}
		h.until("the turn is over", h.claude.Done)
		want := []sandbox.Spec{{
			ID: sandbox.ID(sesn), Session: sesn, Image: "host", Env: map[string]string{"A": "1"},
			Limits: sandbox.Limits{CPUs: 4, MemoryBytes: 1 << 30, DiskBytes: 2 << 30, Processes: 99},
		}}
		if d := cmp.Diff(want, h.fake.Creates()); d != "" {
			t.Errorf("made (-want +got):\n%s", d)
		}
		if got := h.fake.Records()[0].Call.Timeout; got != 7*time.Second {
			t.Errorf("the call may take %s, want 7s", got)
		}
		rec, _, err := h.records.LoadSession(h.t.Context(), sesn)
		if err != nil || rec.Profile == nil || rec.Profile.CPUs != 4 || rec.Revision != 1 {
			t.Errorf("on record: %+v, revision %d, %v", rec.Profile, rec.Revision, err)
		}
	})
}

func TestARunningSandboxKeepsItsSettings(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		h.set(`{"warm":"30m"}`)
		h.until("the work is given back", func() bool { return h.phase() == session.Warm })
		h.set(`{"warm":"1s","cpus":4}`)
		if h.count(event.AgentChanged) != 1 { // the first one was before the session
			t.Errorf("events = %v, want one that tells of the change", h.records.Events(sesn))
		}
		h.reopen(func() {}) // a successor keeps them, too
		h.pass(25 * time.Minute)
		if h.phase() != session.Warm {
			t.Fatalf("phase = %s, want warm for half an hour", h.phase())
		}
		h.pass(10 * time.Minute)
		if h.phase() != session.Parked {
			t.Fatalf("phase = %s, want parked", h.phase())
		}
		h.again("b")
		h.until("the turn is over", h.claude.Done)
		h.until("the work is given back", func() bool { return h.phase() != session.Active })
		h.pass(2 * time.Second)
		if made := h.fake.Creates(); h.phase() != session.Parked || len(made) != 2 || made[1].Limits.CPUs != 4 {
			t.Errorf("phase %s, made %+v", h.phase(), made)
		}
	})
}

// A sandbox is never made with anything but the agent's settings: not even when
// they cannot be read.
func TestSettingsThatCannotBeReadAreNotGuessed(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		h.set(`{"cpus":1}`)
		h.records.RefuseSettings(errors.New("disk I/O error"))
		h.until("the session is at work", func() bool { return h.phase() == session.Active })
		h.pass(time.Second)
		h.records.RefuseSettings(nil)
		h.until("the turn is over", h.claude.Done)
		if made := h.fake.Creates(); len(made) != 1 || made[0].Limits.CPUs != 1 || h.use(1).IsError {
			t.Errorf("made %+v, result %s", made, h.text(1))
		}
		h.until("the sandbox sleeps", func() bool { return h.phase() == session.Parked })

		h.records.RefuseSettings(errors.New("disk I/O error"))
		h.again("b")
		h.until("it is answered all the same", h.claude.Done)
		if made := h.fake.Creates(); len(made) != 1 || !h.use(2).IsError || !strings.Contains(h.text(2), "could not be started") {
			t.Errorf("made %+v, result %s", made, h.text(2))
		}
		if strings.Contains(h.text(2), "disk I/O") {
			t.Errorf("the model reads of our insides: %s", h.text(2))
		}
	})
}

func TestAnAgentThatIsNotKnownIsAskedFor(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		h.set(`{"cpus":1}`)
		h.claude.Decide(func(r sessiontest.Request) (sessiontest.Fate, error) {
			if r.Kind == "info" && r.N < 7 {
				return sessiontest.Refused, &session.Refusal{Status: 503}
			}
			return sessiontest.Arrives, nil
		})
		h.until("the turn is over", h.claude.Done)
		rec, _, _ := h.records.LoadSession(h.t.Context(), sesn)
		if made := h.fake.Creates(); len(made) != 1 || made[0].Limits.CPUs != 1 || rec.Agent != "agent_1" {
			t.Errorf("made %+v for %q", made, rec.Agent)
		}
	})
}

func TestTheSetUpRunsOnceInANewSandboxBeforeAnyCall(t *testing.T) {
	inHouse(t, turns{bash("a"), bash("b", "c")}, func(h *house) {
		h.fake.Command(func(context.Context, sandbox.Exec) sandbox.ExecResult {
			if n := len(h.fake.Records()); n != 0 && n != 3 {
				t.Errorf("the set-up runs after %d calls", n)
			}
			return sandbox.ExecResult{}
		})
		h.set(`{"setup":"make deps","setup_timeout":"90s"}`)
		h.until("the sandbox sleeps", func() bool { return h.claude.Done() && h.phase() == session.Parked })
		want := []sandbox.Exec{{Argv: []string{"/bin/sh", "-c", "make deps"}, Timeout: 90 * time.Second}}
		if d := cmp.Diff(want, h.fake.Execs()); d != "" {
			t.Errorf("after the first sandbox (-want +got):\n%s", d)
		}
		h.again("d")
		h.until("the turn is over", h.claude.Done)
		if n := len(h.fake.Execs()); n != 2 || h.count(event.SetupDone) != 2 {
			t.Errorf("%d set-ups for two sandboxes, events %v", n, h.records.Events(sesn))
		}
		h.answered()
	})
}

func TestASetUpThatFailsIsToldToTheCallsThatWaited(t *testing.T) {
	for name, c := range map[string]struct {
		res  sandbox.ExecResult
		says []string
	}{
		"exit status": {sandbox.ExecResult{Code: 3, Stderr: []byte("no such target\n")}, []string{"exit status 3", "no such target"}},
		"too long":    {sandbox.ExecResult{Code: -1, TimedOut: true, Stdout: []byte(strings.Repeat("x", 1<<20) + "the end")}, []string{"5m", "the end"}},
	} {
		t.Run(name, func(t *testing.T) {
			inHouse(t, turns{bash("a", "b")}, func(h *house) {
				h.set(`{"setup":"make deps"}`)
				h.fake.Command(func(context.Context, sandbox.Exec) sandbox.ExecResult { return c.res })
				h.until("the turn is over", h.claude.Done)
				for n := 1; n <= 2; n++ {
					for _, s := range append(c.says, "set-up command", "was not run") {
						if !h.use(n).IsError || !strings.Contains(h.text(n), s) || len(h.text(n)) > 4<<10 {
							t.Errorf("result %d = %.300s, want an error that says %q", n, h.text(n), s)
						}
					}
				}
				if len(h.fake.Execs()) != 1 || len(h.fake.Records()) != 0 || h.count(event.SetupFailed) != 1 {
					t.Errorf("%d set-ups, %d calls ran, events %v", len(h.fake.Execs()), len(h.fake.Records()), h.records.Events(sesn))
				}
				if _, err := h.fake.Attach(h.t.Context(), sandbox.Ref{ID: sandbox.ID(sesn)}); !errors.Is(err, sandbox.ErrGone) {
					t.Errorf("the sandbox runs on: %v", err)
				}
				if _, err := h.keeper.Open(h.t.Context(), sesn); fault.CodeOf(err) != fault.Conflict {
					t.Errorf("a person hears %v", err)
				}
				h.fake.Command(func(context.Context, sandbox.Exec) sandbox.ExecResult { return sandbox.ExecResult{} })
				h.again("c")
				h.until("the next turn is over", h.claude.Done)
				if h.use(3).IsError {
					t.Errorf("after it was mended: %s", h.text(3))
				}
			})
		})
	}
}

// A process that dies in the middle of a set-up leaves a sandbox that nobody may
// use: the next one makes another.
func TestASetUpThatWasCutShortIsNotTakenForDone(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		h.set(`{"setup":"make deps"}`)
		var cut atomic.Bool
		h.fake.Command(func(ctx context.Context, _ sandbox.Exec) sandbox.ExecResult {
			if !cut.Swap(true) {
				<-ctx.Done()
			}
			return sandbox.ExecResult{}
		})
		h.until("the set-up runs", cut.Load)
		h.reopen(func() {})
		h.until("the turn is over", h.claude.Done)
		if len(h.fake.Creates()) != 2 || len(h.fake.Execs()) != 2 || h.use(1).IsError {
			t.Errorf("%d sandboxes, %d set-ups, result %s", len(h.fake.Creates()), len(h.fake.Execs()), h.text(1))
		}
		h.answered()
	})
}

func TestASandboxThatHasLivedItsTimeIsReplacedWhenNothingRuns(t *testing.T) {
	inHouse(t, turns{calls(session.Event{Name: tool.Bash, Input: []byte(`{"command":"long","timeout_ms":3600000}`)})}, func(h *house) {
		h.set(`{"lifetime":"10m","warm":"24h"}`)
		g := newGate()
		h.fake.Tool(g.tool)
		h.until("the call runs", func() bool { return len(h.fake.Records()) == 1 })
		h.pass(20 * time.Minute)
		if h.count(event.SandboxRemoved) != 0 {
			t.Fatal("it was replaced under a running call")
		}
		g.Open()
		h.until("the call is answered", h.claude.Done)
		h.pass(time.Second)
		if h.count(event.SandboxRemoved) != 1 || h.use(1).IsError || h.phase() != session.Active {
			t.Errorf("events %v, phase %s, result %s", h.records.Events(sesn), h.phase(), h.text(1))
		}
		h.again("b")
		h.until("the next call is answered", h.claude.Done)
		h.until("the work is given back", func() bool { return h.phase() == session.Warm })
		if n := len(h.fake.Creates()); n != 2 {
			t.Errorf("%d sandboxes, want a second one", n)
		}
		h.pass(11 * time.Minute) // warm for a day, but not beyond its time
		if h.phase() != session.Parked {
			t.Errorf("phase = %s, want parked", h.phase())
		}
		h.answered()
	})
}

func TestOfTwoWhoChangeSettingsNobodyLosesAChange(t *testing.T) {
	inHouse(t, turns{}, func(h *house) {
		first, err := h.keeper.SetAgent(h.t.Context(), "agent_9", settings(t, `{"cpus":1}`), 0)
		if err != nil || first.Revision != 1 {
			t.Fatalf("SetAgent = %+v, %v", first, err)
		}
		if _, err := h.keeper.SetAgent(h.t.Context(), "agent_9", settings(t, `{"cpus":2}`), 0); fault.CodeOf(err) != fault.Conflict {
			t.Errorf("a change from an old revision: %v", err)
		}
		if _, err := h.keeper.PatchAgent(h.t.Context(), "agent_9", settings(t, `{"cpus":2}`), nil, 0); fault.CodeOf(err) != fault.Conflict {
			t.Errorf("a patch of an old revision: %v", err)
		}
		same, err := h.keeper.PatchAgent(h.t.Context(), "agent_9", settings(t, `{"cpus":1}`), nil, session.AnyRevision)
		if err != nil || same.Revision != 1 {
			t.Errorf("a patch that changes nothing: %+v, %v", same, err)
		}
		done := make(chan error, 5)
		for i := range cap(done) {
			go func() {
				env := session.Settings{Env: map[string]string{"V" + strings.Repeat("x", i): "1"}}
				_, err := h.keeper.PatchAgent(h.t.Context(), "agent_9", env, nil, session.AnyRevision)
				done <- err
			}()
		}
		for range cap(done) {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		v, err := h.keeper.Agent(h.t.Context(), "agent_9", "")
		if err != nil || len(v.Profile.Env) != cap(done) || v.Set.Revision != 6 || v.Sources["cpus"] != session.FromSet {
			t.Errorf("%+v, %v", v, err)
		}
		for _, id := range []string{"", "Coder", "agent_/.."} {
			if _, err := h.keeper.SetAgent(h.t.Context(), id, session.Settings{}, 0); fault.CodeOf(err) != fault.Invalid {
				t.Errorf("%q: %v", id, err)
			}
		}
		if _, err := h.keeper.PatchAgent(h.t.Context(), "agent_9", settings(t, `{"cpus":1000}`), nil, session.AnyRevision); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("out of bounds: %v", err)
		}
	})
}

func TestSecretsOfTheServerAreNoSettings(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		h.set(`{"env":{"K":"hunter2"}}`) // before it became a secret
		h.cfg.Secret = func(s string) bool { return strings.Contains(s, "hunter2") }
		h.reopen(func() {})
		_, err := h.keeper.PatchAgent(h.t.Context(), "agent_1", settings(t, `{"env":{"L":"hunter2"}}`), nil, session.AnyRevision)
		if fault.CodeOf(err) != fault.Invalid || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("PatchAgent = %v", err)
		}
		h.until("the turn is over", h.claude.Done)
		if made := h.fake.Creates(); len(made) != 0 || !h.use(1).IsError || strings.Contains(h.text(1), "hunter2") || !strings.Contains(h.text(1), "env.K") {
			t.Errorf("made %+v, result %s", made, h.text(1))
		}
		if slices.Contains(h.records.Events(sesn), event.SandboxStarting) {
			t.Error("a sandbox was started with the secret")
		}
	})
}
