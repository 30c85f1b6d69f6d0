//go:build linux

package linux

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tree makes files below a folder that stands for /sys/fs/cgroup.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	mount := t.TempDir()
	for name, text := range files {
		path := filepath.Join(mount, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return mount
}

func TestCgroupsVersionIsDetected(t *testing.T) {
	parent := cgroupName("/data")
	for name, c := range map[string]struct {
		files   map[string]string
		unified bool
		why     string
	}{
		"version 1": {files: map[string]string{"cpu/cgroup.procs": "", "memory/cgroup.procs": "", "pids/cgroup.procs": ""}},
		"hybrid": {files: map[string]string{
			"cpu/cgroup.procs": "", "memory/cgroup.procs": "", "pids/cgroup.procs": "", "unified/cgroup.controllers": "hugetlb",
		}},
		"version 2": {unified: true, files: map[string]string{
			"cgroup.controllers": "cpuset cpu io memory pids\n", "cgroup.subtree_control": "", parent + "/cgroup.subtree_control": "",
		}},
		"version 1 without memory": {
			files: map[string]string{"cpu/cgroup.procs": "", "pids/cgroup.procs": ""}, why: `the cgroup controller "memory" is not mounted at /memory`,
		},
		"version 2 without pids": {
			files: map[string]string{"cgroup.controllers": "cpu memory\n"}, why: `the cgroup controller "pids" is not available`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			mount := tree(t, c.files)
			got, err := openCgroups(mount, "/data")
			if err != nil {
				if said := trim(err.Error(), mount); said != c.why {
					t.Errorf("it said %q, want %q", said, c.why)
				}
				return
			}
			if c.why != "" || got.unified != c.unified {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func trim(s, mount string) string {
	for i := range s {
		if len(s[i:]) >= len(mount) && s[i:i+len(mount)] == mount {
			return s[:i] + s[i+len(mount):]
		}
	}
	return s
}

func TestUnifiedCgroupsHandOnEveryController(t *testing.T) {
	parent := cgroupName("/data")
	mount := tree(t, map[string]string{
		"cgroup.controllers": "cpu memory pids hugetlb\n", "cgroup.subtree_control": "", parent + "/cgroup.subtree_control": "",
	})
	c := &cgroups{mount: mount, parent: parent, unified: true}
	if err := c.makeParent(); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"", parent} {
		got, err := os.ReadFile(filepath.Join(mount, at, "cgroup.subtree_control"))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff("+cpu +memory +pids +hugetlb", string(got)); diff != "" {
			t.Errorf("%q: %s", at, diff)
		}
	}
}

func TestKillsForMemoryAreCounted(t *testing.T) {
	split := &cgroups{parent: "p", mount: tree(t, map[string]string{
		"memory/p/b1/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
	})}
	unified := &cgroups{parent: "p", unified: true, mount: tree(t, map[string]string{
		"p/b1/memory.events": "low 0\nhigh 0\nmax 12\noom 3\noom_kill 1\noom_group_kill 0\n",
	})}
	if n := split.oomKills("b1"); n != 2 {
		t.Errorf("version 1: %d", n)
	}
	if n := unified.oomKills("b1"); n != 1 {
		t.Errorf("version 2: %d", n)
	}
	if n := unified.oomKills("b2"); n != 0 {
		t.Errorf("no cgroup: %d", n)
	}
}
