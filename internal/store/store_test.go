package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pressly/goose/v3"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/store/storetest"
)

func openStore(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), dir)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

var at = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) session.Records { return openStore(t, t.TempDir()) })
}

func TestDataOutliveTheProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "data")
	first := openStore(t, dir)
	rec, call := storetest.Record("sesn_1"), storetest.Call("c1", 1, session.Started)
	if err := first.Commit(t.Context(), session.Change{At: at, Session: &rec, CallsOf: rec.ID, Calls: []*session.Call{&call}}); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := openStore(t, dir)
	got, calls, err := second.LoadSession(t.Context(), "sesn_1")
	if err != nil || got.Title != rec.Title || len(calls) != 1 {
		t.Errorf("LoadSession = %+v, %v, %v", got, calls, err)
	}
	if second.Epoch() != first.Epoch()+1 {
		t.Errorf("epoch = %d after %d", second.Epoch(), first.Epoch())
	}
}

func TestDataAreForTheirOwnerAlone(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, dir)
	rec := storetest.Record("sesn_1")
	if err := s.Commit(t.Context(), session.Change{At: at, Session: &rec}); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) < 3 {
		t.Fatalf("files = %v, %v", files, err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v, %v", f.Name(), info.Mode(), err)
		}
	}
}

func TestDirectoryInUseIsRefusedWithItsHolder(t *testing.T) {
	dir := t.TempDir()
	openStore(t, dir)
	_, err := Open(t.Context(), dir)
	if fault.CodeOf(err) != fault.Conflict || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) || !strings.Contains(err.Error(), "BERTH_DATA_DIR") {
		t.Errorf("Open = %v, want a conflict that names the process and what to do", err)
	}
}

func TestADatabaseOfAnEarlierVersionIsBroughtUpToDate(t *testing.T) {
	dir := t.TempDir()
	db, err := connect(filepath.Join(dir, "berth.db"), "immediate", 1)
	if err != nil {
		t.Fatal(err)
	}
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		t.Fatal(err)
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, files)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.UpTo(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`INSERT INTO sessions (id, environment, phase, memo, waiting, created_at, updated_at) VALUES ('sesn_1', 'env_1', 'parked', '{}', '{}', 1, 1)`); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, dir)
	if rec, _, err := s.LoadSession(t.Context(), "sesn_1"); err != nil || rec.Phase != session.Parked {
		t.Errorf("the session is %+v, %v", rec, err)
	}
	if known, ready, err := s.LoadMemory(t.Context(), "sesn_1", "memstore_1"); err != nil || ready || len(known) > 0 {
		t.Errorf("memories: %v, %t, %v", known, ready, err)
	}
}

func TestDirectoryThatCannotBeMadeIsTheReadersToMend(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), filepath.Join(file, "data"))
	if fault.CodeOf(err) != fault.Invalid {
		t.Errorf("Open = %v, want invalid", err)
	}
}

// TestReplacedProcessWritesNothingMore: whoever opens the database next owns it,
// also where the lock does not hold (a copied lock file, a network disk).
func TestReplacedProcessWritesNothingMore(t *testing.T) {
	dir := t.TempDir()
	first := openStore(t, dir)
	if err := os.Remove(filepath.Join(dir, "lock")); err != nil {
		t.Fatal(err)
	}
	second := openStore(t, dir)
	rec := storetest.Record("sesn_1")
	if err := first.Commit(t.Context(), session.Change{At: at, Session: &rec}); !errors.Is(err, session.ErrFenced) {
		t.Errorf("Commit of the first = %v, want ErrFenced", err)
	}
	if _, err := first.AddWebhook(t.Context(), Webhook{ID: "w", Body: []byte{}}); !errors.Is(err, session.ErrFenced) {
		t.Errorf("AddWebhook of the first = %v, want ErrFenced", err)
	}
	if err := first.PruneWebhooks(t.Context(), at); !errors.Is(err, session.ErrFenced) {
		t.Errorf("PruneWebhooks of the first = %v, want ErrFenced", err)
	}
	if _, _, err := second.LoadSession(t.Context(), "sesn_1"); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("the first one's change is there: %v", err)
	}
	if err := second.Commit(t.Context(), session.Change{At: at, Session: &rec}); err != nil {
		t.Errorf("Commit of the second = %v", err)
	}
}

