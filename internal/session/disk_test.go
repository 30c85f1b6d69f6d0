package session_test

import (
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/sandbox/sandboxtest"
	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/session/sessiontest"
	"github.com/berth-dev/berth/internal/store"
)

// TestOnDiskWithTheRealClock walks the whole way once more with what the product
// is made of: a database, and time that passes. A process ends in the middle of a
// call and the next one goes on.
func TestOnDiskWithTheRealClock(t *testing.T) {
	claude, fake, dir, bus := sessiontest.NewClaude(sesn, bash("sleep"), bash("ls", "pwd")), sandboxtest.NewFake(), t.TempDir(), &event.Bus{}
	g := newGate()
	fake.Tool(g.tool)
	wake, cancel := bus.Subscribe("")
	defer cancel()
	var keeper *session.Keeper
	var records *store.Store
	open := func() {
		t.Helper()
		var err error
		if records, err = store.Open(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		cfg := session.Config{
			Capacity: 1, ReleaseAfter: 50 * time.Millisecond, WarmFor: 50 * time.Millisecond, ToolTimeout: time.Minute, ReadEvery: time.Second,
		}
		keeper = session.NewKeeper(cfg, fake, records, openSeal{}, bus, slog.New(slog.DiscardHandler))
		if err := keeper.Adopt(t.Context(), func(it session.Item) session.Platform { return claude.Door(it) }); err != nil {
			t.Fatal(err)
		}
	}
	shut := func() {
		keeper.Close()
		fake.Restart()
		if err := records.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	until := func(what string, cond func() bool) {
		t.Helper()
		late := time.After(20 * time.Second)
		for !cond() {
			select {
			case <-wake: // something was stored
			case <-late:
				t.Fatalf("it did not happen: %s", what)
			}
		}
	}
	open()
	it := claude.Hand()
	keeper.Reserve()
	w, err := keeper.Record(t.Context(), it)
	if err == nil {
		err = keeper.Accept(t.Context(), it, w, claude.Door(it))
	}
	if err != nil {
		t.Fatal(err)
	}
	started := func() bool {
		_, calls, err := records.LoadSession(t.Context(), sesn)
		return err == nil && slices.ContainsFunc(calls, func(c session.Call) bool { return c.State == session.Started })
	}
	until("the call runs", started)
	shut()
	open()
	g.Open()
	until("the sandbox sleeps", func() bool {
		rec, _, err := records.LoadSession(t.Context(), sesn)
		return err == nil && claude.Done() && rec.Phase == session.Parked
	})
	claude.See(func(l *sessiontest.Log) {
		for _, u := range l.Uses() {
			if u.Results != 1 || u.IsError || fake.Runs(u.ID) != 1 {
				t.Errorf("%s has %d results (error: %v) and ran %d times", u.ID, u.Results, u.IsError, fake.Runs(u.ID))
			}
		}
	})
	if work, err := records.Work(t.Context(), sesn); err != nil || len(work) != 1 || work[0].State != session.WorkStopped {
		t.Errorf("work = %+v, %v", work, err)
	}
	shut()
	if err := fake.Remove(t.Context(), sandbox.Ref{ID: sandbox.ID(sesn)}, sandbox.Everything); err != nil {
		t.Error(err)
	}
}
