//go:build linux

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/berth-dev/berth/internal/fault"
)

// Images on the host: an OCI layout, a tarball of one, of what docker save
// writes or of a plain root, and a folder.

// local finds what a reference to the host's own files stands for.
func (s *Store) local(ctx context.Context, ref reference) (*found, error) {
	stamp, err := stampOf(ref)
	if err != nil {
		return nil, err
	}
	var f *found
	switch ref.kind {
	case kindLayout:
		f, err = s.layout(ctx, layout(ref.path), ref.tag)
	case kindTar:
		f, err = s.tarball(ctx, ref.path)
	default:
		if strings.HasPrefix(s.opts.Dir+"/", strings.TrimSuffix(ref.path, "/")+"/") {
			return nil, fault.New(fault.Invalid, "the folder %s contains the data folder", ref.path).WithField("image").
				WithNext("make a folder for the image alone")
		}
		f, err = folder(ctx, ref.path)
	}
	if err != nil {
		return nil, err
	}
	f.stamp = stamp
	return f, nil
}

// stampOf changes when what lies at a path may have changed. For a folder it
// does not: looking through all of it at each start would cost too much.
func stampOf(ref reference) (string, error) {
	at := ref.path
	if ref.kind == kindLayout {
		at = filepath.Join(at, "index.json")
	}
	info, err := os.Stat(at)
	if err != nil {
		return "", missing(ref, err)
	}
	if wantsFolder := ref.kind == kindFolder; info.IsDir() != wantsFolder || !wantsFolder && !info.Mode().IsRegular() {
		what := map[bool]string{true: "a folder", false: "a file"}[wantsFolder]
		return "", fault.New(fault.Invalid, "%s is not %s", at, what).WithField("image").WithNext(howToWrite)
	}
	if ref.kind == kindFolder {
		return "", nil
	}
	inode := uint64(0)
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		inode = st.Ino
	}
	return fmt.Sprintf("%d-%d-%d", info.Size(), info.ModTime().UnixNano(), inode), nil
}

func missing(ref reference, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "there is no image at %s", ref.text).WithField("image").WithNext("check the path")
	}
	return fault.Wrap(err, fault.Invalid, "the image at %s cannot be read", ref.text).WithField("image").WithNext("let the server's user read it")
}

// layout is a folder in the OCI layout as a source.
type layout string

func (l layout) blob(_ context.Context, h v1.Hash) (io.ReadCloser, error) {
	if h.Algorithm != "sha256" || len(h.Hex) != 64 || strings.Trim(h.Hex, "0123456789abcdef") != "" {
		return nil, fault.New(fault.Invalid, "the layout names the digest %.100q", h.String()).WithField("image").WithNext("write the layout again")
	}
	f, err := os.OpenFile(filepath.Join(string(l), "blobs", "sha256", h.Hex), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "the layout lacks %s", h).WithField("image").WithNext("write the layout again")
	}
	return f, nil
}

func (l layout) manifest(ctx context.Context, h v1.Hash) ([]byte, error) {
	r, err := l.blob(ctx, h)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, maxManifest+1))
}

// refName is the annotation that holds a tag.
const refName = "org.opencontainers.image.ref.name"

func (s *Store) layout(ctx context.Context, l layout, tag string) (*found, error) {
	f, err := os.Open(filepath.Join(string(l), "index.json"))
	if err != nil {
		return nil, unreadable("layout", err)
	}
	defer f.Close()
	index, err := v1.ParseIndexManifest(io.LimitReader(f, maxManifest))
	if err != nil {
		return nil, unreadable("layout", err)
	}
	manifests := index.Manifests
	if tag != "" {
		manifests = nil
		for _, d := range index.Manifests {
			if n := d.Annotations[refName]; n == tag || strings.HasSuffix(n, ":"+tag) {
				manifests = append(manifests, d)
			}
		}
		if len(manifests) == 0 {
			return nil, fault.New(fault.NotFound, "the layout %s has no tag %s", string(l), tag).WithField("image").WithNext("check the tag behind the path")
		}
	}
	d := manifests[:min(len(manifests), 1)]
	if len(manifests) != 1 {
		chosen, err := pick(manifests, s.platform)
		if err != nil {
			return nil, err
		}
		d = []v1.Descriptor{chosen}
	}
	return follow(ctx, l, d[0], nil, s.platform)
}

// maxMembersSeen is how many members of a tarball are looked at before it is
// taken for a plain root: an archive of an image has a few for each layer.
const maxMembersSeen = 4096

