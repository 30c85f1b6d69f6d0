//go:build linux

package linux

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

// someHost is a host with merged /usr and with things that nobody shall see.
func someHost() fstest.MapFS {
	text := func(mode fs.FileMode, s string) *fstest.MapFile { return &fstest.MapFile{Mode: mode, Data: []byte(s)} }
	return fstest.MapFS{
		"usr/bin/ls":                  text(0o755, "elf"),
		"bin":                         text(fs.ModeSymlink|0o777, "usr/bin"),
		"lib32/libc.so":               text(0o644, "elf"),
		"etc/shadow":                  text(0o640, "root:secret"),
		"etc/passwd":                  text(0o644, "alice:x:1000"),
		"etc/hostname":                text(0o644, "vault-7"),
		"etc/ld.so.cache":             text(0o644, "cache"),
		"etc/alternatives/awk":        text(fs.ModeSymlink|0o777, "/usr/bin/mawk"),
		"etc/ssl/certs/ca.crt":        text(0o644, "certificate"),
		"etc/ssl/certs/own.key":       text(0o600, "secret"),
		"etc/ssl/private/server.key":  text(0o644, "secret"),
		"etc/ld.so.conf.d/closed":     {Mode: fs.ModeDir | 0o700},
		"etc/ld.so.conf.d/closed/one": text(0o644, "secret"),
		"root/.ssh/id":                text(0o644, "secret"),
		"home/alice/x":                text(0o644, "secret"),
		"var/lib/x":                   text(0o644, "secret"),
	}
}

func TestHostImageShowsProgramsOnly(t *testing.T) {
	img, err := hostImage(someHost())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/usr", "/lib32"}, img.binds); diff != "" {
		t.Errorf("bound folders: %s", diff)
	}
	from := map[string]string{}
	for _, e := range img.entries {
		for _, secret := range []string{"secret", "vault-7", "alice:x:1000"} {
			if e.Text == secret {
				t.Errorf("%s shows %q", e.Path, e.Text)
			}
		}
		if _, host := someHost()[e.Path]; host || filepath.Dir(e.Path) == "etc/ssl/certs" {
			from[e.Path] = e.Text
		}
	}
	delete(from, "etc/passwd") // invented
	delete(from, "etc/hostname")
	want := map[string]string{
		"bin": "usr/bin", "etc/ld.so.cache": "cache", "etc/alternatives/awk": "/usr/bin/mawk", "etc/ssl/certs/ca.crt": "certificate",
	}
	if diff := cmp.Diff(want, from); diff != "" {
		t.Errorf("taken from the host: %s", diff)
	}
}

func TestHostImageListsParentsFirst(t *testing.T) {
	img, err := hostImage(someHost())
	if err != nil {
		t.Fatal(err)
	}
	seen := []string{"."}
	for _, e := range img.entries {
		if up := filepath.Dir(e.Path); !slices.Contains(seen, up) {
			t.Errorf("%s comes before %s", e.Path, up)
		}
		seen = append(seen, e.Path)
	}
}

func TestHostImageIsMadeOnceAndAnewWhenTheHostChanged(t *testing.T) {
	parent, host := t.TempDir(), someHost()
	ids := identity{rootless: true, base: os.Geteuid()}
	materialise := func() string {
		img, err := hostImage(host)
		if err != nil {
			t.Fatal(err)
		}
		name, err := img.materialise(parent, ids)
		if err != nil {
			t.Fatal(err)
		}
		return name
	}
	first := materialise()
	if again := materialise(); again != first {
		t.Errorf("two images of one host: %s and %s", first, again)
	}
	host["etc/ld.so.cache"].Data = []byte("newer")
	if after := materialise(); after == first {
		t.Error("the image did not follow the host")
	}
	for path, want := range map[string]fs.FileMode{
		"": fs.ModeDir | 0o755, "tmp": fs.ModeDir | fs.ModeSticky | 0o777, "root": fs.ModeDir | 0o700, "etc/passwd": 0o644,
	} {
		info, err := os.Stat(filepath.Join(parent, first, path))
		if err != nil || info.Mode() != want {
			t.Errorf("/%s: %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(parent, "making-*")); len(left) > 0 {
		t.Errorf("half-made images are left: %q", left)
	}
}

func TestSweepKeepsWhatIsInUse(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"used", "old", "making-1"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := sweep(dir, map[string]bool{"used": true}); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{filepath.Join(dir, "used")}, left); diff != "" {
		t.Error(diff)
	}
}

func TestStageBinaryGoesByContent(t *testing.T) {
	src, dir := filepath.Join(t.TempDir(), "program"), t.TempDir()
	stage := func(content string) string {
		if err := os.WriteFile(src, []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
		name, err := stageBinary(src, dir)
		if err != nil {
			t.Fatal(err)
		}
		return name
	}
	one := stage("one")
	if stage("two") == one {
		t.Error("another content has the same name")
	}
	if stage("one") != one {
		t.Error("the same content has another name")
	}
	got, err := os.ReadFile(filepath.Join(dir, one))
	if err != nil || string(got) != "one" {
		t.Errorf("staged %q, %v", got, err)
	}
	if info, err := os.Stat(filepath.Join(dir, one)); err != nil || info.Mode() != 0o755 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}
