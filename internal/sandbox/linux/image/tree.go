//go:build linux

package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/fault"
)

// tree is a root folder that layers are unpacked into. Names in it come from
// the image. They are resolved here, as they will be inside: a link to /x means
// x below the root, and whatever is opened is opened through os.Root, which
// does not leave the folder either.
type tree struct {
	root    *os.Root
	owners  Owners
	left    int64 // bytes that may still be written
	limit   int64
	entries int
	written int64

	fresh    map[string]bool       // what this layer made
	resolved map[string]string     // folders of names, as they are now
	dirs     map[string]attributes // set at the end, when nothing more is written into them
}

// attributes are what a header says of an entry beside its content.
type attributes struct {
	mode     fs.FileMode
	uid, gid int
	modified time.Time
	user     map[string]string // extended attributes of the user namespace
}

func openTree(dir string, owners Owners, limit int64) (*tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open root folder: %w", err)
	}
	t := &tree{root: root, owners: owners, left: limit, limit: limit, dirs: map[string]attributes{}}
	t.nextLayer()
	return t, nil
}

func (t *tree) Close() error { return t.root.Close() }

// nextLayer begins a layer: what is there now is below it.
func (t *tree) nextLayer() { t.fresh, t.resolved = map[string]bool{}, map[string]string{} }

var errManyEntries = fault.New(fault.TooLarge, "the image has more than %d files", MaxEntries).WithField("image").
	WithNext("choose a smaller image")

func (t *tree) tooLarge() error {
	return fault.New(fault.TooLarge, "the image unpacks to more than %d MiB", t.limit>>20).WithField("image").
		WithNext("choose a smaller image, or raise sandbox.images.max_size")
}

// cleanName returns a member's name as a path below the root. An absolute name
// is meant below the root; one that climbs is hostile.
func cleanName(name string) (string, error) {
	if len(name) > maxPath || strings.Contains(name, "\x00") {
		return "", fmt.Errorf("refusing member %.100q: its name is too long or not a name", name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." || len(part) > maxComponent {
			return "", fmt.Errorf("refusing member %.100q: it climbs out of its folder, or has too long a name", name)
		}
	}
	return path.Clean(strings.TrimLeft(name, "/")), nil
}

// maxLinks bounds the links that one name goes through.
const maxLinks = 64

// folder returns where the folder of that name really is, and makes what is
// missing on the way. No part of what it returns is a link.
func (t *tree) folder(name string) (string, error) {
	if name == "." || name == "" {
		return ".", nil
	}
	if at, ok := t.resolved[name]; ok {
		return at, nil
	}
	at, rest, links := ".", strings.Split(name, "/"), 0
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..": // from a link's target; the root's parent is the root
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, part)
		if len(next) > maxPath {
			return "", fmt.Errorf("refusing a path through %.100q: it is too long", name)
		}
		info, err := t.root.Lstat(next)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if err := t.mkdir(next); err != nil {
				return "", err
			}
			at = next
		case err != nil:
			return "", err
		case info.IsDir():
			at = next
		case info.Mode()&fs.ModeSymlink != 0:
			if links++; links > maxLinks {
				return "", fmt.Errorf("refusing a path through %.100q: too many links", name)
			}
			target, err := t.root.Readlink(next)
			if err != nil {
				return "", err
			}
			if strings.HasPrefix(target, "/") {
				at = "."
			}
			rest = append(strings.Split(target, "/"), rest...)
		default:
			return "", fmt.Errorf("refusing a path through %.100q, which is not a folder", next)
		}
	}
	t.resolved[name] = at
	return at, nil
}

// mkdir makes a folder that no header spoke of.
func (t *tree) mkdir(at string) error {
	if err := t.count(); err != nil {
		return err
	}
	if err := t.root.Mkdir(at, 0o700); err != nil {
		return err
	}
	t.dirs[at] = attributes{mode: 0o755}
	t.mark(at)
	return nil
}

// mark notes that this layer made something, and so all folders above it.
func (t *tree) mark(at string) {
	for ; at != "." && !t.fresh[at]; at = path.Dir(at) {
		t.fresh[at] = true
	}
}

func (t *tree) count() error {
	if t.entries++; t.entries > MaxEntries {
		return errManyEntries
	}
	return nil
}

// place returns where an entry of that name goes, in a folder that exists.
func (t *tree) place(name string) (string, error) {
	dir, err := t.folder(path.Dir(name))
	if err != nil {
		return "", err
	}
	return path.Join(dir, path.Base(name)), nil
}

// clear removes what is in the way of a new entry.
func (t *tree) clear(at string) error {
	info, err := t.root.Lstat(at)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return t.remove(at, info)
}

func (t *tree) remove(at string, info fs.FileInfo) error {
	if info.IsDir() || info.Mode()&fs.ModeSymlink != 0 {
		clear(t.resolved) // other names may have led through it
	}
	if !info.IsDir() {
		return t.root.Remove(at)
	}
	for dir := range t.dirs {
		if dir == at || strings.HasPrefix(dir, at+"/") {
			delete(t.dirs, dir)
		}
	}
	return t.root.RemoveAll(at)
}

