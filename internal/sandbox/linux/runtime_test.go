//go:build linux

package linux

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDiagnosisIsOneBoundedLineWithTheCauseFirst(t *testing.T) {
	f := folder(t.TempDir())
	if got := f.diagnosis(); got != "" {
		t.Errorf("without logs: %q", got)
	}
	log := `{"msg":"no such\nplatform","level":"error"}{"msg":"starting: EOF","level":"error"}{"msg":"` + strings.Repeat("x", 5000) + `"} garbage`
	if err := os.WriteFile(f.path(logName), []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.path(guestLogName), []byte("guest cannot start\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := f.diagnosis()
	if !strings.HasPrefix(got, "no such platform; starting: EOF; xxx") || len(got) > maxDiagnosis || strings.Contains(got, "\n") {
		t.Errorf("got %q", got)
	}
}

func TestLogsAreTrimmed(t *testing.T) {
	f := folder(t.TempDir())
	for name, size := range map[string]int{logName: maxLog + 1, guestLogName: maxLog} {
		if err := os.WriteFile(f.path(name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.trimLogs()
	for name, want := range map[string]int64{logName: 0, guestLogName: maxLog} {
		if info, err := os.Stat(f.path(name)); err != nil || info.Size() != want {
			t.Errorf("%s has %d bytes, %v, want %d", name, info.Size(), err, want)
		}
	}
}

func TestCommandLineOfTheRuntime(t *testing.T) {
	got := gvisor{state: "/data/run/runsc"}.args(launch{folder: "/data/sandboxes/b1", layer: "/data/sandboxes/b1/overlay", stage: stage{Point: "/mnt", Dirs: []string{"/data/bin"}}, limited: true})
	want := []string{
		"runsc",
		`--berth-stage={"point":"/mnt","dirs":["/data/bin"]}`,
		"--root=/data/run/runsc",
		"--log=/data/sandboxes/b1/runtime.log",
		"--platform=systrap",
		"--network=none",
		"--gofer-network-namespace=new",
		"--overlay2=root:dir=/data/sandboxes/b1/overlay",
		"--file-access=exclusive",
		"--file-access-mounts=exclusive",
		"--host-uds=none",
		"--host-fifo=none",
		"--host-settings=ignore",
		"run", "--detach", "--bundle=/data/sandboxes/b1/bundle", "b1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestPrepareRuntimeLeavesOtherCommandLinesAlone(t *testing.T) {
	for _, args := range [][]string{{"runsc"}, {"runsc-sandbox", "--root=/x", "boot", "b1"}, {"/proc/self/exe", "umount", "/proc"}} {
		got, err := PrepareRuntime(args)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(args, got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestStageIsNotAboveTheDataFolder(t *testing.T) {
	r := runtime{ids: identity{base: hostIDs}}
	for _, point := range stagePoints {
		s, err := r.chooseStage(filepath.Join(point, "data"))
		if err != nil {
			t.Fatal(err)
		}
		if s.Point == point {
			t.Errorf("%s covers a data folder below it", point)
		}
	}
	if s, err := (runtime{ids: identity{rootless: true}}).chooseStage("/data"); err != nil || s.Point != "" {
		t.Errorf("an ordinary user needs no stage: %+v, %v", s, err)
	}
}

func TestRemoveAllEmptiesShutFolders(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a/b/c"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"a/b/c", "a/b", "a"} {
		if err := os.Chmod(filepath.Join(dir, p), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := removeAll(filepath.Join(dir, "a")); err != nil {
		t.Error(err)
	}
}

func TestKernelVersion(t *testing.T) {
	for release, want := range map[string][2]int{"6.18.44-fc": {6, 18}, "5.4-rc1": {5, 4}, "5.10.0+": {5, 10}, "odd": {0, 0}} {
		major, minor := kernelVersion(release)
		if got := [2]int{major, minor}; got != want {
			t.Errorf("%s: got %v, want %v", release, got, want)
		}
	}
}
