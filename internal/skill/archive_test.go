package skill

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// member is a member of an archive to be made.
type member struct {
	name string
	body string
	mode fs.FileMode // with type bits
	link string
}

func zipped(t testing.TB, entries ...member) []byte {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, e := range entries {
		h := &zip.FileHeader{Name: e.name, Method: zip.Deflate}
		h.SetMode(e.mode)
		w, err := z.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(w, e.body, e.link)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func tarred(t testing.TB, entries ...member) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: int64(e.mode.Perm()), Size: int64(len(e.body)), Linkname: e.link, Typeflag: tar.TypeReg}
		switch e.mode.Type() {
		case fs.ModeDir:
			h.Typeflag = tar.TypeDir
		case fs.ModeSymlink:
			h.Typeflag = tar.TypeSymlink
		case fs.ModeIrregular:
			h.Typeflag = tar.TypeLink
		case fs.ModeDevice:
			h.Typeflag = tar.TypeBlock
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t testing.TB, b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(b)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// install unpacks into a folder, as the cache does, and returns its content: path
// → mode and text.
func install(t *testing.T, dir string, archive []byte) (map[string]string, error) {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	top, err := Unpack(t.Context(), root, "unpacked", bytes.NewReader(archive), int64(len(archive)))
	if err == nil && top != "skill" {
		err = root.Rename(top, "skill")
	}
	if err := root.RemoveAll("unpacked"); err != nil {
		t.Fatal(err)
	}
	return content(t, dir), err
}

func content(t *testing.T, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		text := []byte{}
		if fi.Mode().IsRegular() {
			if text, err = os.ReadFile(p); err != nil {
				return err
			}
		}
		rel, err := filepath.Rel(dir, p)
		got[rel] = strings.TrimSpace(fmt.Sprintf("%s %s", fi.Mode(), text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

var wrapped = []member{
	{name: "pdf/", mode: fs.ModeDir | 0o700},
	{name: "pdf/SKILL.md", body: "read me", mode: 0o600},
	{name: "./pdf/bin/run", body: "#!", mode: 0o4744},
	{name: "pdf/link", mode: fs.ModeSymlink | 0o777, link: "/etc/passwd"},
}

var unwrapped = map[string]string{
	"skill": "drwxr-xr-x", "skill/SKILL.md": "-rw-r--r-- read me", "skill/bin": "drwxr-xr-x", "skill/bin/run": "-rwxr-xr-x #!",
}

func TestEveryFormatUnpacksWithoutItsTopFolder(t *testing.T) {
	for name, archive := range map[string][]byte{
		"zip": zipped(t, wrapped...), "tar": tarred(t, wrapped...), "tar.gz": gzipped(t, tarred(t, wrapped...)),
		"tar.bz2": bzipped,
	} {
		t.Run(name, func(t *testing.T) {
			got, err := install(t, t.TempDir(), archive)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(unwrapped, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestOnlyOneSharedFolderIsStripped(t *testing.T) {
	tests := map[string]struct {
		entries []member
		want    []string
	}{
		"two folders":          {[]member{{name: "a/x", mode: 0o644}, {name: "b/x", mode: 0o644}}, []string{"a/x", "b/x"}},
		"a file beside":        {[]member{{name: "a/x", mode: 0o644}, {name: "y", mode: 0o644}}, []string{"a/x", "y"}},
		"only one level":       {[]member{{name: "a/b/x", mode: 0o644}}, []string{"b/x"}},
		"an empty folder":      {[]member{{name: "a/", mode: fs.ModeDir | 0o755}}, []string{"a"}},
		"a link beside":        {[]member{{name: "a/x", mode: 0o644}, {name: "l", mode: fs.ModeSymlink, link: "a"}}, []string{"x"}},
		"a dot before":         {[]member{{name: "./a/x", mode: 0o644}, {name: ".", mode: fs.ModeDir | 0o755}}, []string{"x"}},
		"a single file at top": {[]member{{name: "x", mode: 0o644}}, []string{"x"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := install(t, dir, tarred(t, test.entries...)); err != nil {
				t.Fatal(err)
			}
			for _, want := range test.want {
				if _, err := os.Lstat(filepath.Join(dir, "skill", want)); err != nil {
					t.Errorf("%v; there is %v", err, content(t, dir))
				}
			}
		})
	}
}

func TestHostileArchivesAreRefusedWithoutATrace(t *testing.T) {
	many := make([]member, MaxMembers+1) // links, because they are not written but count
	for i := range many {
		many[i] = member{name: fmt.Sprintf("d/%d", i), mode: fs.ModeSymlink, link: "x"}
	}
	up := []member{{name: "ok", mode: 0o644}, {name: "a/../../../escaped", mode: 0o644, body: "x"}}
	tests := map[string][]byte{
		"zip slip":           zipped(t, up...),
		"tar slip":           tarred(t, up...),
		"a harmless ..":      tarred(t, member{name: "a/../b", mode: 0o644}),
		"absolute, zip":      zipped(t, member{name: "/escaped", mode: 0o644}),
		"absolute, tar":      tarred(t, member{name: "/escaped", mode: 0o644}),
		"too many, zip":      zipped(t, many...),
		"too many, tar":      tarred(t, many...),
		"too deep":           tarred(t, member{name: strings.Repeat("a/", maxDepth+1) + "x", mode: 0o644}),
		"a file as a folder": tarred(t, member{name: "a", mode: 0o644}, member{name: "a/b", mode: 0o644}),
		"a folder as a file": tarred(t, member{name: "a/b", mode: 0o644}, member{name: "a", mode: 0o644}),
		"a cut tar":          tarred(t, member{name: "a", body: strings.Repeat("x", 5000), mode: 0o644})[:2000],
		"a cut zip":          zipped(t, wrapped...)[:100],
		"a cut gzip":         gzipped(t, tarred(t, wrapped...))[:40],
		"text":               []byte(strings.Repeat("this is not an archive ", 100)),
		"a zip's directory":  append([]byte("PK\x03\x04"), bytes.Repeat([]byte("PK\x01\x02"), 6*MaxMembers)...),
		"a file named .":     zipped(t, member{name: ".", body: "x", mode: 0o644}),
	}
	for name, archive := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			before := content(t, filepath.Dir(dir))
			if _, err := install(t, dir, archive); err == nil {
				t.Fatal("it was accepted")
			}
			if diff := cmp.Diff(before, content(t, filepath.Dir(dir))); diff != "" {
				t.Errorf("it left something: %s", diff)
			}
		})
	}
}

func TestFoldersCountAsMembers(t *testing.T) {
	w := &writer{ctx: t.Context(), dirs: map[string]bool{".": true}}
	for i := range MaxMembers {
		w.dirs[fmt.Sprint(i)] = true
	}
	if err := w.folder("one/more"); !errors.Is(err, errTooMany) {
		t.Errorf("got %v", err)
	}
}

func TestBombIsStoppedAtTheLimit(t *testing.T) {
	w := &writer{ctx: t.Context(), left: 1000, dirs: map[string]bool{".": true}}
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	w.root = root
	bomb := gzipped(t, tarred(t, member{name: "a", body: strings.Repeat("0", 900), mode: 0o644},
		member{name: "b", body: strings.Repeat("0", 101), mode: 0o644}))
	if err := unpack(t.Context(), w, bytes.NewReader(bomb), int64(len(bomb))); !errors.Is(err, errTooLarge) {
		t.Errorf("got %v", err)
	}
}

func TestCancelledUnpackEnds(t *testing.T) {
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	archive := tarred(t, wrapped...)
	if _, err := Unpack(ctx, root, "x", bytes.NewReader(archive), int64(len(archive))); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestModesDoNotDependOnTheUmask(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	got, err := install(t, t.TempDir(), tarred(t, wrapped...))
	if diff := cmp.Diff(unwrapped, got); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
}

func TestNameIsOneFolder(t *testing.T) {
	for in, want := range map[string]string{
		"pdf": "pdf", " pdf ": "pdf", "team/pdf": "pdf", "../pdf": "pdf", "/a/b/": "b",
		"": "", ".": "", "..": "", ".hidden": "", "a/..": "", "/": "", `a\b`: "", "a\x00": "", strings.Repeat("x", 300): "",
	} {
		if got, err := Base(in); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v", in, got, err)
		}
	}
}

func FuzzMemberPath(f *testing.F) {
	for _, s := range []string{"a/b", "../x", "/etc", "a/../b", "./a", "", "a//b", "..", "...", "a/..b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		got, err := memberPath(name)
		if err == nil && got != "." && !filepath.IsLocal(got) {
			t.Errorf("%q became %q", name, got)
		}
	})
}

func FuzzUnpack(f *testing.F) {
	f.Add(zipped(f, wrapped...))
	f.Add(tarred(f, wrapped...))
	f.Add(gzipped(f, tarred(f, wrapped...)))
	f.Add(bzipped)
	f.Fuzz(func(t *testing.T, archive []byte) {
		outer := t.TempDir()
		dir := filepath.Join(outer, "work")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		got, err := install(t, dir, archive)
		if err != nil && len(got) > 0 {
			t.Errorf("a failure left %v", got)
		}
		for name, text := range got {
			if mode := strings.Fields(text)[0]; mode != "drwxr-xr-x" && mode != "-rwxr-xr-x" && mode != "-rw-r--r--" {
				t.Errorf("%s is %s", name, mode)
			}
		}
		if list, err := os.ReadDir(outer); err != nil || len(list) != 1 {
			t.Errorf("something escaped: %v, %v", list, err)
		}
	})
}
