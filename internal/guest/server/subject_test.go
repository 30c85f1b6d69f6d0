//go:build linux

package server_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/guest"
	"github.com/berth-dev/berth/internal/guest/guesttest"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/tool"
)

// subject is a guest in a process of its own, reached over FIFOs.
type subject struct {
	pipes   guesttest.Pipes
	workdir string
	cmd     *exec.Cmd
}

// startProcess runs this test binary as `berth guest`.
func startProcess(t *testing.T, args ...string) *subject {
	t.Helper()
	pipes, err := guesttest.NewPipes(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	in, out, err := pipes.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer out.Close()
	// A folder that another user can reach, unlike t.TempDir.
	workdir, err := os.MkdirTemp("", "guest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(workdir) })
	cmd := exec.Command("/proc/self/exe", append([]string{"guest", "-workdir", workdir}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, &logged{t}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		late := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Signal(unix.SIGQUIT) })
		defer late.Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the guest ended with %v", err)
		}
	})
	return &subject{pipes, workdir, cmd}
}

type logged struct{ t *testing.T }

func (l *logged) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func (s *subject) attach(t *testing.T) *guest.Client {
	t.Helper()
	return s.attachWith(t, guest.Options{})
}

func (s *subject) attachWith(t *testing.T, o guest.Options) *guest.Client {
	t.Helper()
	c, err := s.pipes.Attach(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// bash runs a command in the primary shell.
func bash(t *testing.T, g sandbox.Guest, id, command string) tool.Result {
	t.Helper()
	return call(t, g, asking(id, command))
}

func asking(id, command string) tool.Call {
	return tool.Call{ID: id, Name: tool.Bash, Input: fmt.Appendf(nil, `{"command":%q}`, command)}
}

func text(r tool.Result) string {
	var s []string
	for _, b := range r.Content {
		s = append(s, b.Text)
	}
	return strings.TrimSpace(strings.Join(s, "\n"))
}

// sh runs a command outside the ledger, which must succeed.
func sh(t *testing.T, g sandbox.Guest, script string) string {
	t.Helper()
	res, err := g.Exec(t.Context(), sandbox.Exec{Argv: []string{"sh", "-c", script}, Timeout: 20 * time.Second})
	if err != nil || res.Code != 0 {
		t.Fatalf("%s: %+v, %v", script, res, err)
	}
	return strings.TrimSpace(string(res.Stdout))
}

// sleepers returns the pids of `sleep arg` on this host. Each test sleeps for a
// time of its own.
func sleepers(t *testing.T, arg string) (pids []int) {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		b, err := os.ReadFile(f)
		if err != nil || string(b) != "sleep\x00"+arg+"\x00" {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(f, "/")[2])
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// eventually waits until f holds.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	late := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("it never happened: %s", what)
		}
	}
}

// dyingWriter kills its process after it has passed on that many bytes.
type dyingWriter struct {
	w    io.Writer
	left int
}

func (d *dyingWriter) Write(p []byte) (int, error) {
	if len(p) < d.left {
		d.left -= len(p)
		return d.w.Write(p)
	}
	_, _ = d.w.Write(p[:d.left])
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

// dyingClient attaches, asks for one call after the other and dies in the
// middle of a frame.
func dyingClient(args []string) {
	in, out, err := guesttest.Pipes{In: args[0], Out: args[1]}.Open()
	if err != nil {
		os.Exit(1)
	}
	bytes, err := strconv.Atoi(args[2])
	if err != nil {
		os.Exit(1)
	}
	g, err := guest.Attach(context.Background(), out, &dyingWriter{in, bytes}, io.NopCloser(nil), guest.Options{})
	if err != nil {
		os.Exit(1)
	}
	for i := range 1000 {
		_, _ = g.Call(context.Background(), asking(fmt.Sprintf("dying-%d", i), fmt.Sprintf("echo %d >> ran", i)))
	}
	os.Exit(1)
}
