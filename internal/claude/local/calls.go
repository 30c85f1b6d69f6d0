package local

import (
	"slices"
	"time"
)

// The calls of a session and what became of them (contract §4.4, §4.5). A call
// is open until it has a result or is settled. A held call waits for a person's
// verdict first: allow leaves it open for a worker, deny answers it.

type call struct {
	id         string
	thread     string
	kind       CallKind
	name       string
	permission string // allow, ask, deny, or "" for custom calls
	held       bool   // asks, and has no verdict yet
	posted     bool   // shown on the session's stream
	served     *Result
	done       bool
	closed     time.Time // when it was done
	result     Result
}

// state names where the call stands, for the record of results.
func (c *call) state() string {
	switch {
	case c.done && c.result.Denied:
		return "denied"
	case c.done && c.result.Interrupted:
		return "settled"
	case c.served != nil:
		return "served"
	case c.done:
		return "answered"
	case c.held:
		return "held"
	}
	return "open"
}

// needsClient reports whether somebody outside must act on the call.
func (c *call) needsClient() bool { return !c.done && (c.held || c.served == nil) }

// servedByPlatform are built-in tools that run on the platform even for
// self_hosted environments (contract §4.5).
var servedByPlatform = []string{"web_search", "web_fetch"}

// emitCall appends the event of a call and opens it. Called with Server.mu.
func (s *Server) emitCall(se *session, c Call, input any) string {
	k := &call{thread: c.Thread, kind: c.Kind, name: c.Name, permission: c.Permission, served: c.Served}
	evaluation := map[string]any(nil)
	if k.kind != Custom {
		k.permission, evaluation = evaluate(se.Agent, c)
	}
	if k.served == nil && (k.kind == MCP || k.kind == BuiltIn && slices.Contains(servedByPlatform, k.name)) {
		k.served = TextResult("no result: the local platform has no "+k.name, false)
	}
	// What nobody knows asks, too: a client that does not understand the word must
	// not run the call (contract §4.5).
	k.held = k.permission == "ask" || k.permission == "unknown"
	fields := map[string]any{"name": c.Name, "input": input}
	typ := "agent.tool_use"
	switch c.Kind {
	case Custom:
		typ = "agent.custom_tool_use"
	case MCP:
		typ = "agent.mcp_tool_use"
		fields["mcp_server_name"] = c.Server
	}
	if k.permission != "" {
		fields["evaluated_permission"] = k.permission
	}
	if evaluation != nil {
		fields["evaluation"] = evaluation
	}
	if c.Thread != "" {
		fields["session_thread_id"] = c.Thread
	}
	e := s.emit(se, &event{Type: typ, Thread: c.Thread, CrossPost: k.needsClient(), Fields: fields})
	k.id, k.posted = e.ID, e.CrossPost
	se.calls[k.id] = k
	se.asked = append(se.asked, k.id)
	return k.id
}

// serveCall answers what the platform answers itself: denied calls, and served
// ones that no person has to allow first.
func (s *Server) serveCall(se *session, c *call) {
	switch {
	case c.done:
	case c.permission == "deny":
		s.denyCall(se, c, "The call was denied by the agent's permission policy.")
	case c.served != nil && !c.held:
		s.emitResult(se, c, *c.served)
	}
}

// denyCall writes the synthetic error result of a denied call.
func (s *Server) denyCall(se *session, c *call, why string) {
	s.emitResult(se, c, Result{Content: textContent(why), IsError: true, Denied: true})
}

// emitResult appends the platform's own result of a call and closes it.
func (s *Server) emitResult(se *session, c *call, r Result) {
	typ, ref := "agent.tool_result", "tool_use_id"
	if c.kind == MCP {
		typ, ref = "agent.mcp_tool_result", "mcp_tool_use_id"
	}
	s.emit(se, &event{Type: typ, Thread: c.thread, CrossPost: c.posted, Fields: map[string]any{
		ref: c.id, "content": r.Content, "is_error": r.IsError,
	}})
	s.close(se, c, r)
}

// close records the result of a call.
func (s *Server) close(se *session, c *call, r Result) {
	r.Call = c.id
	c.held, c.done, c.result, c.closed = false, true, r, s.clock.Now()
	se.signal()
}

