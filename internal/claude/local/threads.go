package local

import (
	"maps"
	"net/http"
	"slices"
	"time"
)

// A thread is one agent context inside a session (contract §4.9). Every session
// has a primary one; a brain may add children. A child's own events are on its
// log; its status, and the calls of it that need a client, are cross-posted to
// the session's stream.

type thread struct {
	ID       string
	Parent   string // "" for the primary one
	Name     string // of its agent
	Agent    map[string]any
	Status   string // of a child; the primary one has the session's
	Created  time.Time
	Updated  time.Time
	Archived time.Time
	waiting  bool
}

func (t *thread) reply(se *session) map[string]any {
	status, parent := t.Status, any(t.Parent)
	if t.Parent == "" {
		status, parent = se.Status, nil
	}
	return map[string]any{
		"id": t.ID, "type": "session_thread", "session_id": se.ID, "parent_thread_id": parent,
		"agent": t.Agent, "status": status, "stats": nil, "usage": nil, "workflow_run_id": nil,
		"created_at": stamp(t.Created), "updated_at": stamp(t.Updated), "archived_at": stampOrNil(t.Archived),
	}
}

// threadAgentOf is the agent of a thread: a session's snapshot without the team.
func threadAgentOf(agent map[string]any) map[string]any {
	m := map[string]any{}
	for k, v := range agent {
		if k != "multiagent" {
			m[k] = v
		}
	}
	return m
}

func (se *session) addThread(t *thread) {
	se.threads[t.ID] = t
	se.joined = append(se.joined, t.ID)
}

// The functions below are called with Server.mu.

func (s *Server) createThread(se *session, name string, agent map[string]any) *thread {
	if agent == nil {
		agent = threadAgentOf(se.Agent)
	}
	now := s.now()
	t := &thread{ID: newID("sthr_"), Parent: se.joined[0], Name: name, Agent: agent, Created: now, Updated: now, Status: statusIdle}
	se.addThread(t)
	s.emit(se, &event{Type: "session.thread_created", Fields: map[string]any{
		"session_thread_id": t.ID, "agent_name": name, "workflow_run_id": nil,
	}})
	s.hooks.notify("session.thread_created", se.ID, map[string]any{"session_thread_id": t.ID})
	s.runThread(se, t)
	return t
}

// threadStatus emits a status event of a child, on its log and cross-posted.
func (s *Server) threadStatus(se *session, t *thread, status string, extra map[string]any) {
	fields := map[string]any{"session_thread_id": t.ID, "agent_name": t.Name}
	maps.Copy(fields, extra)
	e := s.emit(se, &event{Type: "session.thread_status_" + status, Thread: t.ID, CrossPost: true, Fields: fields})
	t.Status, t.Updated, t.waiting = status, e.Processed, false
}

func (s *Server) runThread(se *session, t *thread) {
	if t.Status == statusIdle {
		s.threadStatus(se, t, statusRunning, nil)
	}
}

func (s *Server) idleThread(se *session, t *thread, reason map[string]any) {
	if t == nil || t.Status == statusTerminated || t.Parent == "" {
		return
	}
	s.threadStatus(se, t, statusIdle, map[string]any{"stop_reason": reason, "stop_details": nil})
	t.waiting = reason["type"] == "requires_action"
	s.hooks.notify("session.thread_idled", se.ID, map[string]any{"session_thread_id": t.ID})
}

func (s *Server) terminateThread(se *session, t *thread) {
	if t == nil || t.Status == statusTerminated || t.Parent == "" {
		return
	}
	s.settle(se, func(c *call) bool { return c.thread == t.ID })
	s.threadStatus(se, t, statusTerminated, nil)
	s.hooks.notify("session.thread_terminated", se.ID, map[string]any{"session_thread_id": t.ID})
}

func (s *Server) threadMessage(se *session, from, to, text string) {
	ref := func(id string) (string, any) {
		if t, ok := se.threads[id]; ok && t.Parent != "" {
			return t.ID, t.Name
		}
		return se.joined[0], se.Agent["name"]
	}
	toID, toName := ref(to)
	fromID, fromName := ref(from)
	s.emit(se, &event{Type: "agent.thread_message_sent", Thread: from, Fields: map[string]any{
		"to_session_thread_id": toID, "to_agent_name": toName, "content": textContent(text),
	}})
	s.emit(se, &event{Type: "agent.thread_message_received", Thread: to, Fields: map[string]any{
		"from_session_thread_id": fromID, "from_agent_name": fromName, "content": textContent(text),
	}})
}

const threadPath = "/v1/sessions/{session}/threads"

func (s *Server) threadRoutes() {
	clients := credAPIKey | credEnvKey | credSession
	s.handle("GET "+threadPath, clients, s.listThreads)
	s.handle("GET "+threadPath+"/{thread}", clients, s.getThread)
	s.handle("POST "+threadPath+"/{thread}/archive", credAPIKey, s.archiveThread)
	s.handle("GET "+threadPath+"/{thread}/events", clients, s.listEvents)
	s.handle("GET "+threadPath+"/{thread}/stream", clients, s.streamEvents)
}

func (s *Server) listThreads(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	statuses := r.URL.Query()["statuses[]"]
	p, err := pageOf(r, 1000, 1000, "threads")
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	se, err := s.sessionByID(r.PathValue("session"))
	if err != nil {
		return nil, err
	}
	var all []map[string]any
	for _, id := range se.joined {
		reply := se.threads[id].reply(se)
		if status, _ := reply["status"].(string); len(statuses) == 0 || slices.Contains(statuses, status) {
			all = append(all, reply)
		}
	}
	return list(p, all), nil
}

// threadByPath finds the session and the thread that a path names; thread is nil
// when the path names none. Called with s.mu.
func (s *Server) threadByPath(r *http.Request) (*session, *thread, *apiError) {
	se, err := s.sessionByID(r.PathValue("session"))
	if err != nil {
		return nil, nil, err
	}
	id := r.PathValue("thread")
	if id == "" {
		return se, nil, nil
	}
	t, ok := se.threads[id]
	if !ok {
		return nil, nil, fail(404, "thread %q not found", id)
	}
	return se, t, nil
}

func (s *Server) getThread(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	se, t, err := s.threadByPath(r)
	if err != nil {
		return nil, err
	}
	return t.reply(se), nil
}

func (s *Server) archiveThread(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	se, t, err := s.threadByPath(r)
	if err != nil {
		return nil, err
	}
	if t.Parent == "" {
		return nil, fail(400, "the primary thread cannot be archived; archive the session")
	}
	if t.Status == statusRunning {
		return nil, fail(400, "thread %s is running; interrupt it first", t.ID)
	}
	if t.Archived.IsZero() {
		s.terminateThread(se, t)
		t.Archived = s.now()
		s.afterAnswer(se)
	}
	return t.reply(se), nil
}

// threadFilter selects the events that the list or stream of a thread shows, or
// those of the session when t is nil.
func threadFilter(t *thread) func(*event) bool {
	switch {
	case t == nil:
		return (*event).onSession
	case t.Parent == "":
		return func(e *event) bool { return e.Thread == "" }
	}
	return func(e *event) bool { return e.Thread == t.ID }
}
