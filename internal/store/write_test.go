package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/store/storetest"
)

// hold takes the writing turn, so that what is asked for meanwhile is carried
// out together.
func hold(s *Store) (release func()) {
	s.writer.turn <- struct{}{}
	return func() { <-s.writer.turn }
}

// raw carries out a statement on the writing connection.
func raw(t *testing.T, s *Store, query string) {
	t.Helper()
	defer hold(s)()
	if err := s.writer.connect(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.writer.conn.ExecContext(t.Context(), query); err != nil {
		t.Fatal(err)
	}
}

func (w *writer) waiting() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.queue)
}

// queued waits until n wishes wait.
func queued(t *testing.T, s *Store, n int) {
	t.Helper()
	for s.writer.waiting() < n {
		if t.Context().Err() != nil {
			t.Fatal("nobody waits")
		}
	}
}

func TestChangesThatWaitAreCarriedOutTogetherAndFailAlone(t *testing.T) {
	s := openStore(t, t.TempDir())
	release := hold(s)
	const n = 20
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		rec := storetest.Record(fmt.Sprint("sesn_", i))
		calls := []*session.Call{}
		for range 1 + i%2 { // every other one breaks the rule that a seq is used once
			c := storetest.Call(fmt.Sprint("c", len(calls)), 1, session.Started)
			calls = append(calls, &c)
		}
		all.Go(func() {
			errs[i] = s.Commit(t.Context(), session.Change{
				At: at, Session: &rec, CallsOf: rec.ID, Calls: calls,
				Events: []event.Event{event.New(at, rec.ID, event.Warning, nil)},
			})
		})
	}
	queued(t, s, n)
	release()
	all.Wait()
	for i, err := range errs {
		if bad := i%2 == 1; (err != nil) != bad {
			t.Errorf("change %d: %v", i, err)
		}
		if _, calls, err := s.LoadSession(t.Context(), fmt.Sprint("sesn_", i)); (err == nil && len(calls) == 1) != (i%2 == 0) {
			t.Errorf("session %d: %d calls, %v", i, len(calls), err)
		}
	}
	if events, err := s.Events(t.Context(), "", 0, 100); err != nil || len(events) != n/2 {
		t.Errorf("%d events, %v", len(events), err)
	}
}

func TestAChangeThatNobodyBeganCanBeTakenBack(t *testing.T) {
	s := openStore(t, t.TempDir())
	release := hold(s)
	ctx, cancel := context.WithCancel(t.Context())
	rec := storetest.Record("sesn_1")
	done := make(chan error, 1)
	go func() { done <- s.Commit(ctx, session.Change{At: at, Session: &rec}) }() // ends with the change
	queued(t, s, 1)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Commit = %v, want that it was cancelled", err)
	}
	release()
	if err := s.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all, err := s.LiveSessions(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("sessions = %v, %v", all, err)
	}
}

func TestWritingGoesOnAfterTheConnectionBroke(t *testing.T) {
	s := openStore(t, t.TempDir())
	for i := range 3 {
		rec := storetest.Record(fmt.Sprint("sesn_", i))
		if err := s.Commit(t.Context(), session.Change{At: at, Session: &rec}); err != nil {
			t.Fatal(err)
		}
		s.writer.disconnect()
	}
	if all, err := s.LiveSessions(t.Context()); err != nil || len(all) != 3 {
		t.Errorf("sessions = %v, %v", all, err)
	}
}

// BenchmarkCommit is what each state of a call costs.
func BenchmarkCommit(b *testing.B) {
	s, err := Open(b.Context(), b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	rec := storetest.Record("sesn_1")
	n := int64(0)
	for b.Loop() {
		n++
		call := storetest.Call(fmt.Sprint("c", n), n, session.Started)
		if err := s.Commit(b.Context(), session.Change{
			At: at, Session: &rec, CallsOf: rec.ID, Calls: []*session.Call{&call},
			Events: []event.Event{event.New(at, rec.ID, event.CallStarted, map[string]string{"call": call.ID})},
		}); err != nil {
			b.Fatal(err)
		}
	}
}
