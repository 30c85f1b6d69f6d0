package storetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/memory"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/session"
)

// Run holds a session.Records against its contract. open returns an empty one.
func Run(t *testing.T, open func(t *testing.T) session.Records) {
	for name, test := range map[string]func(*testing.T, session.Records){
		"a session comes back as it was stored":   sessionRoundTrip,
		"a new session is added once":             newSession,
		"an unknown session is not found":         unknownSession,
		"calls come back in order":                callRoundTrip,
		"content is kept until there is another":  content,
		"inputs and contents are of open calls":   openCallsOnly,
		"open work is what a process holds":       openWork,
		"live sessions are not over":              liveSessions,
		"a cancelled change is not stored":        cancelled,
		"a large result comes back byte for byte": largeResult,
		"changes may be made at the same time":    concurrent,
		"what is on record is nobody's":           notShared,
		"an event of the platform may come again": sameEvent,
		"settings follow one another":             agentSettings,
		"memories stay as long as their session":  agreedMemories,
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) { test(t, open(t)) })
	}
}

var at = time.Date(2026, 11, 1, 12, 0, 0, 123456789, time.UTC)

func commit(t *testing.T, r session.Records, c session.Change) {
	t.Helper()
	if c.At.IsZero() {
		c.At = at
	}
	if err := r.Commit(t.Context(), c); err != nil {
		t.Fatalf("Commit: %v", err)
	}
}

func load(t *testing.T, r session.Records, id string) (session.Record, []session.Call) {
	t.Helper()
	rec, calls, err := r.LoadSession(t.Context(), id)
	if err != nil {
		t.Fatalf("LoadSession: %v", err)
	}
	return rec, calls
}

// diff compares what is stored of calls and records.
func diff(want, got any) string {
	return cmp.Diff(want, got, cmpopts.IgnoreUnexported(session.Call{}), cmpopts.EquateEmpty())
}

// Record returns a session with every field set.
func Record(id string) session.Record {
	return session.Record{
		ID: id, Environment: "env_1", Agent: "agent_1", AgentName: "Coder", AgentVersion: 7, Model: "m", Title: "a title", Phase: session.Warm,
		Memo: session.Memo{
			Cursor: at, Cutoff: at.Add(-time.Second), Cutoffs: map[string]time.Time{"t1": at}, Ended: []string{"t2"},
			Verdicts: map[string]string{"c1": "allow"}, Answered: []string{"c9"}, Status: "idle", StopReason: "requires_action",
			Requires: []string{"c1"}, StatusAt: at, EndedAs: "terminated",
		},
		Waiting: session.Waiting{For: session.ForPerson, Since: at, Detail: "1 call held for confirmation"},
		Backend: "linux", Sandbox: &sandbox.Ref{ID: sandbox.ID(id), Backend: "linux", Session: id}, SandboxSince: at,
		CreatedAt: at, UpdatedAt: at.Add(time.Minute), EndedAt: at.Add(time.Hour), EndReason: "because",
		Profile: &session.Profile{
			Image: "host", CPUs: 1.5, Memory: 3 << 29, Disk: 5, Processes: 7, OpenFiles: 9, Warm: sandbox.Span(90 * time.Second),
			Lifetime: sandbox.Span(time.Hour), ToolTimeout: 1, Setup: "make", SetupTimeout: sandbox.Span(time.Millisecond), Env: map[string]string{"A": ""},
		},
		Revision: 3,
	}
}

// Call returns a call with every field set.
func Call(id string, seq int64, state session.CallState) session.Call {
	return session.Call{
		ID: id, Thread: "t1", Name: "bash", Custom: true, Input: json.RawMessage(`{"command":"ls"}`), Permission: "ask", ProcessedAt: at,
		Seq: seq, State: state, SeenAt: at, StartedAt: at.Add(1), FinishedAt: at.Add(2), DoneAt: at.Add(3), Instance: "i1",
		Content: json.RawMessage(`[{"type":"text","text":"ok"}]`), IsError: true, Reason: "a reason",
	}
}

