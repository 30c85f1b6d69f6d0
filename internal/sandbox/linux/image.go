//go:build linux

package linux

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// The host image is a view of the host's own programs: nothing to download,
// always as current as the host. Its root is a small folder that we make; the
// folders with programs are bound into it read-only.
//
// What is shared is what packages install (/usr with /usr/local, and /bin,
// /sbin, /lib… where they are not links into it). What a host keeps about
// itself and its people is not: no /etc of its own, /root, /home, /var, /run,
// /opt, /srv, /tmp, no device, no process. Links out of /usr to such places
// dangle. From /etc come only world-readable files that programs need to run
// (hostShared); the rest of /etc is invented here.

// programFolders are looked for in the host's root.
var programFolders = []string{"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"}

// hostShared are the parts of /etc that programs under /usr lean on: which
// program is behind a name, where libraries and certificates are.
var hostShared = []string{
	"alternatives", "ca-certificates", "crypto-policies", "fonts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d",
	"localtime", "mime.types", "os-release", "pki/ca-trust/extracted", "pki/tls/cert.pem", "pki/tls/certs", "protocols",
	"services", "ssl/cert.pem", "ssl/certs", "ssl/openssl.cnf",
}

// Bounds of what is copied from /etc.
const (
	maxImageEntries = 20_000
	maxImageFile    = 8 << 20
)

// entry is one thing in an image's root folder.
type entry struct {
	Path  string      // below the root, without a leading slash
	Mode  fs.FileMode // type and permissions
	Text  string      // content of a file, target of a link
	Agent bool        // belongs to the agent, not to root
}

// rootImage is a root folder to be made, and what is bound into it.
type rootImage struct {
	entries []entry // parents first
	binds   []string
}

// hostImage describes the host image from the host's root folder. What cannot
// be read or is not meant for everyone is left out.
func hostImage(host fs.FS) (rootImage, error) {
	img := rootImage{entries: invented()}
	for _, name := range programFolders {
		info, err := fs.Lstat(host, name)
		switch {
		case err != nil:
			continue
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := fs.ReadLink(host, name)
			if err != nil {
				return rootImage{}, fmt.Errorf("read link /%s: %w", name, err)
			}
			img.entries = append(img.entries, link(name, target))
		case info.IsDir():
			img.entries = append(img.entries, dir(name, 0o755))
			img.binds = append(img.binds, "/"+name)
		}
	}
	for _, name := range hostShared {
		if err := img.share(host, "etc/"+name); err != nil {
			return rootImage{}, fmt.Errorf("share /etc/%s: %w", name, err)
		}
	}
	return img, nil
}

// share adds a file, a link or a folder with all in it.
func (img *rootImage) share(host fs.FS, name string) error {
	return fs.WalkDir(host, name, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if p == name || errors.Is(err, fs.ErrPermission) {
				return nil // the host has no such thing, or not for us
			}
			return err
		}
		if len(img.entries) >= maxImageEntries {
			return fmt.Errorf("more than %d files", maxImageEntries)
		}
		info, err := d.Info()
		if err != nil {
			return nil // it went away
		}
		img.parents(p)
		switch mode := info.Mode(); {
		case mode&fs.ModeSymlink != 0:
			target, err := fs.ReadLink(host, p)
			if err != nil {
				return nil
			}
			img.entries = append(img.entries, link(p, target))
		case mode.IsDir():
			if mode&0o005 != 0o005 {
				return fs.SkipDir
			}
			img.entries = append(img.entries, dir(p, 0o755))
		case mode.IsRegular() && mode&0o004 != 0 && info.Size() <= maxImageFile:
			b, err := fs.ReadFile(host, p)
			if err != nil {
				return nil
			}
			img.entries = append(img.entries, file(p, string(b)))
		}
		return nil
	})
}

// parents adds the folders above p that are missing.
func (img *rootImage) parents(p string) {
	up := path.Dir(p)
	if up == "." || slices.ContainsFunc(img.entries, func(e entry) bool { return e.Path == up }) {
		return
	}
	img.parents(up)
	img.entries = append(img.entries, dir(up, 0o755))
}

