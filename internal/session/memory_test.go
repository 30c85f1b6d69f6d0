package session_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/memory"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/session/sessiontest"
	"github.com/berth-dev/berth/internal/tool"
)

const notes = "/mnt/memory/notes"

// inMemory runs a test with a session that has the store "notes", whose agent
// does these turns. A bash call with "write FILE TEXT", "rm FILE" or "cat FILE"
// works on the store's folder.
func inMemory(t *testing.T, turns turns, f func(h *house, store *sessiontest.Store)) {
	t.Helper()
	root := t.TempDir()
	inHouse(t, turns, func(h *house) {
		h.fake.Share(root)
		h.claude.SetInfo(func(i *session.Info) {
			i.Memories = []session.Memory{{Store: "memstore_1", Name: "notes", MountPath: notes}}
		})
		h.fake.Tool(func(_ context.Context, c tool.Call) tool.Result {
			var in struct{ Command string }
			_ = json.Unmarshal(c.Input, &in)
			words := append(strings.Fields(in.Command), "", "", "")
			name := filepath.Join(h.folder(), words[1])
			switch words[0] {
			case "write":
				if err := os.WriteFile(name, []byte(words[2]), 0o600); err != nil {
					return tool.Error(err.Error())
				}
			case "rm":
				_ = os.Remove(name)
			case "cat":
				b, err := os.ReadFile(name)
				if err != nil {
					return tool.Error("there is no " + words[1])
				}
				return tool.Text(string(b))
			}
			return tool.Text("done")
		})
		f(h, h.claude.Store("memstore_1"))
	})
}

func (h *house) folder() string { return h.fake.Shared(sandbox.ID(sesn), notes) }

func (h *house) stored(t *testing.T, store *sessiontest.Store, want map[string]string) {
	t.Helper()
	if diff := cmp.Diff(want, store.Contents()); diff != "" {
		t.Errorf("the store (-want +got):\n%s", diff)
	}
}

func (h *house) givenBack() bool { return len(h.claude.Stops()) > 0 && h.phase() != session.Active }

func TestMemoryIsThereBeforeTheFirstCallAndKeptBeforeTheWorkIsGivenBack(t *testing.T) {
	inMemory(t, turns{bash("cat a", "write b mine", "write a new")}, func(h *house, store *sessiontest.Store) {
		store.Put("/a", "remembered")
		h.until("the work is given back", h.givenBack)
		h.answered()
		if got := h.text(1); !strings.Contains(got, "remembered") {
			t.Errorf("the first call read %s", got)
		}
		h.stored(h.t, store, map[string]string{"/a": "new", "/b": "mine"})
		if s := h.fake.Creates()[0].Shares; len(s) != 1 || s[0] != (sandbox.Share{Path: notes}) {
			t.Errorf("shares = %+v", s)
		}
		if !slices.Contains(h.records.Events(sesn), event.MemorySynced) {
			t.Errorf("events %v", h.records.Events(sesn))
		}
	})
}

func TestMemoryIsSynchronizedWhileTheSessionWorks(t *testing.T) {
	inMemory(t, turns{bash("write a 1"), bash("sleep"), bash("cat b")}, func(h *house, store *sessiontest.Store) {
		h.until("the first call is answered", func() bool { return len(h.claude.Posts()) >= 1 })
		store.Put("/b", "theirs")
		h.until("it is at the platform", func() bool { return store.Contents()["/a"] == "1" })
		h.until("the work is given back", h.givenBack)
		if n := h.claude.Count("memory.list"); n > 6 {
			t.Errorf("%d lists for three calls", n)
		}
		h.stored(h.t, store, map[string]string{"/a": "1", "/b": "theirs"})
	})
}

func TestALaterWorkItemSeesWhatOthersWrote(t *testing.T) {
	for _, asleep := range []bool{false, true} {
		inMemory(t, turns{bash("write a 1")}, func(h *house, store *sessiontest.Store) {
			h.until("the work is given back", h.givenBack)
			if asleep {
				h.until("the sandbox sleeps", func() bool { return h.phase() == session.Parked })
			}
			store.Put("/a", "theirs")
			store.Put("/b", "also theirs")
			h.claude.Do(func(l *sessiontest.Log) { bash("cat a", "cat b")(l); l.Idle() })
			h.until("the next turn is over", func() bool { return h.claude.Done() && len(h.claude.Stops()) == 2 })
			if got := h.text(2) + h.text(3); !strings.Contains(got, "theirs") || !strings.Contains(got, "also theirs") {
				t.Errorf("read %s", got)
			}
			if n := len(h.fake.Creates()); (n == 2) != asleep {
				t.Errorf("%d sandboxes were made; asleep: %t", n, asleep)
			}
		})
	}
}

