//go:build linux

package server_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/berth-dev/berth/internal/guest"
)

// shells returns the shells that a guest's worker has.
func (s *subject) shells(t *testing.T) (pids []string) {
	t.Helper()
	for worker := range children(t, s.cmd.Process.Pid) {
		for pid := range children(t, worker) {
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)) // it may have ended
			if string(comm) == "bash\n" {
				pids = append(pids, strconv.Itoa(pid))
			}
		}
	}
	return pids
}

func TestAShellThatWasPreparedIsTheFirstOneWithItsEnvironment(t *testing.T) {
	s := startProcess(t)
	g := s.attach(t)
	if err := g.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	spare := s.shells(t)
	if len(spare) != 1 {
		t.Fatalf("shells: %q", spare)
	}
	if err := g.Prepare(t.Context()); err != nil { // one is enough
		t.Fatal(err)
	}
	eventually(t, "one shell is kept", func() bool { return slices.Equal(s.shells(t), spare) })
	if got := text(bash(t, g, "c1", "echo $$")); got != spare[0] {
		t.Errorf("the command ran in %q, not in the shell that was ready, %q", got, spare[0])
	}
}

func TestAShellWithAnotherEnvironmentIsGivenToNobody(t *testing.T) {
	s := startProcess(t)
	first := s.attach(t)
	if err := first.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	spare := s.shells(t)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	g := s.attachWith(t, guest.Options{Env: map[string]string{"WHOSE": "mine"}})
	if got := text(bash(t, g, "c1", "echo $WHOSE; echo $$")); !strings.HasPrefix(got, "mine\n") || strings.Contains(got, spare[0]) {
		t.Errorf("got %q, the shell before was %q", got, spare)
	}
	eventually(t, "the other shell has ended", func() bool { return !slices.Contains(s.shells(t), spare[0]) })
}
