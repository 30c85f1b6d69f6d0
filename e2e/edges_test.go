package e2e

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/berth-dev/berth/internal/claude/local"
	"github.com/berth-dev/berth/internal/testbin"
)

func TestBadConfigurationIsSaidInOneMessage(t *testing.T) {
	dir, err := os.MkdirTemp("", "berth-bad-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() })
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := []string{"ANTHROPIC_ENVIRONMENT_ID=env_1", "ANTHROPIC_ENVIRONMENT_KEY=sk-ant-oat01-0123456789", "BERTH_DATA_DIR=" + filepath.Join(dir, "data"), "BERTH_LISTEN=127.0.0.1:0"}
	for name, c := range map[string]struct {
		env  []string
		code int
		want []string
	}{
		"unknown key":   {append(good, "BERTH_CONFIG="+write("a.yaml", "listen: 127.0.0.1:0\nlisten_on: x\n")), 2, []string{"a.yaml:2", "listen_on"}},
		"wrong type":    {append(good, "BERTH_CONFIG="+write("b.yaml", "sessions:\n  capacity: many\n")), 2, []string{"b.yaml:2", "capacity"}},
		"missing key":   {[]string{"ANTHROPIC_ENVIRONMENT_ID=env_1", good[2]}, 2, []string{"ANTHROPIC_ENVIRONMENT_KEY"}},
		"nothing":       {[]string{good[2]}, 2, []string{"ANTHROPIC_ENVIRONMENT_ID", "ANTHROPIC_ENVIRONMENT_KEY"}},
		"taken port":    {append(good, "BERTH_LISTEN="+taken.Addr().String()), 1, []string{taken.Addr().String(), "BERTH_LISTEN"}},
		"open to all":   {append(good, "BERTH_LISTEN=0.0.0.0:0"), 2, []string{"sign-in", "BERTH_TOKEN"}},
		"no such file":  {append(good, "BERTH_CONFIG="+filepath.Join(dir, "none.yaml")), 2, []string{"none.yaml"}},
		"isolate":       {append(good, "BERTH_DEFAULT_BACKEND=isolate"), 2, []string{"isolate", "linux"}},
		"data dir file": {append(good, "BERTH_DATA_DIR="+write("file", "x")), 2, []string{"data directory", "BERTH_DATA_DIR"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, errs, code := run(t, dir, cleanEnv(c.env...), "serve")
			if code != c.code {
				t.Errorf("code %d, want %d", code, c.code)
			}
			for _, w := range c.want {
				if !strings.Contains(errs, w) {
					t.Errorf("the message does not name %q:\n%s%s", w, out, errs)
				}
			}
			if strings.Contains(errs, "sk-ant-oat01-0123456789") || strings.Contains(errs, "goroutine") {
				t.Errorf("the message shows a secret or a stack:\n%s", errs)
			}
		})
	}
}

func TestSecondServerOnOneDataDirectoryRefuses(t *testing.T) {
	t.Parallel()
	h := newHouse(t, local.Options{}, hello)
	h.start()
	_, errs, code := run(t, h.dir, cleanEnv("BERTH_DATA_DIR="+h.dir, "BERTH_LISTEN=127.0.0.1:0", "ANTHROPIC_BASE_URL="+h.url,
		"ANTHROPIC_ENVIRONMENT_ID="+environment, "ANTHROPIC_ENVIRONMENT_KEY="+h.envKey), "serve")
	if code != 1 || !strings.Contains(errs, "in use by another berth") || !strings.Contains(errs, fmt.Sprint(h.serve.cmd.Process.Pid)) {
		t.Fatalf("code %d, %s", code, errs)
	}
}

func TestTheCommandLineOnARunningServer(t *testing.T) {
	t.Parallel()
	h := newHouse(t, local.Options{}, hello)
	h.start()
	s := h.session("hello", "go")
	h.finished(30*time.Second, s)

	out, _, code := h.berth("--json", "sessions", "list")
	var list struct{ Data []struct{ ID string } }
	if err := json.Unmarshal([]byte(out), &list); err != nil || code != 0 || len(list.Data) != 1 || list.Data[0].ID != s {
		t.Errorf("sessions list: code %d, %v, %s", code, err, out)
	}
	out, _, code = h.berth("--json", "sessions", "calls", s)
	var calls struct {
		Data []struct {
			Name, State string
			Result      json.RawMessage
		}
	}
	if err := json.Unmarshal([]byte(out), &calls); err != nil || code != 0 || len(calls.Data) != 1 ||
		calls.Data[0].State != "posted" || !strings.Contains(string(calls.Data[0].Result), "42") {
		t.Errorf("sessions calls: code %d, %v, %s", code, err, out)
	}
	if out, _, code = h.berth("sessions", "events", s); code != 0 || !strings.Contains(out, "echo $((6*7))") || !strings.Contains(out, "42") {
		t.Errorf("sessions events: code %d, %s", code, out)
	}
	if _, errs, code := h.berth("sessions", "show", "sesn_nobody"); code != 3 || !strings.Contains(errs, "sesn_nobody") {
		t.Errorf("show of an unknown session: code %d, %s", code, errs)
	}
	if _, errs, code := h.berth("exec", s, "--", "/bin/bash", "-c", "echo bad >&2; exit 7"); code != 7 || errs != "bad\n" {
		t.Errorf("exec: code %d, %q", code, errs)
	}
	if _, errs, code := run(t, h.dir, cleanEnv("BERTH_SERVER=http://"+h.address, "BERTH_TOKEN=wrong-token-0123456789"), "sessions", "list"); code != 4 {
		t.Errorf("a wrong token: code %d, %s", code, errs)
	}
	if _, errs, code := run(t, h.dir, cleanEnv("BERTH_SERVER=http://127.0.0.1:1", "BERTH_TOKEN=wrong-token-0123456789"), "sessions", "list"); code != 1 || !strings.Contains(errs, "berth serve") {
		t.Errorf("no server: code %d, %s", code, errs)
	}
}

func TestAttachIsATerminal(t *testing.T) {
	t.Parallel()
	h := newHouse(t, local.Options{}, hello)
	h.start()
	s := h.session("hello", "go")
	h.finished(30*time.Second, s)
	cmd := exec.Command(testbin.Path(t), "attach", s)
	cmd.Env = cleanEnv("BERTH_DATA_DIR="+h.dir, "BERTH_SERVER=http://"+h.address, "TERM=xterm")
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 99})
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	var mu sync.Mutex
	var seen bytes.Buffer
	done := make(chan struct{})
	go func() { // ends with the terminal
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, err := tty.Read(buf)
			mu.Lock()
			seen.Write(buf[:n])
			mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	shows := func(what string) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return strings.Contains(seen.String(), what)
		}
	}
	typed := func(text string) {
		if _, err := tty.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	h.eventually(20*time.Second, "a prompt", shows("$"))
	typed("stty size; echo su''m=$((40+2))\r")
	h.eventually(10*time.Second, "size and sum", func() bool { return shows("33 99")() && shows("sum=42")() })
	if err := pty.Setsize(tty, &pty.Winsize{Rows: 44, Cols: 111}); err != nil {
		t.Fatal(err)
	}
	h.eventually(10*time.Second, "the new size", func() bool {
		typed("stty size\r")
		return shows("44 111")()
	})
	typed("exit 5\r")
	err = cmd.Wait()
	<-done
	if code := cmd.ProcessState.ExitCode(); code != 5 {
		t.Errorf("code %d (%v), want the shell's 5\n%s", code, err, seen.String())
	}
}

