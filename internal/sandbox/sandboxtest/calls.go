package sandboxtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/tool"
)

// guestCases: what our end inside does. The guest's own tests go further; here
// it is held to the contract through a real backend.
var guestCases = []testCase{
	{claim: "a call is answered", run: func(h *host) {
		_, g := h.start()
		if got := h.call(g, bash("c1", "echo hello")); !strings.Contains(got, "hello") {
			h.Errorf("answer %q", got)
		}
	}},
	{claim: "a call with a known id returns the first result", needs: onLinux, run: func(h *host) {
		_, g := h.start()
		c := bash("c1", "echo ran >> /workspace/runs; wc -l < /workspace/runs")
		first, second := h.call(g, c), h.call(g, c)
		if diff := cmp.Diff(first, second); diff != "" {
			h.Error(diff)
		}
		h.says(g, "wc -l < /workspace/runs", "1")
	}},
	{claim: "calls run side by side", run: func(h *host) {
		_, g := h.start()
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				c := bash(fmt.Sprintf("c%d", i), fmt.Sprintf("echo number %d", i))
				c.Shell = fmt.Sprintf("thread%d", i)
				r, err := g.Call(h.ctx(), c)
				if err != nil || !strings.Contains(text(r), fmt.Sprintf("number %d", i)) {
					h.Errorf("call %d: %q, %v", i, text(r), err)
				}
			})
		}
		wg.Wait()
	}},
	{claim: "an unknown call is not recalled", run: func(h *host) {
		_, g := h.start()
		if _, err := g.Recall(h.ctx(), "never"); !errors.Is(err, sandbox.ErrUnknownCall) {
			h.Errorf("Recall: %v", err)
		}
		if err := g.Cancel(h.ctx(), "never"); err != nil {
			h.Errorf("Cancel: %v", err)
		}
	}},
	{claim: "an acknowledged call never runs again", run: func(h *host) {
		_, g := h.start()
		c := bash("c1", "echo x")
		h.call(g, c)
		for range 2 {
			if err := g.Acknowledge(h.ctx(), "c1", "never"); err != nil {
				h.Fatalf("Acknowledge: %v", err)
			}
		}
		if _, err := g.Call(h.ctx(), c); !errors.Is(err, sandbox.ErrAcknowledged) {
			h.Errorf("Call: %v", err)
		}
		if _, err := g.Recall(h.ctx(), "c1"); !errors.Is(err, sandbox.ErrAcknowledged) {
			h.Errorf("Recall: %v", err)
		}
	}},
	{claim: "a cancelled call ends with an error result", needs: onLinux, run: func(h *host) {
		_, g := h.start()
		results := make(chan tool.Result, 1)
		go func() { // received from below
			r, err := g.Call(h.ctx(), bash("c1", "touch /tmp/begun; sleep 600"))
			if err != nil {
				h.Errorf("Call: %v", err)
			}
			results <- r
		}()
		h.until(g, "test -e /tmp/begun")
		if err := g.Cancel(h.ctx(), "c1"); err != nil {
			h.Fatal(err)
		}
		if r := <-results; !r.IsError {
			h.Errorf("it succeeded: %v", r)
		}
	}},
	{claim: "a call outlives its connection and its caller", needs: onLinux, run: func(h *host) {
		box, g := h.start()
		c := bash("c1", "echo ran >> /workspace/runs; until test -e /workspace/go; do sleep 0.02; done; echo finished")
		ctx, cancel := context.WithCancel(h.ctx())
		defer cancel()
		ended := make(chan error, 1)
		go func() { // received from below
			_, err := g.Call(ctx, c)
			ended <- err
		}()
		h.until(g, "test -e /workspace/runs")
		if err := g.Close(); err != nil {
			h.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, sandbox.ErrDisconnected) {
			h.Errorf("the call on the closed connection: %v", err)
		}
		again := h.guest(box)
		if again.Instance() != g.Instance() {
			h.Error("it is another guest")
		}
		h.sh(again, "touch /workspace/go")
		if got := h.call(again, c); !strings.Contains(got, "finished") {
			h.Errorf("answer %q", got)
		}
		h.says(again, "wc -l < /workspace/runs", "1")
	}},
	{claim: "the same guest is returned while its connection lives", run: func(h *host) {
		box, g := h.start()
		if h.guest(box) != g {
			h.Error("two connections")
		}
		if err := g.Close(); err != nil {
			h.Fatal(err)
		}
		if h.guest(box) == g {
			h.Error("the broken connection was returned")
		}
	}},
	{claim: "exec gives both streams and the status", needs: onLinux, run: func(h *host) {
		_, g := h.start()
		got := h.exec(g, sandbox.Exec{
			Argv: []string{"bash", "-c", `cat; echo "$A in $PWD"; echo bad >&2; exit 7`},
			Dir:  "/tmp", Env: map[string]string{"A": "b c"}, Stdin: []byte("given\n"),
		})
		want := sandbox.ExecResult{Stdout: []byte("given\nb c in /tmp\n"), Stderr: []byte("bad\n"), Code: 7}
		if diff := cmp.Diff(want, got); diff != "" {
			h.Error(diff)
		}
	}},
	{claim: "large output comes cut to its end", needs: onLinux, run: func(h *host) {
		_, g := h.start()
		const size = 24 << 20
		got := h.exec(g, sandbox.Exec{Argv: []string{"bash", "-c", fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x; echo end", size)}})
		if !got.Truncated || len(got.Stdout) < 64<<10 || len(got.Stdout) > size {
			h.Errorf("%d bytes, truncated %v", len(got.Stdout), got.Truncated)
		}
		if !bytes.HasSuffix(got.Stdout, []byte("xend\n")) || !onlyByte(got.Stdout[:len(got.Stdout)-4], 'x') {
			h.Errorf("it ends with %q", tail(got.Stdout, 20))
		}
	}},
	{claim: "megabytes pass in and out unchanged", needs: onLinux, run: func(h *host) {
		_, g := h.start()
		content := strings.Repeat("0123456789abcde\n", 4<<20/16)
		input, err := json.Marshal(map[string]string{"file_path": "/workspace/big", "content": content})
		if err != nil {
			h.Fatal(err)
		}
		r, err := g.Call(h.ctx(), tool.Call{ID: "c1", Name: tool.Write, Input: input})
		if err != nil || r.IsError {
			h.Fatalf("write: %v, %v", text(r), err)
		}
		h.says(g, "wc -c < /workspace/big; sort -u /workspace/big", fmt.Sprintf("%d\n0123456789abcde", len(content)))
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				r, err := g.Exec(h.ctx(), sandbox.Exec{Argv: []string{"head", "-c", "900000", "/workspace/big"}})
				if err != nil || string(r.Stdout) != content[:900000] {
					h.Errorf("read back: %d bytes, %v", len(r.Stdout), err)
				}
			})
		}
		wg.Wait()
	}},
	{claim: "the environment of the agent is what was asked for", needs: onLinux, run: func(h *host) {
		s := h.spec()
		s.Env = map[string]string{"GREETING": "hello world"}
		g := h.guest(h.create(s))
		if got := h.call(g, bash("c1", `echo "<$GREETING>"`)); !strings.Contains(got, "<hello world>") {
			h.Errorf("answer %q", got)
		}
		h.restart()
		again, err := h.Attach(h.ctx(), sandbox.Ref{ID: s.ID, Backend: h.Name(), Session: s.Session})
		if err != nil {
			h.Fatal(err)
		}
		c := bash("c2", `echo "<$GREETING>"`)
		c.Shell = "another"
		if got := h.call(h.guest(again), c); !strings.Contains(got, "<hello world>") {
			h.Errorf("after a restart: %q", got)
		}
	}},
	{claim: "a terminal is a shell", needs: withTerminal, run: func(h *host) {
		_, g := h.start()
		term, err := g.Terminal(h.ctx(), sandbox.Size{Cols: 80, Rows: 24})
		if err != nil {
			h.Fatalf("Terminal: %v", err)
		}
		defer term.Close()
		if err := term.Resize(sandbox.Size{Cols: 101, Rows: 37}); err != nil {
			h.Fatalf("Resize: %v", err)
		}
		if _, err := io.WriteString(term, "stty size; tty; exit 3\n"); err != nil {
			h.Fatal(err)
		}
		out, err := io.ReadAll(term)
		if err != nil {
			h.Errorf("read: %v", err)
		}
		if !bytes.Contains(out, []byte("37 101")) || !bytes.Contains(out, []byte("/dev/pts/")) {
			h.Errorf("it said %q", out)
		}
		if code, err := term.Wait(h.ctx()); err != nil || code != 3 {
			h.Errorf("Wait: %d, %v", code, err)
		}
	}},
}
