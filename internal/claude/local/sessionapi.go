package local

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"time"
)

// Sessions over HTTP (contract §2.4), but for creation and events.

const sessionPath = "/v1/sessions/{session}"

func (s *Server) sessionRoutes() {
	clients := credAPIKey | credEnvKey | credSession
	s.handle("POST /v1/sessions", credAPIKey, s.createSession)
	s.handle("GET /v1/sessions", credAPIKey, s.listSessions)
	s.handle("GET "+sessionPath, clients, s.getSession)
	s.handle("POST "+sessionPath, credAPIKey, s.updateSession)
	s.handle("POST "+sessionPath+"/archive", credAPIKey, s.postArchive)
	s.handle("DELETE "+sessionPath, credAPIKey, s.deleteByPath)
	s.handle("GET "+sessionPath+"/resources", clients, s.listResources)
	s.handle("POST "+sessionPath+"/resources", credAPIKey, s.addResource)
	s.handle("GET "+sessionPath+"/resources/{resource}", clients, s.getResource)
	s.handle("POST "+sessionPath+"/resources/{resource}", credAPIKey, s.refuseResource)
	s.handle("DELETE "+sessionPath+"/resources/{resource}", credAPIKey, s.refuseResource)
	s.handle("POST "+sessionPath+"/events", clients, s.sendEvents)
	s.handle("GET "+sessionPath+"/events", clients, s.listEvents)
	s.handle("GET "+sessionPath+"/events/stream", clients, s.streamEvents)
}

func (s *Server) getSession(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	se, err := s.sessionByID(r.PathValue("session"))
	if err != nil {
		return nil, err
	}
	return se.reply(s.clock.Now()), nil
}

// timeRange is created_at[gt|gte|lt|lte] of a query.
type timeRange struct {
	after, before           time.Time
	afterEqual, beforeEqual bool
}

func readRange(q url.Values) (t timeRange, err *apiError) {
	for _, b := range []struct {
		op    string
		at    *time.Time
		equal *bool
		is    bool
	}{
		{"gt", &t.after, &t.afterEqual, false},
		{"gte", &t.after, &t.afterEqual, true},
		{"lt", &t.before, &t.beforeEqual, false},
		{"lte", &t.before, &t.beforeEqual, true},
	} {
		v := q.Get("created_at[" + b.op + "]")
		if v == "" {
			continue
		}
		at, perr := time.Parse(time.RFC3339, v)
		if perr != nil {
			return t, fail(400, "created_at[%s]: %q is not an RFC 3339 time", b.op, v)
		}
		*b.at, *b.equal = at, b.is
	}
	return t, nil
}

func (t timeRange) holds(at time.Time) bool {
	if !t.after.IsZero() && !(at.After(t.after) || t.afterEqual && at.Equal(t.after)) {
		return false
	}
	return t.before.IsZero() || at.Before(t.before) || t.beforeEqual && at.Equal(t.before)
}

// bindOf is everything of a query that shapes a list, for its cursors.
func bindOf(q url.Values) string {
	c := url.Values{}
	for k, v := range q {
		if k != "page" && k != "limit" && k != "beta" {
			c[k] = v
		}
	}
	return c.Encode()
}

// readOrder reads order; the zero answer is the default.
func readOrder(q url.Values, byDefault string) (desc bool, err *apiError) {
	switch o := q.Get("order"); o {
	case "":
		return byDefault == "desc", nil
	case "asc", "desc":
		return o == "desc", nil
	default:
		return false, fail(400, "order: must be \"asc\" or \"desc\"")
	}
}

func (s *Server) listSessions(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	q := r.URL.Query()
	p, err := pageOf(r, 20, 1000, bindOf(q))
	if err != nil {
		return nil, err
	}
	desc, err := readOrder(q, "desc")
	if err != nil {
		return nil, err
	}
	created, err := readRange(q)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := slices.Clone(s.sessionOrder)
	if desc {
		slices.Reverse(ids)
	}
	var all []map[string]any
	for _, id := range ids {
		if se := s.sessions[id]; created.holds(se.Created) && se.selected(q) {
			all = append(all, se.reply(s.clock.Now()))
		}
	}
	reply := list(p, all)
	reply["prev_page"] = nil
	if p.Offset > 0 {
		reply["prev_page"] = p.at(max(p.Offset-p.Limit, 0))
	}
	return reply, nil
}

// selected applies the filters of the sessions list.
func (se *session) selected(q url.Values) bool {
	version, _ := se.Agent["version"].(float64)
	statuses := q["statuses[]"]
	switch {
	case !se.Archived.IsZero() && q.Get("include_archived") != "true",
		q.Has("agent_id") && se.Agent["id"] != q.Get("agent_id"),
		q.Has("agent_version") && strconv.Itoa(int(version)) != q.Get("agent_version"),
		q.Has("deployment_id"), // there are no deployments here
		q.Has("memory_store_id") && se.storeAccess(q.Get("memory_store_id")) == "",
		len(statuses) > 0 && !slices.Contains(statuses, se.Status):
		return false
	}
	return true
}

type sessionUpdate struct {
	Title    maybe[string]                     `json:"title"`
	Metadata maybe[map[string]*string]         `json:"metadata"`
	VaultIDs json.RawMessage                   `json:"vault_ids"`
	Agent    maybe[map[string]json.RawMessage] `json:"agent"`
	Budget   maybe[json.RawMessage]            `json:"budget"`
}

