// Package storetest holds what every session.Records has to do, as a suite, and
// Memory, one without a disk for tests that may not touch one.
package storetest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"sync"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/memory"
	"github.com/berth-dev/berth/internal/session"
)

// Memory is session.Records in memory. The zero value is empty; safe for
// concurrent use. It keeps copies, so that nobody shares what is on record.
type Memory struct {
	// After, if set, is called after a change was stored. Its error is Commit's,
	// as when an answer was lost.
	After func(stored int, c session.Change) error

	mu       sync.Mutex
	refuse   error
	stored   int
	sessions map[string]session.Record
	calls    map[string]map[string]session.Call
	work     map[string]session.Work
	agents   map[string]session.AgentSettings
	events   []event.Event
	unread   error                  // of AgentSettings
	memories map[[2]string]memories // by session and store
}

type memories struct {
	known map[string]memory.Known
	ready bool
}

// Refuse makes every Commit fail and store nothing; nil ends it.
func (m *Memory) Refuse(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refuse = err
}

// RefuseSettings makes AgentSettings fail; nil ends it.
func (m *Memory) RefuseSettings(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unread = err
}

// AgentSettings implements session.Records.
func (m *Memory) AgentSettings(_ context.Context, agent string) (session.AgentSettings, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.unread != nil {
		return session.AgentSettings{}, m.unread
	}
	if s, ok := m.agents[agent]; ok {
		return clone(s), nil
	}
	return session.AgentSettings{Agent: agent}, nil
}

// Commit implements session.Records.
func (m *Memory) Commit(ctx context.Context, c session.Change) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuse != nil {
		return m.refuse
	}
	if m.sessions == nil {
		m.sessions, m.calls, m.work = map[string]session.Record{}, map[string]map[string]session.Call{}, map[string]session.Work{}
		m.agents = map[string]session.AgentSettings{}
	}
	if a := c.Agent; a != nil {
		if m.agents[a.Agent].Revision != a.Revision-1 {
			return session.ErrStale
		}
		m.agents[a.Agent] = clone(*a)
	}
	if r := c.NewSession; r != nil {
		if _, known := m.sessions[r.ID]; !known {
			m.sessions[r.ID] = clone(*r)
		}
	}
	if r := c.Session; r != nil {
		next := clone(*r)
		if old, known := m.sessions[r.ID]; known {
			next.CreatedAt = old.CreatedAt
		}
		m.sessions[r.ID] = next
	}
	if c.Work != nil {
		m.work[c.Work.ID] = clone(*c.Work)
	}
	if r := c.Session; r != nil && r.Phase == session.Over {
		maps.DeleteFunc(m.memories, func(of [2]string, _ memories) bool { return of[0] == r.ID })
	}
	if c.Memory != nil {
		m.putMemory(c.Memory)
	}
	for _, call := range c.Calls {
		m.putCall(c.CallsOf, call)
	}
	for _, e := range c.Events {
		m.addEvent(e)
	}
	m.stored++
	if m.After != nil {
		return m.After(m.stored, c)
	}
	return nil
}

func (m *Memory) putCall(id string, call *session.Call) {
	if m.calls[id] == nil {
		m.calls[id] = map[string]session.Call{}
	}
	next := copyOf(*call)
	if old, known := m.calls[id][call.ID]; known {
		state := next
		next = old
		next.ProcessedAt, next.State, next.StartedAt, next.FinishedAt, next.DoneAt = state.ProcessedAt, state.State, state.StartedAt, state.FinishedAt, state.DoneAt
		next.Instance, next.IsError, next.Reason = state.Instance, state.IsError, state.Reason
		if len(state.Content) > 0 {
			next.Content = state.Content
		}
	}
	m.calls[id][call.ID] = next
}

func (m *Memory) putMemory(c *session.MemoryChange) {
	of := [2]string{c.Session, c.Store}
	known := maps.Clone(m.memories[of].known)
	if known == nil {
		known = map[string]memory.Known{}
	}
	maps.Copy(known, c.Rows)
	maps.DeleteFunc(known, func(_ string, k memory.Known) bool { return k == memory.Known{} })
	if m.memories == nil {
		m.memories = map[[2]string]memories{}
	}
	m.memories[of] = memories{known, c.Ready}
}

