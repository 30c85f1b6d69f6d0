package folder_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/memory"
	"github.com/berth-dev/berth/internal/memory/folder"
	"github.com/berth-dev/berth/internal/sandbox"
)

// place is a folder as an agent left it, beside a secret of the host.
type place struct {
	t      *testing.T
	dir    string
	secret string
	memory.Folder
}

func newPlace(t *testing.T, readOnly bool) *place {
	t.Helper()
	top := t.TempDir()
	p := &place{t: t, dir: filepath.Join(top, "folder"), secret: filepath.Join(top, "secret")}
	p.must(os.Mkdir(p.dir, 0o755))
	p.must(os.WriteFile(p.secret, []byte("of the host"), 0o600))
	f, err := folder.Open(sandbox.SharedDir{Dir: p.dir, UID: os.Geteuid(), GID: os.Getegid()}, readOnly)
	p.must(err)
	p.Folder = f
	return p
}

func (p *place) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) at(name string) string { return filepath.Join(p.dir, name) }

func (p *place) put(name, content string) {
	p.t.Helper()
	p.must(os.MkdirAll(filepath.Dir(p.at(name)), 0o755))
	p.must(os.WriteFile(p.at(name), []byte(content), 0o644))
}

func (p *place) list() memory.Listing {
	p.t.Helper()
	l, err := p.List(p.t.Context())
	p.must(err)
	return l
}

// untouched fails when the host's file is not as it was.
func (p *place) untouched() {
	p.t.Helper()
	if b, err := os.ReadFile(p.secret); err != nil || string(b) != "of the host" {
		p.t.Errorf("the host's file holds %q (%v)", b, err)
	}
}

func TestWhatIsWrittenIsListedReadAndRemoved(t *testing.T) {
	p := newPlace(t, false)
	p.must(p.SetMarker("version 1\nmemstore_1"))
	p.must(p.Write("/a.md", "one", ""))
	p.must(p.Write("/d/e/ü.md", "two", ""))
	p.must(p.Keep())
	want := memory.Listing{
		Marker: "version 1\nmemstore_1",
		Files:  map[string]memory.File{"/a.md": {SHA256: memory.Hash("one")}, "/d/e/ü.md": {SHA256: memory.Hash("two")}},
	}
	if diff := cmp.Diff(want, p.list()); diff != "" {
		t.Errorf("listing (-want +got):\n%s", diff)
	}
	if got, err := p.Read("/d/e/ü.md"); err != nil || got != "two" {
		t.Errorf("Read = %q, %v", got, err)
	}
	for _, err := range []error{
		p.Write("/a.md", "x", ""), p.Write("/a.md", "x", memory.Hash("old")), p.Write("/none", "x", memory.Hash("old")), p.Remove("/a.md", memory.Hash("old")),
	} {
		if !errors.Is(err, memory.ErrChanged) {
			t.Errorf("a change of what is not expected: %v, want ErrChanged", err)
		}
	}
	p.must(p.Write("/a.md", "three", memory.Hash("one")))
	p.must(p.Remove("/d/e/ü.md", memory.Hash("two")))
	p.must(p.Remove("/d/e/ü.md", memory.Hash("two")))
	entries, err := os.ReadDir(p.dir)
	p.must(err)
	if len(entries) != 2 {
		t.Errorf("%v are left, want the marker and a.md: empty folders go", entries)
	}
	if info, err := os.Stat(p.at("a.md")); err != nil || info.Mode() != 0o600 {
		t.Errorf("a.md: %v, %v", info.Mode(), err)
	}
}

func TestEditsThatKeepSizeAndTimeAreSeen(t *testing.T) {
	p := newPlace(t, false)
	p.put("a", "one")
	past := time.Now().Add(-time.Hour)
	for _, content := range []string{"two", "six"} {
		p.list()
		p.put("a", content)
		p.must(os.Chtimes(p.at("a"), past, past))
		if got := p.list().Files["/a"].SHA256; got != memory.Hash(content) {
			t.Errorf("an edit to %q was not seen", content)
		}
	}
}

