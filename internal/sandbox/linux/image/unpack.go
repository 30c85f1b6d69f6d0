//go:build linux

package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/berth-dev/berth/internal/fault"
)

// layer is one layer of an image, as its source delivers it.
type layer struct {
	digest string // sha256:… of the stream, "" when the source has none
	size   int64  // of the stream, 0 when not known
	diff   string // sha256:… of the tar inside, "" when not known
	open   func(ctx context.Context) (io.ReadCloser, error)
}

// Members by which a layer takes away from those below it.
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
	aufs     = ".wh..wh." // what AUFS kept for itself
)

// apply unpacks one layer over what is there. The stream is read to its end, and
// what it should have been is checked before the layer counts.
func (l layer) apply(ctx context.Context, t *tree, read func(int64)) (err error) {
	stream, err := l.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stream.Close()) }()
	packed := newDigester(&watched{ctx: ctx, r: stream, read: read})
	open, err := decompress(packed)
	if err != nil {
		return fmt.Errorf("unpack layer: %w", err)
	}
	defer open.Close()
	// A tar has overhead for each member, beside what members contain.
	bounded := &io.LimitedReader{R: open, N: t.left + 4096*int64(MaxEntries-t.entries) + 1<<20}
	plain := newDigester(bounded)
	t.nextLayer()
	if err := untar(ctx, t, plain); err != nil {
		if bounded.N <= 0 {
			return t.tooLarge()
		}
		return fmt.Errorf("unpack layer: %w", err)
	}
	for _, r := range []io.Reader{plain, packed} { // what stands behind the tar belongs to its hash
		if _, err := io.Copy(io.Discard, r); err != nil {
			return fmt.Errorf("unpack layer: %w", err)
		}
	}
	if l.digest != "" && (packed.sum() != l.digest || l.size > 0 && packed.size != l.size) {
		return corrupt("layer", l.digest, packed.sum())
	}
	if l.diff != "" && plain.sum() != l.diff {
		return corrupt("unpacked layer", l.diff, plain.sum())
	}
	return nil
}

func corrupt(what, want, got string) error {
	return fault.New(fault.Unavailable, "a %s of the image is not what its manifest says: it is %s, not %s", what, got, want).
		WithField("image").WithNext("pull it again; if that does not help, the image has to be built or pushed anew")
}

// untar writes the members of one layer.
func untar(ctx context.Context, t *tree, r io.Reader) error {
	tr := tar.NewReader(r)
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue // says nothing about a member
		}
		name, err := cleanName(h.Name)
		if err != nil {
			return err
		}
		if err := member(t, name, h, tr); err != nil {
			return fmt.Errorf("%.200q: %w", name, err)
		}
	}
}

func member(t *tree, name string, h *tar.Header, content io.Reader) error {
	switch base := path.Base(name); {
	case base == opaque:
		return t.hide(path.Dir(name), true)
	case strings.HasPrefix(base, aufs):
		return nil
	case strings.HasPrefix(base, whiteout):
		hidden := strings.TrimPrefix(base, whiteout)
		if hidden == "" || hidden == "." || hidden == ".." {
			return errors.New("refusing a whiteout of nothing")
		}
		return t.hide(path.Join(path.Dir(name), hidden), false)
	}
	a := attributesOf(h)
	switch h.Typeflag {
	case tar.TypeDir:
		return t.dir(name, a)
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return t.file(name, a, content)
	case tar.TypeSymlink:
		return t.symlink(name, h.Linkname, a)
	case tar.TypeLink:
		return t.link(name, h.Linkname)
	}
	return t.count() // a device, FIFO or socket: /dev is not the image's, and the others are made by programs
}

const (
	userAttribute    = "SCHILY.xattr.user."
	maxUserAttribute = 64 << 10
)

func attributesOf(h *tar.Header) attributes {
	a := attributes{mode: fs.FileMode(h.Mode).Perm(), uid: h.Uid, gid: h.Gid, modified: h.ModTime}
	if h.Mode&0o1000 != 0 {
		a.mode |= fs.ModeSticky
	}
	total := 0
	for key, value := range h.PAXRecords {
		if strings.HasPrefix(key, userAttribute) && total+len(value) <= maxUserAttribute {
			if a.user == nil {
				a.user = map[string]string{}
			}
			total += len(value)
			a.user[strings.TrimPrefix(key, "SCHILY.xattr.")] = value
		}
	}
	return a
}

func deepestFirst(dirs map[string]attributes) []string {
	names := slices.Sorted(maps.Keys(dirs))
	slices.SortStableFunc(names, func(a, b string) int { return depth(b) - depth(a) })
	return names
}

func depth(name string) int {
	if name == "." {
		return -1
	}
	return strings.Count(name, "/")
}

// maxWindow bounds the memory that a compressed stream can ask for.
const maxWindow = 128 << 20

// decompress tells the compression by its first bytes; what has none is
// returned as it is.
func decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	magic, err := b.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return gzip.NewReader(b)
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(magic) > 3 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:4], []byte{0x2a, 0x4d, 0x18}):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(magic, []byte("BZh")):
		return io.NopCloser(bzip2.NewReader(b)), nil
	case bytes.HasPrefix(magic, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return nil, fault.New(fault.Unsupported, "it is compressed with xz").WithField("image").
			WithNext("compress it with zstd or gzip, or not at all")
	}
	return io.NopCloser(b), nil
}

// digester hashes and counts what is read through it.
type digester struct {
	r    io.Reader
	hash hash.Hash
	size int64
}

func newDigester(r io.Reader) *digester { return &digester{r: r, hash: sha256.New()} }

func (d *digester) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	d.hash.Write(p[:n])
	d.size += int64(n)
	return n, err
}

func (d *digester) sum() string { return "sha256:" + hex.EncodeToString(d.hash.Sum(nil)) }

// watched stops when its context ends, and tells how much was read.
type watched struct {
	ctx  context.Context // an io.Reader has no other place for it
	r    io.Reader
	read func(int64)
}

func (w *watched) Read(p []byte) (int, error) {
	if err := context.Cause(w.ctx); err != nil {
		return 0, err
	}
	n, err := w.r.Read(p)
	if w.read != nil && n > 0 {
		w.read(int64(n))
	}
	return n, err
}
