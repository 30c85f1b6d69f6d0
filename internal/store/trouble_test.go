package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/store/storetest"
)

// fill stores so many sessions with a call and an event each.
func fill(t *testing.T, s *Store, from, n int) {
	t.Helper()
	for i := from; i < from+n; i++ {
		rec, call := storetest.Record(fmt.Sprintf("sesn_%03d", i)), storetest.Call("c1", 1, session.Finished)
		call.Content = []byte(`[{"type":"text","text":"` + strings.Repeat("x", 2000) + `"}]`)
		err := s.Commit(t.Context(), session.Change{
			At: at, Session: &rec, CallsOf: rec.ID, Calls: []*session.Call{&call}, Events: []event.Event{event.New(at, rec.ID, event.Warning, "hello")},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// killed is a data directory as kill -9 leaves it: what is in the files while
// the store is open.
func killed(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(filepath.Join(dir, fileName+suffix))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, fileName+suffix), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// spoil overwrites the middle of the root page of a table or an index.
func spoil(t *testing.T, s *Store, dir, name string) {
	t.Helper()
	var root, size int64
	if err := s.read.QueryRow(`SELECT rootpage FROM sqlite_schema WHERE name = ?`, name).Scan(&root); err != nil {
		t.Fatal(err)
	}
	if err := s.read.QueryRow(`PRAGMA page_size`).Scan(&size); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, fileName), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(strings.Repeat("garbage!", 64)), (root-1)*size); err != nil {
		t.Fatal(err)
	}
}

// isDamage fails unless an error says that the database is damaged and what to
// do.
func isDamage(t *testing.T, err error) {
	t.Helper()
	if fault.CodeOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "is damaged") || !strings.Contains(err.Error(), "docs/recovery.md") {
		t.Errorf("got %v, want that the database is damaged and what to do", err)
	}
}

func TestDamagedPageIsFoundAfterAnUncleanEnd(t *testing.T) {
	for _, name := range []string{"calls", "calls_by_seq", "sessions", "events_by_session"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir)
			fill(t, s, 0, 50)
			s.Close()
			s = openStore(t, dir)
			if err := s.Ping(t.Context()); err != nil { // the log is not empty, and has none of these pages
				t.Fatal(err)
			}
			left := killed(t, dir)
			spoil(t, s, left, name)
			again, err := Open(t.Context(), left)
			if err == nil {
				again.Close()
			}
			isDamage(t, err)
			if _, err := Check(t.Context(), left); err == nil {
				t.Error("Check finds nothing")
			} else {
				isDamage(t, err)
			}
			if lock, err := Lock(left); err != nil {
				t.Errorf("the directory stays locked: %v", err)
			} else {
				lock.Close()
			}
		})
	}
}

