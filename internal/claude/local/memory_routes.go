package local

import (
	"maps"
	"net/http"
	"strconv"
)

// Who may touch a store (contract §1.2): API keys everything; a sessions token
// the memories of the stores that its session has attached, and no writes where
// the attachment is read-only; environment keys nothing.

func (s *Server) memoryRoutes() {
	c := newMemoryStores(s.clock.Now)
	s.stores = c
	s.routeStores(c)
	s.routeMemories(c)
	s.routeMemoryVersions(c)
}

const memoryUsers = credAPIKey | credSession

// memoryHandler serves a route below a store that the caller may use.
type memoryHandler func(w http.ResponseWriter, r *http.Request, st *memoryStore, by actor) (any, *apiError)

// onStore finds the store and checks the caller's access to it; write says that
// the route changes memories.
func (s *Server) onStore(c *memoryStores, write bool, h memoryHandler) handlerFunc {
	return func(w http.ResponseWriter, r *http.Request, from caller) (any, *apiError) {
		id := r.PathValue("store")
		switch access := s.storeAccess(from, id); {
		case access == "":
			return nil, fail(403, "memory store %s is not attached to this session", id)
		case write && access == "read_only":
			return nil, fail(403, "memory store %s is attached to this session as read_only", id)
		}
		st, err := c.find(id)
		if err != nil {
			return nil, err
		}
		by := actor{Type: "api_actor", KeyID: from.KeyID}
		if from.Kind == credSession {
			by = actor{Type: "session_actor", Session: from.Session}
		}
		v, err := h(w, r, st, by)
		if err != nil && err.Type == typePathConflict {
			inner := map[string]any{"type": err.Type, "message": err.Message}
			// this error's details stand beside its message
			maps.Copy(inner, err.Details)
			writeJSON(w, err.Status, map[string]any{
				"type": "error", "error": inner, "request_id": w.Header().Get("request-id"),
			})
			return written{}, nil
		}
		return v, err
	}
}

func (s *Server) routeStores(c *memoryStores) {
	s.handle("POST /v1/memory_stores", credAPIKey, func(w http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
		var in storeCreate
		if err := decode(w, r, &in, false); err != nil {
			return nil, err
		}
		return answer(c.create(in))
	})
	s.handle("GET /v1/memory_stores", credAPIKey, func(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
		within, err := createdWithin(r.URL.Query())
		if err != nil {
			return nil, err
		}
		return listed(r, 20, 100, func() ([]storeReply, *apiError) { return c.all(within), nil })
	})
	s.handle("GET /v1/memory_stores/{store}", memoryUsers, s.onStore(c, false,
		func(_ http.ResponseWriter, _ *http.Request, st *memoryStore, _ actor) (any, *apiError) {
			return st.reply(), nil
		}))
	s.handle("POST /v1/memory_stores/{store}", credAPIKey, s.onStore(c, true,
		func(w http.ResponseWriter, r *http.Request, st *memoryStore, _ actor) (any, *apiError) {
			var in storeUpdate
			if err := decode(w, r, &in, false); err != nil {
				return nil, err
			}
			return answer(st.change(in))
		}))
	s.handle("POST /v1/memory_stores/{store}/archive", credAPIKey, s.onStore(c, true,
		func(_ http.ResponseWriter, _ *http.Request, st *memoryStore, _ actor) (any, *apiError) {
			return st.archive(), nil
		}))
	s.handle("DELETE /v1/memory_stores/{store}", credAPIKey, s.onStore(c, true,
		func(_ http.ResponseWriter, _ *http.Request, st *memoryStore, _ actor) (any, *apiError) {
			return answer(deleted(st.id, "memory_store_deleted"), c.remove(st.id))
		}))
}

func (s *Server) routeMemories(c *memoryStores) {
	const base = "/v1/memory_stores/{store}/memories"
	s.handle("POST "+base, memoryUsers, s.onStore(c, true,
		func(w http.ResponseWriter, r *http.Request, st *memoryStore, by actor) (any, *apiError) {
			full, err := viewOf(r, false)
			if err != nil {
				return nil, err
			}
			var in struct {
				Path    string        `json:"path"`
				Content maybe[string] `json:"content"`
			}
			if err := decode(w, r, &in, false); err != nil {
				return nil, err
			}
			if !in.Content.given() {
				return nil, fail(400, `content: required; "" makes an empty memory`)
			}
			m, err := st.create(in.Path, in.Content.Value, by)
			return answer(m.reply(st.id, full), err)
		}))
	s.handle("GET "+base, memoryUsers, s.onStore(c, false,
		func(_ http.ResponseWriter, r *http.Request, st *memoryStore, _ actor) (any, *apiError) {
			full, err := viewOf(r, false)
			if err != nil {
				return nil, err
			}
			depth := 0
			if v := r.URL.Query().Get("depth"); v == "1" {
				depth = 1
			} else if v != "" && v != "0" {
				return nil, fail(400, "depth: must be 0 or 1")
			}
			return listed(capped(r, full), 20, 100, func() ([]any, *apiError) {
				items, err := st.below(r.URL.Query().Get("path_prefix"), depth)
				return each(items, func(i memoryItem) any {
					if i.memory == nil {
						return map[string]string{"type": "memory_prefix", "path": i.prefix}
					}
					return i.memory.reply(st.id, full)
				}), err
			})
		}))
	s.handle("GET "+base+"/{memory}", memoryUsers, s.onStore(c, false,
		func(_ http.ResponseWriter, r *http.Request, st *memoryStore, _ actor) (any, *apiError) {
			full, err := viewOf(r, true)
			if err != nil {
				return nil, err
			}
			m, err := st.get(r.PathValue("memory"))
			return answer(m.reply(st.id, full), err)
		}))
	s.handle("POST "+base+"/{memory}", memoryUsers, s.onStore(c, true,
		func(w http.ResponseWriter, r *http.Request, st *memoryStore, by actor) (any, *apiError) {
			full, err := viewOf(r, false)
			if err != nil {
				return nil, err
			}
			var in memoryChange
			if err := decode(w, r, &in, false); err != nil {
				return nil, err
			}
			m, err := st.update(r.PathValue("memory"), in, by)
			return answer(m.reply(st.id, full), err)
		}))
	s.handle("DELETE "+base+"/{memory}", memoryUsers, s.onStore(c, true,
		func(_ http.ResponseWriter, r *http.Request, st *memoryStore, by actor) (any, *apiError) {
			id := r.PathValue("memory")
			return answer(deleted(id, "memory_deleted"), st.remove(id, r.URL.Query().Get("expected_content_sha256"), by))
		}))
}