const hookKey = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="

// deliver posts a webhook that is signed with a key.
func (h *house) deliver(id, key string, at time.Time, body string) int {
	h.t.Helper()
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(key, "whsec_"))
	if err != nil {
		h.t.Fatal(err)
	}
	stamp := fmt.Sprint(at.Unix())
	mac := hmac.New(sha256.New, raw)
	mac.Write([]byte(id + "." + stamp + "." + body))
	req, err := http.NewRequest(http.MethodPost, "http://"+h.address+"/webhooks", strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	req.Header.Set("webhook-id", id)
	req.Header.Set("webhook-timestamp", stamp)
	req.Header.Set("webhook-signature", "v1,bm90IHRoaXMgb25l v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	res.Body.Close()
	return res.StatusCode
}

func TestWebhooksForgedStaleRepeatedAndTwoAtOnce(t *testing.T) {
	t.Parallel()
	h := newHouse(t, local.Options{}, hello)
	h.env = []string{"WEBHOOK_SECRET=" + hookKey}
	h.start()
	const other = "whsec_b3RoZXJvdGhlcm90aGVyb3RoZXJvdGhlcm90aGVyMTI="
	s := h.session("hello", "go")
	body := fmt.Sprintf(`{"type":"event","id":"whe_1","created_at":"2026-11-23T10:00:00Z","data":{"type":"session.status_run_started","id":%q}}`, s)
	var wg sync.WaitGroup
	codes := make([]int, 8)
	for i := range codes {
		wg.Go(func() { codes[i] = h.deliver("whe_1", hookKey, time.Now(), body) })
	}
	wg.Wait()
	fresh := 0
	for _, c := range codes {
		switch c {
		case http.StatusNoContent:
			fresh++
		case http.StatusOK:
		default:
			t.Errorf("a delivery was answered %d", c)
		}
	}
	if fresh != 1 {
		t.Errorf("%d of 8 equal deliveries were taken as fresh", fresh)
	}
	for name, got := range map[string]int{
		"forged": h.deliver("whe_2", other, time.Now(), body),
		"stale":  h.deliver("whe_3", hookKey, time.Now().Add(-6*time.Minute), body),
		"future": h.deliver("whe_4", hookKey, time.Now().Add(6*time.Minute), body),
	} {
		if got != http.StatusUnauthorized {
			t.Errorf("a %s delivery was answered %d", name, got)
		}
	}
	h.finished(30*time.Second, s)
	if w := h.platform.Works(s); len(w) != 1 || w[0].Claims != 1 {
		t.Errorf("work items %+v, want one claimed once", w)
	}
	if n := len(h.log(s, "user.tool_result")); n != 1 {
		t.Errorf("%d results, want 1", n)
	}
}

func TestItemsThatAreNoSessionsAndSessionsThatAreOver(t *testing.T) {
	t.Parallel()
	h := newHouse(t, local.Options{}, hello)
	var agent struct{ ID string }
	h.post("/v1/agents", map[string]any{"name": "e2e", "model": "claude-opus-5-5"}, &agent)
	var over struct{ ID string }
	h.post("/v1/sessions", map[string]any{"agent": agent.ID, "environment_id": environment}, &over)
	h.post("/v1/sessions/"+over.ID+"/archive", map[string]any{}, nil)
	for _, item := range [][2]string{{"healthcheck", ""}, {"session", over.ID}, {"session", "sesn_01missing"}} {
		if _, err := h.platform.Enqueue(environment, item[0], item[1]); err != nil {
			t.Fatal(err)
		}
	}
	h.start()
	h.eventually(30*time.Second, "all items are stopped", func() bool {
		for _, w := range h.platform.Works("") {
			if w.State != "stopped" {
				return false
			}
		}
		return true
	})
	h.finished(30*time.Second, h.session("hello", "go"))
	if n := len(h.sandboxes()); n != 1 {
		t.Errorf("%d sandboxes, want the last session's alone", n)
	}
}

const story = `
name: story
steps:
  - calls:
      - {tool: bash, input: {command: "echo one >> /workspace/log"}, expect: {error: false}}
      - {tool: write, input: {file_path: /workspace/f, content: x}, expect: {error: false}}
  - message: halfway
  - calls:
      - {tool: bash, input: {command: "echo two >> /workspace/log; cat /workspace/log"}, expect: {text: '(?s)\Aone\ntwo\n*\z', error: false}}
  - message: Done.
`

// TestThePlatformMisbehaves is one story under every fault: it ends the same way,
// with each call answered once and run once.
func TestThePlatformMisbehaves(t *testing.T) {
	faults := map[string]local.Fault{
		"poll reply lost":            {Kind: local.Drop, On: "poll"},
		"ack reply lost":             {Kind: local.Drop, On: "ack"},
		"result reply lost":          {Kind: local.Drop, On: "events.send", Times: 3},
		"result refused for a while": {Kind: local.SendCode, On: "events.send", Status: 529, Times: 2},
		"result reset":               {Kind: local.Reset, On: "events.send", Times: 2},
		"told to wait":               {Kind: local.SendCode, On: "events.send", Status: 429, RetryAfter: "1"},
		"session not read":           {Kind: local.SendCode, On: "session.get", Status: 500, Times: 2},
		"history fails halfway":      {Kind: local.SendCode, On: "events.list", Status: 500, Times: 3},
		"history page is empty":      {Kind: local.EmptyPage},
		"stream cut":                 {Kind: local.CutStream, Every: 2, Times: 20},
		"stream frames doubled":      {Kind: local.Duplicate, Every: 1, Times: -1},
		"stream frames lost":         {Kind: local.Omit, Every: 3, Times: 3},
		"stream out of order":        {Kind: local.Reorder, Every: 2, Times: -1},
		"stream error frame":         {Kind: local.ErrorFrame, Every: 2, Times: 3},
		"no secret":                  {Kind: local.SecretAbsent},
		"secret without token":       {Kind: local.SecretNoToken},
		"heartbeat refused":          {Kind: local.SendCode, On: "heartbeat", Status: 503, Times: 2},
		"stop reply lost":            {Kind: local.Drop, On: "stop", Times: 2},
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, local.Options{AckIdempotent: len(name)%2 == 0, StopReply: map[bool]local.StopReply{true: local.StopEmpty, false: local.StopJSON}[len(name)%3 == 0]}, story)
			h.env = []string{"BERTH_CONFIG=" + h.file("berth.yaml", "sessions: {release_after: 1s, read_every: 5s}\n")}
			if err := h.platform.Inject(fault); err != nil {
				t.Fatal(err)
			}
			h.start()
			s := h.session("story", "go")
			h.finished(60*time.Second, s)
			if n := len(h.log(s, "user.tool_result")); n != 3 {
				t.Errorf("%d results, want 3", n)
			}
			if got := h.sh(s, "cat /workspace/log"); got != "one\ntwo\n" {
				t.Errorf("the commands ran differently: %q", got)
			}
			h.eventually(30*time.Second, "the item is stopped", func() bool {
				w := h.platform.Works(s)
				return w[len(w)-1].State == "stopped"
			})
			h.serve.end(syscall.SIGTERM)
		})
	}
}

func TestOperatorStopsTheItemInTheMiddle(t *testing.T) {
	t.Parallel()
	h := newHouse(t, local.Options{LeaseTTL: 3 * time.Second}, strings.ReplaceAll(long, "stopped before it was done", ".*"))
	h.start()
	s := h.session("long", "go")
	h.eventually(20*time.Second, "the command runs", func() bool {
		return len(h.sandboxes()) > 0 && h.tryRead(s, "/workspace/begun") != ""
	})
	work := h.platform.Works(s)[0].ID
	h.post("/v1/environments/"+environment+"/work/"+work+"/stop", map[string]any{}, nil)
	h.eventually(10*time.Second, "the item is stopped", func() bool { return h.platform.Works(s)[0].State == "stopped" })
	h.eventually(5*time.Second, "the command is gone", func() bool {
		return strings.TrimSpace(h.sh(s, `for p in /proc/[0-9]*; do [ "$(tr '\0' ' ' < $p/cmdline 2>/dev/null)" = "sleep 300 " ] && echo $p; done; true`)) == ""
	})
	if show := h.show(s); show.Waiting.For != "platform" {
		t.Errorf("the session waits for %+v; want it to say that it has no work item", show.Waiting)
	}
}