func dir(p string, perm fs.FileMode) entry { return entry{Path: p, Mode: fs.ModeDir | perm} }
func file(p, text string) entry            { return entry{Path: p, Mode: 0o644, Text: text} }
func link(p, to string) entry              { return entry{Path: p, Mode: fs.ModeSymlink | 0o777, Text: to} }

// invented is the part of the root that is the same on every host.
func invented() []entry {
	home := dir("home/"+agentName, 0o755)
	home.Agent = true
	return []entry{
		dir(".berth", 0o755), file(strings.TrimPrefix(guestPath, "/"), ""), // bound over
		dir("dev", 0o755), dir("proc", 0o555), dir("sys", 0o555), dir("run", 0o755), dir("root", 0o700), dir("mnt", 0o755),
		dir(strings.TrimPrefix(workspacePath, "/"), 0o755), // bound over
		dir("home", 0o755), home,
		dir("tmp", fs.ModeSticky|0o777),
		// Over an empty /tmp gVisor mounts a file system in memory, which would
		// count as the sandbox's memory; this folder makes it use the disk.
		dir("tmp/.X11-unix", fs.ModeSticky|0o777),
		dir("var", 0o755), dir("var/tmp", fs.ModeSticky|0o777), dir("var/lib", 0o755), dir("var/log", 0o755),
		dir("etc", 0o755),
		file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"+
			"agent:x:1000:1000:agent:/home/agent:/bin/bash\n"+
			"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"),
		file("etc/group", "root:x:0:\ntty:x:5:\nagent:x:1000:\nnogroup:x:65534:\n"),
		file("etc/hostname", hostname+"\n"),
		file("etc/hosts", "127.0.0.1 localhost "+hostname+"\n::1 localhost ip6-localhost ip6-loopback\n"),
		file("etc/resolv.conf", ""),
		file("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n"),
		file("etc/profile", "umask 022\n"),
		file("etc/shells", "/bin/sh\n/bin/bash\n"),
		link("etc/mtab", "/proc/self/mounts"),
	}
}

// making begins the name of a root folder that is not complete.
const making = "making-"

// name is the image's name on disk: by content and owner.
func (img rootImage) name(ids identity) (string, error) {
	b, err := json.Marshal(img.entries)
	if err != nil {
		return "", fmt.Errorf("hash image: %w", err)
	}
	sum := sha256.Sum256(fmt.Appendf(b, "%d", ids.base))
	return ImageHost + "-" + hex.EncodeToString(sum[:12]), nil
}

// materialise makes the root folder below parent, or finds it made, and
// returns its name. A crash leaves a folder that is not used and swept later.
func (img rootImage) materialise(parent string, ids identity) (string, error) {
	name, err := img.name(ids)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(parent, name)); err == nil {
		return name, nil
	}
	tmp, err := os.MkdirTemp(parent, making)
	if err != nil {
		return "", fmt.Errorf("make image: %w", err)
	}
	defer os.RemoveAll(tmp) // when it was not moved into place
	root := entry{Mode: fs.ModeDir | 0o755}
	for _, e := range append([]entry{root}, img.entries...) {
		if err := e.make(tmp, ids); err != nil {
			return "", fmt.Errorf("make image: %w", err)
		}
	}
	if err := os.Rename(tmp, filepath.Join(parent, name)); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("make image: %w", err)
	}
	return name, nil
}

func (e entry) make(root string, ids identity) error {
	at := filepath.Join(root, e.Path)
	var err error
	switch {
	case e.Mode&fs.ModeSymlink != 0:
		err = os.Symlink(e.Text, at)
	case e.Mode.IsDir():
		err = os.MkdirAll(at, 0o700)
	default:
		err = os.WriteFile(at, []byte(e.Text), 0o600)
	}
	if err != nil {
		return err
	}
	if ids.base > 0 && !ids.rootless || e.Agent && !ids.rootless {
		owner := ids.host(0)
		if e.Agent {
			owner = ids.host(ids.agent)
		}
		if err := os.Lchown(at, owner, owner); err != nil {
			return err
		}
	}
	if e.Mode&fs.ModeSymlink != 0 {
		return nil
	}
	return os.Chmod(at, e.Mode&^fs.ModeType)
}
