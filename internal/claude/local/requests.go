package local

import (
	"net/http"
	"sync"
	"time"
)

// Request is one request as the server saw it, for assertions. It holds the kind
// of credential and never the credential.
type Request struct {
	At         time.Time `json:"at"` // when the reply ended
	Method     string    `json:"method"`
	Path       string    `json:"path"`
	Query      string    `json:"query,omitempty"`
	Operation  string    `json:"operation,omitempty"` // poll, ack, heartbeat, …; see Fault.On
	Credential string    `json:"credential"`          // "api key", "environment key", "sessions token", "admin key", "none"
	Helper     string    `json:"helper,omitempty"`    // x-stainless-helper
	Worker     string    `json:"worker,omitempty"`    // Anthropic-Worker-ID
	Status     int       `json:"status"`              // 0 when no reply was written
}

type requestLog struct {
	limit int

	mu  sync.Mutex
	all []Request
}

func newRequestLog(limit int) *requestLog { return &requestLog{limit: limit} }

func (l *requestLog) add(r Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.all) == l.limit { // drop the older half at once: cheap, and bounded
		l.all = append(l.all[:0], l.all[l.limit/2:]...)
	}
	l.all = append(l.all, r)
}

// Requests returns the newest requests that have been answered, oldest first. A
// stream appears when it ends.
func (s *Server) Requests() []Request {
	s.requests.mu.Lock()
	defer s.requests.mu.Unlock()
	return append([]Request(nil), s.requests.all...)
}

type entryKey struct{}

// entryOf returns the log entry of a request under way.
func entryOf(r *http.Request) *Request {
	if e, ok := r.Context().Value(entryKey{}).(*Request); ok {
		return e
	}
	return &Request{}
}
