package server_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

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
	c, err := s.pipes.Attach(t.Context(), guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// bash runs a command and returns its text, which must not be an error result
// unless it may be.
func bash(t *testing.T, g sandbox.Guest, id, command string) tool.Result {
	t.Helper()
	res, err := g.Call(t.Context(), tool.Call{ID: id, Name: tool.Bash, Input: fmt.Appendf(nil, `{"command":%q}`, command)})
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return res
}

func text(r tool.Result) string {
	var s []string
	for _, b := range r.Content {
		s = append(s, b.Text)
	}
	return strings.TrimSpace(strings.Join(s, "\n"))
}

func TestCommandsRunAsAnotherUserWithoutPrivileges(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("not root: commands keep the user; only no_new_privs is checked")
	}
	g := startProcess(t, "-uid", "1234", "-gid", "2345").attach(t)
	got := text(bash(t, g, "c1", `id -u; id -g; id -G; grep -E 'NoNewPrivs|CapEff|CapPrm' /proc/self/status | tr '\t' ' '`))
	want := "NoNewPrivs: 1"
	if os.Getuid() == 0 {
		want = "1234\n2345\n2345\nCapPrm: 0000000000000000\nCapEff: 0000000000000000\nNoNewPrivs: 1"
	}
	if !strings.HasSuffix(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}
