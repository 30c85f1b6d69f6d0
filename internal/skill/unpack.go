package skill

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// unpack tells the format by the first bytes and writes every member.
func unpack(ctx context.Context, w *writer, archive io.ReaderAt, size int64) error {
	var magic [4]byte
	if _, err := archive.ReadAt(magic[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	stream := reader{ctx, io.NewSectionReader(archive, 0, size)}
	switch {
	case string(magic[:]) == "PK\x03\x04":
		return unzip(ctx, w, archive, size)
	case magic[0] == 0x1f && magic[1] == 0x8b:
		z, err := gzip.NewReader(stream)
		if err != nil {
			return err
		}
		return untar(w, z)
	case string(magic[:3]) == "BZh":
		return untar(w, bzip2.NewReader(stream))
	}
	return untar(w, stream)
}

// reader stops when ctx ends, so that a slow archive can be given up.
type reader struct {
	ctx context.Context // an io.Reader has no other place for it
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// overhead is what a tar of MaxMembers may hold beside the contents.
const overhead = MaxMembers * 8 << 10

func untar(w *writer, r io.Reader) error {
	bounded := &io.LimitedReader{R: r, N: MaxBytes + overhead}
	tr := tar.NewReader(bounded)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil && bounded.N <= 0 {
			return errTooLarge
		}
		if err != nil {
			return err
		}
		kind := fs.FileMode(0)
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		case tar.TypeDir:
			kind = fs.ModeDir
		case tar.TypeXGlobalHeader:
			continue // says nothing about a member
		default:
			kind = fs.ModeIrregular
		}
		if err := w.member(h.Name, kind|h.FileInfo().Mode().Perm(), func() (io.ReadCloser, error) { return io.NopCloser(tr), nil }); err != nil {
			return err
		}
	}
}

func unzip(ctx context.Context, w *writer, archive io.ReaderAt, size int64) error {
	if err := countZip(reader{ctx, io.NewSectionReader(archive, 0, size)}); err != nil {
		return err
	}
	zr, err := zip.NewReader(archive, size)
	if err != nil {
		return err
	}
	for _, f := range zr.File {
		if err := w.member(f.Name, f.Mode(), f.Open); err != nil {
			return err
		}
	}
	return nil
}

// countZip refuses archives whose directory could be too large to be read into
// memory, by counting what looks like an entry. Archives inside the archive
// may add to the count, so the limit is generous.
func countZip(r io.Reader) error {
	const limit = 5 * MaxMembers
	mark := []byte("PK\x01\x02")
	buf := make([]byte, 64<<10)
	count, kept := 0, 0
	for {
		n, err := r.Read(buf[kept:])
		chunk := buf[:kept+n]
		if count += bytes.Count(chunk, mark); count > limit {
			return errTooMany
		}
		kept = copy(buf, chunk[max(0, len(chunk)-len(mark)+1):])
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

var (
	errTooMany  = fmt.Errorf("the archive has more than %d members", MaxMembers)
	errTooLarge = fmt.Errorf("the archive unpacks to more than %d bytes", MaxBytes)
)

// writer writes the members of one archive below root and keeps the bounds.
type writer struct {
	ctx     context.Context
	root    *os.Root
	members int
	left    int64 // bytes that may still be written
	dirs    map[string]bool
}

// member writes a file or makes a folder. Links, devices and the like are
// skipped; a name that points outside is an error.
func (w *writer) member(name string, mode fs.FileMode, open func() (io.ReadCloser, error)) error {
	if err := context.Cause(w.ctx); err != nil {
		return err
	}
	if w.members++; w.members > MaxMembers {
		return errTooMany
	}
	clean, err := memberPath(name)
	if err != nil {
		return err
	}
	switch {
	case mode.IsDir():
		return w.folder(clean)
	case !mode.IsRegular():
		return nil
	case clean == ".":
		return fmt.Errorf("member %.100q is a file without a name", name)
	}
	if err := w.folder(path.Dir(clean)); err != nil {
		return err
	}
	r, err := open()
	if err != nil {
		return err
	}
	return errors.Join(w.file(clean, mode, r), r.Close())
}

// memberPath returns the cleaned, relative path of a member.
func memberPath(name string) (string, error) {
	bad := len(name) > maxName || strings.HasPrefix(name, "/") || strings.Contains(name, "\x00") ||
		strings.Count(name, "/") > maxDepth
	for part := range strings.SplitSeq(name, "/") {
		bad = bad || part == ".."
	}
	if bad {
		return "", fmt.Errorf("refusing member %.100q", name)
	}
	return path.Clean(name), nil
}

// folder makes a folder and those above it.
func (w *writer) folder(dir string) error {
	if w.dirs[dir] {
		return nil
	}
	if err := w.folder(path.Dir(dir)); err != nil {
		return err
	}
	if len(w.dirs) > MaxMembers {
		return errTooMany
	}
	if err := w.root.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := w.root.Chmod(dir, 0o755); err != nil { // whatever the umask is
		return err
	}
	w.dirs[dir] = true
	return nil
}

func (w *writer) file(name string, mode fs.FileMode, r io.Reader) error {
	perm := fs.FileMode(0o644)
	if mode&0o111 != 0 {
		perm = 0o755
	}
	f, err := w.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.Copy(f, io.LimitReader(reader{w.ctx, r}, w.left+1))
	if err != nil {
		return err
	}
	if w.left -= n; w.left < 0 {
		return errTooLarge
	}
	if err := f.Chmod(perm); err != nil {
		return err
	}
	return f.Close()
}