func TestFilesOfAReadOnlyFolderCanBeReadByEverybodyInside(t *testing.T) {
	p := newPlace(t, true)
	p.must(p.Write("/d/a", "one", ""))
	for name, want := range map[string]os.FileMode{"d": 0o755 | os.ModeDir, "d/a": 0o644} {
		if info, err := os.Stat(p.at(name)); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

func TestFilesBelongToTheAgent(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	p := newPlace(t, false)
	f, err := folder.Open(sandbox.SharedDir{Dir: p.dir, UID: 12345, GID: 12346}, false)
	p.must(err)
	p.must(f.Write("/d/a", "one", ""))
	for _, name := range []string{"d", "d/a"} {
		info, err := os.Lstat(p.at(name))
		p.must(err)
		if st := info.Sys().(*syscall.Stat_t); st.Uid != 12345 || st.Gid != 12346 {
			t.Errorf("%s belongs to %d:%d", name, st.Uid, st.Gid)
		}
	}
}

func TestLinksAreNotFollowed(t *testing.T) {
	p := newPlace(t, false)
	p.must(os.Symlink(p.secret, p.at("file")))
	p.must(os.Symlink(filepath.Dir(p.secret), p.at("folder")))
	p.must(os.Symlink("nowhere", p.at("dangling")))
	p.must(os.Symlink(p.secret, p.at(memory.Marker)))
	l := p.list()
	if l.Marker != "" || len(l.Files) != 3 {
		t.Errorf("listing %+v", l)
	}
	for path, f := range l.Files {
		if f.Problem == "" {
			t.Errorf("%s is taken for a file: %+v", path, f)
		}
		if got, err := p.Read(path); err == nil {
			t.Errorf("Read(%s) = %q", path, got)
		}
	}
	for _, path := range []string{"/folder/secret", "/folder/new"} {
		if got, err := p.Read(path); err == nil {
			t.Errorf("Read(%s) = %q", path, got)
		}
		if err := p.Write(path, "x", ""); err == nil {
			t.Errorf("Write(%s) went through a link", path)
		}
		if f, err := p.Look(path); f != nil || err != nil {
			t.Errorf("Look(%s) = %v, %v", path, f, err)
		}
		p.must(p.Remove(path, memory.Hash("of the host")))
	}
	p.must(p.Write("/file", "new", l.Files["/file"].SHA256)) // the link gives way
	p.must(p.SetMarker("mine"))
	p.untouched()
	if entries, _ := os.ReadDir(filepath.Dir(p.secret)); len(entries) != 2 {
		t.Errorf("beside the folder are %v", entries)
	}
}

func TestOddThingsAreSkippedAndNamed(t *testing.T) {
	p := newPlace(t, false)
	p.must(unix.Mkfifo(p.at("pipe"), 0o666))
	p.must(unix.Mkfifo(p.at(memory.Marker), 0o666))
	p.put("big", strings.Repeat("x", memory.MaxContent+1))
	p.put("exact", strings.Repeat("x", memory.MaxContent))
	p.put("binary", "\xff\xfe")
	p.put("na\xffme", "x")
	p.put("u\u0308", "x")
	p.put("new\nline", "x")
	p.put(strings.Repeat("d/", 30)+"deep", "x")
	p.put("sock", "x")
	p.must(os.Link(p.at("sock"), p.at("hard")))
	f, err := os.Create(p.at("sparse"))
	p.must(err)
	p.must(errors.Join(f.Truncate(1<<40), f.Close()))
	l := p.list()
	for path, problem := range map[string]string{
		"/pipe": "regular", "/big": "102401 bytes", "/binary": "UTF-8", "/sparse": "bytes", "/exact": "", "/sock": "", "/hard": "",
	} {
		if got, ok := l.Files[path]; !ok || (problem == "") != (got.Problem == "") || !strings.Contains(got.Problem, problem) {
			t.Errorf("%s: %+v, want the problem %q", path, got, problem)
		}
	}
	if len(l.Files) != 7 || len(l.Odd) != 4 || l.Partial || l.Marker != "" {
		t.Errorf("%d files, odd %v, partial %t, marker %q", len(l.Files), l.Odd, l.Partial, l.Marker)
	}
	if _, err := p.Read("/pipe"); err == nil {
		t.Error("a pipe was read")
	}
}

func TestTooManyFilesAreSaidToBeTooMany(t *testing.T) {
	p := newPlace(t, false)
	for i := range memory.MaxFiles {
		p.put(fmt.Sprint(i%100, "/", i), "")
	}
	if l := p.list(); l.Partial || len(l.Files) != memory.MaxFiles {
		t.Errorf("%d files, partial %t", len(l.Files), l.Partial)
	}
	p.put("one more", "")
	if l := p.list(); !l.Partial || len(l.Files) != memory.MaxFiles || len(l.Odd) != 1 {
		t.Errorf("%d files, partial %t, odd %v", len(l.Files), l.Partial, l.Odd)
	}
}

func TestAbandonedFilesAreNotShown(t *testing.T) {
	p := newPlace(t, false)
	p.put(memory.TempPrefix+"1", "half")
	if l := p.list(); len(l.Files)+len(l.Odd) != 0 {
		t.Errorf("listing %+v", l)
	}
}

// TestAFolderThatTurnsIntoALinkLeadsNowhere lets an agent swap a folder for a
// link to the host's while everything is done to it.
func TestAFolderThatTurnsIntoALinkLeadsNowhere(t *testing.T) {
	p := newPlace(t, false)
	outside := filepath.Join(filepath.Dir(p.dir), "outside")
	p.must(os.Mkdir(outside, 0o755))
	p.must(os.WriteFile(filepath.Join(outside, "victim"), []byte("of the host"), 0o600))
	p.must(os.Mkdir(p.at("real"), 0o755))
	p.put("real/victim", "mine")
	p.must(os.Symlink(outside, p.at("link")))
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, p.at("real"), unix.AT_FDCWD, p.at("link"), unix.RENAME_EXCHANGE)
			}
		}
	})
	for range 500 {
		if got, err := p.Read("/real/victim"); err == nil && got == "of the host" {
			t.Fatal("the host's file was read")
		}
		_ = p.Write("/real/new", "x", "")
		_ = p.Remove("/real/victim", memory.Hash("of the host"))
		if l, err := p.List(t.Context()); err == nil && l.Files["/real/victim"].SHA256 == memory.Hash("of the host") {
			t.Fatal("the host's file was listed")
		}
		_ = p.Remove("/real/new", memory.Hash("x"))
	}
	close(stop)
	wg.Wait()
	entries, err := os.ReadDir(outside)
	p.must(err)
	if b, err := os.ReadFile(filepath.Join(outside, "victim")); len(entries) != 1 || err != nil || string(b) != "of the host" {
		t.Errorf("outside are %v, victim %q (%v)", entries, b, err)
	}
}