func (s *Server) routeMemoryVersions(c *memoryStores) {
	const base = "/v1/memory_stores/{store}/memory_versions"
	s.handle("GET "+base, memoryUsers, s.onStore(c, false,
		func(_ http.ResponseWriter, r *http.Request, st *memoryStore, _ actor) (any, *apiError) {
			full, err := viewOf(r, false)
			if err != nil {
				return nil, err
			}
			within, err := createdWithin(r.URL.Query())
			if err != nil {
				return nil, err
			}
			q := r.URL.Query()
			is := func(name, value string) bool { return !q.Has(name) || q.Get(name) == value }
			keep := func(v memoryVersion) bool {
				return is("memory_id", v.memory) && is("operation", v.operation) && is("session_id", v.by.Session) &&
					is("api_key_id", v.by.KeyID) && is("service_account_id", "") && within(v.created, false)
			}
			return listed(capped(r, full), 20, 100, func() ([]any, *apiError) {
				return each(st.history(keep), func(v memoryVersion) any { return v.reply(st.id, full) }), nil
			})
		}))
	s.handle("GET "+base+"/{memory_version}", memoryUsers, s.onStore(c, false,
		func(_ http.ResponseWriter, r *http.Request, st *memoryStore, _ actor) (any, *apiError) {
			full, err := viewOf(r, true)
			if err != nil {
				return nil, err
			}
			v, err := st.version(r.PathValue("memory_version"))
			return answer(v.reply(st.id, full), err)
		}))
	s.handle("POST "+base+"/{memory_version}/redact", credAPIKey, s.onStore(c, true,
		func(_ http.ResponseWriter, r *http.Request, st *memoryStore, by actor) (any, *apiError) {
			v, err := st.redact(r.PathValue("memory_version"), by)
			return answer(v.reply(st.id, true), err)
		}))
}

// viewOf reads view: whether contents are in the reply.
func viewOf(r *http.Request, byDefault bool) (full bool, err *apiError) {
	switch v := r.URL.Query().Get("view"); v {
	case "":
		return byDefault, nil
	case "full", "basic":
		return v == "full", nil
	default:
		return false, fail(400, "view: must be basic or full")
	}
}

// maxFull is how many items a page with contents holds (contract §2.6).
const maxFull = 20

// capped lowers the limit of a list with contents to maxFull.
func capped(r *http.Request, full bool) *http.Request {
	q := r.URL.Query()
	if n, err := strconv.Atoi(q.Get("limit")); !full || err != nil || n <= maxFull || n > 100 {
		return r
	}
	q.Set("limit", strconv.Itoa(maxFull))
	c := r.Clone(r.Context())
	c.URL.RawQuery = q.Encode()
	return c
}

// reply renders a memory; content is null unless full.
func (m memory) reply(store string, full bool) map[string]any {
	v := m.version
	out := map[string]any{
		"id": m.id, "type": "memory", "memory_store_id": store, "memory_version_id": v.id, "path": m.path,
		"content": nil, "content_sha256": v.sha256, "content_size_bytes": len(v.content),
		"created_at": stamp(m.created), "updated_at": stamp(v.created),
	}
	if full {
		out["content"] = v.content
	}
	return out
}

// reply renders a version. What a redaction or a deletion leaves out is null.
func (v memoryVersion) reply(store string, full bool) map[string]any {
	out := map[string]any{
		"id": v.id, "type": "memory_version", "memory_store_id": store, "memory_id": v.memory, "operation": v.operation,
		"path": nil, "content": nil, "content_sha256": nil, "content_size_bytes": nil,
		"created_at": stamp(v.created), "created_by": v.by, "redacted_at": stampOrNil(v.redacted),
	}
	if !v.redacted.IsZero() {
		out["redacted_by"] = v.redactedBy
		return out
	}
	out["path"] = v.path
	if v.operation == "deleted" {
		return out
	}
	out["content_sha256"], out["content_size_bytes"] = v.sha256, len(v.content)
	if full {
		out["content"] = v.content
	}
	return out
}
