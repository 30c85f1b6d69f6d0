package local

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// handlerFunc serves one route. It returns the JSON value of a 200 (nil is the
// value null), or one of the special replies below, or an error. It takes
// Server.mu itself and never holds it while it reads or writes the connection.
type handlerFunc func(w http.ResponseWriter, r *http.Request, c caller) (any, *apiError)

type (
	written   struct{} // the handler wrote the response itself
	noContent struct{} // 204 without a content type
)

// handle serves pattern (of http.ServeMux) for the kinds of credential in allow.
// Path values named {environment}, {session} and {work} are checked against the
// credential (see authorize); other ids are the handler's.
func (s *Server) handle(pattern string, allow credKind, h handlerFunc) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		c, e := s.authenticate(r)
		if e == nil {
			entryOf(r).from(r, c)
			e = s.authorize(r, c, allow)
		}
		if e == nil && allow&credAdmin == 0 {
			e = s.checkHeaders(r)
		}
		if e != nil {
			s.refuse(w, r, e)
			return
		}
		s.serve(w, r, c, h)
	})
}

// serve runs a handler under the fault that waits for this request, if any.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, c caller, h handlerFunc) {
	var f *Fault
	if c.Kind != credAdmin && !s.faults.empty() {
		f = s.faults.take(r, s.subjectOf(r, c))
	}
	if f == nil {
		v, e := h(w, r, c)
		s.reply(w, r, v, e)
		return
	}
	s.log.Debug("injecting fault", "kind", f.Kind, "op", f.On)
	entryOf(r).Fault = f.Kind
	r = r.WithContext(context.WithValue(r.Context(), faultKey{}, f))
	s.serveFaulty(w, r, c, h, f)
}

func (s *Server) reply(w http.ResponseWriter, r *http.Request, v any, e *apiError) {
	if e != nil {
		s.refuse(w, r, e)
		return
	}
	switch v.(type) {
	case written:
		return
	case noContent:
		w.WriteHeader(http.StatusNoContent)
		return
	}
	writeJSON(w, http.StatusOK, v)
}

// refuse answers with the error envelope (contract §1.5).
func (s *Server) refuse(w http.ResponseWriter, _ *http.Request, e *apiError) {
	inner := map[string]any{"type": e.Type, "message": e.Message}
	if e.Details != nil {
		inner["details"] = e.Details
	}
	writeJSON(w, e.Status, map[string]any{
		"type": "error", "error": inner, "request_id": w.Header().Get("request-id"),
	})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		status, body = 500, []byte(`{"type":"error","error":{"type":"api_error","message":"encoding the reply"}}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may be gone; there is nobody to tell
}

// ServeHTTP serves the API and the admin paths.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("request-id", newID("req_"))
	w.Header().Set("anthropic-organization-id", "org_local")
	entry := &Request{
		Began:  s.clock.Now(),
		Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Operation: operation(r.Method, r.URL.Path),
		Helper: r.Header.Get("x-stainless-helper"), Worker: r.Header.Get("Anthropic-Worker-ID"), Credential: "none",
	}
	rec := &statusWriter{ResponseWriter: w, entry: entry}
	defer func() { // also after an aborted connection
		entry.At, entry.Gone = s.clock.Now(), r.Context().Err() != nil
		s.requests.add(*entry)
	}()
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		s.refuse(rec, r, fail(http.StatusServiceUnavailable, "the server is closing"))
		return
	}
	s.mux.ServeHTTP(rec, r.WithContext(context.WithValue(r.Context(), entryKey{}, entry)))
}

// statusWriter remembers the status for the request log.
type statusWriter struct {
	http.ResponseWriter
	entry *Request
}

func (w *statusWriter) WriteHeader(status int) {
	if w.entry.Status == 0 {
		w.entry.Status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	if w.entry.Status == 0 {
		w.entry.Status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

const (
	betaAgents = "managed-agents-2026-04-01"
	betaMemory = "agent-memory-2026-07-22"
)

// checkHeaders applies the rules of anthropic-version and, when strict, of
// anthropic-beta (contract §1.3).
func (s *Server) checkHeaders(r *http.Request) *apiError {
	switch v := r.Header.Get("anthropic-version"); v {
	case "2023-06-01", "2026-10-21":
	case "":
		if s.opt.StrictBeta {
			return fail(400, "anthropic-version: the header is required")
		}
	default:
		return fail(400, "anthropic-version: %q is not a valid version", v)
	}
	if !s.opt.StrictBeta {
		return nil
	}
	var betas []string
	for _, h := range r.Header.Values("anthropic-beta") {
		for b := range strings.SplitSeq(h, ",") {
			betas = append(betas, strings.TrimSpace(b))
		}
	}
	agents, memory := slices.Contains(betas, betaAgents), slices.Contains(betas, betaMemory)
	first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/"), "/")
	switch first {
	case "skills", "files", "messages":
		return nil // generally available
	case "memory_stores":
		if agents && memory {
			return fail(400, "anthropic-beta: %s and %s cannot be combined", betaMemory, betaAgents)
		}
		if !memory {
			return fail(404, "no route %s %s", r.Method, r.URL.Path)
		}
	default:
		if !agents {
			return fail(404, "no route %s %s", r.Method, r.URL.Path)
		}
	}
	return nil
}
