package local

import (
	"slices"
	"time"
)

// A session is a conversation with a copy of its agent (contract §2.4, §4.1). It
// is idle until it has input, running while its brain runs, idle again with
// requires_action while the brain waits for clients, and terminated for good.

// The values of a status, of sessions and threads alike.
const (
	statusIdle       = "idle"
	statusRunning    = "running"
	statusTerminated = "terminated"
)

type session struct {
	ID          string
	Environment string
	SelfHosted  bool
	Title       *string
	Agent       map[string]any
	Metadata    map[string]string
	Resources   []map[string]any
	VaultIDs    []string
	Budget      any
	Outcomes    []map[string]any
	Status      string
	Created     time.Time
	Updated     time.Time
	Archived    time.Time

	log     eventLog
	calls   map[string]*call
	asked   []string // ids of calls, in order
	threads map[string]*thread
	joined  []string // ids of threads, in order; the first is the primary one
	streams map[*stream]struct{}
	changed chan struct{} // closed and replaced when a call's state or the turn's changes

	tokens  Tokens
	active  time.Duration // running time up to since
	since   time.Time     // when it became running
	hungry  bool          // has input that is processed on receipt: an outcome
	waiting bool          // idle with requires_action
	driven  bool          // a goroutine drives it
	turn    *Turn         // the turn under way
	deleted bool
}

func (t *Tokens) add(o Tokens) {
	t.Input += o.Input
	t.Output += o.Output
	t.CacheRead += o.CacheRead
	t.CacheCreation += o.CacheCreation
}

func (se *session) signal() {
	close(se.changed)
	se.changed = make(chan struct{})
}

// storeAccess returns how a memory store is attached, "" when it is not.
func (se *session) storeAccess(store string) string {
	for _, r := range se.Resources {
		if r["type"] == "memory_store" && r["memory_store_id"] == store {
			access, _ := r["access"].(string)
			return access
		}
	}
	return ""
}

// hasInput reports whether there is something for the brain to begin with.
func (se *session) hasInput() bool {
	return se.hungry || se.log.has(func(e *event) bool { return e.Type == "user.message" })
}

func (se *session) activeSeconds(now time.Time) float64 {
	d := se.active
	if se.Status == statusRunning {
		d += now.Sub(se.since)
	}
	return d.Seconds()
}

// usage is the usage object of the session and of session.usage.
func (se *session) usage(now time.Time) map[string]any {
	return map[string]any{
		"input_tokens": se.tokens.Input, "output_tokens": se.tokens.Output,
		"cache_read_input_tokens": se.tokens.CacheRead,
		"cache_creation": map[string]any{
			"ephemeral_5m_input_tokens": se.tokens.CacheCreation, "ephemeral_1h_input_tokens": 0,
		},
		"active_seconds": se.activeSeconds(now),
	}
}

// reply is the session object. now is the clock's, for the statistics.
func (se *session) reply(now time.Time) map[string]any {
	return map[string]any{
		"id": se.ID, "type": "session", "status": se.Status, "agent": se.Agent,
		"environment_id": se.Environment, "title": se.Title, "metadata": orEmpty(se.Metadata),
		"resources": orNone(se.Resources), "vault_ids": orNone(se.VaultIDs), "budget": se.Budget,
		"usage": se.usage(now),
		"stats": map[string]any{
			"active_seconds": se.activeSeconds(now), "duration_seconds": max(now.Sub(se.Created).Seconds(), 0),
		},
		"outcome_evaluations": orNone(se.Outcomes), "deployment_id": nil,
		"created_at": stamp(se.Created), "updated_at": stamp(se.Updated), "archived_at": stampOrNil(se.Archived),
	}
}