func sessionRoundTrip(t *testing.T, r session.Records) {
	want := Record("sesn_1")
	commit(t, r, session.Change{Session: &want})
	if got, _ := load(t, r, "sesn_1"); diff(want, got) != "" {
		t.Errorf("(-want +got):\n%s", diff(want, got))
	}
	next := session.Record{ID: "sesn_1", Environment: "env_2", Phase: session.Parked, CreatedAt: at.Add(time.Hour)}
	commit(t, r, session.Change{Session: &next})
	next.CreatedAt = at // it does not become younger
	if got, _ := load(t, r, "sesn_1"); diff(next, got) != "" {
		t.Errorf("after a change (-want +got):\n%s", diff(next, got))
	}
}

func newSession(t *testing.T, r session.Records) {
	first := Record("sesn_1")
	commit(t, r, session.Change{NewSession: &first})
	second := session.Record{ID: "sesn_1", Environment: "another", Phase: session.Active, CreatedAt: at}
	commit(t, r, session.Change{NewSession: &second})
	if got, _ := load(t, r, "sesn_1"); diff(first, got) != "" {
		t.Errorf("(-want +got):\n%s", diff(first, got))
	}
}

func unknownSession(t *testing.T, r session.Records) {
	if _, _, err := r.LoadSession(t.Context(), "sesn_1"); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("LoadSession = %v, want not found", err)
	}
}

func callRoundTrip(t *testing.T, r session.Records) {
	rec := Record("sesn_1")
	b, a, other := Call("b", 2, session.Started), Call("a", 1, session.Finished), Call("a", 1, session.Held)
	b.Content, b.FinishedAt, b.DoneAt, b.ProcessedAt = nil, time.Time{}, time.Time{}, time.Time{}
	commit(t, r, session.Change{Session: &rec, CallsOf: "sesn_1", Calls: []*session.Call{&b, &a}})
	commit(t, r, session.Change{CallsOf: "sesn_2", Calls: []*session.Call{&other}}) // the same id in another session
	if _, got := load(t, r, "sesn_1"); diff([]session.Call{a, b}, got) != "" {
		t.Errorf("(-want +got):\n%s", diff([]session.Call{a, b}, got))
	}
	b.State, b.StartedAt, b.FinishedAt, b.DoneAt, b.ProcessedAt = session.Finished, at.Add(7), at.Add(8), at.Add(9), at
	b.Instance, b.IsError, b.Reason, b.Content = "i2", false, "", json.RawMessage(`[]`)
	commit(t, r, session.Change{CallsOf: "sesn_1", Calls: []*session.Call{&b}})
	if _, got := load(t, r, "sesn_1"); diff([]session.Call{a, b}, got) != "" {
		t.Errorf("after a change (-want +got):\n%s", diff([]session.Call{a, b}, got))
	}
}

func content(t *testing.T, r session.Records) {
	rec, c := Record("sesn_1"), Call("a", 1, session.Finished)
	commit(t, r, session.Change{Session: &rec, CallsOf: "sesn_1", Calls: []*session.Call{&c}})
	bare := c
	bare.Input, bare.Content = nil, nil
	commit(t, r, session.Change{CallsOf: "sesn_1", Calls: []*session.Call{&bare}})
	if _, got := load(t, r, "sesn_1"); diff([]session.Call{c}, got) != "" {
		t.Errorf("after a change without them (-want +got):\n%s", diff([]session.Call{c}, got))
	}
	c.Content = json.RawMessage(`[{"type":"text","text":"another"}]`)
	commit(t, r, session.Change{CallsOf: "sesn_1", Calls: []*session.Call{&c}})
	if _, got := load(t, r, "sesn_1"); diff([]session.Call{c}, got) != "" {
		t.Errorf("after a change with another (-want +got):\n%s", diff([]session.Call{c}, got))
	}
}

func openCallsOnly(t *testing.T, r session.Records) {
	rec := Record("sesn_1")
	var all []*session.Call
	states := []session.CallState{session.Seen, session.Held, session.Ready, session.Started, session.Finished, session.Posted, session.Settled, session.Foreign}
	for i, s := range states {
		c := Call(string(s), int64(i+1), s)
		all = append(all, &c)
	}
	commit(t, r, session.Change{Session: &rec, CallsOf: "sesn_1", Calls: all})
	_, got := load(t, r, "sesn_1")
	if len(got) != len(states) {
		t.Fatalf("%d calls, want %d", len(got), len(states))
	}
	for _, c := range got {
		if closed := c.State == session.Posted || c.State == session.Settled; closed != (c.Input == nil && c.Content == nil) {
			t.Errorf("%s: input %s, content %s", c.State, c.Input, c.Content)
		}
	}
}

