//go:build linux

package linux_test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/sandbox/linux"
	"github.com/berth-dev/berth/internal/testbin"
)

// ordinary is the user id of the tests without root; it needs no name.
const ordinary = 61234

// TestOrdinaryUser runs the conformance suite, and what this package claims
// about its sandboxes, as an ordinary user. Root starts it again as one.
func TestOrdinaryUser(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("the suite runs as root")
	}
	binary := testbin.Path(t)
	if os.Geteuid() != 0 {
		t.Skip("the other tests run as an ordinary user already")
	}
	dir := dataDir(t)
	if err := os.Chown(dir, ordinary, ordinary); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	tests, program := filepath.Join(dir, "tests"), filepath.Join(dir, "berth")
	copyProgram(t, self, tests)
	copyProgram(t, binary, program)
	cmd := exec.Command(tests, "-test.v", "-test.run", "^(TestConformance|TestAgentIsUnprivileged|TestCheck|TestImages)$")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir, testbin.Env + "=" + program}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: ordinary, Gid: ordinary}}
	said, err := cmd.CombinedOutput()
	if strings.Contains(string(said), noNamespaces) {
		t.Skip(noNamespaces)
	}
	if err != nil {
		t.Errorf("as user %d: %v\n%s", ordinary, err, said)
	}
	for line := range strings.Lines(string(said)) {
		if strings.Contains(line, "--- SKIP") {
			t.Log(strings.TrimSpace(line))
		}
	}
}

// noNamespaces is the one reason to skip: without root there is nothing to
// isolate with.
const noNamespaces = "this kernel gives ordinary users no user namespaces"

func needNamespaces(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
	}
	if err := cmd.Run(); err != nil {
		t.Skipf("%s: %v", noNamespaces, err)
	}
}

func copyProgram(t *testing.T, from, to string) {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(dst, src); err != nil {
		t.Fatal(err)
	}
	if err := dst.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAgentIsUnprivileged(t *testing.T) {
	needNamespaces(t)
	b := open(t, testbin.Path(t), dataDir(t))
	defer b.Close()
	defer clearAll(t, b)
	box, err := b.Create(t.Context(), crashSpec)
	if err != nil {
		t.Fatal(err)
	}
	g, err := box.Guest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r, err := g.Exec(t.Context(), sandbox.Exec{Argv: []string{"bash", "-c", "id -u; touch /workspace/f; stat -c %u /workspace/f; stat -c %u /proc/1"}})
	if err != nil {
		t.Fatal(err)
	}
	inside, host := "1000\n1000\n0\n", 0x70000000+1000
	if os.Geteuid() != 0 { // one user for all
		inside, host = "0\n0\n0\n", os.Geteuid()
	}
	if string(r.Stdout) != inside {
		t.Errorf("inside: %q, want %q", r.Stdout, inside)
	}
	info, err := os.Stat(filepath.Join(linux.WorkspaceOf(b, crashSpec.ID), "f"))
	if err != nil {
		t.Fatal(err)
	}
	if uid := info.Sys().(*syscall.Stat_t).Uid; int(uid) != host {
		t.Errorf("on the host the file belongs to %d, want %d", uid, host)
	}
}

func TestCheck(t *testing.T) {
	needNamespaces(t)
	b := open(t, testbin.Path(t), dataDir(t))
	defer b.Close()
	started := false
	for _, info := range b.Check(t.Context()) {
		t.Logf("%-12s %v %s; %s", info.Name, info.OK, info.Text, info.Fix)
		if !info.OK && info.Fix == "" {
			t.Errorf("%s says no cure", info.Name)
		}
		started = started || info.Name == "start" && info.OK
	}
	if !started {
		t.Error("no sandbox started")
	}
	if refs, err := b.List(t.Context()); err != nil || len(refs) > 0 {
		t.Errorf("left behind: %v, %v", refs, err)
	}
}
