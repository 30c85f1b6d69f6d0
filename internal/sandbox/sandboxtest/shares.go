package sandboxtest

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/tool"
)

func withShares(f sandbox.Features) bool { return f.Linux && f.Shares }

// shareCases: folders that the host and the inside see at the same time.
var shareCases = []testCase{
	{claim: "a share is seen from both sides while the sandbox runs", needs: withShares, run: func(h *host) {
		s := h.spec()
		s.Shares = []sandbox.Share{{Path: "/mnt/memory/notes"}}
		box := h.create(s)
		g, dir := h.guest(box), h.shared(box, "/mnt/memory/notes")
		h.says(g, "echo inside > /mnt/memory/notes/a && cat /mnt/memory/notes/a", "inside")
		h.holds(filepath.Join(dir.Dir, "a"), "inside\n")
		outside := filepath.Join(dir.Dir, "b")
		h.put(outside, "outside\n", dir)
		h.says(g, "cat /mnt/memory/notes/b && echo more >> /mnt/memory/notes/b && rm /mnt/memory/notes/a", "outside")
		h.holds(outside, "outside\nmore\n")
		if _, err := os.Lstat(filepath.Join(dir.Dir, "a")); err == nil {
			h.Error("what was removed inside is still there outside")
		}
	}},
	{claim: "nobody inside changes a read-only share", needs: withShares, run: func(h *host) {
		outside := h.TempDir()
		if err := os.Chmod(outside, 0o755); err != nil {
			h.Fatal(err)
		}
		for dir := filepath.Dir(outside); dir != "/"; dir = filepath.Dir(dir) {
			if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o001 == 0 {
				_ = os.Chmod(dir, info.Mode().Perm()|0o001)
			}
		}
		if err := os.WriteFile(filepath.Join(outside, "f"), []byte("kept"), 0o644); err != nil {
			h.Fatal(err)
		}
		s := h.spec()
		s.Shares = []sandbox.Share{{Path: "/mnt/memory/facts", ReadOnly: true}, {Path: "/workspace/skills", Dir: outside, ReadOnly: true}}
		box := h.create(s)
		g, dir := h.guest(box), h.shared(box, "/mnt/memory/facts")
		h.put(filepath.Join(dir.Dir, "f"), "kept", dir)
		for _, at := range []string{"/mnt/memory/facts", "/workspace/skills"} {
			h.says(g, "cat "+at+"/f", "kept")
			h.says(g, readOnlyProbe(at), "")
			h.says(g, "cat "+at+"/f", "kept")
		}
		for name, input := range map[string]any{
			tool.Write: map[string]string{"file_path": "/mnt/memory/facts/f", "content": "x"},
			tool.Edit:  map[string]string{"file_path": "/workspace/skills/f", "old_string": "kept", "new_string": "x"},
		} {
			if got := h.call(g, fileCall(name, input)); !strings.Contains(got, "read-only") {
				h.Errorf("%s says %q", name, got)
			}
		}
		if got := h.call(g, fileCall(tool.Read, map[string]string{"file_path": "/mnt/memory/facts/f"})); got != "kept" {
			h.Errorf("read says %q", got)
		}
		h.holds(filepath.Join(outside, "f"), "kept")
	}},
	{claim: "a sandbox does not see the names of other sandboxes' shares", needs: withShares, run: func(h *host) {
		first, second := h.spec(), h.spec()
		first.Shares = []sandbox.Share{{Path: "/mnt/memory/first"}}
		second.Shares = []sandbox.Share{{Path: "/mnt/memory/second"}}
		a, b := h.create(first), h.create(second)
		_, c := h.start()
		h.says(h.guest(a), "ls /mnt/memory", "first")
		h.says(h.guest(b), "ls /mnt/memory", "second")
		h.says(c, "ls -A /mnt 2>/dev/null", "")
	}},
	{claim: "a share stays with the workspace and goes with it", needs: withShares, run: func(h *host) {
		s := h.spec()
		s.Shares = []sandbox.Share{{Path: "/mnt/memory/notes"}}
		box := h.create(s)
		h.sh(h.guest(box), "echo kept > /mnt/memory/notes/a")
		h.destroy(box, sandbox.KeepFiles)
		box = h.create(s)
		h.says(h.guest(box), "cat /mnt/memory/notes/a", "kept")
		dir := h.shared(box, "/mnt/memory/notes")
		if _, err := box.(sandbox.Sharer).Shared("/mnt/memory/other"); !errors.Is(err, sandbox.ErrUnknownShare) {
			h.Errorf("a share that is none: %v", err)
		}
		h.restart()
		box, err := h.Attach(h.ctx(), box.Ref())
		if err != nil {
			h.Fatal(err)
		}
		if got := h.shared(box, "/mnt/memory/notes"); got != dir {
			h.Errorf("after a restart the share is %+v, not %+v", got, dir)
		}
		h.destroy(box, sandbox.Everything)
		if _, err := os.Lstat(dir.Dir); err == nil {
			h.Error("its folder is left")
		}
	}},
	{claim: "what stands where a share shall be is kept beside it", needs: withShares, run: func(h *host) {
		limits := []int64{0}
		if h.Features().Disk {
			limits = append(limits, smallDisk)
		}
		n := 0
		for before, still := range map[string]string{
			"mkdir skills && echo mine > skills/f":          "cat skills.aside-1/f",
			"echo mine > skills":                            "cat skills.aside-1",
			"ln -s /etc skills":                             "test -L skills.aside-1 && echo mine",
			"mkdir skills":                                  "test ! -e skills.aside-1 && echo mine",
			"touch skills.aside-1 && ln -s /nowhere skills": "test -L skills.aside-2 && echo mine",
		} {
			s := h.spec()
			s.Limits.DiskBytes = limits[n%len(limits)]
			n++
			box := h.create(s)
			h.says(h.guest(box), "cd /workspace && "+before, "")
			h.destroy(box, sandbox.KeepFiles)
			s.Shares = []sandbox.Share{{Path: "/workspace/skills", ReadOnly: true}}
			box = h.create(s)
			g := h.guest(box)
			h.says(g, "cd /workspace && "+still, "mine")
			h.put(filepath.Join(h.shared(box, "/workspace/skills").Dir, "f"), "shown", h.shared(box, "/workspace/skills"))
			h.says(g, "cat /workspace/skills/f", "shown")
			h.destroy(box, sandbox.Everything)
		}
	}},
	{claim: "shares that would show or change what they must not are refused", needs: withShares, run: func(h *host) {
		many := make([]sandbox.Share, sandbox.MaxShares+1)
		for _, shares := range [][]sandbox.Share{
			{{Path: "/etc/x"}},
			{{Path: "/mnt/../etc"}},
			{{Path: "/mnt/"}},
			{{Path: "mnt/x"}},
			{{Path: ""}},
			{{Path: "/mnt/x", Dir: "/tmp"}},
			{{Path: "/mnt/x", Dir: "tmp", ReadOnly: true}},
			{{Path: "/mnt/x"}, {Path: "/mnt/x"}},
			{{Path: "/mnt/x"}, {Path: "/mnt/x/y"}},
			many,
		} {
			s := h.spec()
			s.Shares = shares
			if box, err := h.Create(h.ctx(), s); err == nil {
				h.Errorf("made with shares %+v", shares)
				h.destroy(box, sandbox.Everything)
			}
		}
	}},
}

