package e2e

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/claude/local"
)

func TestDemoEndsWell(t *testing.T) {
	dir := t.TempDir()
	out, errs, code := run(t, dir, cleanEnv("TMPDIR="+os.TempDir()), "demo", "--exit")
	if code != 0 {
		t.Fatalf("code %d\n%s%s", code, out, errs)
	}
	for _, want := range []string{"FAIL primes up to 10", "edited /workspace/primes.sh", "PASS", "The session did its task."} {
		if !strings.Contains(out, want) {
			t.Errorf("the demo does not show %q:\n%s", want, out)
		}
	}
}

const hello = `
name: hello
steps:
  - calls:
      - {tool: bash, input: {command: "echo $((6*7))"}, expect: {text: '^42', error: false}}
  - message: Done.
`

func TestServeWithFourVariablesByPollingAlone(t *testing.T) {
	t.Parallel()
	h := newHouse(t, local.Options{}, hello)
	h.start()
	s := h.session("hello", "go")
	h.finished(30*time.Second, s)
	if hooks := h.platform.Webhooks(); len(hooks) != 0 {
		t.Fatalf("webhooks were sent: %v", hooks)
	}
	for _, r := range h.platform.Requests() {
		if r.Credential == "none" {
			t.Errorf("%s %s carried no credential", r.Method, r.Path)
		}
		switch r.Operation {
		case "heartbeat", "stop", "session.get", "events.send", "events.list", "stream":
			if r.Credential != "sessions token" {
				t.Errorf("%s %s carried the %s instead of the item's own token", r.Method, r.Path, r.Credential)
			}
		}
	}
}

func TestWebhooksMakeItFaster(t *testing.T) {
	t.Parallel()
	h := newHouse(t, local.Options{}, hello)
	// The receiver must be known before the platform is made, so this platform
	// is a second one with an endpoint.
	key := "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
	h2 := newHouse(t, local.Options{Webhooks: local.WebhookOptions{
		Endpoints: []local.Endpoint{{URL: "http://" + h.address + "/webhooks", Secret: key}}, Duplicate: true,
	}}, hello)
	h2.dir, h2.address = h.dir, h.address
	h2.env = []string{"ANTHROPIC_WEBHOOK_SIGNING_KEY=" + key}
	h2.start()
	h2.finished(30*time.Second, h2.session("hello", "go"))
	h2.eventually(10*time.Second, "webhooks are acknowledged", func() bool {
		w := h2.platform.Webhooks()
		return len(w) == 1 && w[0].Delivered > 3 && w[0].Failed == 0
	})
}

const busy = `
name: busy
steps:
  - calls:
      - tool: bash
        input: {command: "echo ran >> /workspace/count; sleep 4; cat /workspace/count"}
        expect: {text: '(?s)\Aran\n*\z', error: false}
  - message: Done.
`

func TestKilledWhileACommandRuns(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, local.Options{}, busy)
			h.start()
			s := h.session("busy", "go")
			h.eventually(20*time.Second, "the command runs", func() bool { return h.tryReadStarted(s) })
			h.serve.end(sig)
			if n := len(h.log(s, "user.tool_result")); n != 0 {
				t.Fatalf("%d results before the command was done", n)
			}
			h.start()
			h.finished(30*time.Second, s)
			if results := h.log(s, "user.tool_result"); len(results) != 1 {
				t.Fatalf("%d results, want 1: %v", len(results), results)
			}
			if got := h.sh(s, "cat /workspace/count"); got != "ran\n" {
				t.Fatalf("the command ran more than once: %q", got)
			}
			if works := h.platform.Works(s); len(works) != 1 || works[0].Claims != 1 {
				t.Errorf("work items %+v; want one, claimed once: the lease was to be adopted", works)
			}
			if n := len(h.sandboxes()); n != 1 {
				t.Errorf("%d sandboxes, want 1", n)
			}
		})
	}
}

// tryReadStarted reports whether the busy command has begun.
func (h *house) tryReadStarted(session string) bool {
	if len(h.platform.Works(session)) == 0 || len(h.sandboxes()) == 0 {
		return false
	}
	return h.tryRead(session, "/workspace/count") != ""
}

const long = `
name: long
steps:
  - calls:
      - tool: bash
        input: {command: "echo begun > /workspace/begun; sleep 300; echo done"}
        expect: {text: 'stopped before it was done', error: true}
  - message: Done.
`

func TestLostLeaseStopsWorkAtOnce(t *testing.T) {
	h := newHouse(t, local.Options{LeaseTTL: 3 * time.Second}, long)
	h.start()
	s := h.session("long", "go")
	h.eventually(20*time.Second, "the command runs", func() bool {
		return len(h.sandboxes()) > 0 && h.tryRead(s, "/workspace/begun") != ""
	})
	const running = `cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' ' ' | grep -c 'sleep 300' || true`
	if got := strings.TrimSpace(h.sh(s, running)); got == "0" {
		t.Fatal("the command does not run")
	}
	work := h.platform.Works(s)[0].ID
	if err := h.platform.Inject(local.Fault{Kind: local.LeaseLost, Work: work}); err != nil {
		t.Fatal(err)
	}
	h.eventually(5*time.Second, "a heartbeat is answered 412", func() bool { return h.answered("heartbeat", 412) > 0 })
	lost := time.Now()
	h.eventually(5*time.Second, "the command is gone", func() bool { // the second is held by a test on a false clock
		return strings.TrimSpace(h.sh(s, `for p in /proc/[0-9]*; do [ "$(tr '\0' ' ' < $p/cmdline 2>/dev/null)" = "sleep 300 " ] && echo $p; done; true`)) == ""
	})
	t.Logf("the command was gone %s after the lease was lost, probes included", time.Since(lost).Round(time.Millisecond))
	if n := h.answered("stop", 0); n != 0 {
		t.Errorf("a lost item was stopped %d times", n)
	}
	h.finished(30*time.Second, s) // the item came back; the model was told
	if n := len(h.log(s, "user.tool_result")); n != 1 {
		t.Errorf("%d results, want 1", n)
	}
}