func TestChangeIsStoredWholeOrNotAtAll(t *testing.T) {
	s := openStore(t, t.TempDir())
	rec, work := storetest.Record("sesn_1"), session.Work{ID: "work_1", Session: "sesn_1", State: session.WorkHeld, ClaimedAt: at}
	one, two := storetest.Call("c1", 1, session.Started), storetest.Call("c2", 1, session.Started) // the same seq: the last statement fails
	change := session.Change{At: at, Session: &rec, Work: &work, CallsOf: rec.ID, Calls: []*session.Call{&one, &two}, Events: []event.Event{event.New(at, rec.ID, event.Warning, nil)}}
	err := s.Commit(t.Context(), change)
	if err == nil || !strings.Contains(err.Error(), "store call c2") {
		t.Fatalf("Commit = %v, want an error that names the call", err)
	}
	if _, _, err := s.LoadSession(t.Context(), "sesn_1"); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("the session was stored: %v", err)
	}
	if open, err := s.OpenWork(t.Context()); err != nil || len(open) > 0 {
		t.Errorf("the work was stored: %v, %v", open, err)
	}
	if n, err := s.LastEvent(t.Context()); err != nil || n != 0 {
		t.Errorf("the event was stored: %d, %v", n, err)
	}
	change.Calls = change.Calls[:1]
	if err := s.Commit(t.Context(), change); err != nil {
		t.Errorf("Commit after the failure = %v", err)
	}
}

func TestFullDiskIsAnErrorAndNotTheEnd(t *testing.T) {
	s := openStore(t, t.TempDir())
	var pages int
	if err := s.read.QueryRow(`PRAGMA page_count`).Scan(&pages); err != nil {
		t.Fatal(err)
	}
	raw(t, s, fmt.Sprintf(`PRAGMA max_page_count = %d`, pages+2))
	rec, call := storetest.Record("sesn_1"), storetest.Call("c1", 1, session.Finished)
	call.Content = make([]byte, 1<<20)
	change := session.Change{At: at, Session: &rec, CallsOf: rec.ID, Calls: []*session.Call{&call}}
	if err := s.Commit(t.Context(), change); err == nil || !strings.Contains(err.Error(), "full") {
		t.Fatalf("Commit = %v, want that the disk is full", err)
	}
	if err := s.Ping(t.Context()); err != nil {
		t.Errorf("Ping = %v", err)
	}
	raw(t, s, `PRAGMA max_page_count = 1000000`)
	if err := s.Commit(t.Context(), change); err != nil {
		t.Errorf("Commit with room again = %v", err)
	}
}

