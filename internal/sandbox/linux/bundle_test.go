//go:build linux

package linux

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-dev/berth/internal/sandbox"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestBundle(t *testing.T) {
	limits := sandbox.Limits{MemoryBytes: 1 << 30, CPUs: 1.5, Processes: 100, OpenFiles: 1024}
	l := layout{
		root: "/stage/images/host", binds: []string{"/usr", "/opt"}, guest: "/stage/bin/berth", workspace: "/stage/workspace",
		cgroup: "/berth/b0", ids: identity{base: hostIDs, agent: agentUID},
	}
	ordinary := l
	l.mounts = "/stage/mnt"
	l.shares = []mountedShare{
		{Share: sandbox.Share{Path: "/mnt/memory/notes"}, source: "/stage/notes", live: true},
		{Share: sandbox.Share{Path: "/workspace/skills", Dir: "/skills", ReadOnly: true}, source: "/stage/skills"},
	}
	ordinary.ids, ordinary.cgroup = identity{rootless: true, base: 1001}, ""
	unified := l
	unified.unified = true
	for name, c := range map[string]struct {
		layout
		engine
	}{"root": {l, gvisor{}}, "unified": {unified, gvisor{}}, "ordinary": {ordinary, gvisor{}}, "runc": {l, oci{}}} {
		t.Run(name, func(t *testing.T) {
			s := ociSpec(c.layout, limits)
			if err := c.complete(s, c.layout, limits); err != nil {
				t.Fatal(err)
			}
			s.Linux.Seccomp = nil // see the test below
			got, err := json.MarshalIndent(s, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			path := "testdata/bundle-" + name + ".json"
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestABundleGivesNothingAway(t *testing.T) {
	t.Setenv("BERTH_BUNDLE_SECRET", "not-for-sandboxes")
	for _, e := range []engine{gvisor{}, oci{kind: Runc}} {
		b, err := bundle(e, layout{}, sandbox.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{"not-for-sandboxes", "CAP_SYS_ADMIN", "CAP_NET_RAW", "CAP_SYS_PTRACE", "CAP_MKNOD"} {
			if bytes.Contains(b, []byte(word)) {
				t.Errorf("it contains %s", word)
			}
		}
	}
}

// Where the host's kernel answers by itself, what it may be asked is what keeps
// a sandbox in.
func TestSystemCallsOfTheHostAreFiltered(t *testing.T) {
	s := ociSpec(layout{}, sandbox.Limits{})
	if err := (oci{}).complete(s, layout{}, sandbox.Limits{}); err != nil {
		t.Fatal(err)
	}
	filter := s.Linux.Seccomp
	if filter == nil || filter.DefaultAction != specs.ActErrno {
		t.Fatalf("what is not allowed is not refused: %+v", filter)
	}
	allowed := map[string]bool{}
	for _, rule := range filter.Syscalls {
		for _, name := range rule.Names {
			if rule.Action == specs.ActAllow && len(rule.Args) == 0 {
				allowed[name] = true
			}
		}
	}
	for _, name := range []string{
		"mount", "umount2", "unshare", "setns", "pivot_root", "bpf", "perf_event_open", "keyctl", "add_key", "kexec_load", "init_module",
		"open_by_handle_at", "userfaultfd", "reboot", "clone", "clone3", "fsopen", "move_mount", "io_uring_setup",
	} {
		if allowed[name] {
			t.Errorf("%s is allowed", name)
		}
	}
	for _, name := range []string{"read", "execve", "futex", "openat", "setuid"} {
		if !allowed[name] {
			t.Errorf("%s is not allowed", name)
		}
	}
}