// orNone keeps lists from being null.
func orNone[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

// sessionByID returns the 404 of every route below a session. Called with s.mu.
func (s *Server) sessionByID(id string) (*session, *apiError) {
	if se, ok := s.sessions[id]; ok {
		return se, nil
	}
	return nil, fail(404, "session %q not found", id)
}

// The functions below change a session and say so on its log. All are called
// with s.mu.

// emit appends an event, processed now, and shows it to the streams.
func (s *Server) emit(se *session, e *event) *event {
	e.ID = newID("sevt_")
	e.Processed = s.now()
	se.log.append(e)
	se.Updated = e.Processed
	se.show(e)
	return e
}

// enqueue appends an event that is not processed yet, and shows it.
func (s *Server) enqueue(se *session, e *event) *event {
	e.ID = newID("sevt_")
	se.log.append(e)
	se.show(e)
	return e
}

// process gives a queued event its processed_at and shows it again.
func (s *Server) process(se *session, e *event) {
	se.log.process(e, s.now())
	se.Updated = e.Processed
	se.show(e)
}

// consume processes the queued messages and returns them.
func (s *Server) consume(se *session) []Event {
	var taken []Event
	for _, e := range slices.Clone(se.log.queued) {
		s.process(se, e)
		taken = append(taken, e.public())
	}
	return taken
}

func (se *session) setStatus(status string, now time.Time) {
	if se.Status == statusRunning {
		se.active += now.Sub(se.since)
	}
	se.Status, se.since, se.waiting = status, now, false
}

// goRunning makes the session running, unless it is.
func (s *Server) goRunning(se *session) {
	if se.Status == statusRunning {
		return
	}
	e := s.emit(se, &event{Type: "session.status_running"})
	se.setStatus(statusRunning, e.Processed)
	s.hooks.notify("session.running", se.ID, nil)
	s.hooks.notify("session.status_run_started", se.ID, nil)
}

// goIdle emits session.usage and session.status_idle (contract §4.4).
func (s *Server) goIdle(se *session, reason map[string]any, details any) {
	s.emit(se, &event{Type: "session.usage", Fields: map[string]any{"usage": se.usage(s.last), "budget": se.Budget}})
	e := s.emit(se, &event{Type: "session.status_idle", Fields: map[string]any{"stop_reason": reason, "stop_details": details}})
	se.setStatus(statusIdle, e.Processed)
	switch reason["type"] {
	case "requires_action":
		se.waiting = true
		s.hooks.notify("session.requires_action", se.ID, nil)
	case "budget_reached":
		s.hooks.notify("session.budget_reached", se.ID, nil)
	}
	s.hooks.notify("session.idled", se.ID, nil)
	s.hooks.notify("session.status_idled", se.ID, nil)
}

func (s *Server) emitError(se *session, typ, message, retry string) {
	s.emit(se, &event{Type: "session.error", Fields: map[string]any{"error": map[string]any{
		"type": typ, "message": message, "retry_status": map[string]any{"type": retry},
	}}})
}

// terminate ends a session for good: its threads, its calls and its turn.
func (s *Server) terminate(se *session) {
	if se.Status == statusTerminated {
		return
	}
	s.endTurnEarly(se, ErrSessionOver)
	for _, id := range se.joined[1:] {
		s.terminateThread(se, se.threads[id])
	}
	e := s.emit(se, &event{Type: "session.status_terminated"})
	se.setStatus(statusTerminated, e.Processed)
	s.hooks.notify("session.status_terminated", se.ID, nil)
}

// archiveSession terminates and archives; a second time it does nothing.
func (s *Server) archiveSession(se *session) {
	if !se.Archived.IsZero() {
		return
	}
	s.terminate(se)
	se.Archived = s.now()
	se.Updated = se.Archived
	s.hooks.notify("session.archived", se.ID, nil)
}

// deleteSession says so on open streams, closes them, and forgets the session.
// Its work ends with it.
func (s *Server) deleteSession(se *session) {
	s.endTurnEarly(se, ErrSessionOver)
	s.emit(se, &event{Type: "session.deleted"})
	se.closeStreams()
	se.deleted = true
	delete(s.sessions, se.ID)
	s.sessionOrder = slices.DeleteFunc(s.sessionOrder, func(id string) bool { return id == se.ID })
	if w := s.queue.liveFor(se.ID); w != nil {
		w.missed = false
		_ = s.queue.stop(w, 0, true, s.now()) // a live item can always be stopped
	}
	s.hooks.notify("session.deleted", se.ID, nil)
}

// endTurnEarly settles all open calls and ends the turn under way with cause.
func (s *Server) endTurnEarly(se *session, cause error) {
	s.settle(se, func(*call) bool { return true })
	if se.turn != nil && se.turn.over == nil {
		se.turn.over = cause
		se.turn.cancel(cause)
	}
	se.signal()
}

// Work for a session (contract §3.1).

// wantWorker makes sure that the session has exactly one live work item, or will
// get one when the stopping one has ended. Cloud sessions need none.
func (s *Server) wantWorker(se *session) {
	if !se.SelfHosted || se.Status == statusTerminated {
		return
	}
	now := s.now()
	s.queue.settle(now)
	w := s.queue.liveFor(se.ID)
	switch {
	case w == nil:
		s.queue.add(se.Environment, "session", se.ID, now)
	case w.State == workStopping:
		w.missed = true
	}
}

// workEnded follows an item with a new one when the session came to need a
// worker meanwhile.
func (s *Server) workEnded(w *workItem) {
	se, ok := s.sessions[w.Session]
	if !ok || w.Type != "session" {
		return
	}
	open := se.Status == statusRunning || se.waiting || se.hasInput()
	if w.missed || s.opt.StopRequeues && open {
		w.missed = false
		s.queue.add(se.Environment, "session", se.ID, w.Stopped)
	}
}
