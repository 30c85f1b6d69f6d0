//go:build linux

package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/guest/guesttest"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/tool"
)

func TestStockToolsAnswerWithTheSDKsTexts(t *testing.T) {
	g := guesttest.Start(t)
	tests := []struct {
		name, input string
		want        tool.Result
	}{
		{tool.Bash, `{"command":"echo hi"}`, tool.Text("hi\n\n")},
		{tool.Bash, `{"command":"true"}`, tool.Text(tool.EmptyText)},
		{tool.Bash, `{"command":"echo hi; exit 3 | exit 3"}`, tool.Error("hi\n\n\nexit code: 3")},
		{tool.Bash, `{}`, tool.Error("bash: command is required")},
		{tool.Bash, `{"restart":true}`, tool.Text("bash session restarted")},
		{tool.Write, `{"file_path":"a.txt","content":"one\ntwo\n"}`, tool.Text("wrote 8 bytes to a.txt")},
		{tool.Read, `{"file_path":"a.txt"}`, tool.Text("one\ntwo\n")},
		{tool.Read, `{}`, tool.Error("read: file_path is required")},
		{tool.Edit, `{"file_path":"a.txt","old_string":"x","new_string":"y"}`, tool.Error("edit: old_string not found in a.txt")},
		{tool.Glob, `{"pattern":"*.none"}`, tool.Text("no matches")},
		{tool.Grep, `{"pattern":"none"}`, tool.Text("no matches")},
		{"web_search", `{}`, tool.Error(`unknown tool "web_search"`)},
	}
	for i, test := range tests {
		got := call(t, g, tool.Call{ID: fmt.Sprint(i), Name: test.name, Input: []byte(test.input)})
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s %s: %s", test.name, test.input, diff)
		}
	}
}

func TestInputThatIsNotJSONIsAnErrorResult(t *testing.T) {
	g := guesttest.Start(t)
	for i, name := range tool.Stock() {
		if got := call(t, g, tool.Call{ID: fmt.Sprint(i), Name: name, Input: []byte(`{"`)}); !got.IsError {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestShellsKeepTheirStateApart(t *testing.T) {
	g := guesttest.Start(t)
	run := func(id, shell, command string) string {
		c := asking(id, command)
		c.Shell = shell
		return text(call(t, g, c))
	}
	run("1", "", "x=primary; cd /")
	run("2", "thread", "x=other")
	if got := run("3", "", "echo $x $PWD"); got != "primary /" {
		t.Errorf("the primary shell: %q", got)
	}
	if got := run("4", "thread", "echo $x"); got != "other" {
		t.Errorf("the thread's shell: %q", got)
	}
}

func TestShellsRunInParallelAndEachInOrder(t *testing.T) {
	g := guesttest.Start(t)
	var wg sync.WaitGroup
	defer wg.Wait()
	wait := func(file string) { sh(t, g, "until [ -e "+file+" ]; do sleep 0.01; done") }
	wg.Go(func() { bash(t, g, "1", "touch one; until [ -e go ]; do sleep 0.01; done; echo 1 >> log") })
	wait("one")
	wg.Go(func() { bash(t, g, "2", "echo 2 >> log; touch two") }) // must wait for the first
	wg.Go(func() {
		c := asking("3", "touch other") // must not
		c.Shell = "thread"
		call(t, g, c)
	})
	wait("other")
	call(t, g, tool.Call{ID: "4", Name: tool.Write, Input: []byte(`{"file_path":"go","content":""}`)}) // nor must this
	wait("two")
	if got := sh(t, g, "cat log"); got != "1\n2" {
		t.Errorf("got %q", got)
	}
}

func TestFloodOfOutputIsCutAndStarvesNobody(t *testing.T) {
	g := guesttest.Start(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		got := text(bash(t, g, "flood", "head -c 20000000 /dev/zero | tr '\\0' x"))
		if len(got) > 110<<10 || !strings.HasPrefix(got, "[output truncated]") {
			t.Errorf("%d bytes: %.50s", len(got), got)
		}
	})
	term, err := g.Terminal(t.Context(), sandbox.Size{Cols: 80, Rows: 24})
	if err != nil {
		t.Fatal(err)
	}
	defer term.Close()
	if _, err := term.Write([]byte("yes\n")); err != nil { // and nobody reads it
		t.Fatal(err)
	}
	for i := range 20 {
		call(t, g, tool.Call{ID: fmt.Sprint(i), Name: tool.Glob, Input: []byte(`{"pattern":"*"}`)})
	}
	wg.Wait()
}

func TestManyCallsAtOnce(t *testing.T) {
	g := guesttest.Start(t)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			body := strings.Repeat(fmt.Sprint(i), 50_000)
			name := fmt.Sprintf("%d.txt", i)
			call(t, g, tool.Call{ID: "w" + name, Name: tool.Write, Input: fmt.Appendf(nil, `{"file_path":%q,"content":%q}`, name, body)})
			got := call(t, g, tool.Call{ID: "r" + name, Name: tool.Read, Input: fmt.Appendf(nil, `{"file_path":%q}`, name)})
			if got.IsError || text(got) != body {
				t.Errorf("%s: %.100s", name, text(got))
			}
		})
	}
	wg.Wait()
}

