package skill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/session"
)

// platform serves archives and counts what it is asked for.
type platform struct {
	mu       sync.Mutex
	archives map[string][]byte // by version
	names    map[string]string // by version
	newest   map[string]string // by skill
	asked    []string
	fail     func(what string, n int) error // n counts requests of that kind
	gate     chan struct{}                  // archives wait for it
}

func newPlatform(t testing.TB) *platform {
	p := &platform{archives: map[string][]byte{}, names: map[string]string{}, newest: map[string]string{}}
	p.publish(t, "skill_1", "skver_1", "pdf")
	return p
}

// publish adds a version whose one file tells which it is.
func (p *platform) publish(t testing.TB, skill, version, name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.archives[version] = zipped(t, member{name: name + "/SKILL.md", body: version, mode: 0o644}, member{name: name + "/bin/run", body: "#!", mode: 0o755})
	p.names[version], p.newest[skill] = name, version
}

func (p *platform) ask(what string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, what)
	if p.fail == nil {
		return nil
	}
	n := 0
	for _, a := range p.asked {
		if a == what {
			n++
		}
	}
	return p.fail(what, n)
}

// requests returns what was asked for since the last time.
func (p *platform) requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	asked := p.asked
	p.asked = nil
	return asked
}

func (p *platform) SkillVersion(_ context.Context, s session.Skill) (session.SkillVersion, error) {
	if err := p.ask("version " + s.Version); err != nil {
		return session.SkillVersion{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	id := s.Version
	if id == "" || id == newest {
		id = p.newest[s.ID]
	}
	return session.SkillVersion{ID: id, Name: p.names[id]}, nil
}

func (p *platform) SkillArchive(ctx context.Context, skill, version string) (io.ReadCloser, error) {
	if err := p.ask("archive " + version); err != nil {
		return nil, err
	}
	if p.gate != nil {
		select {
		case <-p.gate:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return io.NopCloser(bytes.NewReader(p.archives[version])), nil
}

const env = "env_1"

var one = session.Skill{ID: "skill_1", Version: "skver_1"}

func open(t *testing.T, dir string) *Cache {
	t.Helper()
	c, err := Open(Config{Dir: dir, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return c
}

func must(t *testing.T, got []session.ShownSkill) []session.ShownSkill {
	t.Helper()
	for _, s := range got {
		if s.Err != nil {
			t.Errorf("skill %s: %v", s.Skill.ID, s.Err)
		}
	}
	return got
}

// files is content without the list of versions.
func files(t *testing.T, dir string) map[string]string {
	got := content(t, dir)
	delete(got, manifestName)
	return got
}

var shownOne = map[string]string{
	"pdf": "drwxr-xr-x", "pdf/SKILL.md": "-rw-r--r-- skver_1", "pdf/bin": "drwxr-xr-x", "pdf/bin/run": "-rwxr-xr-x #!",
}

func TestVersionIsDownloadedOnceForAllSessions(t *testing.T) {
	p, c := newPlatform(t), open(t, t.TempDir())
	var dirs []string
	for range 20 {
		dirs = append(dirs, t.TempDir())
	}
	var group sync.WaitGroup
	for _, dir := range dirs {
		group.Go(func() { must(t, c.Show(t.Context(), p, env, []session.Skill{one}, dir)) })
	}
	group.Wait()
	if got := p.requests(); !slices.Equal(got, []string{"version skver_1", "archive skver_1"}) {
		t.Errorf("the platform was asked for %v", got)
	}
	var inodes []uint64
	for _, dir := range dirs {
		if diff := cmp.Diff(shownOne, files(t, dir)); diff != "" {
			t.Error(diff)
		}
		info, err := os.Stat(filepath.Join(dir, "pdf/SKILL.md"))
		if err != nil {
			t.Fatal(err)
		}
		inodes = append(inodes, info.Sys().(*syscall.Stat_t).Ino)
	}
	if len(slices.Compact(inodes)) != 1 {
		t.Error("there are several copies of one file")
	}
}

func TestCachedVersionCostsNoRequest(t *testing.T) {
	p, at := newPlatform(t), t.TempDir()
	c := open(t, at)
	must(t, c.Show(t.Context(), p, env, []session.Skill{one}, t.TempDir()))
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = open(t, at) // as after a restart
	p.requests()
	must(t, c.Show(t.Context(), p, env, []session.Skill{one}, t.TempDir()))
	if got := p.requests(); len(got) != 0 {
		t.Errorf("the platform was asked for %v", got)
	}
	must(t, c.Show(t.Context(), p, env, []session.Skill{{ID: "skill_1", Version: "latest"}}, t.TempDir()))
	if got := p.requests(); !slices.Equal(got, []string{"version latest"}) {
		t.Errorf("for the newest the platform was asked for %v", got)
	}
	must(t, c.Show(t.Context(), p, "env_2", []session.Skill{one}, t.TempDir()))
	if got := p.requests(); !slices.Contains(got, "archive skver_1") {
		t.Error("another environment was given this one's copy")
	}
}

func TestFolderFollowsWhatIsWanted(t *testing.T) {
	p, c, dir := newPlatform(t), open(t, t.TempDir()), t.TempDir()
	p.publish(t, "skill_2", "skver_2", "xlsx")
	newestOf := []session.Skill{{ID: "skill_1"}, {ID: "skill_2"}}
	show := func(want string, wanted ...session.Skill) {
		t.Helper()
		var fresh []string
		for _, s := range must(t, c.Show(t.Context(), p, env, wanted, dir)) {
			if s.Fresh {
				fresh = append(fresh, s.Name+"="+s.Version)
			}
		}
		if got := strings.Join(fresh, " "); got != want {
			t.Errorf("fresh are %q, want %q", got, want)
		}
	}
	show("pdf=skver_1 xlsx=skver_2", newestOf...)
	show("", newestOf...)
	p.publish(t, "skill_1", "skver_3", "pdf")
	show("pdf=skver_3", newestOf...)
	if got := files(t, dir)["pdf/SKILL.md"]; got != "-rw-r--r-- skver_3" {
		t.Errorf("the folder has %s", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "litter"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	show("pdf=skver_1", one)
	if diff := cmp.Diff(shownOne, files(t, dir)); diff != "" {
		t.Error(diff)
	}
	show("")
	if got := files(t, dir); len(got) != 0 {
		t.Errorf("there is %v", got)
	}
}

func TestOfTwoSkillsWithOneNameTheLaterIsShown(t *testing.T) {
	p, c, dir := newPlatform(t), open(t, t.TempDir()), t.TempDir()
	p.publish(t, "skill_2", "skver_2", "pdf")
	for range 5 {
		got := c.Show(t.Context(), p, env, []session.Skill{one, {ID: "skill_2", Version: "skver_2"}}, dir)
		if got[0].Err == nil || !strings.Contains(got[0].Err.Error(), "skill_2") || got[1].Err != nil {
			t.Errorf("got %+v", got)
		}
		if got := files(t, dir)["pdf/SKILL.md"]; got != "-rw-r--r-- skver_2" {
			t.Errorf("shown is %s", got)
		}
	}
}

func TestFailuresOfThePlatformAreTriedAgainAndThoseOfAnArchiveAreNot(t *testing.T) {
	t.Parallel()
	busy := &session.Refusal{Status: 503}
	tests := map[string]struct {
		fail    func(what string, n int) error
		archive []byte
		err     string
	}{
		"busy at first": {fail: func(_ string, n int) error { return refused(busy, n <= 1) }},
		"busy for long": {fail: func(string, int) error { return busy }, err: "503"},
		"gone":          {fail: func(string, int) error { return &session.Refusal{Status: 404} }, err: "404"},
		"no archive":    {archive: []byte(strings.Repeat("x", 2000)), err: "unpack"},
		"a slip":        {archive: zipped(t, member{name: "../x", mode: 0o644}), err: "refusing member"},
		"too large":     {archive: make([]byte, session.MaxSkillArchive+1), err: "more than"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, at := newPlatform(t), t.TempDir()
			p.fail = test.fail
			if test.archive != nil {
				p.archives["skver_1"] = test.archive
			}
			c := open(t, at)
			got := c.Show(t.Context(), p, env, []session.Skill{one}, t.TempDir())[0].Err
			if (got == nil) != (test.err == "") || got != nil && !strings.Contains(got.Error(), test.err) {
				t.Errorf("got %v", got)
			}
			if n := len(p.requests()); test.archive != nil && n != 2 {
				t.Errorf("the platform was asked %d times", n)
			}
			if got != nil {
				if left := content(t, at); len(left) != 0 {
					t.Errorf("it left %v", left)
				}
			}
		})
	}
}

func refused(err error, when bool) error {
	if when {
		return err
	}
	return nil
}

func TestSkillThatCannotBeHadNowStaysAsItWas(t *testing.T) {
	p, c, dir := newPlatform(t), open(t, t.TempDir()), t.TempDir()
	must(t, c.Show(t.Context(), p, env, []session.Skill{{ID: "skill_1"}}, dir))
	p.fail = func(string, int) error { return &session.Refusal{Status: 404} }
	got := c.Show(t.Context(), p, env, []session.Skill{{ID: "skill_1"}}, dir)
	if got[0].Err == nil || !strings.Contains(got[0].Err.Error(), "stays") || got[0].Version != "skver_1" {
		t.Errorf("got %+v", got)
	}
	if diff := cmp.Diff(shownOne, files(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func TestWaiterWhoLeavesDoesNotStopTheOthers(t *testing.T) {
	p, c, dir := newPlatform(t), open(t, t.TempDir()), t.TempDir()
	p.gate = make(chan struct{})
	first, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() { left <- c.Show(first, p, env, []session.Skill{one}, t.TempDir())[0].Err }()
	for !slices.Contains(p.peek(), "archive skver_1") {
		<-time.After(time.Millisecond)
	}
	done := make(chan []session.ShownSkill, 1)
	go func() { done <- c.Show(t.Context(), p, env, []session.Skill{one}, dir) }()
	for c.waiting() < 2 {
		<-time.After(time.Millisecond)
	}
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("the one who left hears %v", err)
	}
	close(p.gate)
	must(t, <-done)
	if n := len(p.requests()); n != 2 {
		t.Errorf("%d requests", n)
	}
}

func (p *platform) peek() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.asked)
}

func (c *Cache) waiting() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, f := range c.flights {
		n += f.waiting
	}
	return n
}

func TestDownloadThatNobodyWaitsForEnds(t *testing.T) {
	p, at := newPlatform(t), t.TempDir()
	c := open(t, at)
	p.gate = make(chan struct{}) // never opens
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Show(ctx, p, env, []session.Skill{one}, t.TempDir())[0].Err; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	c.work.Wait()
	if left := content(t, at); len(left) != 0 {
		t.Errorf("it left %v", left)
	}
}

func TestIdsThatAreNoNamesAreRefused(t *testing.T) {
	p, at := newPlatform(t), t.TempDir()
	c := open(t, at)
	for _, s := range []session.Skill{
		{ID: "../x", Version: "v"},
		{ID: "a/b", Version: "v"},
		{ID: "", Version: "v"},
		{ID: ".a", Version: "v"},
		{ID: "a@b", Version: "v"},
		{ID: "a", Version: "../../v"},
		{ID: strings.Repeat("a", 300), Version: "v"},
	} {
		if err := c.Show(t.Context(), p, env, []session.Skill{s}, t.TempDir())[0].Err; fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%+v: %v", s, err)
		}
	}
	if err := c.Show(t.Context(), p, "..", []session.Skill{one}, t.TempDir())[0].Err; fault.CodeOf(err) != fault.Invalid {
		t.Errorf("environment: %v", err)
	}
	if got := content(t, at); len(got) != 0 {
		t.Errorf("there is %v", got)
	}
}

func TestDamagedVersionIsMadeAnew(t *testing.T) {
	damage := map[string]func(dir string) error{
		"no files":  func(dir string) error { return os.RemoveAll(filepath.Join(dir, filesName)) },
		"no record": func(dir string) error { return os.Remove(filepath.Join(dir, entryName)) },
		"a torn record": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, entryName), []byte(`{"skill":`), 0o600)
		},
	}
	for name, spoil := range damage {
		t.Run(name, func(t *testing.T) {
			p, at, dir := newPlatform(t), t.TempDir(), t.TempDir()
			c := open(t, at)
			must(t, c.Show(t.Context(), p, env, []session.Skill{one}, t.TempDir()))
			if err := spoil(filepath.Join(at, env, "skill_1@skver_1")); err != nil {
				t.Fatal(err)
			}
			must(t, c.Show(t.Context(), p, env, []session.Skill{one}, dir))
			if diff := cmp.Diff(shownOne, files(t, dir)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestSweepRemovesWhatIsOldOrTooMuch(t *testing.T) {
	p, at, dir := newPlatform(t), t.TempDir(), t.TempDir()
	c := open(t, at)
	now := time.Now()
	c.now = func() time.Time { return now }
	var wanted []session.Skill
	for i := range 4 {
		id, version := fmt.Sprint("skill_", i), fmt.Sprint("skver_", i)
		p.publish(t, id, version, fmt.Sprint("s", i))
		wanted = append(wanted, session.Skill{ID: id, Version: version})
		must(t, c.Show(t.Context(), p, env, wanted[i:], dir))
		now = now.Add(time.Hour)
	}
	left := func() string {
		entries, err := os.ReadDir(filepath.Join(at, env))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return strings.Join(names, " ")
	}
	sweep := func(want string) {
		t.Helper()
		if err := c.Sweep(t.Context()); err != nil {
			t.Error(err)
		}
		if got := left(); got != want {
			t.Errorf("left is %q, want %q", got, want)
		}
	}
	c.cfg.Keep = 3*time.Hour + time.Minute
	sweep("skill_1@skver_1 skill_2@skver_2 skill_3@skver_3")
	must(t, c.Show(t.Context(), p, env, wanted[1:2], t.TempDir())) // used again
	c.cfg.Size = 20                                                // each has 9 bytes
	sweep("skill_1@skver_1 skill_3@skver_3")
	c.pins[key{env, "skill_3", "skver_3"}] = 1
	c.cfg.Size = 1
	sweep("skill_3@skver_3")
	if got := files(t, dir)["s3/SKILL.md"]; !strings.HasSuffix(got, "skver_3") {
		t.Errorf("a folder lost what it showed: %q", got)
	}
	delete(c.pins, key{env, "skill_3", "skver_3"})
	sweep("")
	if got := files(t, dir)["s3/SKILL.md"]; !strings.HasSuffix(got, "skver_3") {
		t.Errorf("a folder lost what it showed: %q", got)
	}
	must(t, c.Show(t.Context(), p, env, wanted[3:], t.TempDir()))
}

func TestSweepAndSessionsGetAlong(t *testing.T) {
	p, c := newPlatform(t), open(t, t.TempDir())
	c.cfg.Size = 1 // nothing may stay
	var sessions, sweeper sync.WaitGroup
	over := make(chan struct{})
	sweeper.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
			}
			if err := c.Sweep(t.Context()); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
		}
	})
	for range 4 {
		dir := t.TempDir()
		sessions.Go(func() {
			for range 5 {
				must(t, c.Show(t.Context(), p, env, []session.Skill{one}, dir))
				must(t, c.Show(t.Context(), p, env, nil, dir))
			}
		})
	}
	sessions.Wait()
	close(over)
	sweeper.Wait()
}