// LoadMemory implements session.Records.
func (m *Memory) LoadMemory(_ context.Context, id, store string) (map[string]memory.Known, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	found := m.memories[[2]string{id, store}]
	return maps.Clone(found.known), found.ready, nil
}

func (m *Memory) addEvent(e event.Event) {
	if e.Source != "" && slices.ContainsFunc(m.events, func(o event.Event) bool { return o.Source == e.Source && o.Session == e.Session }) {
		return
	}
	e.Seq, e.Data = int64(len(m.events)+1), bytes.Clone(e.Data)
	m.events = append(m.events, e)
}

// LoadSession implements session.Records.
func (m *Memory) LoadSession(_ context.Context, id string) (session.Record, []session.Call, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.sessions[id]
	if !ok {
		return session.Record{}, nil, fault.New(fault.NotFound, "there is no session %q here", id)
	}
	var calls []session.Call
	for _, c := range m.calls[id] {
		c = copyOf(c)
		if c.State == session.Posted || c.State == session.Settled {
			c.Input, c.Content = nil, nil
		}
		calls = append(calls, c)
	}
	slices.SortFunc(calls, func(a, b session.Call) int { return cmp.Compare(a.Seq, b.Seq) })
	return clone(r), calls, nil
}

// LoadCall implements session.Records.
func (m *Memory) LoadCall(_ context.Context, sessionID, id string) (session.Call, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.calls[sessionID] {
		if c.ID == id {
			return copyOf(c), nil
		}
	}
	return session.Call{}, fault.New(fault.NotFound, "session %s has no call %q", sessionID, id)
}

// OpenWork implements session.Records.
func (m *Memory) OpenWork(context.Context) ([]session.Work, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var open []session.Work
	for _, w := range m.work {
		if w.State == session.WorkClaimed || w.State == session.WorkHeld {
			open = append(open, clone(w))
		}
	}
	slices.SortFunc(open, func(a, b session.Work) int { return a.ClaimedAt.Compare(b.ClaimedAt) })
	return open, nil
}

// LiveSessions implements session.Records.
func (m *Memory) LiveSessions(context.Context) ([]session.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var live []session.Record
	for _, id := range slices.Sorted(maps.Keys(m.sessions)) {
		if r := m.sessions[id]; r.Phase != session.Over {
			live = append(live, clone(r))
		}
	}
	slices.SortStableFunc(live, func(a, b session.Record) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return live, nil
}

// Stored returns how many changes were stored.
func (m *Memory) Stored() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stored
}

// Work returns an item as it is on record.
func (m *Memory) Work(id string) session.Work {
	m.mu.Lock()
	defer m.mu.Unlock()
	return clone(m.work[id])
}

// Events returns the types of all events of a session, in order.
func (m *Memory) Events(id string) []event.Type {
	m.mu.Lock()
	defer m.mu.Unlock()
	var types []event.Type
	for _, e := range m.events {
		if e.Session == id {
			types = append(types, e.Type)
		}
	}
	return types
}

// copyOf copies what is on record of a call.
func copyOf(c session.Call) session.Call {
	return session.Call{
		ID: c.ID, Thread: c.Thread, Name: c.Name, Custom: c.Custom, Input: bytes.Clone(c.Input), Permission: c.Permission,
		ProcessedAt: c.ProcessedAt, Seq: c.Seq, State: c.State, SeenAt: c.SeenAt, StartedAt: c.StartedAt,
		FinishedAt: c.FinishedAt, DoneAt: c.DoneAt, Instance: c.Instance, Content: bytes.Clone(c.Content),
		IsError: c.IsError, Reason: c.Reason,
	}
}

// clone copies through JSON, which is what is on disk too.
func clone[T any](v T) T {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // records are plain data
	}
	var out T
	if err := json.Unmarshal(b, &out); err != nil {
		panic(err)
	}
	return out
}