func openWork(t *testing.T, r session.Records) {
	held := session.Work{
		ID: "work_1", Session: "sesn_1", Environment: "env_1", State: session.WorkHeld, Secret: []byte{0, 1, 2}, Token: "2026-11-01T12:00:00.000000Z",
		TTL: 5 * time.Minute, BeatAt: at, ClaimedAt: at.Add(time.Second),
	}
	claimed := session.Work{ID: "work_2", Session: "sesn_2", Environment: "env_1", State: session.WorkClaimed, Secret: []byte("s"), ClaimedAt: at}
	for _, w := range []session.Work{
		held, claimed,
		{ID: "work_3", Session: "sesn_1", State: session.WorkStopped, ClaimedAt: at, EndedAt: at, Why: "over"},
		{ID: "work_4", Session: "sesn_1", State: session.WorkLost, ClaimedAt: at},
	} {
		commit(t, r, session.Change{Work: &w})
	}
	want := func(want ...session.Work) {
		t.Helper()
		got, err := r.OpenWork(t.Context())
		if err != nil || diff(want, got) != "" {
			t.Errorf("OpenWork: %v (-want +got):\n%s", err, diff(want, got))
		}
	}
	want(claimed, held)
	held.Secret = nil
	commit(t, r, session.Change{Work: &held})
	want(claimed, held)
	claimed.State = session.WorkLost
	commit(t, r, session.Change{Work: &claimed})
	want(held)
}

func liveSessions(t *testing.T, r session.Records) {
	old, young, over := Record("sesn_b"), Record("sesn_a"), Record("sesn_c")
	young.CreatedAt, over.Phase = at.Add(time.Hour), session.Over
	for _, rec := range []session.Record{young, over, old} {
		commit(t, r, session.Change{Session: &rec})
	}
	got, err := r.LiveSessions(t.Context())
	if want := []session.Record{old, young}; err != nil || diff(want, got) != "" {
		t.Errorf("LiveSessions: %v (-want +got):\n%s", err, diff(want, got))
	}
}

func cancelled(t *testing.T, r session.Records) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	rec := Record("sesn_1")
	if err := r.Commit(ctx, session.Change{At: at, Session: &rec}); err == nil {
		t.Error("Commit succeeded")
	}
	unknownSession(t, r)
}

func largeResult(t *testing.T, r session.Records) {
	rec, c := Record("sesn_1"), Call("a", 1, session.Finished)
	c.Content = bytes.Repeat([]byte("0123456789abcde\x00"), 1<<20)
	commit(t, r, session.Change{Session: &rec, CallsOf: "sesn_1", Calls: []*session.Call{&c}})
	if _, got := load(t, r, "sesn_1"); !bytes.Equal(got[0].Content, c.Content) {
		t.Errorf("%d bytes came back of %d", len(got[0].Content), len(c.Content))
	}
}

func concurrent(t *testing.T, r session.Records) {
	const sessions, changes = 4, 10
	var wg sync.WaitGroup
	for s := range sessions {
		wg.Go(func() {
			rec := Record(fmt.Sprint("sesn_", s))
			for i := range changes {
				c := Call(fmt.Sprint("c", i), int64(i+1), session.Started)
				if err := r.Commit(t.Context(), session.Change{At: at, Session: &rec, CallsOf: rec.ID, Calls: []*session.Call{&c}}); err != nil {
					t.Errorf("Commit: %v", err)
				}
			}
		})
	}
	wg.Wait()
	for s := range sessions {
		if _, got := load(t, r, fmt.Sprint("sesn_", s)); len(got) != changes {
			t.Errorf("session %d has %d calls, want %d", s, len(got), changes)
		}
	}
}

func notShared(t *testing.T, r session.Records) {
	rec, c := Record("sesn_1"), Call("a", 1, session.Started)
	commit(t, r, session.Change{Session: &rec, CallsOf: "sesn_1", Calls: []*session.Call{&c}})
	rec.Memo.Verdicts["c1"], rec.Sandbox.ID, c.Content[2], c.State = "deny", "another", 'X', session.Posted
	want, call := Record("sesn_1"), Call("a", 1, session.Started)
	for range 2 {
		got, calls := load(t, r, "sesn_1")
		if diff(want, got) != "" || diff([]session.Call{call}, calls) != "" {
			t.Errorf("(-want +got):\n%s%s", diff(want, got), diff([]session.Call{call}, calls))
		}
		got.Memo.Verdicts["c1"], got.Sandbox.ID, calls[0].Content[2] = "deny", "another", 'X'
	}
}