func TestTerminalEchoesResizesAndExits(t *testing.T) {
	g := guesttest.Start(t)
	term, err := g.Terminal(t.Context(), sandbox.Size{Cols: 91, Rows: 17})
	if err != nil {
		t.Fatal(err)
	}
	defer term.Close()
	screen := &screen{r: term}
	fmt.Fprint(term, "stty size; echo $TERM\n")
	screen.until(t, "17 91")
	screen.until(t, "xterm-256color")
	if err := term.Resize(sandbox.Size{Cols: 120, Rows: 40}); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(term, "stty size; sleep 4717.5\n")
	screen.until(t, "40 120")
	eventually(t, "it sleeps", func() bool { return len(sleepers(t, "4717.5")) == 1 })
	fmt.Fprint(term, "\x03")
	screen.until(t, "^C")
	fmt.Fprint(term, "echo $((40+2)); exit 5\n")
	screen.until(t, "42")
	if _, err := io.Copy(io.Discard, term); err != nil {
		t.Errorf("the output ended with %v", err)
	}
	if code, err := term.Wait(t.Context()); err != nil || code != 5 {
		t.Errorf("exit %d, %v", code, err)
	}
	if _, err := term.Write([]byte("x")); err == nil {
		t.Error("a terminal without a shell takes input")
	}
}

// screen reads a terminal's output.
type screen struct {
	r    io.Reader
	seen bytes.Buffer
}

// until reads until the output holds s and forgets what came before.
func (s *screen) until(t *testing.T, want string) {
	t.Helper()
	buf := make([]byte, 4096)
	for !bytes.Contains(s.seen.Bytes(), []byte(want)) {
		n, err := s.r.Read(buf)
		s.seen.Write(buf[:n])
		if err != nil {
			t.Fatalf("%v; the screen shows %q", err, s.seen.String())
		}
	}
	s.seen.Next(bytes.Index(s.seen.Bytes(), []byte(want)) + len(want))
}

func TestClosingATerminalKillsWhatRunsInIt(t *testing.T) {
	g := guesttest.Start(t)
	var terms []sandbox.Terminal
	for range 3 {
		term, err := g.Terminal(t.Context(), sandbox.Size{Cols: 80, Rows: 24})
		if err != nil {
			t.Fatal(err)
		}
		terms = append(terms, term)
		fmt.Fprint(term, "trap '' HUP; sleep 4715.5\n")
	}
	eventually(t, "all sleep", func() bool { return len(sleepers(t, "4715.5")) == 3 })
	_ = terms[0].Close()
	eventually(t, "one is gone", func() bool { return len(sleepers(t, "4715.5")) == 2 })
	_ = g.Close() // takes the others with it
	eventually(t, "all are gone", func() bool { return len(sleepers(t, "4715.5")) == 0 })
}