// tarball finds out what a tarball holds.
func (s *Store) tarball(ctx context.Context, file string) (*found, error) {
	members, err := archiveMembers(ctx, file)
	if err != nil {
		return nil, err
	}
	if !members["manifest.json"] && (!members["index.json"] || !members["oci-layout"]) {
		return plainRoot(ctx, file)
	}
	dir, err := os.MkdirTemp(s.tmp, "archive-")
	if err != nil {
		return nil, fmt.Errorf("open archive: %w", err)
	}
	remove := func() { _ = os.RemoveAll(dir) } // or the next sweep
	f, err := s.archive(ctx, file, dir, members)
	if err != nil {
		remove()
		return nil, onDisk(err, s.opts.Dir)
	}
	f.close = remove
	return f, nil
}

func (s *Store) archive(ctx context.Context, file, dir string, members map[string]bool) (*found, error) {
	if err := s.extract(ctx, file, dir); err != nil {
		return nil, err
	}
	if members["index.json"] && members["oci-layout"] {
		return s.layout(ctx, layout(dir), "")
	}
	return s.dockerArchive(dir)
}

// openTar opens a tarball, compressed or not.
func openTar(ctx context.Context, file string) (io.ReadCloser, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	r, err := decompress(&watched{ctx: ctx, r: f})
	if err != nil {
		return nil, errors.Join(unreadable("tarball", err), f.Close())
	}
	return both{r, f}, nil
}

type both struct {
	io.ReadCloser
	under io.Closer
}

func (b both) Close() error { return errors.Join(b.ReadCloser.Close(), b.under.Close()) }

// archiveMembers lists the members of a tarball that looks like an archive of an
// image; nil as soon as it does not.
func archiveMembers(ctx context.Context, file string) (map[string]bool, error) {
	r, err := openTar(ctx, file)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	members := map[string]bool{}
	for tr := tar.NewReader(r); len(members) < maxMembersSeen; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return members, nil
		}
		if err != nil {
			return nil, unreadable("tarball", err)
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		switch top, _, _ := strings.Cut(name, "/"); top {
		case "bin", "etc", "usr", "lib", "dev", "var", "root", "proc", "sbin":
			return nil, nil
		}
		members[name] = true
	}
	return nil, nil
}

// extract writes the files of an image's archive into a folder of ours. They
// are few and have plain names; a link is another name for one of them.
func (s *Store) extract(ctx context.Context, file, dir string) error {
	r, err := openTar(ctx, file)
	if err != nil {
		return err
	}
	defer r.Close()
	t, err := openTree(dir, Owners{Single: true}, 2*s.opts.MaxBytes)
	if err != nil {
		return err
	}
	defer t.Close()
	tr := tar.NewReader(r)
	for range maxMembersSeen {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return unreadable("tarball", err)
		}
		name, err := cleanName(h.Name)
		if err != nil {
			return unreadable("tarball", err)
		}
		a := attributes{mode: 0o600}
		switch h.Typeflag {
		case tar.TypeReg:
			err = t.file(name, a, tr)
		case tar.TypeSymlink: // docker save once wrote a layer that two images share so
			err = t.link(name, path.Join(path.Dir(name), h.Linkname)) //nolint:gosec // the tree refuses what leads out of it
		case tar.TypeLink:
			err = t.link(name, h.Linkname)
		}
		if err != nil {
			return fmt.Errorf("unpack archive: %w", err)
		}
	}
	return fault.New(fault.TooLarge, "the archive has more than %d members", maxMembersSeen).WithField("image").WithNext("save one image only")
}

// dockerArchive reads what docker save wrote before it wrote OCI layouts.
func (s *Store) dockerArchive(dir string) (*found, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	raw, err := readSmall(root, "manifest.json")
	if err != nil {
		return nil, unreadable("archive", err)
	}
	var images []struct {
		Config string
		Layers []string
	}
	if err := json.Unmarshal(raw, &images); err != nil {
		return nil, unreadable("archive", err)
	}
	if len(images) != 1 {
		return nil, fault.New(fault.Invalid, "the archive holds %d images", len(images)).WithField("image").WithNext("save one image only")
	}
	if raw, err = readSmall(root, images[0].Config); err != nil {
		return nil, unreadable("archive", err)
	}
	config, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return nil, unreadable("configuration", err)
	}
	f := &found{digest: hashOf(raw), config: config}
	if f.platform, err = checkPlatform(config, s.platform); err != nil {
		return nil, err
	}
	layers := images[0].Layers
	if len(layers) > MaxLayers || len(config.RootFS.DiffIDs) != len(layers) {
		return nil, fault.New(fault.Invalid, "the archive has %d layers, and its configuration %d; at most %d are possible",
			len(layers), len(config.RootFS.DiffIDs), MaxLayers).WithField("image").WithNext("save the image again")
	}
	for i, name := range layers {
		f.layers = append(f.layers, layer{
			diff: config.RootFS.DiffIDs[i].String(),
			open: func(context.Context) (io.ReadCloser, error) {
				root, err := os.OpenRoot(dir)
				if err != nil {
					return nil, err
				}
				defer root.Close()
				return root.Open(name)
			},
		})
	}
	return f, nil
}

