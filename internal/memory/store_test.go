package memory_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/memory"
)

// inWorld opens a store with these memories and runs f in a bubble.
func inWorld(t *testing.T, readOnly bool, memories map[string]string, f func(t *testing.T, w *world, s *memory.Store)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		for path, content := range memories {
			w.put(path, content)
		}
		s := w.process(readOnly)
		if err := s.Open(t.Context()); err != nil {
			t.Fatal(err)
		}
		f(t, w, s)
	})
}

// holds fails unless both sides hold this.
func (w *world) holds(t *testing.T, platform, folder map[string]string) {
	t.Helper()
	if diff := cmp.Diff(platform, w.contents()); diff != "" {
		t.Errorf("platform (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(folder, w.files); diff != "" {
		t.Errorf("folder (-want +got):\n%s", diff)
	}
}

func (w *world) says(t *testing.T, text string) {
	t.Helper()
	if !strings.Contains(strings.Join(w.warnings(), "\n"), text) {
		t.Errorf("warnings are %q, without %q", w.warnings(), text)
	}
}

func synced(t *testing.T, s *memory.Store) {
	t.Helper()
	if err := s.Sync(t.Context()); err != nil {
		t.Error(err)
	}
}

type contents = map[string]string

func TestChangesTravelBothWaysWithoutMovingWhatIsEqual(t *testing.T) {
	inWorld(t, false, contents{"/a": "1", "/b": "2", "/c": "3"}, func(t *testing.T, w *world, s *memory.Store) {
		w.holds(t, contents{"/a": "1", "/b": "2", "/c": "3"}, contents{"/a": "1", "/b": "2", "/c": "3"})
		if w.marker != "version 1\nmemstore_1" {
			t.Errorf("marker = %q", w.marker)
		}
		w.files["/a"], w.files["/new"] = "mine", "also mine"
		w.put("/b", "theirs")
		w.put("/c", "")
		synced(t, s)
		want := contents{"/a": "mine", "/b": "theirs", "/new": "also mine"}
		w.holds(t, want, want)
		before := w.calls["fetch"]
		synced(t, s)
		if w.calls["fetch"] != before || before != 1 {
			t.Errorf("fetches: %d, then %d; want only the one that changed", before, w.calls["fetch"])
		}
	})
}

func TestThePlatformWinsAConflictAndSaysSo(t *testing.T) {
	inWorld(t, false, contents{"/a": "1"}, func(t *testing.T, w *world, s *memory.Store) {
		w.files["/a"] = "mine"
		w.put("/a", "theirs")
		synced(t, s)
		w.holds(t, contents{"/a": "theirs"}, contents{"/a": "theirs"})
		w.says(t, "/a: it was changed both here and at the platform")
		if r := w.reports[len(w.reports)-1]; len(r.Warnings) != 1 || !r.Warnings[0].Lost {
			t.Errorf("reported %+v", r)
		}
	})
}

func TestAConflictFoundByThePlatformIsTheSame(t *testing.T) {
	inWorld(t, false, contents{"/a": "1"}, func(t *testing.T, w *world, s *memory.Store) {
		w.files["/a"] = "mine"
		raced := false
		w.fate = func(op string) fate {
			if op == "update" && !raced {
				raced = true
				w.put("/a", "theirs")
			}
			return arrives
		}
		synced(t, s)
		synced(t, s)
		w.holds(t, contents{"/a": "theirs"}, contents{"/a": "theirs"})
	})
}

func TestADeletionIsSentAfterASecondLook(t *testing.T) {
	inWorld(t, false, contents{"/a": "1", "/b": "2", "/c": "3"}, func(t *testing.T, w *world, s *memory.Store) {
		delete(w.files, "/a")
		synced(t, s)
		w.now = w.now.Add(29 * time.Second)
		synced(t, s)
		if w.calls["delete"] != 0 {
			t.Error("it was deleted within 30 seconds")
		}
		w.now = w.now.Add(2 * time.Second)
		synced(t, s)
		w.holds(t, contents{"/b": "2", "/c": "3"}, contents{"/b": "2", "/c": "3"})

		delete(w.files, "/b") // and it comes back
		synced(t, s)
		w.files["/b"] = "2"
		synced(t, s)
		w.now = w.now.Add(time.Minute)
		delete(w.files, "/b")
		synced(t, s)
		if _, ok := w.store["/b"]; !ok {
			t.Error("a file that was missing twice, but not all the time, was deleted")
		}
		if err := s.Finish(t.Context()); err != nil { // which waits for nothing
			t.Error(err)
		}
		w.holds(t, contents{"/c": "3"}, contents{"/c": "3"})
	})
}

func TestDeletionsAreLimitedInOnePass(t *testing.T) {
	many := contents{}
	for i := range 40 {
		many[fmt.Sprintf("/%02d", i)] = "x"
	}
	inWorld(t, false, many, func(t *testing.T, w *world, s *memory.Store) {
		for i := range 30 {
			delete(w.files, fmt.Sprintf("/%02d", i))
		}
		synced(t, s)
		w.now = w.now.Add(time.Minute)
		synced(t, s)
		if n := w.calls["delete"]; n != 10 {
			t.Errorf("%d deletions in one pass, want a quarter of 40", n)
		}
		if err := s.Finish(t.Context()); err != nil {
			t.Error(err)
		}
		if len(w.store) != 10 {
			t.Errorf("%d memories are left, want 10", len(w.store))
		}
	})
}

func TestAWipedFolderIsFilledAgain(t *testing.T) {
	for _, marker := range []bool{true, false} {
		inWorld(t, false, contents{"/a": "1", "/b": "2"}, func(t *testing.T, w *world, s *memory.Store) {
			clear(w.files)
			if !marker {
				w.marker = ""
			}
			if err := s.Finish(t.Context()); err != nil {
				t.Error(err)
			}
			w.holds(t, contents{"/a": "1", "/b": "2"}, contents{"/a": "1", "/b": "2"})
			if w.marker == "" || w.calls["delete"] > 0 {
				t.Errorf("marker %q, %d deletions", w.marker, w.calls["delete"])
			}
		})
	}
}

func TestAFolderWithoutItsMarkerIsLeftAlone(t *testing.T) {
	for _, marker := range []string{"", "version 1\nmemstore_2", "nonsense"} {
		inWorld(t, false, contents{"/a": "1"}, func(t *testing.T, w *world, s *memory.Store) {
			w.marker, w.files["/a"] = marker, "mine"
			w.put("/b", "theirs")
			for _, try := range []func(context.Context) error{s.Sync, s.Finish, s.Flush, s.Open} {
				if err := try(t.Context()); !errors.Is(err, memory.ErrFolder) {
					t.Errorf("with the marker %q: %v, want ErrFolder", marker, err)
				}
			}
			w.holds(t, contents{"/a": "1", "/b": "theirs"}, contents{"/a": "mine"})
		})
	}
}

func TestAFileThatIsDeletedThereAndEditedHereIsCreatedAgain(t *testing.T) {
	inWorld(t, false, contents{"/a": "1", "/b": "2"}, func(t *testing.T, w *world, s *memory.Store) {
		w.put("/a", "")
		w.files["/a"] = "mine"
		synced(t, s)
		w.holds(t, contents{"/a": "mine", "/b": "2"}, contents{"/a": "mine", "/b": "2"})
		delete(w.files, "/b")
		w.put("/b", "theirs")
		synced(t, s)
		w.holds(t, contents{"/a": "mine", "/b": "theirs"}, contents{"/a": "mine", "/b": "theirs"})
		w.files["/a"] = "again" // and one that is deleted after the listing
		w.fate = func(op string) fate {
			if op == "update" {
				w.put("/a", "")
			}
			return arrives
		}
		synced(t, s)
		w.holds(t, contents{"/a": "again", "/b": "theirs"}, contents{"/a": "again", "/b": "theirs"})
	})
}

func TestWhatThePlatformRefusesIsNotSentAgainUntilItChanges(t *testing.T) {
	inWorld(t, false, nil, func(t *testing.T, w *world, s *memory.Store) {
		w.fate = func(op string) fate {
			if op == "create" {
				return invalid
			}
			return arrives
		}
		w.files["/a"] = "bad"
		for range 3 {
			synced(t, s)
		}
		if w.calls["create"] != 1 || len(w.warnings()) != 1 {
			t.Errorf("sent %d times, warned %q", w.calls["create"], w.warnings())
		}
		w.fate = nil
		w.files["/a"] = "good"
		synced(t, s)
		w.holds(t, contents{"/a": "good"}, contents{"/a": "good"})
	})
}

func TestWhatCannotBeAMemoryIsNeitherSentNorTakenForDeleted(t *testing.T) {
	inWorld(t, false, contents{"/a": "1", "/b": "2", "/c": "3"}, func(t *testing.T, w *world, s *memory.Store) {
		delete(w.files, "/a")
		w.odd["/a"] = "it is a pipe"
		w.now = w.now.Add(time.Hour)
		if err := s.Finish(t.Context()); err != nil {
			t.Error(err)
		}
		w.says(t, "/a: it is not kept: it is a pipe")
		if _, ok := w.store["/a"]; !ok {
			t.Error("it was deleted at the platform")
		}
		w.put("/a", "theirs")
		synced(t, s)
		if w.files["/a"] != "theirs" {
			t.Errorf("/a is %q", w.files["/a"])
		}
	})
}

func TestWhoeverCannotSeeEverythingDeletesNothing(t *testing.T) {
	inWorld(t, false, contents{"/a": "1", "/b": "2", "/c": "3"}, func(t *testing.T, w *world, s *memory.Store) {
		delete(w.files, "/a")
		w.partial, w.files["/b"] = true, "mine"
		if err := s.Finish(t.Context()); err != nil {
			t.Error(err)
		}
		w.holds(t, contents{"/a": "1", "/b": "mine", "/c": "3"}, contents{"/b": "mine", "/c": "3"})
	})
}

func TestAReadOnlyStoreFollowsThePlatformOnly(t *testing.T) {
	inWorld(t, true, contents{"/a": "1", "/b": "2"}, func(t *testing.T, w *world, s *memory.Store) {
		w.files["/a"], w.files["/x"] = "mine", "mine"
		delete(w.files, "/b")
		if err := errors.Join(s.Finish(t.Context()), s.Flush(t.Context())); err != nil {
			t.Error(err)
		}
		w.holds(t, contents{"/a": "1", "/b": "2"}, contents{"/a": "1", "/b": "2"})
		if n := w.calls["create"] + w.calls["update"] + w.calls["delete"]; n > 0 {
			t.Errorf("%d changes were sent", n)
		}
	})
}

func TestFlushSendsAndDoesNothingElse(t *testing.T) {
	inWorld(t, false, contents{"/a": "1", "/b": "2", "/c": "3"}, func(t *testing.T, w *world, s *memory.Store) {
		before := w.calls["list"]
		if err := s.Flush(t.Context()); err != nil || w.calls["list"] != before {
			t.Errorf("Flush with nothing to send: %v, %d lists", err, w.calls["list"]-before)
		}
		w.files["/a"], w.files["/new"] = "mine", "mine"
		delete(w.files, "/b")
		w.put("/c", "theirs")
		if err := s.Flush(t.Context()); err != nil {
			t.Error(err)
		}
		w.holds(t, contents{"/a": "mine", "/b": "2", "/c": "theirs", "/new": "mine"}, contents{"/a": "mine", "/c": "3", "/new": "mine"})
		if p := s.Pending(t.Context()); len(p) > 0 {
			t.Errorf("pending: %v", p)
		}
	})
}

func TestALostAnswerIsLookedIntoBeforeAnythingIsSentAgain(t *testing.T) {
	inWorld(t, false, contents{"/a": "1", "/d": "4"}, func(t *testing.T, w *world, s *memory.Store) {
		once := map[string]bool{}
		w.fate = func(op string) fate {
			if op == "list" || op == "fetch" || once[op] {
				return arrives
			}
			once[op] = true
			return unheard
		}
		w.files["/a"], w.files["/b"] = "mine", "mine"
		_ = s.Sync(t.Context())
		w.files["/a"], w.files["/b"] = "newer", "newer" // edited before it is known that they arrived
		delete(w.files, "/d")
		if err := s.Finish(t.Context()); err != nil {
			t.Error(err)
		}
		w.holds(t, contents{"/a": "newer", "/b": "newer"}, contents{"/a": "newer", "/b": "newer"})
		if len(w.warnings()) > 0 {
			t.Errorf("warnings %q", w.warnings())
		}
	})
}

func TestAnEditOfAnEarlierProcessIsSent(t *testing.T) {
	inWorld(t, false, contents{"/a": "1", "/b": "2"}, func(t *testing.T, w *world, _ *memory.Store) {
		w.files["/a"], w.files["/new"] = "mine", "mine"
		w.put("/b", "theirs")
		s := w.process(false)
		if !s.Ready(t.Context()) {
			t.Error("the store is not ready, although it was downloaded")
		}
		if err := s.Open(t.Context()); err != nil {
			t.Error(err)
		}
		want := contents{"/a": "mine", "/b": "theirs", "/new": "mine"}
		w.holds(t, want, want)
	})
}

func TestNothingIsSentThatIsNotOnRecord(t *testing.T) {
	inWorld(t, false, contents{"/a": "1"}, func(t *testing.T, w *world, s *memory.Store) {
		w.files["/a"], w.broken = "mine", errors.New("the disk is full")
		if err := s.Sync(t.Context()); !errors.Is(err, w.broken) {
			t.Errorf("Sync = %v", err)
		}
		w.holds(t, contents{"/a": "1"}, contents{"/a": "mine"})
		w.broken = nil
		synced(t, s)
		w.holds(t, contents{"/a": "mine"}, contents{"/a": "mine"})
	})
}

func TestOpenTriesAgainUntilItsBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, recovers := range []bool{true, false} {
			w, asked := newWorld(), 0
			w.put("/a", "1")
			w.fate = func(string) fate {
				if asked++; recovers && asked > 5 {
					return arrives
				}
				return lost
			}
			s := w.process(false)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			err := s.Open(ctx)
			cancel()
			if (err == nil) != recovers || s.Ready(t.Context()) != recovers || asked < 5 {
				t.Errorf("Open = %v after %d requests; the platform recovers: %t", err, asked, recovers)
			}
		}
	})
}