func TestTerminalsAreBounded(t *testing.T) {
	g := guesttest.Start(t)
	for i := range 17 {
		_, err := g.Terminal(t.Context(), sandbox.Size{})
		if (err != nil) != (i == 16) {
			t.Fatalf("terminal %d: %v", i, err)
		}
	}
}

func TestExec(t *testing.T) {
	g := guesttest.Start(t)
	tests := map[string]struct {
		exec sandbox.Exec
		want sandbox.ExecResult
	}{
		"streams and status": {
			sandbox.Exec{Argv: []string{"sh", "-c", "cat; echo err >&2; exit 3"}, Stdin: []byte("in")},
			sandbox.ExecResult{Stdout: []byte("in"), Stderr: []byte("err\n"), Code: 3},
		},
		"folder and environment": {
			sandbox.Exec{Argv: []string{"sh", "-c", "echo $PWD $X $ANTHROPIC_X"}, Dir: "/", Env: map[string]string{"X": "y", "ANTHROPIC_X": "z"}},
			sandbox.ExecResult{Stdout: []byte("/ y\n"), Stderr: []byte{}},
		},
		"timeout": {
			sandbox.Exec{Argv: []string{"sh", "-c", "echo a; sleep 100"}, Timeout: 200 * time.Millisecond},
			sandbox.ExecResult{Stdout: []byte("a\n"), Stderr: []byte{}, Code: -1, TimedOut: true},
		},
		"a flood keeps its end": {
			sandbox.Exec{Argv: []string{"sh", "-c", "head -c 9000000 /dev/zero; printf end"}},
			sandbox.ExecResult{Stdout: append(make([]byte, 1<<20-3), "end"...), Stderr: []byte{}, Truncated: true},
		},
		"something left behind holds nobody up": {
			sandbox.Exec{Argv: []string{"sh", "-c", "sleep 3 & echo a"}},
			sandbox.ExecResult{Stdout: []byte("a\n"), Stderr: []byte{}},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := g.Exec(t.Context(), test.exec)
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Stdout) == 0 {
				got.Stdout = []byte{}
			}
			if len(got.Stderr) == 0 {
				got.Stderr = []byte{}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	for _, argv := range [][]string{nil, {"no-such-program"}, {"/no/such/program"}} {
		if _, err := g.Exec(t.Context(), sandbox.Exec{Argv: argv}); err == nil {
			t.Errorf("%v ran", argv)
		}
	}
}

func TestExecThatNobodyWaitsForIsKilled(t *testing.T) {
	g := guesttest.Start(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := g.Exec(ctx, sandbox.Exec{Argv: []string{"sh", "-c", "touch up; sleep 4716.5"}})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	sh(t, g, "until [ -e up ]; do sleep 0.01; done")
	cancel()
	wg.Wait()
	eventually(t, "it is gone", func() bool { return len(sleepers(t, "4716.5")) == 0 })
}

func TestEnvironmentOfTheSpecReachesCommands(t *testing.T) {
	s, err := guesttest.Run(t.TempDir(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	g, err := s.Attach(t.Context(), map[string]string{"FROM_SPEC": "yes", "ANTHROPIC_API_KEY": "leak"})
	if err != nil {
		t.Fatal(err)
	}
	const script = `echo $FROM_SPEC $LANG ${HOME:+home} $USER; env | grep -ci anthropic || true`
	for from, got := range map[string]string{"bash": text(bash(t, g, "a", script)), "exec": sh(t, g, script)} {
		if got != "yes C.UTF-8 home agent\n0" {
			t.Errorf("%s: %q", from, got)
		}
	}
}

func BenchmarkCall(b *testing.B) {
	g := guesttest.Start(b)
	for i := 0; b.Loop(); i++ {
		if _, err := g.Call(b.Context(), asking(fmt.Sprint(i), "true")); err != nil {
			b.Fatal(err)
		}
		if err := g.Acknowledge(b.Context(), fmt.Sprint(i)); err != nil {
			b.Fatal(err)
		}
	}
}