func (s *Server) updateSession(w http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	var b sessionUpdate
	if err := decode(w, r, &b, false); err != nil {
		return nil, err
	}
	if b.VaultIDs != nil {
		return nil, fail(400, "vault_ids: cannot be changed after a session was created")
	}
	title, err := sessionTitle(b.Title)
	if err != nil {
		return nil, err
	}
	agent, err := s.updatedAgent(r.PathValue("session"), b.Agent)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	se, err := s.sessionByID(r.PathValue("session"))
	if err != nil {
		return nil, err
	}
	changed := map[string]any{}
	metadata := se.Metadata
	if b.Metadata.given() {
		if metadata, err = mergedMetadata(se.Metadata, b.Metadata.Value); err != nil {
			return nil, err
		}
		if !reflect.DeepEqual(orEmpty(metadata), orEmpty(se.Metadata)) {
			changed["metadata"] = metadata
		}
	}
	budget, err := updatedBudget(se.Budget, b.Budget)
	if err != nil {
		return nil, err
	}
	if !reflect.DeepEqual(budget, se.Budget) {
		changed["budget"] = budget
	}
	if agent != nil {
		if se.Status == statusRunning {
			return nil, fail(400, "agent: session %s is running; interrupt it first", se.ID)
		}
		changed["agent"] = agent
		se.Agent = agent
	}
	if b.Title.Sent && !reflect.DeepEqual(title, se.Title) {
		changed["title"] = title
		se.Title = title
	}
	se.Metadata, se.Budget = metadata, budget
	if len(changed) > 0 {
		s.emit(se, &event{Type: "session.updated", Fields: changed})
		s.hooks.notify("session.updated", se.ID, nil)
	}
	return se.reply(s.clock.Now()), nil
}

// updatedAgent returns the new snapshot of a session whose tools or servers are
// replaced, nil when the body does not touch the agent.
func (s *Server) updatedAgent(session string, patch maybe[map[string]json.RawMessage]) (map[string]any, *apiError) {
	if !patch.given() {
		return nil, nil
	}
	for k := range patch.Value {
		if k != "tools" && k != "mcp_servers" {
			return nil, fail(400, "agent.%s: only tools and mcp_servers can be replaced", k)
		}
	}
	s.mu.Lock()
	se, err := s.sessionByID(session)
	if err != nil {
		s.mu.Unlock()
		return nil, err
	}
	old := se.Agent
	s.mu.Unlock()
	overrides := map[string]json.RawMessage{}
	for _, k := range []string{"tools", "mcp_servers"} { // what is not sent stays as the session has it
		b, merr := json.Marshal(old[k])
		if merr != nil {
			return nil, fail(500, "agent: %v", merr)
		}
		overrides[k] = b
		if sent, ok := patch.Value[k]; ok {
			overrides[k] = sent
		}
	}
	id, _ := old["id"].(string)
	version, _ := old["version"].(float64)
	fresh, err := s.agentSnapshot(id, int(version), overrides)
	if err != nil {
		return nil, err
	}
	next := map[string]any{}
	maps.Copy(next, old)
	next["tools"], next["mcp_servers"] = fresh["tools"], fresh["mcp_servers"]
	return next, nil
}

// updatedBudget applies the rules of contract §2.4: no budget can be added later,
// null removes it, and it cannot be lowered below what was spent (here: nothing).
func updatedBudget(old any, b maybe[json.RawMessage]) (any, *apiError) {
	if !b.Sent {
		return old, nil
	}
	if b.Null {
		return nil, nil
	}
	if old == nil {
		return nil, failCode(400, "budget_create_only", "budget: can only be set when a session is created")
	}
	return readBudget(b.Value)
}

func (s *Server) postArchive(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	se, err := s.notRunning(r)
	if err != nil {
		return nil, err
	}
	s.archiveSession(se)
	return se.reply(s.clock.Now()), nil
}

func (s *Server) deleteByPath(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	se, err := s.notRunning(r)
	if err != nil {
		return nil, err
	}
	s.deleteSession(se)
	return map[string]any{"id": se.ID, "type": "session_deleted"}, nil
}

// notRunning finds the session of a path, and refuses while it runs.
func (s *Server) notRunning(r *http.Request) (*session, *apiError) {
	se, err := s.sessionByID(r.PathValue("session"))
	if err == nil && se.Status == statusRunning {
		return nil, fail(400, "session %s is running; interrupt it first", se.ID)
	}
	return se, err
}

func (s *Server) listResources(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	p, err := pageOf(r, 1000, 1000, "resources")
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	se, err := s.sessionByID(r.PathValue("session"))
	if err != nil {
		return nil, err
	}
	return list(p, se.Resources), nil
}

// getResource finds a resource. Memory stores, the only ones here, have no
// resource id of their own; they go by the store's.
func (s *Server) getResource(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	se, err := s.sessionByID(r.PathValue("session"))
	if err != nil {
		return nil, err
	}
	for _, m := range se.Resources {
		if m["memory_store_id"] == r.PathValue("resource") {
			return m, nil
		}
	}
	return nil, fail(404, "resource %q not found", r.PathValue("resource"))
}

func (s *Server) addResource(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	se, err := s.sessionByID(r.PathValue("session"))
	if err != nil {
		return nil, err
	}
	if se.SelfHosted {
		return nil, selfHostedResources(se.Environment)
	}
	return nil, fail(400, "the local platform has no file resources")
}

// refuseResource answers the deletion and the token rotation of a resource: a
// memory store has no token and stays attached (contract §6.2).
func (s *Server) refuseResource(w http.ResponseWriter, r *http.Request, c caller) (any, *apiError) {
	if _, err := s.getResource(w, r, c); err != nil {
		return nil, err
	}
	return nil, fail(400, "a memory store cannot be changed or detached after the session was created")
}