// settle closes the open calls that f selects without an answer.
func (s *Server) settle(se *session, f func(*call) bool) {
	for _, c := range se.calls {
		if !c.done && f(c) {
			s.close(se, c, Result{Interrupted: true})
		}
	}
}

// openCalls returns the ids of calls that wait for a client, in order, of one
// thread or, for "", of all.
func (se *session) openCalls(thread string) []string {
	var open []string
	for _, id := range se.asked {
		c := se.calls[id]
		if c.needsClient() && (thread == "" || c.thread == thread) {
			open = append(open, id)
		}
	}
	return open
}

func (se *session) allDone(ids []string) bool {
	for _, id := range ids {
		if c, ok := se.calls[id]; ok && !c.done {
			return false
		}
	}
	return true
}

// announceWaiting makes the session idle with everything that is open, and the
// child threads that wait with it. It may be called again after a partial
// answer, to say what remains.
func (s *Server) announceWaiting(se *session) {
	open := se.openCalls("")
	if len(open) == 0 {
		return
	}
	for _, id := range se.joined[1:] {
		t := se.threads[id]
		if own := se.openCalls(id); len(own) > 0 && t.Status == statusRunning {
			s.idleThread(se, t, requiresAction(own))
		}
	}
	s.goIdle(se, requiresAction(open), nil)
}

func requiresAction(ids []string) map[string]any {
	return map[string]any{"type": "requires_action", "event_ids": ids}
}

// afterAnswer tells how a waiting session goes on: with the remainder, or
// running when nothing remains (contract §4.4).
func (s *Server) afterAnswer(se *session) {
	if !se.waiting {
		return
	}
	for _, id := range se.joined[1:] {
		t := se.threads[id]
		if t.waiting && len(se.openCalls(id)) == 0 {
			s.runThread(se, t)
		}
	}
	if len(se.openCalls("")) > 0 {
		s.announceWaiting(se)
		return
	}
	s.goRunning(se)
}

// evaluate returns the permission of a call and the evaluation object that
// explains it: the call's own, or the policy of the agent's toolset (contract
// §4.8).
func evaluate(agent map[string]any, c Call) (permission string, evaluation map[string]any) {
	policy := policyOf(agent, c)
	permission = c.Permission
	if permission == "" {
		permission = "allow"
		if policy == "always_ask" {
			permission = "ask"
		}
	}
	switch permission {
	case "unknown":
		return permission, nil
	case "deny":
		return permission, map[string]any{"type": "auto", "evaluated_permission": map[string]any{"type": "deny", "reason_code": "high_risk"}}
	case "ask":
		if policy == "auto" {
			return permission, map[string]any{"type": "auto", "evaluated_permission": map[string]any{"type": "ask", "reason_code": "high_risk"}}
		}
		return permission, map[string]any{"type": "always_ask"}
	}
	if policy == "auto" {
		return permission, map[string]any{"type": "auto", "evaluated_permission": map[string]any{"type": "allow"}}
	}
	return permission, map[string]any{"type": "always_allow"}
}

// policyOf finds the permission policy of a call in a decoded agent snapshot.
func policyOf(agent map[string]any, c Call) string {
	toolset, policy := "agent_toolset_20260401", "always_allow"
	if c.Kind == MCP {
		toolset, policy = "mcp_toolset", "always_ask"
	}
	of := func(config any) string {
		m, _ := config.(map[string]any)
		p, _ := m["permission_policy"].(map[string]any)
		typ, _ := p["type"].(string)
		return typ
	}
	tools, _ := agent["tools"].([]any)
	for _, t := range tools {
		set, _ := t.(map[string]any)
		if set["type"] != toolset || c.Kind == MCP && set["mcp_server_name"] != c.Server {
			continue
		}
		if p := of(set["default_config"]); p != "" {
			policy = p
		}
		configs, _ := set["configs"].([]any)
		for _, config := range configs {
			if m, _ := config.(map[string]any); m["name"] == c.Name {
				if p := of(m); p != "" {
					policy = p
				}
			}
		}
	}
	return policy
}
