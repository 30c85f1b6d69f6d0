//go:build linux

package linux_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/sandbox/linux"
	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/internal/tool"
)

// The tests here kill a server at any moment. The server is this test binary,
// started again with these variables.
const (
	crashDir    = "BERTH_CRASH_DIR"
	crashBinary = "BERTH_CRASH_BINARY"
	crashAct    = "BERTH_CRASH_ACT"
	crashKind   = "BERTH_CRASH_RUNTIME"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		if err := serve(dir, os.Getenv(crashBinary), os.Getenv(crashKind), os.Getenv(crashAct)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var crashSpec = sandbox.Spec{ID: sandbox.ID("sesn_crash"), Session: "sesn_crash"}

const onceCommand = "echo ran >> runs; until test -e go; do sleep 0.02; done; echo finished"

func bashCall(id, command string) tool.Call {
	input, _ := json.Marshal(map[string]string{"command": command}) // a string cannot fail
	return tool.Call{ID: id, Name: tool.Bash, Input: input}
}

// serve does what a server does, until it is killed.
func serve(dir, binary, kind, act string) error {
	b, err := linux.New(linux.Config{DataDir: dir, Binary: binary, Runtime: kind})
	if err != nil {
		return err
	}
	ctx := context.Background()
	for {
		spec := crashSpec
		if act == "destroy" { // the steps with a disk are more
			spec.Limits.DiskBytes = 64 << 20
		}
		box, err := b.Create(ctx, spec)
		if err != nil {
			return err
		}
		switch act {
		case "destroy":
			if err := box.Destroy(ctx, sandbox.Everything); err != nil {
				return err
			}
		case "call":
			g, err := box.Guest(ctx)
			if err != nil {
				return err
			}
			_, err = g.Call(ctx, bashCall("c1", onceCommand))
			return fmt.Errorf("the call ended: %w", err)
		}
	}
}

// stageOnce makes what all servers share, so that a kill hits what comes after.
func stageOnce(t *testing.T, binary, dir, kind string) {
	t.Helper()
	b := openWith(t, binary, dir, kind)
	defer b.Close()
	if _, err := b.Create(t.Context(), crashSpec); err != nil {
		t.Fatal(err)
	}
	clearAll(t, b)
}

// killedServer runs serve and kills it after some time, or when stop ends.
func killedServer(ctx context.Context, t *testing.T, dir, binary, kind, act string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), crashDir+"="+dir, crashBinary+"="+binary, crashKind+"="+kind, crashAct+"="+act)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); ctx.Err() == nil {
		t.Fatalf("the server ended by itself: %v: %s", err, said.String())
	}
}

// onRuntimes runs a test with every runtime that this host has.
func onRuntimes(t *testing.T, test func(t *testing.T, kind string)) {
	for _, kind := range []string{linux.Gvisor, linux.Runc, linux.Crun} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			if kind == linux.Gvisor {
				needNamespaces(t)
			} else {
				needRuntime(t, kind)
			}
			test(t, kind)
		})
	}
}

func TestServerKilledAtAnyPointLeavesNothingThatCannotBeAdoptedOrRemoved(t *testing.T) {
	t.Parallel()
	onRuntimes(t, killAtAnyPoint)
}

func killAtAnyPoint(t *testing.T, kind string) {
	binary, dir := testbin.Path(t), dataDir(t)
	stageOnce(t, binary, dir, kind)
	for i := range 12 {
		after := time.Duration(300+i*37) * time.Millisecond
		ctx, cancel := context.WithTimeout(t.Context(), after)
		killedServer(ctx, t, dir, binary, kind, "destroy")
		cancel()

		b := openWith(t, binary, dir, kind)
		if i%2 == 0 { // either it is used again, or removed as it is
			box, err := b.Create(t.Context(), crashSpec)
			if err != nil {
				t.Fatalf("create after a kill at %s: %v", after, err)
			}
			g, err := box.Guest(t.Context())
			if err != nil {
				t.Fatalf("guest after a kill at %s: %v", after, err)
			}
			if _, err := g.Exec(t.Context(), sandbox.Exec{Argv: []string{"true"}}); err != nil {
				t.Fatalf("exec after a kill at %s: %v", after, err)
			}
		}
		clearAll(t, b)
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		for _, left := range remains(t, dir) {
			t.Errorf("left after a kill at %s: %s", after, left)
		}
	}
}

func TestCallOfAKilledServerRunsOnceAndIsAnsweredToTheNext(t *testing.T) {
	t.Parallel()
	onRuntimes(t, killDuringACall)
}