func TestAMemoryStoreThatCannotBeHadIsAnHonestError(t *testing.T) {
	for name, c := range map[string]struct {
		set  func(h *house)
		says string
	}{
		"no token":   {func(h *house) { h.claude.NoToken(true) }, "denies"},
		"bad path":   {func(h *house) { h.mounted("/etc") }, "/etc"},
		"up and out": {func(h *house) { h.mounted("/mnt/memory/../../etc") }, "clean path"},
		"nested": {func(h *house) {
			h.claude.SetInfo(func(i *session.Info) {
				i.Memories = append(i.Memories, session.Memory{Store: "memstore_2", MountPath: notes + "/deeper"})
			})
		}, "lie in each other"},
		"nine of them": {func(h *house) {
			h.claude.SetInfo(func(i *session.Info) { i.Memories = make([]session.Memory, 9) })
		}, "more than 8"},
		"no shares": {func(h *house) { h.fake.Shareless() }, "cannot show"},
		"not reachable": {func(h *house) {
			h.claude.Decide(func(r sessiontest.Request) (sessiontest.Fate, error) {
				if strings.HasPrefix(r.Kind, "memory.") {
					return sessiontest.Lost, nil
				}
				return sessiontest.Arrives, nil
			})
		}, "could not be brought up to date"},
	} {
		t.Run(name, func(t *testing.T) {
			inMemory(t, turns{bash("cat a")}, func(h *house, store *sessiontest.Store) {
				c.set(h)
				h.until("the call is answered", h.claude.Done)
				if !h.use(1).IsError || !strings.Contains(h.text(1), c.says) || h.fake.Runs(h.use(1).ID) > 0 {
					t.Errorf("result = %s", h.text(1))
				}
				h.until("the work is given back", h.givenBack)
				if !slices.Contains(h.records.Events(sesn), event.MemoryFailed) {
					t.Errorf("events %v", h.records.Events(sesn))
				}
			})
		})
	}
}

func (h *house) mounted(at string) {
	h.claude.SetInfo(func(i *session.Info) { i.Memories[0].MountPath = at })
}

func TestAStoreWithoutAMountPathIsInTheWorkspace(t *testing.T) {
	inMemory(t, turns{bash("true")}, func(h *house, store *sessiontest.Store) {
		h.claude.SetInfo(func(i *session.Info) {
			i.Memories = []session.Memory{{Store: "memstore_1", Name: "Team notes", ReadOnly: true}, {Store: "memstore_2", Name: "a/b"}}
		})
		h.until("the call is answered", h.claude.Done)
		want := []sandbox.Share{{Path: "/workspace/memory/Team notes", ReadOnly: true}, {Path: "/workspace/memory/memstore_2"}}
		if diff := cmp.Diff(want, h.fake.Creates()[0].Shares); diff != "" {
			t.Errorf("shares (-want +got):\n%s", diff)
		}
	})
}

func TestNothingIsSentToAStoreAfterALostLease(t *testing.T) {
	inMemory(t, turns{bash("write a mine")}, func(h *house, store *sessiontest.Store) {
		down := true
		h.claude.Decide(func(r sessiontest.Request) (sessiontest.Fate, error) {
			if down && r.Kind == "memory.create" {
				return sessiontest.Lost, nil
			}
			return sessiontest.Arrives, nil
		})
		h.poll()
		h.pass(time.Second)
		if !h.claude.Done() {
			t.Fatal("the call is not answered")
		}
		h.claude.Steal("work_sesn_1_1")
		h.pass(sessiontest.TTL + time.Second)
		if w := h.records.Work("work_sesn_1_1"); w.State != session.WorkLost {
			t.Fatalf("the work is %s", w.State)
		}
		down = false
		before := h.claude.Count("memory.create") + h.claude.Count("memory.list")
		h.pass(5 * time.Minute)
		if n := h.claude.Count("memory.create") + h.claude.Count("memory.list"); n != before || len(store.Contents()) > 0 {
			t.Errorf("%d requests after the lease was lost; the store has %v", n-before, store.Contents())
		}
	})
}

func TestAnEditThatWasNotSentIsSentByTheNextProcess(t *testing.T) {
	inMemory(t, turns{bash("write a mine")}, func(h *house, store *sessiontest.Store) {
		down := true
		h.claude.Decide(func(r sessiontest.Request) (sessiontest.Fate, error) {
			if down && r.Kind == "memory.create" {
				return sessiontest.Lost, nil
			}
			return sessiontest.Arrives, nil
		})
		h.until("the call is answered", h.claude.Done)
		h.reopen(func() { down = false })
		h.until("the work is given back", h.givenBack)
		h.stored(h.t, store, map[string]string{"/a": "mine"})
	})
}

