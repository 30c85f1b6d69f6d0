//go:build linux

package image

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/berth-dev/berth/internal/fault"
)

// An unpacked image becomes the root of a sandbox by what is added here: the
// places where the runtime mounts something, because the root is read-only to
// it, and the few files without which ordinary programs fail.

// mountPoints are made real folders, whatever the image has there.
var mountPoints = []struct {
	name  string
	mode  fs.FileMode
	agent bool
}{
	{name: ".berth", mode: 0o755},
	{name: "dev", mode: 0o755},
	{name: "proc", mode: 0o555},
	{name: "sys", mode: 0o555},
	{name: "run", mode: 0o755},
	{name: "mnt", mode: 0o755},
	{name: "workspace", mode: 0o755},
	{name: "tmp", mode: fs.ModeSticky | 0o777},
	// Over an empty /tmp gVisor mounts a file system in memory, which would
	// count as the sandbox's memory; this folder makes it use the disk.
	{name: "tmp/.X11-unix", mode: fs.ModeSticky | 0o777},
	{name: "etc", mode: 0o755},
	{name: "home", mode: 0o755},
	{name: "home/agent", mode: 0o755, agent: true},
}

// hostname is that of every sandbox.
const hostname = "berth"

// maxSmallFile bounds what is read of an image's own files.
const maxSmallFile = 1 << 20

// furnish adds what a sandbox needs.
func furnish(t *tree) error {
	t.nextLayer()
	for _, m := range mountPoints {
		if err := t.point(m.name, m.mode, m.agent); err != nil {
			return fmt.Errorf("make /%s: %w", m.name, err)
		}
	}
	always := map[string]string{
		".berth/guest": "", // bound over
		"etc/hostname": hostname + "\n",
		"etc/hosts":    "127.0.0.1 localhost " + hostname + "\n::1 localhost ip6-localhost ip6-loopback\n",
	}
	for name, text := range always {
		if err := t.write(name, text); err != nil {
			return err
		}
	}
	for _, name := range []string{"etc/resolv.conf"} { // the image's own is about where it was built
		if err := t.write(name, ""); err != nil {
			return err
		}
	}
	if _, err := t.root.Lstat("etc/nsswitch.conf"); errors.Is(err, fs.ErrNotExist) {
		if err := t.write("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"); err != nil {
			return err
		}
	}
	return t.addAgent()
}

// point makes a folder of ours. One that the image has keeps its content.
func (t *tree) point(name string, mode fs.FileMode, agent bool) error {
	a := attributes{mode: mode}
	if agent {
		a.uid, a.gid = t.owners.Agent, t.owners.Agent
	}
	if err := t.dir(name, a); err != nil {
		return err
	}
	return nil
}

// write makes a file of root's, in a folder of ours.
func (t *tree) write(name, text string) error {
	return t.file(name, attributes{mode: 0o644}, strings.NewReader(text))
}

// read returns a small file of the image; "" when there is none that is one.
func (t *tree) read(name string) string {
	info, err := t.root.Lstat(name)
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxSmallFile {
		return ""
	}
	b, err := t.root.ReadFile(name)
	if err != nil {
		return ""
	}
	return string(b)
}

// addAgent makes the user known that commands run as, unless the image has one
// with that id.
func (t *tree) addAgent() error {
	for _, f := range []struct{ name, ours, root string }{
		{"etc/passwd", "agent:x:1000:1000:agent:/home/agent:/bin/bash\n", "root:x:0:0:root:/root:/bin/sh\n"},
		{"etc/group", "agent:x:1000:\n", "root:x:0:\n"},
	} {
		text := t.read(f.name)
		if text == "" {
			text = f.root
		}
		if known(text, 2, "1000") {
			continue
		}
		if !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
		if known(text, 0, "agent") { // another user by our name: ours comes first
			text = f.ours + text
		} else {
			text += f.ours
		}
		if err := t.write(f.name, text); err != nil {
			return err
		}
	}
	return nil
}

// known reports whether a line of passwd or group has a value in a field.
func known(text string, field int, value string) bool {
	for line := range strings.Lines(text) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if field < len(fields) && fields[field] == value {
			return true
		}
	}
	return false
}