func TestEventsOfThePlatformAreStoredOnce(t *testing.T) {
	s := openStore(t, t.TempDir())
	mirrored := func(session, source string) event.Event {
		return event.Event{At: at, Session: session, Type: "claude.agent.message", Source: source, Data: json.RawMessage(`{}`)}
	}
	for range 2 {
		if err := s.Commit(t.Context(), session.Change{At: at, Events: []event.Event{
			mirrored("sesn_1", "sevt_1"), mirrored("sesn_2", "sevt_1"), mirrored("sesn_1", "sevt_2"), event.New(at, "sesn_1", event.Warning, nil),
		}}); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	all, err := s.Events(t.Context(), "", 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		got = append(got, fmt.Sprint(e.Session, " ", e.Type, " ", e.Source))
	}
	want := []string{
		"sesn_1 claude.agent.message sevt_1", "sesn_2 claude.agent.message sevt_1", "sesn_1 claude.agent.message sevt_2",
		"sesn_1 warning ", "sesn_1 warning ",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestEventsAreReadFromACursor(t *testing.T) {
	s := openStore(t, t.TempDir())
	for i := range 10 {
		if err := s.Commit(t.Context(), session.Change{At: at, Events: []event.Event{event.New(at, fmt.Sprint("sesn_", i%2), event.Warning, i)}}); err != nil {
			t.Fatal(err)
		}
	}
	var got []int64
	for cursor := int64(0); ; {
		page, err := s.Events(t.Context(), "sesn_1", cursor, 2)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		for _, e := range page {
			got = append(got, e.Seq)
			cursor = e.Seq
		}
	}
	if diff := cmp.Diff([]int64{2, 4, 6, 8, 10}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if last, err := s.LastEvent(t.Context()); err != nil || last != 10 {
		t.Errorf("LastEvent = %d, %v", last, err)
	}
}

func TestSessionsAreListedByTheirLastChange(t *testing.T) {
	s := openStore(t, t.TempDir())
	for i, id := range []string{"sesn_a", "sesn_b", "sesn_c", "sesn_d"} {
		rec := storetest.Record(id)
		rec.UpdatedAt = at.Add(time.Duration(i) * time.Hour)
		if err := s.Commit(t.Context(), session.Change{At: at, Session: &rec}); err != nil {
			t.Fatal(err)
		}
	}
	ids := func(before time.Time) (ids []string) {
		page, err := s.Sessions(t.Context(), before, 3)
		if err != nil {
			t.Fatal(err)
		}
		for _, rec := range page {
			ids = append(ids, rec.ID)
		}
		return ids
	}
	if diff := cmp.Diff([]string{"sesn_d", "sesn_c", "sesn_b"}, ids(time.Time{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"sesn_a"}, ids(at.Add(time.Hour))); diff != "" {
		t.Errorf("the next page (-want +got):\n%s", diff)
	}
}

func TestSecretsOfWorkAreNotHandedOut(t *testing.T) {
	s := openStore(t, t.TempDir())
	w := session.Work{ID: "work_1", Session: "sesn_1", State: session.WorkHeld, Secret: []byte("sealed"), ClaimedAt: at}
	if err := s.Commit(t.Context(), session.Change{At: at, Work: &w}); err != nil {
		t.Fatal(err)
	}
	got, err := s.Work(t.Context(), "sesn_1")
	if err != nil || len(got) != 1 || got[0].Secret != nil {
		t.Errorf("Work = %+v, %v", got, err)
	}
}

func TestWebhookIsFreshOnceHoweverManyArriveTogether(t *testing.T) {
	s := openStore(t, t.TempDir())
	var fresh atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			ok, err := s.AddWebhook(context.Background(), Webhook{ID: "whe_1", Type: "session.deleted", Session: "sesn_1", ReceivedAt: at, Body: []byte("{}")})
			if err != nil {
				t.Errorf("AddWebhook: %v", err)
			}
			if ok {
				fresh.Add(1)
			}
		})
	}
	wg.Wait()
	if fresh.Load() != 1 {
		t.Errorf("it was fresh %d times", fresh.Load())
	}
	if err := s.PruneWebhooks(t.Context(), at.Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if ok, err := s.AddWebhook(t.Context(), Webhook{ID: "whe_1", ReceivedAt: at, Body: []byte{}}); err != nil || !ok {
		t.Errorf("after it was forgotten: %v, %v", ok, err)
	}
}

// FuzzTimes: every time that a platform can send comes back as it was.
func FuzzTimes(f *testing.F) {
	f.Add(int64(0), int64(1))
	f.Add(at.Unix(), int64(123456789))
	f.Fuzz(func(t *testing.T, sec, nsec int64) {
		in := time.Unix(sec, nsec).UTC()
		if in.Year() < 1700 || in.Year() > 2200 {
			return // beyond what nanoseconds can count
		}
		if out := fromNanos(nanos(in)); !out.Equal(in) && in.UnixNano() != 0 {
			t.Fatalf("%v came back as %v", in, out)
		}
	})
}
