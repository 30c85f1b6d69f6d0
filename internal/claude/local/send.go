package local

import (
	"encoding/json"
	"fmt"
	"net/http"
)

// POST /v1/sessions/{id}/events (contract §4.2). A request is taken as a whole:
// every event is checked against the session before the first one is applied.

func (s *Server) sendEvents(w http.ResponseWriter, r *http.Request, c caller) (any, *apiError) {
	var body struct {
		Events []json.RawMessage `json:"events"`
	}
	if err := decode(w, r, &body, false); err != nil {
		return nil, err
	}
	replies, err := s.send(r.PathValue("session"), body.Events, c)
	if err != nil {
		return nil, err
	}
	return map[string]any{"data": replies}, nil
}

// Send sends events to a session as a client would, for tests and pretend
// persons. Each event encodes to the JSON of contract §4.2. It returns the ids
// of the events.
func (s *Server) Send(session string, events ...any) (ids []string, err error) {
	raw := make([]json.RawMessage, len(events))
	for i, e := range events {
		if raw[i], err = json.Marshal(e); err != nil {
			return nil, fmt.Errorf("encode event: %w", err)
		}
	}
	replies, refused := s.send(session, raw, caller{})
	if refused != nil {
		return nil, fmt.Errorf("send to session %s: %w", session, refused)
	}
	for _, r := range replies {
		id, _ := r["id"].(string)
		ids = append(ids, id)
	}
	return ids, nil
}

func (s *Server) send(session string, raw []json.RawMessage, by caller) ([]map[string]any, *apiError) {
	inputs, err := readInputs(raw, "events")
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	se, err := s.sessionByID(session)
	if err != nil {
		return nil, err
	}
	repeats, err := s.fit(se, inputs)
	s.notePosts(se, inputs, by, err == nil)
	if err != nil {
		return nil, err
	}
	replies := make([]map[string]any, len(inputs))
	answered := false
	for i, in := range inputs {
		c := se.calls[in.Call]
		settled := c != nil && c.done && in.Type != "user.tool_confirmation" // by an interrupt before it in this request
		if repeats[i] || settled {
			e := &event{ID: newID("sevt_"), Type: in.Type, Processed: s.now(), Fields: in.Fields}
			replies[i] = e.reply()
			continue
		}
		replies[i] = s.apply(se, in, &answered)
	}
	if answered {
		s.afterAnswer(se)
	}
	s.wakeSession(se)
	return replies, nil
}

// fit checks the inputs against the session and against each other. repeats
// marks the results that are accepted without effect. Called with s.mu.
func (s *Server) fit(se *session, inputs []input) (repeats []bool, err *apiError) {
	if se.Status == statusTerminated {
		return nil, fail(400, "session %s is terminated and accepts no events", se.ID)
	}
	repeats = make([]bool, len(inputs))
	said := map[string]bool{} // what this request says already
	for i, in := range inputs {
		at := fmt.Sprintf("events.%d", i)
		switch in.Type {
		case "user.interrupt":
			if _, ok := se.threads[in.Thread]; !ok && in.Thread != "" {
				return nil, fail(400, "%s.session_thread_id: no thread %q in this session", at, in.Thread)
			}
		case "user.tool_confirmation":
			c, ok := se.calls[in.Call]
			if !ok {
				return nil, fail(400, "%s.tool_use_id: no call %q in this session", at, in.Call)
			}
			if !c.held || said[in.Call] {
				return nil, fail(400, "%s.tool_use_id: call %q does not wait for a confirmation", at, in.Call)
			}
			said[in.Call] = true
		case "user.tool_result", "user.custom_tool_result":
			repeats[i], err = s.fitResult(se, in, said, at)
			if err != nil {
				return nil, err
			}
		}
	}
	return repeats, nil
}

// fitResult checks one result; repeat says that its call is closed already.
func (s *Server) fitResult(se *session, in input, said map[string]bool, at string) (repeat bool, err *apiError) {
	if in.Type == "user.tool_result" && !se.SelfHosted {
		return false, fail(400, "%s: user.tool_result is for self-hosted environments", at)
	}
	c, ok := se.calls[in.Call]
	if !ok {
		return false, fail(400, "%s: no call %q in this session", at, in.Call)
	}
	kind := BuiltIn
	if in.Type == "user.custom_tool_result" {
		kind = Custom
	}
	switch {
	case c.kind != kind || c.served != nil:
		return false, fail(400, "%s: call %q is not answered by a %s", at, in.Call, in.Type)
	case (c.done || said[in.Call]) && s.opt.StrictDuplicates:
		return false, fail(400, "%s: call %q has already been answered", at, in.Call)
	case c.done || said[in.Call]:
		return true, nil
	case c.held:
		return false, fail(400, "%s: call %q waits for a confirmation", at, in.Call)
	}
	said[in.Call] = true
	return false, nil
}

// apply changes the session by one input and returns its echo as it is at that
// moment: what is not processed on receipt shows processed_at null. Called with
// s.mu.
func (s *Server) apply(se *session, in input, answered *bool) map[string]any {
	e := &event{Type: in.Type, Fields: in.Fields}
	c := se.calls[in.Call]
	if c != nil && c.thread != "" {
		e.Thread, e.CrossPost = c.thread, true
		e.Fields["session_thread_id"] = c.thread
	}
	switch in.Type {
	case "user.tool_result", "user.custom_tool_result":
		reply := s.emit(se, e).reply()
		s.close(se, c, in.Result)
		*answered = true
		return reply
	case "user.define_outcome":
		e.Fields["outcome_id"] = newID("outc_")
		se.Outcomes = append(se.Outcomes, map[string]any{
			"type": "outcome_evaluation", "outcome_id": e.Fields["outcome_id"], "description": e.Fields["description"],
			"result": "pending", "iteration": 0, "completed_at": nil, "explanation": nil,
		})
		se.hungry = true
		s.wantWorker(se)
		return s.emit(se, e).reply()
	}
	reply := s.enqueue(se, e).reply()
	switch in.Type {
	case "user.message":
		s.wantWorker(se)
	case "user.interrupt":
		s.process(se, e)
		s.interrupt(se, in.Thread)
	case "user.tool_confirmation":
		s.process(se, e)
		*answered = s.decide(se, c, in) || *answered
	}
	return reply
}

// decide applies a person's verdict and reports whether it closed the call.
func (s *Server) decide(se *session, c *call, in input) (closed bool) {
	switch {
	case !in.Allow:
		why := in.Reason
		if why == "" {
			why = "The user denied this call."
		}
		s.denyCall(se, c, why)
		return true
	case c.served != nil:
		s.emitResult(se, c, *c.served)
		return true
	}
	c.held = false
	se.signal()
	return false
}
