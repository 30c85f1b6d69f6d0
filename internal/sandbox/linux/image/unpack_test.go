//go:build linux

package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/berth-dev/berth/internal/fault"
)

// entry is one member of a layer in a test. The type follows from the name and
// what is set: a folder ends in a slash.
type entry struct {
	name string
	text string
	link string // symbolic
	hard string
	mode int64
	uid  int
	typ  byte
}

var someTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// tarOf packs entries.
func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: e.mode, Uid: e.uid, Gid: e.uid, ModTime: someTime, Typeflag: tar.TypeReg, Size: int64(len(e.text))}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		switch {
		case e.typ != 0:
			h.Typeflag, h.Size = e.typ, 0
		case e.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
		case e.hard != "":
			h.Typeflag, h.Linkname = tar.TypeLink, e.hard
		case strings.HasSuffix(e.name, "/"):
			h.Typeflag = tar.TypeDir
			if e.mode == 0 {
				h.Mode = 0o755
			}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, e.text); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func layerOf(b []byte) layer {
	return layer{open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }}
}

// unpackAll unpacks layers into a fresh folder with the owners as they are.
func unpackAll(t testing.TB, limit int64, layers ...[]byte) (string, error) {
	t.Helper()
	dir := t.TempDir()
	owners := Owners{Single: os.Geteuid() != 0, Agent: 1000}
	tr, err := openTree(dir, owners, limit)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	for _, b := range layers {
		if err := layerOf(b).apply(t.Context(), tr, nil); err != nil {
			return dir, err
		}
	}
	return dir, tr.finish()
}