// answered counts the requests of an operation with a status, 0 for any.
func (h *house) answered(operation string, status int) int {
	n := 0
	for _, r := range h.platform.Requests() {
		if r.Operation == operation && (status == 0 || r.Status == status) {
			n++
		}
	}
	return n
}

const manners = `
name: manners
steps:
  - calls:
      - {tool: bash, input: {command: "true"}, expect: {text: '^\(no output\)$', error: false}}
      - {tool: write, input: {file_path: /workspace/a.txt, content: "hello\n"}, expect: {error: false}}
      - {tool: read, input: {file_path: /workspace/a.txt}, expect: {text: hello, error: false}}
      - {tool: glob, input: {pattern: "*.txt"}, expect: {text: a.txt, error: false}}
      - {tool: grep, input: {pattern: hel}, expect: {text: hello, error: false}}
      - {tool: edit, input: {file_path: /workspace/a.txt, old_string: hello, new_string: bye}, expect: {error: false}}
  - calls:
      - {tool: bash, input: {command: "cd /tmp; export A=b"}, expect: {error: false}}
  - calls:
      - {tool: bash, input: {command: "pwd; echo $A; cat /workspace/a.txt; exit 3"}, expect: {text: '(?s)/tmp.b.bye|terminated', error: true}}
  - calls:
      - {tool: bash, input: {command: "touch /workspace/allowed"}, permission: ask, person: {says: allow, after: 300ms}, expect: {error: false}}
      - {tool: bash, input: {command: "touch /workspace/denied"}, permission: ask, person: {says: deny, because: "no", after: 300ms}, expect: {error: true}}
      - {tool: bash, input: {command: "touch /workspace/refused"}, permission: deny, expect: {error: true}}
  - open_thread: helper
  - {thread: helper, calls: [{tool: bash, input: {command: "ls /workspace; pwd"}, expect: {text: '(?s)a.txt.*allowed.*/workspace', not: 'denied|refused', error: false}}]}
  - end_thread: helper
  - calls: [{tool: bash, input: {command: "sleep 300"}, expect: {interrupted: true}}]
    interrupt: {after: 1s}
  - calls: [{tool: bash, input: {command: "echo after"}, expect: {text: after, error: false}}]
  - message: Done.
`

func TestTheManyWaysOfACall(t *testing.T) {
	t.Parallel()
	h := newHouse(t, local.Options{}, manners)
	h.start()
	s := h.session("manners", "go")
	h.eventually(60*time.Second, "the interrupt settled the turn", func() bool {
		r := h.platform.Scenario(s)
		return len(r.Failures) > 0 || len(h.log(s, "user.interrupt")) == 1 && h.idle(s)
	})
	if r := h.platform.Scenario(s); len(r.Failures) > 0 {
		t.Fatalf("the scenario failed: %v", r.Failures)
	}
	if _, err := h.platform.Send(s, map[string]any{"type": "user.message", "content": []any{map[string]any{"type": "text", "text": "go on"}}}); err != nil {
		t.Fatal(err)
	}
	h.finished(30*time.Second, s)
}

// idle reports whether the last status event says that the turn is over.
func (h *house) idle(session string) bool {
	events := h.log(session, "session.status_idle", "session.status_running")
	return len(events) > 0 && events[len(events)-1].Type == "session.status_idle" && events[len(events)-1].StopReason.Type != "requires_action"
}

func TestTwentySessionsAtOnce(t *testing.T) {
	const n = 20
	h := newHouse(t, local.Options{}, `
name: crowd
steps:
  - calls:
      - tool: bash
        input: {command: "cat /proc/sys/kernel/random/uuid > /workspace/mine; sleep 1; ls /workspace; cat /workspace/mine; ls -d /proc/[0-9]* | wc -l"}
        expect: {text: '(?s)\Amine\n[0-9a-f-]{36}\n[0-9]\n*\z', error: false}
  - message: Done.
`)
	h.env = []string{"BERTH_CONFIG=" + h.file("berth.yaml", "sessions: {capacity: 20, release_after: 5m}\nsandbox: {limits: {memory: 256MiB}}\n")}
	h.start()
	sessions := make([]string, n)
	for i := range sessions {
		sessions[i] = h.session("crowd", "go")
	}
	seen := map[string]bool{}
	for _, s := range sessions {
		h.finished(2*time.Minute, s)
		seen[h.sh(s, "cat /workspace/mine")] = true
	}
	if len(seen) != n {
		t.Errorf("%d different files in %d sandboxes", len(seen), n)
	}
	if got := len(h.sandboxes()); got != n {
		t.Errorf("%d sandboxes, want %d", got, n)
	}
	for _, s := range sessions {
		h.post("/v1/sessions/"+s+"/archive", map[string]any{}, nil)
	}
	h.eventually(60*time.Second, "nothing is left behind", func() bool { return len(h.sandboxes()) == 0 })
}

// file writes a file into the data directory and returns its path.
func (h *house) file(name, content string) string {
	h.t.Helper()
	path := h.dir + "/" + name
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		h.t.Fatal(err)
	}
	return path
}