func sameEvent(t *testing.T, r session.Records) {
	rec := Record("sesn_1")
	ev := event.Event{At: at, Session: "sesn_1", Type: "claude.agent.message", Source: "sevt_1"}
	for range 3 {
		commit(t, r, session.Change{Session: &rec, Events: []event.Event{ev, ev}})
	}
}

func agentSettings(t *testing.T, r session.Records) {
	read := func(want session.AgentSettings) {
		t.Helper()
		got, err := r.AgentSettings(t.Context(), want.Agent)
		if err != nil || diff(want, got) != "" {
			t.Errorf("AgentSettings: %v (-want +got):\n%s", err, diff(want, got))
		}
	}
	read(session.AgentSettings{Agent: "agent_1"})
	cpus, memory, setup := 1.5, sandbox.Bytes(1<<30), ""
	first := session.AgentSettings{
		Agent: "agent_1", Revision: 1, ChangedAt: at,
		Settings: session.Settings{CPUs: &cpus, Memory: &memory, Setup: &setup, Env: map[string]string{"A": "", "B": "ü\n"}},
	}
	commit(t, r, session.Change{Agent: &first})
	read(first)
	rec := Record("sesn_1")
	second := session.AgentSettings{Agent: "agent_1", Revision: 2, ChangedAt: at.Add(time.Hour)}
	for _, stale := range []int64{0, 1, 3} {
		next := second
		next.Revision = stale
		err := r.Commit(t.Context(), session.Change{At: at, Agent: &next, NewSession: &rec})
		if !errors.Is(err, session.ErrStale) {
			t.Errorf("Commit of revision %d after 1 = %v, want ErrStale", stale, err)
		}
	}
	unknownSession(t, r) // nothing of such a change is stored
	read(first)
	commit(t, r, session.Change{Agent: &second})
	read(second)
	read(session.AgentSettings{Agent: "agent_2"})
}

func agreedMemories(t *testing.T, r session.Records) {
	rec := Record("sesn_1")
	put := func(id, store string, ready bool, rows map[string]memory.Known) {
		t.Helper()
		commit(t, r, session.Change{Memory: &session.MemoryChange{Session: id, Store: store, Rows: rows, Ready: ready}})
	}
	want := func(id, store string, ready bool, rows map[string]memory.Known) {
		t.Helper()
		got, was, err := r.LoadMemory(t.Context(), id, store)
		if diff := cmp.Diff(rows, got, cmpopts.EquateEmpty()); err != nil || was != ready || diff != "" {
			t.Errorf("memories of %s in %s: ready %t, %v (-want +got):\n%s", store, id, was, err, diff)
		}
	}
	commit(t, r, session.Change{Session: &rec})
	put("sesn_1", "a", false, map[string]memory.Known{"/x": {SHA256: "1"}, "/y": {SHA256: "2", Sent: "3"}})
	put("sesn_1", "b", true, nil)
	put("sesn_2", "a", true, map[string]memory.Known{"/x": {SHA256: "4"}})
	want("sesn_1", "a", false, map[string]memory.Known{"/x": {SHA256: "1"}, "/y": {SHA256: "2", Sent: "3"}})
	put("sesn_1", "a", true, map[string]memory.Known{"/x": {}, "/y": {SHA256: "3"}, "/z": {Sent: "5"}})
	want("sesn_1", "a", true, map[string]memory.Known{"/y": {SHA256: "3"}, "/z": {Sent: "5"}})
	put("sesn_1", "a", false, nil)
	want("sesn_1", "a", false, map[string]memory.Known{"/y": {SHA256: "3"}, "/z": {Sent: "5"}})
	rec.Phase = session.Over
	commit(t, r, session.Change{Session: &rec})
	want("sesn_1", "a", false, nil)
	want("sesn_1", "b", false, nil)
	want("sesn_2", "a", true, map[string]memory.Known{"/x": {SHA256: "4"}})
	want("sesn_3", "a", false, nil)
}
