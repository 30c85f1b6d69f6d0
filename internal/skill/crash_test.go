package skill

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/session"
)

// crashDir makes this test binary a process that shows skills until it is killed.
const crashDir = "BERTH_TEST_SKILLS"

// TestFillsUntilKilled is the other process of TestKilledAtAnyPoint.
func TestFillsUntilKilled(t *testing.T) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		t.Skip("it is run by another test")
	}
	p, n := newPlatform(t), 0
	c, err := Open(Config{Dir: filepath.Join(dir, "cache"), Size: 1, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	p.publish(t, "skill_1", "skver_2", "pdf")
	if _, err := os.Stdout.WriteString("begun\n"); err != nil {
		t.Fatal(err)
	}
	for {
		n++
		version := fmt.Sprintf("skver_%d", n%2+1)
		c.Show(t.Context(), p, env, []session.Skill{{ID: "skill_1", Version: version}}, filepath.Join(dir, "shown"))
		if err := c.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKilledAtAnyPoint kills a process that fills, shows and sweeps, and holds
// that what it left is either whole or not there.
func TestKilledAtAnyPoint(t *testing.T) {
	runs := 40
	if testing.Short() {
		runs = 5
	}
	dir := t.TempDir()
	shown := filepath.Join(dir, "shown")
	if err := os.Mkdir(shown, 0o755); err != nil {
		t.Fatal(err)
	}
	for run := range runs {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFillsUntilKilled$")
		cmd.Env = []string{crashDir + "=" + dir}
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); !strings.HasPrefix(line, "begun") {
			t.Fatalf("%q, %v", line, err)
		}
		<-time.After(time.Duration(run) * 700 * time.Microsecond)
		_ = cmd.Process.Kill()
		if err := cmd.Wait(); !killed(err) {
			t.Fatalf("it ended by itself: %v", err)
		}
		c, err := Open(Config{Dir: filepath.Join(dir, "cache"), Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
		if err != nil {
			t.Fatal(err)
		}
		for name := range content(t, filepath.Join(dir, "cache")) {
			if strings.Contains(name, tempPrefix) {
				t.Errorf("%s is left", name)
			}
		}
		for _, version := range []string{"skver_1", "skver_2"} {
			p := newPlatform(t)
			p.publish(t, "skill_1", "skver_2", "pdf")
			must(t, c.Show(t.Context(), p, env, []session.Skill{{ID: "skill_1", Version: version}}, shown))
			want := map[string]string{}
			for name, text := range shownOne {
				want[name] = strings.ReplaceAll(text, "skver_1", version)
			}
			if diff := cmp.Diff(want, files(t, shown)); diff != "" {
				t.Fatalf("after run %d: %s", run, diff)
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

func killed(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.ExitCode() == -1
}
