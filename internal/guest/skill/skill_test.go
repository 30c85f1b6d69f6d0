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
	"testing"

	"github.com/google/go-cmp/cmp"
)

// entry is a member of an archive to be made.
type entry struct {
	name string
	body string
	mode fs.FileMode // with type bits
	link string
}

func zipped(t testing.TB, entries ...entry) []byte {
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

func tarred(t testing.TB, entries ...entry) []byte {
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

// install runs Install in a folder and returns its content: path → mode and text.
func install(t *testing.T, dir, name string, archive []byte) (map[string]string, error) {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	err = Install(t.Context(), root, name, bytes.NewReader(archive), int64(len(archive)))
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

var wrapped = []entry{
	{name: "pdf/", mode: fs.ModeDir | 0o700},
	{name: "pdf/SKILL.md", body: "read me", mode: 0o600},
	{name: "./pdf/bin/run", body: "#!", mode: 0o4744},
	{name: "pdf/link", mode: fs.ModeSymlink | 0o777, link: "/etc/passwd"},
}

var unwrapped = map[string]string{
	"skills": "drwxr-xr-x", "skills/pdf": "drwx------", "skills/pdf/SKILL.md": "-rw-r--r-- read me",
	"skills/pdf/bin": "drwxr-xr-x", "skills/pdf/bin/run": "-rwxr-xr-x #!",
}

func TestEveryFormatUnpacksWithoutItsTopFolder(t *testing.T) {
	for name, archive := range map[string][]byte{
		"zip": zipped(t, wrapped...), "tar": tarred(t, wrapped...), "tar.gz": gzipped(t, tarred(t, wrapped...)),
		"tar.bz2": bzipped,
	} {
		t.Run(name, func(t *testing.T) {
			got, err := install(t, t.TempDir(), "team/pdf", archive)
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
		entries []entry
		want    []string
	}{
		"two folders":          {[]entry{{name: "a/x", mode: 0o644}, {name: "b/x", mode: 0o644}}, []string{"a/x", "b/x"}},
		"a file beside":        {[]entry{{name: "a/x", mode: 0o644}, {name: "y", mode: 0o644}}, []string{"a/x", "y"}},
		"only one level":       {[]entry{{name: "a/b/x", mode: 0o644}}, []string{"b/x"}},
		"an empty folder":      {[]entry{{name: "a/", mode: fs.ModeDir | 0o755}}, []string{"a"}},
		"a link beside":        {[]entry{{name: "a/x", mode: 0o644}, {name: "l", mode: fs.ModeSymlink, link: "a"}}, []string{"x"}},
		"a dot before":         {[]entry{{name: "./a/x", mode: 0o644}, {name: ".", mode: fs.ModeDir | 0o755}}, []string{"x"}},
		"a single file at top": {[]entry{{name: "x", mode: 0o644}}, []string{"x"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := install(t, dir, "s", tarred(t, test.entries...)); err != nil {
				t.Fatal(err)
			}
			for _, want := range test.want {
				if _, err := os.Lstat(filepath.Join(dir, "skills/s", want)); err != nil {
					t.Errorf("%v; there is %v", err, content(t, dir))
				}
			}
		})
	}
}

func TestHostileArchivesAreRefusedWithoutATrace(t *testing.T) {
	many := make([]entry, MaxMembers+1) // links, because they are not written but count
	for i := range many {
		many[i] = entry{name: fmt.Sprintf("d/%d", i), mode: fs.ModeSymlink, link: "x"}
	}
	up := []entry{{name: "ok", mode: 0o644}, {name: "a/../../../escaped", mode: 0o644, body: "x"}}
	tests := map[string][]byte{
		"zip slip":           zipped(t, up...),
		"tar slip":           tarred(t, up...),
		"a harmless ..":      tarred(t, entry{name: "a/../b", mode: 0o644}),
		"absolute, zip":      zipped(t, entry{name: "/escaped", mode: 0o644}),
		"absolute, tar":      tarred(t, entry{name: "/escaped", mode: 0o644}),
		"too many, zip":      zipped(t, many...),
		"too many, tar":      tarred(t, many...),
		"too deep":           tarred(t, entry{name: strings.Repeat("a/", maxDepth+1) + "x", mode: 0o644}),
		"a file as a folder": tarred(t, entry{name: "a", mode: 0o644}, entry{name: "a/b", mode: 0o644}),
		"a folder as a file": tarred(t, entry{name: "a/b", mode: 0o644}, entry{name: "a", mode: 0o644}),
		"a cut tar":          tarred(t, entry{name: "a", body: strings.Repeat("x", 5000), mode: 0o644})[:2000],
		"a cut zip":          zipped(t, wrapped...)[:100],
		"a cut gzip":         gzipped(t, tarred(t, wrapped...))[:40],
		"text":               []byte(strings.Repeat("this is not an archive ", 100)),
		"a zip's directory":  append([]byte("PK\x03\x04"), bytes.Repeat([]byte("PK\x01\x02"), 6*MaxMembers)...),
		"a file named .":     zipped(t, entry{name: ".", body: "x", mode: 0o644}),
	}
	for name, archive := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := install(t, dir, "s", tarred(t, entry{name: "former", mode: 0o644})); err != nil {
				t.Fatal(err)
			}
			before := content(t, filepath.Dir(dir))
			if _, err := install(t, dir, "s", archive); err == nil {
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
	bomb := gzipped(t, tarred(t, entry{name: "a", body: strings.Repeat("0", 900), mode: 0o644},
		entry{name: "b", body: strings.Repeat("0", 101), mode: 0o644}))
	if err := unpack(t.Context(), w, bytes.NewReader(bomb), int64(len(bomb))); !errors.Is(err, errTooLarge) {
		t.Errorf("got %v", err)
	}
}

func TestSkillReplacesItsFormerVersion(t *testing.T) {
	dir := t.TempDir()
	for _, version := range []string{"one", "two"} {
		if _, err := install(t, dir, "s", tarred(t, entry{name: version, mode: 0o644})); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]string{"skills": "drwxr-xr-x", "skills/s": "drwx------", "skills/s/two": "-rw-r--r--"}
	if diff := cmp.Diff(want, content(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func TestLinksOfTheAgentLeadNowhere(t *testing.T) {
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := content(t, outside)
	archive := tarred(t, entry{name: "planted", mode: 0o644})
	t.Run("as the folder of skills", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Symlink(outside, filepath.Join(dir, "skills")); err != nil {
			t.Fatal(err)
		}
		if _, err := install(t, dir, "s", archive); err == nil {
			t.Error("the link was followed")
		}
	})
	t.Run("as the skill", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "skills"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(outside, filepath.Join(dir, "skills/s")); err != nil {
			t.Fatal(err)
		}
		got, err := install(t, dir, "s", archive)
		if err != nil || got["skills/s/planted"] == "" || !strings.HasPrefix(got["skills/s"], "d") {
			t.Errorf("got %v, %v", got, err)
		}
	})
	if diff := cmp.Diff(before, content(t, outside)); diff != "" {
		t.Error(diff)
	}
}

func TestCancelledInstallLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	archive := tarred(t, wrapped...)
	if err := Install(ctx, root, "s", bytes.NewReader(archive), int64(len(archive))); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff(map[string]string{"skills": "drwxr-xr-x"}, content(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func TestNameIsOneFolder(t *testing.T) {
	for in, want := range map[string]string{
		"pdf": "pdf", " pdf ": "pdf", "team/pdf": "pdf", "../pdf": "pdf", "/a/b/": "b",
		"": "", ".": "", "..": "", "a/..": "", "/": "", `a\b`: "", "a\x00": "", strings.Repeat("x", 300): "",
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

func FuzzInstall(f *testing.F) {
	f.Add(zipped(f, wrapped...))
	f.Add(tarred(f, wrapped...))
	f.Add(gzipped(f, tarred(f, wrapped...)))
	f.Fuzz(func(t *testing.T, archive []byte) {
		outer := t.TempDir()
		dir := filepath.Join(outer, "work")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		got, err := install(t, dir, "s", archive)
		if err != nil && len(got) > 1 {
			t.Errorf("a failure left %v", got)
		}
		if list, err := os.ReadDir(outer); err != nil || len(list) != 1 {
			t.Errorf("something escaped: %v, %v", list, err)
		}
	})
}