// readOnlyProbe is a script that tries to change a folder and prints what worked.
func readOnlyProbe(at string) string {
	return strings.ReplaceAll(`for c in "rm -f AT/f" "touch AT/g" "mv AT/f AT/h" "chmod 777 AT/f" "ln AT/f AT/l" "mkdir AT/d"; do
  $c 2>/dev/null && echo "$c"
done
(echo x > AT/f) 2>/dev/null && echo wrote`, "AT", at)
}

func (h *host) shared(box sandbox.Sandbox, path string) sandbox.SharedDir {
	h.Helper()
	sharer, ok := box.(sandbox.Sharer)
	if !ok {
		h.Fatalf("%T is no Sharer, but its backend claims shares", box)
	}
	dir, err := sharer.Shared(path)
	if err != nil {
		h.Fatal(err)
	}
	return dir
}

// put writes a file on the host's side that belongs to the agent.
func (h *host) put(path, text string, owner sandbox.SharedDir) {
	h.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		h.Fatal(err)
	}
	if err := os.Lchown(path, owner.UID, owner.GID); err != nil {
		h.Fatal(err)
	}
}

// holds fails unless a file on the host's side has this content.
func (h *host) holds(path, want string) {
	h.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		h.Errorf("%s holds %q, not %q (%v)", path, got, want, err)
	}
}

func fileCall(name string, input any) tool.Call {
	b, _ := json.Marshal(input) // strings cannot fail
	return tool.Call{ID: "sevt_" + name, Name: name, Input: b, Timeout: 30 * time.Second}
}
