//go:build linux

package linux

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
)

// Shares are folders of the host that a sandbox sees beside its workspace. One
// without a folder of its own lives in the sandbox's folder, next to the
// workspace, and stays as long as that does.

const (
	sharesName = "shares"
	mountsName = "mnt" // what /mnt is inside when something is mounted below it
	mountsPath = "/mnt"
)

// shareParents are the folders inside below which a share may be.
var shareParents = []string{mountsPath + "/", workspacePath + "/"}

func checkShares(shares []sandbox.Share) error {
	if len(shares) > sandbox.MaxShares {
		return fault.New(fault.TooLarge, "%d shares are more than %d", len(shares), sandbox.MaxShares).WithField("shares")
	}
	taken := []string{}
	for _, s := range shares {
		below := false
		for _, parent := range shareParents {
			below = below || strings.HasPrefix(s.Path, parent)
		}
		switch {
		case s.Path != path.Clean(s.Path) || !below:
			return fault.New(fault.Invalid, "the share %q is not a clean path below %s", s.Path, strings.Join(shareParents, " or ")).WithField("shares")
		case s.Dir != "" && (!filepath.IsAbs(s.Dir) || s.Dir != filepath.Clean(s.Dir)):
			return fault.New(fault.Invalid, "the folder %q of share %s is not a clean absolute path", s.Dir, s.Path).WithField("shares")
		case s.Dir != "" && !s.ReadOnly:
			return fault.New(fault.Invalid, "share %s would let a sandbox write to %s", s.Path, s.Dir).WithField("shares")
		}
		for _, t := range taken {
			if t == s.Path || strings.HasPrefix(t, s.Path+"/") || strings.HasPrefix(s.Path, t+"/") {
				return fault.New(fault.Invalid, "shares %s and %s lie in each other", t, s.Path).WithField("shares")
			}
		}
		taken = append(taken, s.Path)
	}
	return nil
}

// shared is the host's folder of a share.
func (f folder) shared(s sandbox.Share) string {
	if s.Dir != "" {
		return s.Dir
	}
	sum := sha256.Sum256([]byte(s.Path))
	return filepath.Join(f.path(sharesName), hex.EncodeToString(sum[:6]))
}

// makeShares lays the folders of shares that have none of their own. Those of an
// earlier run stay as they are.
func (f folder) makeShares(shares []sandbox.Share, owner, agent int) error {
	for _, s := range shares {
		if s.Dir != "" {
			continue
		}
		dir := f.shared(s)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make share %s: %w", s.Path, err)
		}
		who := agent
		if s.ReadOnly {
			who = owner
		}
		if err := errors.Join(os.Lchown(dir, who, who), os.Chmod(dir, 0o755)); err != nil {
			return fmt.Errorf("give share %s to its owner: %w", s.Path, err)
		}
	}
	return nil
}

// makeMounts lays the folder that is shown as /mnt, with a place for each share
// below it. The runtime would make these places in the image, which all sandboxes
// share: each would see the names of the others' shares.
func (f folder) makeMounts(shares []sandbox.Share, owner int) error {
	for _, s := range shares {
		below, found := strings.CutPrefix(s.Path, mountsPath+"/")
		if !found {
			continue
		}
		at := f.path(mountsName)
		for _, name := range append([]string{""}, strings.Split(below, "/")...) {
			at = filepath.Join(at, name)
			if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make a place for share %s: %w", s.Path, err)
			}
			if err := errors.Join(os.Lchown(at, owner, owner), os.Chmod(at, 0o755)); err != nil {
				return fmt.Errorf("make a place for share %s: %w", s.Path, err)
			}
		}
	}
	return nil
}

// mounts is the folder shown as /mnt, "" when no share is below it.
func (f folder) mounts(shares []sandbox.Share) string {
	for _, s := range shares {
		if strings.HasPrefix(s.Path, mountsPath+"/") {
			return f.path(mountsName)
		}
	}
	return ""
}

// maxAside bounds the names that are tried for what stands in the way.
const maxAside = 1000

// inWorkspace returns where shares are in the workspace, relative to it.
func inWorkspace(shares []sandbox.Share) []string {
	var rels []string
	for _, s := range shares {
		if rel, below := strings.CutPrefix(s.Path, workspacePath+"/"); below {
			rels = append(rels, rel)
		}
	}
	return rels
}

// makeWay moves aside what stands in a workspace where a share shall be: a file
// or a link there would keep the sandbox from starting, and the content of a
// folder would be hidden. Nothing runs, so nothing changes meanwhile.
func makeWay(workspace string, rels []string) error {
	if len(rels) == 0 {
		return nil
	}
	root, err := os.OpenRoot(workspace)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, rel := range rels {
		for at := range prefixes(rel) {
			free, err := passable(root, at, at == rel)
			if err == nil && !free {
				err = setAside(root, at)
			}
			if errors.Is(err, fs.ErrNotExist) {
				break // the runtime makes the rest
			}
			if err != nil {
				return fmt.Errorf("make way for a share at %s: %w", rel, err)
			}
		}
	}
	return nil
}

// prefixes yields a, a/b and a/b/c of a/b/c.
func prefixes(rel string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := 0; i <= len(rel); i++ {
			if (i == len(rel) || rel[i] == '/') && !yield(rel[:i]) {
				return
			}
		}
	}
}

// passable reports whether a share can be mounted below a path, or on it when it
// is the last.
func passable(root *os.Root, at string, last bool) (bool, error) {
	info, err := root.Lstat(at)
	if err != nil || !info.IsDir() || !last {
		return err == nil && info.IsDir(), err
	}
	d, err := root.Open(at)
	if err != nil {
		return false, err
	}
	defer d.Close()
	_, err = d.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return true, nil
	}
	return false, err
}

func setAside(root *os.Root, at string) error {
	for n := 1; n <= maxAside; n++ {
		to := fmt.Sprintf("%s.aside-%d", at, n)
		if _, err := root.Lstat(to); errors.Is(err, fs.ErrNotExist) {
			return root.Rename(at, to)
		} else if err != nil {
			return err
		}
	}
	return fmt.Errorf("%s has been set aside %d times", at, maxAside)
}

// mountedShare is a share as the runtime sees it.
type mountedShare struct {
	sandbox.Share
	source string
	live   bool // the host changes it while the sandbox runs
}

func (f folder) mounted(s stage, shares []sandbox.Share) []mountedShare {
	out := make([]mountedShare, len(shares))
	for i, sh := range shares {
		out[i] = mountedShare{Share: sh, source: s.inside(f.shared(sh)), live: sh.Dir == ""}
	}
	return out
}

func (m mountedShare) mode() string {
	if m.ReadOnly {
		return "ro"
	}
	return "rw"
}

// Shared implements sandbox.Sharer.
func (s *Sandbox) Shared(at string) (sandbox.SharedDir, error) {
	for _, sh := range s.record.Shares {
		if sh.Path == at && sh.Dir == "" {
			ids := s.backend.runtime.ids
			agent := ids.host(ids.agent)
			return sandbox.SharedDir{Dir: s.dir.shared(sh), UID: agent, GID: agent}, nil
		}
	}
	return sandbox.SharedDir{}, fmt.Errorf("share %s of sandbox %s: %w", at, s.ref.ID, sandbox.ErrUnknownShare)
}

var _ sandbox.Sharer = (*Sandbox)(nil)