// dir makes a folder, or gives one that exists its attributes.
func (t *tree) dir(name string, a attributes) error {
	if err := t.count(); err != nil {
		return err
	}
	if name == "." {
		a.mode |= 0o555 // everybody has to get in
		t.dirs["."] = a
		return nil
	}
	at, err := t.place(name)
	if err != nil {
		return err
	}
	info, err := t.root.Lstat(at)
	if err != nil || !info.IsDir() {
		if err := t.clear(at); err != nil {
			return err
		}
		if err := t.root.Mkdir(at, 0o700); err != nil {
			return err
		}
	}
	t.dirs[at] = a
	t.mark(at)
	return nil
}

// file writes a file. It is made anew: what had its name may be a hard link to
// something else.
func (t *tree) file(name string, a attributes, content io.Reader) error {
	if err := t.count(); err != nil {
		return err
	}
	at, err := t.newPlace(name)
	if err != nil {
		return err
	}
	f, err := t.root.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, io.LimitReader(content, t.left+1))
	t.left -= n
	t.written += n
	if err == nil && t.left < 0 {
		err = t.tooLarge()
	}
	if err == nil {
		setUserAttributes(int(f.Fd()), a.user)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return t.apply(at, a)
}

func (t *tree) newPlace(name string) (string, error) {
	if name == "." {
		return "", errors.New("refusing a member without a name")
	}
	at, err := t.place(name)
	if err != nil {
		return "", err
	}
	if err := t.clear(at); err != nil {
		return "", err
	}
	t.mark(at)
	return at, nil
}

// symlink makes a link. Its target may be anything: it is resolved inside.
func (t *tree) symlink(name, target string, a attributes) error {
	if err := t.count(); err != nil {
		return err
	}
	if target == "" || len(target) > maxPath || strings.Contains(target, "\x00") {
		return fmt.Errorf("refusing the link %.100q: it leads nowhere", name)
	}
	at, err := t.newPlace(name)
	if err != nil {
		return err
	}
	if err := t.root.Symlink(target, at); err != nil {
		return err
	}
	return t.own(at, a)
}

// link makes a hard link to an entry of this or a lower layer.
func (t *tree) link(name, target string) error {
	if err := t.count(); err != nil {
		return err
	}
	target, err := cleanName(target)
	if err != nil {
		return err
	}
	from, err := t.place(target)
	if err != nil {
		return err
	}
	to, err := t.place(name)
	if err != nil {
		return err
	}
	info, err := t.root.Lstat(from)
	if err != nil || info.IsDir() {
		return fmt.Errorf("the hard link %.100q leads to %.100q, which is not a file of the image", name, target)
	}
	if from == to {
		return nil
	}
	if to, err = t.newPlace(name); err != nil {
		return err
	}
	if err := t.root.Link(from, to); err != nil {
		return fmt.Errorf("make hard link: %w", err)
	}
	return nil
}

// hide removes what lower layers have at a name, or with within below it, and
// keeps what this layer made.
func (t *tree) hide(name string, within bool) error {
	dir, err := t.folder(path.Dir(name))
	if err != nil {
		return err
	}
	at := path.Join(dir, path.Base(name))
	if name == "." || within {
		if at, err = t.folder(name); err != nil {
			return err
		}
	}
	info, err := t.root.Lstat(at)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return t.hideOld(at, info, within)
}

func (t *tree) hideOld(at string, info fs.FileInfo, keep bool) error {
	if !keep && !t.fresh[at] {
		return t.remove(at, info)
	}
	if !info.IsDir() {
		return nil
	}
	names, err := t.list(at)
	if err != nil {
		return err
	}
	for _, name := range names {
		below := path.Join(at, name)
		info, err := t.root.Lstat(below)
		if err != nil {
			return err
		}
		if err := t.hideOld(below, info, false); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) list(at string) ([]string, error) {
	f, err := t.root.Open(at)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// apply gives an entry that is no link its attributes. Bits that lend a file's
// owner's rights are dropped: nothing inside can gain rights by them, and the
// host must not offer such files.
func (t *tree) apply(at string, a attributes) error {
	if err := t.own(at, a); err != nil {
		return err
	}
	mode := a.mode & (fs.ModePerm | fs.ModeSticky)
	if t.owners.Single { // or the one who owns it could not use it
		mode |= 0o400
	}
	if err := t.root.Chmod(at, mode); err != nil {
		return err
	}
	if !a.modified.IsZero() {
		return t.root.Chtimes(at, a.modified, a.modified)
	}
	return nil
}

func (t *tree) own(at string, a attributes) error {
	if t.owners.Single {
		return nil
	}
	return t.root.Lchown(at, t.owners.host(a.uid), t.owners.host(a.gid))
}

// finish gives folders their attributes, the deepest first: a folder may be
// closed to its owner, and its time is that of its last change.
func (t *tree) finish() error {
	if _, ok := t.dirs["."]; !ok {
		t.dirs["."] = attributes{mode: 0o755}
	}
	for _, at := range deepestFirst(t.dirs) {
		a := t.dirs[at]
		if t.owners.Single {
			a.mode |= 0o700
		}
		if err := t.apply(at, a); err != nil {
			return fmt.Errorf("finish folder: %w", err)
		}
	}
	return nil
}

// setUserAttributes is a courtesy: a file system may have none, and programs
// that need them are rare.
func setUserAttributes(fd int, attributes map[string]string) {
	for name, value := range attributes {
		_ = unix.Fsetxattr(fd, name, []byte(value), 0)
	}
}