func readSmall(root *os.Root, name string) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxManifest))
}

// plainRoot takes a tarball for the one layer of an image without
// configuration. Its name is its hash.
func plainRoot(ctx context.Context, file string) (*found, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	d := newDigester(&watched{ctx: ctx, r: f})
	if _, err := io.Copy(io.Discard, d); err != nil {
		return nil, fmt.Errorf("hash tarball: %w", err)
	}
	sum := d.sum()
	return &found{digest: sum, layers: []layer{{
		digest: sum, size: d.size,
		open: func(context.Context) (io.ReadCloser, error) { return os.Open(file) },
	}}}, nil
}

// folder takes a folder for a root. Its name is a hash over what its files are
// called, how large they are and when they changed.
func folder(ctx context.Context, dir string) (*found, error) {
	whole, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(whole)
	if err != nil {
		return nil, fault.Wrap(pathError(err), fault.Invalid, "the folder %s cannot be read", dir).WithField("image").WithNext("let the server's user read it")
	}
	defer root.Close()
	sum := sha256.New()
	fmt.Fprintf(sum, "%s\x00", whole)
	err = walk(ctx, root, func(name string, info fs.FileInfo, target string) error {
		st, _ := info.Sys().(*syscall.Stat_t)
		if st == nil {
			return nil
		}
		_, err := fmt.Fprintf(sum, "%s\x00%d %d %d %d %d %d\x00%s\x00", name, st.Mode, st.Uid, st.Gid, st.Ino, info.Size(), info.ModTime().UnixNano(), target)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &found{digest: "sha256:" + hex.EncodeToString(sum.Sum(nil)), copyFrom: whole}, nil
}

// walk visits everything below root but what lies on other file systems.
func walk(ctx context.Context, root *os.Root, visit func(name string, info fs.FileInfo, target string) error) error {
	top, err := root.Lstat(".")
	if err != nil {
		return err
	}
	count := 0
	var down func(name string, info fs.FileInfo) error
	down = func(name string, info fs.FileInfo) error {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if count++; count > MaxEntries {
			return errManyEntries
		}
		target := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if target, err = root.Readlink(name); err != nil {
				return err
			}
		}
		if err := visit(name, info, target); err != nil || !info.IsDir() || device(info) != device(top) {
			return err
		}
		f, err := root.Open(name)
		if err != nil {
			return err
		}
		names, err := f.Readdirnames(-1)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		for _, n := range sorted(names) {
			below := path.Join(name, n)
			info, err := root.Lstat(below)
			if errors.Is(err, fs.ErrNotExist) {
				continue // it went away
			}
			if err != nil {
				return err
			}
			if err := down(below, info); err != nil {
				return err
			}
		}
		return nil
	}
	return down(".", top)
}

func device(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Dev
	}
	return 0
}

// copyFolder fills a tree with a copy of a folder. Files are copied, so that a
// change of the folder does not reach into running sandboxes, and so that owners
// can be what they are inside.
func copyFolder(ctx context.Context, from string, t *tree, read func(int64)) error {
	root, err := os.OpenRoot(from)
	if err != nil {
		return err
	}
	defer root.Close()
	type inode struct{ dev, ino uint64 }
	linked := map[inode]string{}
	return walk(ctx, root, func(name string, info fs.FileInfo, target string) error {
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		a := attributes{mode: info.Mode() & (fs.ModePerm | fs.ModeSticky), uid: int(st.Uid), gid: int(st.Gid), modified: info.ModTime()}
		switch mode := info.Mode(); {
		case mode.IsDir():
			return t.dir(name, a)
		case mode&fs.ModeSymlink != 0:
			return t.symlink(name, target, a)
		case mode.IsRegular():
			id := inode{st.Dev, st.Ino}
			if first := linked[id]; first != "" {
				return t.link(name, first)
			}
			if st.Nlink > 1 {
				linked[id] = name
			}
			f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
			if err != nil {
				return fault.Wrap(pathError(err), fault.Invalid, "the file %.200q of the folder cannot be read", name).WithField("image").
					WithNext("let the server's user read it, or remove it")
			}
			defer f.Close()
			return t.file(name, a, &watched{ctx: ctx, r: f, read: read})
		}
		return nil // a device, FIFO or socket
	})
}