func TestOverlappingPathsTakeTurns(t *testing.T) {
	inWorld(t, false, contents{"/a/b": "1", "/keep": "k"}, func(t *testing.T, w *world, s *memory.Store) {
		delete(w.files, "/a/b")
		w.files["/a"] = "mine"
		synced(t, s)
		if w.calls["create"] > 0 {
			t.Error("it was sent although it cannot be taken")
		}
		if err := s.Finish(t.Context()); err != nil {
			t.Error(err)
		}
		w.holds(t, contents{"/a": "mine", "/keep": "k"}, contents{"/a": "mine", "/keep": "k"})
	})
}

func TestNamesThatNoFileCanHaveStayAtThePlatform(t *testing.T) {
	inWorld(t, false, contents{"/../x": "1", "/" + memory.Marker: "2", "/a\x00": "3", "/" + memory.TempPrefix + "1": "4", "/ok": "5"}, func(t *testing.T, w *world, s *memory.Store) {
		if err := s.Finish(t.Context()); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(contents{"/ok": "5"}, w.files); diff != "" {
			t.Errorf("folder (-want +got):\n%s", diff)
		}
		if len(w.store) != 5 {
			t.Errorf("%d memories are left, want all 5", len(w.store))
		}
	})
}

func TestPathRules(t *testing.T) {
	for path, ok := range map[string]bool{
		"/a": true, "/a/b.md": true, "/ü": true, "/u\u0308": false, "a": false, "/": false, "": false, "/a/": false, "/a//b": false,
		"/a/../b": false, "/./a": false, "/a\x00b": false, "/a\u200bb": false, "/\xff": false,
		strings.Repeat("/a", 20): true, strings.Repeat("/a", 21): false, "/" + strings.Repeat("a", 256): false,
		"/" + memory.Marker: false, "/x/" + memory.Marker: true, "/x/" + memory.TempPrefix + "1": false,
	} {
		if err := memory.CheckPath(path); (err == nil) != ok {
			t.Errorf("path %q: %v, want ok %t", path, err, ok)
		}
	}
}

func TestDeniedAccessEndsAPassAtOnce(t *testing.T) {
	inWorld(t, false, nil, func(t *testing.T, w *world, s *memory.Store) {
		for i := range 100 {
			w.files[fmt.Sprint("/", i)] = "x"
		}
		w.fate = func(op string) fate {
			if op == "create" {
				return denied
			}
			return arrives
		}
		if err := s.Finish(t.Context()); !errors.Is(err, memory.ErrDenied) {
			t.Errorf("Finish = %v", err)
		}
		if n := w.calls["create"]; n > 64 {
			t.Errorf("%d requests after the first was denied", n)
		}
		if p := s.Pending(t.Context()); len(p) != 100 || !slices.IsSorted(p) {
			t.Errorf("%d files are pending", len(p))
		}
	})
}
