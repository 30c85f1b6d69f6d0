//go:build linux

package linux

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/fault"
)

func TestRuntimesAreFoundOrExplained(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"runc", "mine"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "crun"), nil, 0o644); err != nil { // not executable
		t.Fatal(err)
	}
	for kind, want := range map[string]string{Runc: filepath.Join(dir, "runc"), filepath.Join(dir, "mine"): filepath.Join(dir, "mine")} {
		if got, err := findRuntime(kind, []string{"/nonexistent", dir}); err != nil || got != want {
			t.Errorf("%s: %q, %v", kind, got, err)
		}
	}
	for kind, want := range map[string]string{
		Crun:                      "apt-get install crun",
		Kata:                      "install Kata Containers",
		"docker":                  "use gvisor, runc, crun, kata, or the absolute path",
		filepath.Join(dir, "no"):  "give the path of an OCI runtime",
		dir:                       "give the path of an OCI runtime",
		"./runc":                  "absolute path",
		filepath.Join(dir, "../"): "give the path of an OCI runtime",
	} {
		_, err := findRuntime(kind, []string{dir})
		var f *fault.Error
		if !errors.As(err, &f) || f.Field != runtimeField || !strings.Contains(f.Next, want) {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

func TestARuntimeThatWouldIsolateLessIsRefused(t *testing.T) {
	here := filepath.Join(t.TempDir(), "runtime")
	if err := os.WriteFile(here, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	limits := &cgroups{mount: t.TempDir()}
	mapped := identity{base: hostIDs, agent: agentUID}
	if _, err := newOCI(here, mapped, limits, nil); err != nil {
		t.Error(err)
	}
	for why, c := range map[string]struct {
		ids    identity
		limits *cgroups
	}{
		"needs root":                {identity{rootless: true, base: 1000}, limits},
		"root inside would be root": {identity{agent: agentUID}, limits},
		"needs cgroups":             {mapped, nil},
	} {
		_, err := newOCI(here, c.ids, c.limits, errors.New("no cgroups"))
		var f *fault.Error
		if !errors.As(err, &f) || !strings.Contains(f.Message, why) || !strings.Contains(f.Next, Gvisor) {
			t.Errorf("%s: %v", why, err)
		}
	}
}

func TestCommandLineOfAnotherRuntime(t *testing.T) {
	o := oci{kind: Crun, path: "/usr/bin/crun", state: "/data/run/crun", hidden: []string{"/sys/fs/cgroup/unified"}}
	got := o.args(launch{folder: "/data/sandboxes/b1", stage: stage{Point: "/mnt", Dirs: []string{"/data/bin"}, Hidden: o.hidden}})
	want := []string{
		"berth-runtime",
		`--berth-stage={"point":"/mnt","dirs":["/data/bin"],"hidden":["/sys/fs/cgroup/unified"]}`,
		"/usr/bin/crun",
		"--root=/data/run/crun",
		"--log=/data/sandboxes/b1/runtime.log",
		"--log-format=json",
		"run", "--detach", "--bundle=/data/sandboxes/b1/bundle", "--pid-file=/data/sandboxes/b1/pid", "b1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestOnlyHybridHostsHideASecondHierarchy(t *testing.T) {
	hybrid := tree(t, map[string]string{"unified/cgroup.controllers": "hugetlb"})
	if diff := cmp.Diff([]string{filepath.Join(hybrid, "unified")}, hybridMounts(hybrid)); diff != "" {
		t.Error(diff)
	}
	for _, files := range []map[string]string{{"memory/cgroup.procs": ""}, {"cgroup.controllers": "memory"}} {
		if got := hybridMounts(tree(t, files)); got != nil {
			t.Errorf("%v: %q", files, got)
		}
	}
}

func TestStateFoldersOfRuntimesDiffer(t *testing.T) {
	seen := map[string]bool{}
	for _, kind := range []string{Gvisor, Runc, Crun, Kata, "/usr/bin/runc", "/usr/local/bin/runc"} {
		name := stateName(kind)
		if seen[name] || strings.ContainsRune(name, '/') {
			t.Errorf("%s: %q", kind, name)
		}
		seen[name] = true
	}
	if stateName(Gvisor) != runtimeName { // where earlier versions left theirs
		t.Error("gVisor's folder has another name")
	}
}

func TestAProcessIsNotTakenForTheSandboxsByItsNames(t *testing.T) {
	dir := t.TempDir()
	id := "b0123456789abcdef01234567"
	f := folder(filepath.Join(dir, "sandboxes", id))
	if _, err := f.make(record{}, os.Geteuid(), os.Geteuid()); err != nil {
		t.Fatal(err)
	}
	// Another FIFO under the same name, as one inside a sandbox would have it.
	other := folder(filepath.Join(dir, "elsewhere", id))
	if _, err := other.make(record{}, os.Geteuid(), os.Geteuid()); err != nil {
		t.Fatal(err)
	}
	proc := filepath.Join(dir, "proc")
	if err := os.MkdirAll(filepath.Join(proc, "fd"), 0o755); err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]bool{f.path(inName): true, other.path(inName): false, f.path(outName): false} {
		stdin := filepath.Join(proc, "fd/0")
		_ = os.Remove(stdin)
		if err := os.Symlink(target, stdin); err != nil {
			t.Fatal(err)
		}
		if got := listens(proc, id, f.target().fifo); got != want {
			t.Errorf("%s: %v", target, got)
		}
	}
}
