//go:build linux

package linux

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

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
	for name, l := range map[string]layout{"root": l, "unified": unified, "ordinary": ordinary} {
		t.Run(name, func(t *testing.T) {
			got, err := json.MarshalIndent(ociSpec(l, limits), "", "  ")
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
	b, err := json.Marshal(ociSpec(layout{}, sandbox.Limits{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"not-for-sandboxes", "CAP_SYS_ADMIN", "CAP_NET_RAW", "CAP_SYS_PTRACE", "CAP_MKNOD"} {
		if bytes.Contains(b, []byte(word)) {
			t.Errorf("it contains %s", word)
		}
	}
}