// show lists a folder: files with their text, links with their target, folders.
func show(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		name, _ := filepath.Rel(dir, p)
		switch {
		case d.IsDir():
			out[name] = "/"
		case d.Type()&fs.ModeSymlink != 0:
			target, _ := os.Readlink(p)
			out[name] = "-> " + target
		case d.Type().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			out[name] = string(b)
		default:
			out[name] = d.Type().String()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestLayersLieOverEachOther(t *testing.T) {
	for _, c := range []struct {
		name   string
		layers [][]entry
		want   map[string]string
	}{
		{"a later file replaces an earlier one, and not what it was linked to", [][]entry{
			{{name: "a", text: "1"}, {name: "b", hard: "a"}},
			{{name: "b", text: "2"}},
		}, map[string]string{"a": "1", "b": "2"}},
		{"a whiteout removes", [][]entry{
			{{name: "d/"}, {name: "d/x", text: "1"}, {name: "d/y/"}, {name: "d/y/z", text: "1"}, {name: "keep", text: "1"}},
			{{name: "d/.wh.x"}, {name: "d/.wh.y"}},
		}, map[string]string{"d": "/", "keep": "1"}},
		{"a whiteout spares what its own layer made", [][]entry{
			{{name: "x", text: "old"}, {name: "d/"}, {name: "d/old", text: "old"}},
			{{name: "x", text: "new"}, {name: ".wh.x"}, {name: "d/"}, {name: "d/new", text: "new"}, {name: ".wh.d"}},
		}, map[string]string{"x": "new", "d": "/", "d/new": "new"}},
		{"an opaque folder hides what is below it, before and behind its members", [][]entry{
			{{name: "d/"}, {name: "d/a", text: "old"}, {name: "d/s/"}, {name: "d/s/b", text: "old"}, {name: "e", text: "old"}},
			{{name: "d/"}, {name: "d/n", text: "new"}, {name: "d/s/m", text: "new"}, {name: "d/.wh..wh..opq"}, {name: "d/o", text: "new"}},
		}, map[string]string{"d": "/", "d/n": "new", "d/s": "/", "d/s/m": "new", "d/o": "new", "e": "old"}},
		{"an opaque root hides everything", [][]entry{
			{{name: "a", text: "old"}}, {{name: ".wh..wh..opq"}, {name: "b", text: "new"}},
		}, map[string]string{"b": "new"}},
		{"a folder replaces a link, and a file a folder", [][]entry{
			{{name: "l", link: "d"}, {name: "d/"}, {name: "d/x", text: "1"}},
			{{name: "l/"}, {name: "l/y", text: "2"}, {name: "d", text: "3"}},
		}, map[string]string{"l": "/", "l/y": "2", "d": "3"}},
		{"names go through links as they will inside", [][]entry{
			{{name: "usr/bin/"}, {name: "bin", link: "usr/bin"}, {name: "run/"}, {name: "var/run", link: "/run"}, {name: "up", link: "../../usr"}},
			{{name: "bin/sh", text: "1"}, {name: "var/run/pid", text: "2"}, {name: "up/x", text: "3"}, {name: "bin/.wh.nothing"}, {name: "hl", hard: "bin/sh"}},
		}, map[string]string{
			"usr": "/", "usr/bin": "/", "usr/bin/sh": "1", "bin": "-> usr/bin", "run": "/", "run/pid": "2", "var": "/",
			"var/run": "-> /run", "up": "-> ../../usr", "usr/x": "3", "hl": "1",
		}},
		{"devices, pipes and what AUFS kept are left out", [][]entry{
			{{name: "dev/null", typ: tar.TypeChar}, {name: "sda", typ: tar.TypeBlock}, {name: "p", typ: tar.TypeFifo}, {name: ".wh..wh.plnk", text: "x"}, {name: "a", text: "1"}},
		}, map[string]string{"a": "1"}},
		{"absolute names are below the root", [][]entry{{{name: "/etc/x", text: "1"}}}, map[string]string{"etc": "/", "etc/x": "1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var packed [][]byte
			for _, l := range c.layers {
				packed = append(packed, tarOf(t, l...))
			}
			dir, err := unpackAll(t, 1<<20, packed...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, show(t, dir)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestHostileMembersAreRefused(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	long := strings.Repeat("x", 300)
	for name, entries := range map[string][]entry{
		"climbs":                 {{name: "../x", text: "1"}},
		"climbs in the middle":   {{name: "a/../../x", text: "1"}},
		"hard link out":          {{name: "x", hard: "../../../../etc/passwd"}},
		"hard link to nothing":   {{name: "x", hard: "/etc/passwd"}},
		"hard link to a folder":  {{name: "d/"}, {name: "x", hard: "d"}},
		"links in a circle":      {{name: "a", link: "b"}, {name: "b", link: "a"}, {name: "a/x", text: "1"}},
		"through a file":         {{name: "a", text: "1"}, {name: "a/b", text: "1"}},
		"long component":         {{name: long, text: "1"}},
		"long path":              {{name: strings.Repeat("d/", 3000) + "x", text: "1"}},
		"whiteout of the parent": {{name: ".wh..."}, {name: ".wh.."}},
		"the root is a file":     {{name: ".", text: "1"}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := unpackAll(t, 1<<20, tarOf(t, entries...)); err == nil {
				t.Error("it was unpacked")
			}
		})
	}
	// These are harmless, since inside they lead nowhere else than inside.
	dir, err := unpackAll(t, 1<<20, tarOf(t,
		entry{name: "abs", link: outside}, entry{name: "abs/owned", text: "1"},
		entry{name: "rel", link: "../../../../../../../.." + outside}, entry{name: "rel/owned2", text: "1"},
		entry{name: "file", link: outside + "-file"}, entry{name: "file", text: "replaces the link"},
	))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{outside, outside + "-file"} {
		if _, err := os.Lstat(p); err == nil {
			t.Errorf("%s was written", p)
		}
	}
	for _, p := range []string{outside + "/owned", outside + "/owned2"} {
		if _, err := os.Lstat(filepath.Join(dir, p)); err != nil {
			t.Errorf("the link did not lead below the root: %v", err)
		}
	}
}

func TestBoundsOfAnImage(t *testing.T) {
	big := tarOf(t, entry{name: "a", text: strings.Repeat("x", 600)}, entry{name: "b", text: strings.Repeat("x", 600)})
	if _, err := unpackAll(t, 1000, big); fault.CodeOf(err) != fault.TooLarge {
		t.Errorf("more bytes than allowed: %v", err)
	}
	if _, err := unpackAll(t, 1200, big); err != nil {
		t.Errorf("as many bytes as allowed: %v", err)
	}
	// 64 MiB of zeros in a few kB: the bound is on what comes out.
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	w := tar.NewWriter(z)
	_ = w.WriteHeader(&tar.Header{Name: "zeros", Size: 64 << 20, Mode: 0o644, Typeflag: tar.TypeReg})
	_, _ = io.CopyN(w, zeros{}, 64<<20)
	_, _ = w.Close(), z.Close()
	if _, err := unpackAll(t, 1<<20, bomb.Bytes()); fault.CodeOf(err) != fault.TooLarge {
		t.Errorf("a bomb: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestCompressions(t *testing.T) {
	text := strings.Repeat("1", 3000)
	plain := tarOf(t, entry{name: "a", text: text})
	var gz, zs bytes.Buffer
	g := gzip.NewWriter(&gz)
	_, _ = g.Write(plain)
	_ = g.Close()
	z, err := zstd.NewWriter(&zs)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = z.Write(plain)
	_ = z.Close()
	for name, b := range map[string][]byte{"none": plain, "gzip": gz.Bytes(), "zstd": zs.Bytes()} {
		dir, err := unpackAll(t, 1<<20, b)
		if err != nil || show(t, dir)["a"] != text {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := unpackAll(t, 1<<20, b[:len(b)/3]); err == nil {
			t.Errorf("%s: a third of it was taken for all", name)
		}
	}
	_, err = unpackAll(t, 1<<20, []byte{0xfd, '7', 'z', 'X', 'Z', 0, 1, 2, 3})
	if fault.CodeOf(err) != fault.Unsupported {
		t.Errorf("xz: %v", err)
	}
}

func TestModesTimesAndOwners(t *testing.T) {
	b := tarOf(t,
		entry{name: "./", mode: 0o700}, entry{name: "su", text: "1", mode: 0o6755, uid: 0}, entry{name: "closed/", mode: 0o500, uid: 12},
		entry{name: "closed/f", text: "1", mode: 0o640, uid: 1000}, entry{name: "far", text: "1", uid: 70000}, entry{name: "t/", mode: 0o1777},
	)
	dir := t.TempDir()
	owners := Owners{Base: 100000, Count: 65536, Agent: 1000}
	if os.Geteuid() != 0 {
		owners = Owners{Single: true}
	}
	tr, err := openTree(dir, owners, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	if err := errors.Join(layerOf(b).apply(t.Context(), tr, nil), tr.finish()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct {
		mode fs.FileMode
		uid  uint32
	}{
		".": {0o755 | fs.ModeDir, 100000}, "su": {0o755, 100000}, "closed": {0o500 | fs.ModeDir, 100012}, "closed/f": {0o640, 101000},
		"far": {0o644, 165534}, "t": {fs.ModeDir | fs.ModeSticky | 0o777, 100000},
	} {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			continue
		}
		uid := info.Sys().(*syscall.Stat_t).Uid
		if owners.Single {
			want.uid = uint32(os.Geteuid())
			if info.IsDir() {
				want.mode |= 0o700
			}
		}
		if info.Mode() != want.mode || uid != want.uid {
			t.Errorf("%s: %v of %d, want %v of %d", name, info.Mode(), uid, want.mode, want.uid)
		}
		if name != "." && !info.ModTime().Equal(someTime) {
			t.Errorf("%s changed at %v", name, info.ModTime())
		}
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(tarOf(f, entry{name: "a/"}, entry{name: "a/b", text: "x"}, entry{name: "l", link: "/a"}, entry{name: "l/c", hard: "a/b"}, entry{name: "a/.wh..wh..opq"}))
	f.Add(tarOf(f, entry{name: "a", link: ".."}, entry{name: "a/../x", text: "1"}, entry{name: ".wh.a"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "root")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		tr, err := openTree(dir, Owners{Single: true}, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		defer tr.Close()
		if layerOf(b).apply(t.Context(), tr, nil) == nil {
			_ = furnish(tr)
			_ = tr.finish()
		}
		if names, err := os.ReadDir(parent); err != nil || len(names) != 1 {
			t.Errorf("beside the root lies %v, %v", names, err)
		}
	})
}