func killDuringACall(t *testing.T, kind string) {
	binary, dir := testbin.Path(t), dataDir(t)
	b := openWith(t, binary, dir, kind)
	box, err := b.Create(t.Context(), crashSpec)
	if err != nil {
		t.Fatal(err)
	}
	b.Close() // the sandbox runs on; the server below adopts it

	// The server is killed as soon as its call has begun, seen from outside.
	ctx, kill := context.WithCancel(t.Context())
	defer kill()
	begun := filepath.Join(dir, "sandboxes", crashSpec.ID, "workspace", "runs")
	watched := make(chan error, 1)
	go func() { // received from below
		watched <- appears(ctx, begun)
		kill()
	}()
	killedServer(ctx, t, dir, binary, kind, "call")
	if err := <-watched; err != nil {
		t.Fatal(err)
	}

	b = openWith(t, binary, dir, kind)
	defer b.Close()
	defer clearAll(t, b)
	if box, err = b.Attach(t.Context(), box.Ref()); err != nil {
		t.Fatal(err)
	}
	g, err := box.Guest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Exec(t.Context(), sandbox.Exec{Argv: []string{"touch", "/workspace/go"}}); err != nil {
		t.Fatal(err)
	}
	r, err := g.Call(t.Context(), bashCall("c1", onceCommand))
	if err != nil || r.IsError || !strings.Contains(r.Content[0].Text, "finished") {
		t.Errorf("the call: %+v, %v", r, err)
	}
	runs, err := os.ReadFile(begun)
	if err != nil || string(runs) != "ran\n" {
		t.Errorf("it ran %d times, %v", bytes.Count(runs, []byte("ran")), err)
	}
}

func TestKilledSandboxIsNoticedAndStartsAnewWithItsFiles(t *testing.T) {
	t.Parallel()
	onRuntimes(t, killTheSandbox)
}

func killTheSandbox(t *testing.T, kind string) {
	b := openWith(t, testbin.Path(t), dataDir(t), kind)
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
	if _, err := g.Call(t.Context(), bashCall("c1", "echo kept > /workspace/f")); err != nil {
		t.Fatal(err)
	}
	pid, err := linux.Kernel(b, crashSpec.ID)
	if err != nil || pid == 0 {
		t.Fatalf("kernel %d, %v", pid, err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if exit, err := box.Wait(t.Context()); err != nil || exit != (sandbox.Exit{Code: -1, Reason: "killed"}) {
		t.Errorf("Wait: %+v, %v", exit, err)
	}
	if _, err := b.Attach(t.Context(), box.Ref()); !errors.Is(err, sandbox.ErrGone) {
		t.Errorf("Attach: %v", err)
	}
	if box, err = b.Create(t.Context(), crashSpec); err != nil {
		t.Fatal(err)
	}
	again, err := box.Guest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if again.Instance() == g.Instance() {
		t.Error("the instance did not change")
	}
	r, err := again.Exec(t.Context(), sandbox.Exec{Argv: []string{"cat", "/workspace/f"}})
	if err != nil || string(r.Stdout) != "kept\n" {
		t.Errorf("the file: %q, %v", r.Stdout, err)
	}
}

// appears waits for a file. What makes it is in another process, in a sandbox.
func appears(ctx context.Context, path string) error {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	timeout := time.After(30 * time.Second)
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		select {
		case <-ticker.C:
		case <-timeout:
			return errors.New("the call never began")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// clearAll removes everything a backend lists, as a sweeper would.
func clearAll(t testing.TB, b *linux.Backend) {
	t.Helper()
	refs, err := b.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range refs {
		if err := b.Remove(context.WithoutCancel(t.Context()), ref, sandbox.Everything); err != nil {
			t.Errorf("remove %v: %v", ref, err)
		}
	}
}

// remains looks for whatever the sandboxes of a data folder may leave on a host.
func remains(t testing.TB, dir string) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{
		filepath.Join(dir, "sandboxes", "*"), filepath.Join(dir, "disks", "*.making"), filepath.Join(dir, "run", "*", "*"),
		filepath.Join("/sys/fs/cgroup", "*", linux.CgroupName(dir)), filepath.Join("/sys/fs/cgroup", linux.CgroupName(dir)),
	} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, names...)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) {
			found = append(found, "mount "+line)
		}
	}
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range loops {
		if b, err := os.ReadFile(l); err == nil && bytes.Contains(b, []byte(crashSpec.ID)) {
			found = append(found, l+" "+string(b))
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		b, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		stdin, _ := os.Readlink(filepath.Join(filepath.Dir(p), "fd/0"))
		if bytes.Contains(b, []byte("--root="+dir)) || strings.HasPrefix(stdin, filepath.Join(dir, "sandboxes")) {
			found = append(found, "process "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return found
}