func TestAnEditThatWasNotSentIsSentUnderTheNextWorkItem(t *testing.T) {
	inMemory(t, turns{bash("write a mine")}, func(h *house, store *sessiontest.Store) {
		down := true
		h.claude.Decide(func(r sessiontest.Request) (sessiontest.Fate, error) {
			if down && r.Kind == "memory.create" {
				return sessiontest.Lost, nil
			}
			return sessiontest.Arrives, nil
		})
		h.until("the sandbox sleeps", func() bool { return h.phase() == session.Parked })
		if !slices.Contains(h.records.Events(sesn), event.MemoryFailed) {
			t.Errorf("nobody was told: %v", h.records.Events(sesn))
		}
		down = false
		store.Put("/b", "theirs")
		h.claude.Do(func(l *sessiontest.Log) { bash("cat b")(l); l.Idle() })
		h.until("the next turn is over", func() bool { return h.claude.Done() && len(h.claude.Stops()) == 2 })
		h.stored(h.t, store, map[string]string{"/a": "mine", "/b": "theirs"})
	})
}

func TestASandboxThatAPersonStartedIsReplacedByOneWithMemory(t *testing.T) {
	inMemory(t, turns{bash("cat a")}, func(h *house, store *sessiontest.Store) {
		store.Put("/a", "remembered")
		h.until("the sandbox sleeps", func() bool { return h.claude.Done() && h.phase() == session.Parked })
		h.reopen(func() {}) // the next process does not know the session's stores
		if _, err := h.keeper.Open(h.t.Context(), sesn); err != nil {
			t.Fatal(err)
		}
		h.claude.Do(func(l *sessiontest.Log) { bash("cat a")(l); l.Idle() })
		h.until("the call is answered", h.claude.Done)
		if got := h.text(2); !strings.Contains(got, "remembered") {
			t.Errorf("read %s", got)
		}
		if n := len(h.fake.Creates()); n != 3 {
			t.Errorf("%d sandboxes were made", n)
		}
	})
}

func TestAWarmSandboxGoesOnWithItsMemoryWhileThePlatformHasNone(t *testing.T) {
	inMemory(t, turns{bash("write a 1")}, func(h *house, store *sessiontest.Store) {
		h.until("the work is given back", h.givenBack)
		down := true
		h.claude.Decide(func(r sessiontest.Request) (sessiontest.Fate, error) {
			if down && strings.HasPrefix(r.Kind, "memory.") {
				return sessiontest.Lost, nil
			}
			return sessiontest.Arrives, nil
		})
		h.claude.Do(func(l *sessiontest.Log) { bash("cat a", "write b 2")(l); l.Idle() })
		h.until("the next turn is over", h.claude.Done)
		if got := h.text(2); h.use(2).IsError || !strings.Contains(got, "1") || len(h.fake.Creates()) != 1 {
			t.Errorf("read %s; %d sandboxes", got, len(h.fake.Creates()))
		}
		down = false
		h.until("the work is given back", func() bool { return len(h.claude.Stops()) == 2 })
		h.stored(h.t, store, map[string]string{"/a": "1", "/b": "2"})
	})
}

func TestAnAgentThatBreaksItsFolderCanMendIt(t *testing.T) {
	inMemory(t, turns{bash("rm "+memory.Marker, "write a mine")}, func(h *house, store *sessiontest.Store) {
		store.Put("/a", "theirs")
		h.until("the sandbox sleeps", func() bool { return h.phase() == session.Parked })
		h.stored(h.t, store, map[string]string{"/a": "theirs"})
		if !slices.Contains(h.records.Events(sesn), event.MemoryFailed) {
			t.Errorf("nobody was told: %v", h.records.Events(sesn))
		}
		h.claude.Do(func(l *sessiontest.Log) { bash("rm a")(l); l.Idle() })
		h.until("the next turn is over", func() bool { return h.claude.Done() && len(h.claude.Stops()) == 2 })
		h.claude.Do(func(l *sessiontest.Log) { bash("cat a")(l); l.Idle() })
		h.until("the last turn is over", h.claude.Done)
		if got := h.text(4); h.use(3).IsError || !strings.Contains(got, "theirs") {
			t.Errorf("read %s", got)
		}
	})
}

func TestTheRecordOfMemoriesGoesWithTheSession(t *testing.T) {
	inMemory(t, turns{bash("write a 1")}, func(h *house, store *sessiontest.Store) {
		h.until("the work is given back", h.givenBack)
		if known, ready, _ := h.records.LoadMemory(h.t.Context(), sesn, "memstore_1"); len(known) != 1 || !ready {
			t.Errorf("on record: %v, ready %t", known, ready)
		}
		if err := h.keeper.End(h.t.Context(), sesn, "deleted"); err != nil {
			t.Fatal(err)
		}
		h.until("it is over", func() bool { return h.phase() == session.Over })
		if known, ready, _ := h.records.LoadMemory(h.t.Context(), sesn, "memstore_1"); len(known) > 0 || ready {
			t.Errorf("left on record: %v, ready %t", known, ready)
		}
		if _, err := os.Lstat(h.folder()); err == nil {
			t.Error("its folder is left")
		}
	})
}