func TestPageDamagedWhileTheStoreIsOpenIsNamedAndOthersAreServed(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	fill(t, s, 0, 50)
	if err := s.Copy(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = openStore(t, dir)
	spoil(t, s, dir, "calls")
	rec, call := storetest.Record("sesn_000"), storetest.Call("c1", 1, session.Posted)
	err := s.Commit(t.Context(), session.Change{At: at, Session: &rec, CallsOf: rec.ID, Calls: []*session.Call{&call}})
	isDamage(t, err)
	if !strings.Contains(err.Error(), ".copy") {
		t.Errorf("the copy is not named: %v", err)
	}
	if _, _, err := s.LoadSession(t.Context(), "sesn_001"); err == nil {
		t.Error("calls were read from a damaged page")
	}
	if err := s.Commit(t.Context(), session.Change{At: at, Events: []event.Event{event.New(at, "sesn_001", event.Warning, nil)}}); err != nil {
		t.Errorf("what is whole is not served: %v", err)
	}
	if err := s.Copy(t.Context(), 0); err == nil {
		t.Error("a damaged database was copied over the good copy")
	}
	s.Close()

	// As docs/recovery.md says.
	for _, suffix := range []string{"", "-wal", "-shm"} {
		_ = os.Remove(filepath.Join(dir, fileName+suffix))
	}
	if err := os.Rename(filepath.Join(dir, fileName+copySuffix), filepath.Join(dir, fileName)); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	if _, calls, err := s.LoadSession(t.Context(), "sesn_049"); err != nil || len(calls) != 1 {
		t.Errorf("after the recovery: %v, %v", calls, err)
	}
	if text, err := Check(t.Context(), dir); err != nil || !strings.HasPrefix(text, "whole") {
		t.Errorf("Check = %q, %v", text, err)
	}
}

// frames returns where the log's frames begin that end a transaction, and the
// size of a frame.
func frames(log []byte) (ends []int, size int) {
	size = walFrame + int(binary.BigEndian.Uint32(log[8:]))
	for at := walHeader; at+size <= len(log); at += size {
		if binary.BigEndian.Uint32(log[at+4:]) != 0 {
			ends = append(ends, at)
		}
	}
	return ends, size
}

func TestDamageInTheMiddleOfTheLogIsNotTakenForItsEnd(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	fill(t, s, 0, 20)
	left := killed(t, dir)
	path := filepath.Join(left, fileName+"-wal")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	ends, size := frames(whole)
	if len(ends) < 20 {
		t.Fatalf("the log has only %d transactions", len(ends))
	}
	write := func(log []byte) {
		t.Helper()
		for _, suffix := range []string{"", "-shm"} {
			_ = os.Remove(filepath.Join(left, fileName+suffix))
		}
		b, err := os.ReadFile(filepath.Join(dir, fileName))
		if err == nil {
			err = errors.Join(os.WriteFile(filepath.Join(left, fileName), b, 0o600), os.WriteFile(path, log, 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	flipped := func(at int) []byte {
		log := append([]byte(nil), whole...)
		log[at] ^= 0x10
		return log
	}
	for name, log := range map[string][]byte{
		"a page in the middle":       flipped(ends[10] + walFrame + 100),
		"a frame's head":             flipped(ends[3] + 17),
		"the first page":             flipped(walHeader + walFrame + 5),
		"the checksum of the header": flipped(25),
		"the header":                 flipped(1),
	} {
		write(log)
		again, err := Open(t.Context(), left)
		if err == nil {
			again.Close()
			t.Errorf("%s: it was opened, and transactions are lost", name)
			continue
		}
		isDamage(t, err)
	}
	// What a kill or a power cut leaves is no damage: a transaction that was
	// not finished, or of which something in the middle is missing.
	last := ends[len(ends)-1]
	for name, log := range map[string][]byte{
		"as it was":            whole,
		"cut in the last page": whole[:last+size-100],
		"cut in a frame head":  whole[:last+7],
		"a gap in the last":    flipped(ends[len(ends)-2] + size + walFrame + 9),
		"empty":                {},
		"half a header":        whole[:walHeader/2],
	} {
		write(log)
		again, err := Open(t.Context(), left)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if name == "as it was" {
			if _, _, err := again.LoadSession(t.Context(), "sesn_019"); err != nil {
				t.Errorf("an acknowledged change is lost: %v", err)
			}
		} else if name != "empty" && name != "half a header" {
			if _, _, err := again.LoadSession(t.Context(), "sesn_018"); err != nil {
				t.Errorf("%s: more than the last transaction is lost: %v", name, err)
			}
		}
		again.Close()
	}
}

func TestReadOnlyDiskIsNamedAndPasses(t *testing.T) {
	s := openStore(t, t.TempDir())
	raw(t, s, `PRAGMA query_only = ON`)
	rec := storetest.Record("sesn_1")
	err := s.Commit(t.Context(), session.Change{At: at, Session: &rec})
	if fault.CodeOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("Commit = %v, want that the disk is read-only", err)
	}
	raw(t, s, `PRAGMA query_only = ON`) // the connection may be another one now
	if err := s.Ping(t.Context()); err == nil {
		t.Error("Ping says that all is well")
	}
	raw(t, s, `PRAGMA query_only = OFF`)
	if err := s.Commit(t.Context(), session.Change{At: at, Session: &rec}); err != nil {
		t.Errorf("Commit once it can be written = %v", err)
	}
}

func TestDatabaseHeldByAnotherProgramIsNamedAndPasses(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	raw(t, s, `PRAGMA busy_timeout = 50`)
	other, err := connect(filepath.Join(dir, fileName), "immediate", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	tx, err := other.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	rec := storetest.Record("sesn_1")
	err = s.Commit(t.Context(), session.Change{At: at, Session: &rec})
	if fault.CodeOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "another program holds the database") {
		t.Errorf("Commit = %v, want who is in the way", err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), session.Change{At: at, Session: &rec}); err != nil {
		t.Errorf("Commit once it is free = %v", err)
	}
}

func TestCopyIsMadeWhenTheLastOneIsOldAndIsForItsOwnerAlone(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	fill(t, s, 0, 1)
	if err := s.Copy(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(dir, fileName+copySuffix)
	first, err := os.Stat(at)
	if err != nil || first.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", first.Mode(), err)
	}
	if err := s.Copy(t.Context(), 1<<40); err != nil {
		t.Fatal(err)
	}
	if again, err := os.Stat(at); err != nil || !os.SameFile(first, again) {
		t.Errorf("a young copy was replaced, %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Copy(ended, 0); err == nil {
		t.Error("a copy that was cut short is a copy")
	}
	if again, err := os.Stat(at); err != nil || !os.SameFile(first, again) {
		t.Errorf("a copy that was cut short replaced a whole one, %v", err)
	}
}
