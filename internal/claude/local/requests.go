package local

import (
	"cmp"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Request is one request as the server saw it, for assertions. It holds the kind
// of credential and never the credential.
type Request struct {
	Began      time.Time `json:"began"`
	At         time.Time `json:"at"` // when the reply ended
	Method     string    `json:"method"`
	Path       string    `json:"path"`
	Query      string    `json:"query,omitempty"`
	Operation  string    `json:"operation,omitempty"` // poll, ack, heartbeat, …; see Fault.On
	Credential string    `json:"credential"`          // "api key", "environment key", "sessions token", "admin key", "none"
	Helper     string    `json:"helper,omitempty"`    // x-stainless-helper
	Worker     string    `json:"worker,omitempty"`    // Anthropic-Worker-ID
	Status     int       `json:"status"`              // 0 when no reply was written
	Fault      FaultKind `json:"fault,omitempty"`     // what struck it
	Gone       bool      `json:"gone,omitempty"`      // the client had left before the reply

	// What it was about, as far as the path, the token or the reply say.
	Session string `json:"session,omitempty"`
	Work    string `json:"work,omitempty"`
	Claim   int    `json:"claim,omitempty"` // which hand-out of the work item the token belongs to; of a poll, the one it made
	// Sent is what a heartbeat expects ("" when it says nothing), or force or
	// graceful for a stop.
	Sent string `json:"sent,omitempty"`
	// Answer is what a heartbeat heard: a state, or "lost".
	Answer string `json:"answer,omitempty"`
	// Token is the last_heartbeat that a heartbeat heard.
	Token string `json:"token,omitempty"`
}

// Post is one result that a client sent for a call, accepted or not, for
// assertions. A request with several results makes as many.
type Post struct {
	At      time.Time `json:"at"`
	Session string    `json:"session"`
	Call    string    `json:"call"`
	Type    string    `json:"type"`
	// Claim is the hand-out whose token sent it; 0 for another credential.
	Claim int `json:"claim,omitempty"`
	// Work is the item of that hand-out.
	Work string `json:"work,omitempty"`
	// State is where the call stood: open, held, answered, denied, settled,
	// served (the platform's own to answer) or unknown.
	State string `json:"state"`
	// Since is how long it had stood there, for answered, denied and settled.
	Since    time.Duration `json:"since,omitempty"`
	Accepted bool          `json:"accepted"` // the request was, which says nothing about its effect
	Size     int           `json:"size"`     // bytes of text
}

// postsKept is how many results the server remembers.
const postsKept = 10_000

// notePosts records the results among the inputs of a request. Called with s.mu
// before they are applied.
func (s *Server) notePosts(se *session, inputs []input, by caller, accepted bool) {
	now := s.clock.Now()
	for _, in := range inputs {
		if in.Type != "user.tool_result" && in.Type != "user.custom_tool_result" {
			continue
		}
		p := Post{
			At: now, Session: se.ID, Call: in.Call, Type: in.Type, Claim: by.claim, Work: by.Work,
			State: "unknown", Accepted: accepted, Size: len(in.Result.Text()),
		}
		if c, ok := se.calls[in.Call]; ok {
			p.State = c.state()
			if c.done {
				p.Since = now.Sub(c.closed)
			}
		}
		if len(s.posts) == postsKept {
			s.posts = append(s.posts[:0], s.posts[postsKept/2:]...)
		}
		s.posts = append(s.posts, p)
	}
}

// Posts returns the results that clients sent to a session, oldest first; ""
// means of all.
func (s *Server) Posts(session string) []Post {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Post
	for _, p := range s.posts {
		if session == "" || p.Session == session {
			all = append(all, p)
		}
	}
	return all
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

// from notes who sent the request and what about.
func (q *Request) from(r *http.Request, c caller) {
	q.Credential, q.Claim = c.Kind.String(), c.claim
	q.Session, q.Work = cmp.Or(r.PathValue("session"), c.Session), cmp.Or(r.PathValue("work"), c.Work)
	if q.Operation == "heartbeat" { // also when a fault keeps it from being looked at
		q.Sent = r.URL.Query().Get("expected_last_heartbeat")
	}
}

type entryKey struct{}

// entryOf returns the log entry of a request under way.
func entryOf(r *http.Request) *Request {
	if e, ok := r.Context().Value(entryKey{}).(*Request); ok {
		return e
	}
	return &Request{}
}

// Events returns the log of a session with everything on it, that of child
// threads included: what is processed in order, and behind it what is queued.
func (s *Server) Events(session string) []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	se, ok := s.sessions[session]
	if !ok {
		return nil
	}
	var all []Event
	for _, e := range slices.Concat(se.log.processed, se.log.queued) {
		all = append(all, e.public())
	}
	return all
}

// OpenCalls returns the ids of a session's calls that wait for a client.
func (s *Server) OpenCalls(session string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if se, ok := s.sessions[session]; ok {
		return se.openCalls("")
	}
	return nil
}

// Status returns the status of a session, "" when there is none.
func (s *Server) Status(session string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if se, ok := s.sessions[session]; ok {
		return se.Status
	}
	return ""
}