// inspect says in one line what a sandbox from the image lacks; "" when
// nothing. user is the one that the image wants to run as.
func inspect(t *tree, user, users string) string {
	var lacks []string
	if users == "" {
		lacks = append(lacks, "no /etc/passwd (one was made)")
	}
	switch why := t.cannotRun("bin/bash"); why {
	case "":
	case absent:
		lacks = append(lacks, "no /bin/bash, which the bash tool needs: install bash in it")
	default:
		lacks = append(lacks, "its /bin/bash cannot run here: "+why)
	}
	if t.cannotRun("bin/stty") == absent && t.cannotRun("usr/bin/stty") == absent {
		lacks = append(lacks, "no stty, without which the bash tool repeats commands in its output: install coreutils in it")
	}
	if name, _, _ := strings.Cut(user, ":"); name != "" && users != "" {
		field := 0
		if _, err := strconv.Atoi(name); err == nil {
			field = 2
		}
		if field == 0 && !known(users, field, name) {
			lacks = append(lacks, fmt.Sprintf("its user %.40q is not in its /etc/passwd (commands run as agent in any case)", name))
		}
	}
	return strings.Join(lacks, "; ")
}

const absent = "it does not exist"

// cannotRun says why a program of the image cannot run on this host.
func (t *tree) cannotRun(name string) string {
	at, err := t.program(name)
	if err != nil {
		return absent
	}
	info, err := t.root.Lstat(at)
	if err != nil || !info.Mode().IsRegular() {
		return absent
	}
	f, err := t.root.Open(at)
	if err != nil {
		return "it cannot be read"
	}
	defer f.Close()
	if info.Mode()&0o001 == 0 && !t.owners.Single {
		return "it is not executable for everybody"
	}
	var magic [4]byte
	if _, err := io.ReadFull(f, magic[:]); err != nil || !bytes.Equal(magic[:], []byte(elf.ELFMAG)) {
		return "" // a script, perhaps
	}
	e, err := elf.NewFile(f)
	if err != nil {
		return "it is damaged"
	}
	if want, ok := machines[runtime.GOARCH]; ok && e.Machine != want {
		return fmt.Sprintf("it is made for %s, and this host is %s", strings.TrimPrefix(e.Machine.String(), "EM_"), runtime.GOARCH)
	}
	return ""
}

var machines = map[string]elf.Machine{
	"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64, "386": elf.EM_386, "arm": elf.EM_ARM,
	"ppc64le": elf.EM_PPC64, "s390x": elf.EM_S390, "riscv64": elf.EM_RISCV, "loong64": elf.EM_LOONGARCH,
}

// program resolves a name as it will be inside, its last part too, and makes
// nothing.
func (t *tree) program(name string) (string, error) {
	at, rest := ".", strings.Split(name, "/")
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, part)
		info, err := t.root.Lstat(next)
		if err != nil {
			return "", err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", fs.ErrNotExist
		}
		target, err := t.root.Readlink(next)
		if err != nil {
			return "", err
		}
		if strings.HasPrefix(target, "/") {
			at = "."
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return at, nil
}

// notForCommands are variables of an image that say who and where its own
// program would have been; commands have others.
var notForCommands = []string{"HOME", "USER", "LOGNAME", "SHELL", "PWD", "OLDPWD", "HOSTNAME", "TERM"}

// environment is what an image sets for commands. Credentials have no place in
// an image, those for Claude least of all.
func environment(c *v1.ConfigFile) (map[string]string, error) {
	env, size := map[string]string{}, 0
	if c == nil {
		return env, nil
	}
	for _, line := range c.Config.Env {
		name, value, ok := strings.Cut(line, "=")
		if !ok || name == "" || strings.Contains(line, "\x00") || slices.Contains(notForCommands, name) ||
			strings.HasPrefix(strings.ToUpper(name), "ANTHROPIC_") {
			continue
		}
		if size += len(line); size > maxEnvironment {
			return nil, fault.New(fault.TooLarge, "the image sets more than %d bytes of environment", maxEnvironment).
				WithField("image").WithNext("remove ENV lines from it")
		}
		env[name] = value
	}
	return env, nil
}

// isFull reports whether an error is about a disk without space.
func isFull(err error) bool {
	return errors.Is(err, errNoSpace) || errors.Is(err, errQuota)
}

// onDisk turns a full disk into an error that says what to do.
func onDisk(err error, dir string) error {
	if err == nil || !isFull(err) {
		return err
	}
	return fault.Wrap(err, fault.Unavailable, "the disk is full; nothing of the image was kept").WithField("image").
		WithNext("free some space in %s, for example with: berth images gc", dir)
}

// pathError keeps paths of this host out of messages.
func pathError(err error) error {
	if p, ok := errors.AsType[*os.PathError](err); ok {
		return p.Err
	}
	return err
}
