package local

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Fault injection (contract §11.2). A fault waits for requests of one operation
// and strikes a number of them; the first waiting fault that fits a request
// takes it.

// FaultKind names what goes wrong.
type FaultKind string

// The kinds of faults. "Applied" means that the request has had its effect.
const (
	// For every operation.
	Drop     FaultKind = "drop"      // applied, then the connection closes without a response
	SendCode FaultKind = "status"    // not applied; Status, RetryAfter, ShouldRetry
	SlowBody FaultKind = "slow_body" // applied; headers at once, the body after Delay
	Reset    FaultKind = "reset"     // not applied; TCP reset
	Hang     FaultKind = "hang"      // not applied; silence for Delay, then the connection closes
	// For heartbeat.
	LeaseLost   FaultKind = "lease_lost"   // the lease lapses first: 412
	NotExtended FaultKind = "not_extended" // the lease lapses: 200 with lease_extended false
	Stopping    FaultKind = "stopping"     // somebody stops the item first: 200 with state stopping
	// For poll: what is wrong with the secret.
	SecretAbsent  FaultKind = "secret_absent"
	SecretGarbage FaultKind = "secret_garbage"
	SecretNoToken FaultKind = "secret_no_token"
	SecretPadded  FaultKind = "secret_padded" // right, but with base64 padding
	// For events.list.
	EmptyPage FaultKind = "empty_page" // no data, and next_page set
	// For stream; they strike at every Every-th frame of the stream.
	CutStream  FaultKind = "cut"       // the stream ends after it
	Duplicate  FaultKind = "duplicate" // it is written twice
	Omit       FaultKind = "omit"      // it is not written
	Reorder    FaultKind = "reorder"   // it is written after the next one
	Huge       FaultKind = "huge"      // a frame with a line of Bytes (default 40 MiB) is written before it
	ErrorFrame FaultKind = "error"     // event: error instead of it, and the stream ends
)

var faultKinds = map[FaultKind][]string{
	Drop: nil, SendCode: nil, SlowBody: nil, Reset: nil, Hang: nil,
	LeaseLost: {"heartbeat"}, NotExtended: {"heartbeat"}, Stopping: {"heartbeat"},
	SecretAbsent: {"poll"}, SecretGarbage: {"poll"}, SecretNoToken: {"poll"}, SecretPadded: {"poll"},
	EmptyPage: {"events.list"},
	CutStream: {"stream"}, Duplicate: {"stream"}, Omit: {"stream"}, Reorder: {"stream"}, Huge: {"stream"}, ErrorFrame: {"stream"},
}

// Fault is one thing that goes wrong. Scenarios and /_local/faults write it as
// YAML or JSON.
type Fault struct {
	Kind FaultKind `yaml:"kind"`
	// On is the operation that it strikes: poll, ack, heartbeat, stop, stats,
	// work.list, work.get, work.update, session.create, session.get,
	// session.list, session.update, session.archive, session.delete, events.send,
	// events.list, stream, threads, skills.get, skills.content, memory.store,
	// memory.list, memory.get, memory.create, memory.update, memory.delete; a
	// method and a path with * for ids ("POST /v1/agents/*"); or "*" for all. ""
	// is right for the kinds that strike one operation only.
	On string `yaml:"on"`
	// Environment, Session and Work confine it to requests about them. A poll is
	// about the session of the item that it hands out; with Session or Work set,
	// Drop and the kinds that spoil a secret strike it, and no other.
	Environment string `yaml:"environment"`
	Session     string `yaml:"session"`
	Work        string `yaml:"work"`
	// Skip lets this many fitting requests pass first: Skip 2 strikes the third
	// heartbeat, or the third page of a history.
	Skip int `yaml:"skip"`
	// Times is how many requests it strikes then: default 1, -1 without end.
	Times int `yaml:"times"`

	Status      int           `yaml:"status"`
	RetryAfter  string        `yaml:"retry_after"` // the header's value
	ShouldRetry *bool         `yaml:"should_retry"`
	Delay       time.Duration `yaml:"delay"` // real time
	Every       int           `yaml:"every"`
	Bytes       int           `yaml:"bytes"`
}

func (f *Fault) kind() FaultKind {
	if f == nil {
		return ""
	}
	return f.Kind
}

// check validates a fault and completes On.
func (f *Fault) check() error {
	ops, ok := faultKinds[f.Kind]
	switch {
	case !ok:
		return errors.New("fault: unknown kind " + strconv.Quote(string(f.Kind)))
	case f.On == "" && len(ops) == 1:
		f.On = ops[0]
	case f.On == "":
		return errors.New("fault: on is required for the kind " + string(f.Kind))
	case f.On == "poll" && (f.Session != "" || f.Work != "") && f.Kind != Drop && !slices.Contains(ops, "poll"):
		return errors.New("fault: of the polls that hand out one session, only drop and the kinds that spoil a secret strike")
	case f.On == "stream" && (f.Kind == Drop || f.Kind == SlowBody):
		return errors.New("fault: the kind " + string(f.Kind) + " does not strike streams; use cut")
	case len(ops) > 0 && !slices.Contains(ops, f.On):
		return errors.New("fault: the kind " + string(f.Kind) + " strikes only " + strings.Join(ops, ", "))
	}
	if f.Kind == SendCode && (f.Status < 400 || f.Status > 599) {
		return errors.New("fault: status must be from 400 to 599")
	}
	if f.Times == 0 {
		f.Times = 1
	}
	return nil
}

// Inject makes a fault wait for its requests. It fails when the fault makes no
// sense.
func (s *Server) Inject(f Fault) error {
	if err := f.check(); err != nil {
		return err
	}
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.waiting = append(s.faults.waiting, &f)
	return nil
}

// ClearFaults forgets all waiting faults and returns how many there were.
func (s *Server) ClearFaults() int {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	n := len(s.faults.waiting)
	s.faults.waiting = nil
	return n
}

type faultTable struct {
	mu      sync.Mutex
	waiting []*Fault
}

func newFaultTable() *faultTable { return &faultTable{} }

// subject is what a request is about.
type subject struct{ environment, session, work string }

// subjectOf finds it by the path, the work item and the token.
func (s *Server) subjectOf(r *http.Request, c caller) subject {
	sub := subject{r.PathValue("environment"), r.PathValue("session"), r.PathValue("work")}
	s.mu.Lock()
	defer s.mu.Unlock()
	if w, ok := s.queue.items[sub.work]; ok && sub.session == "" {
		sub.session = w.Session
	}
	if sub.session == "" {
		sub.session = c.Session
	}
	if sub.environment == "" {
		sub.environment = c.Environment
	}
	if sub.work == "" {
		sub.work = c.Work
	}
	return sub
}

// empty reports whether no fault waits: the common case, without further cost.
func (t *faultTable) empty() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.waiting) == 0
}

// take returns the fault that strikes a request, or nil.
func (t *faultTable) take(r *http.Request, sub subject) *Fault {
	return t.strike(func(f *Fault) bool { return f.fits(r, sub) })
}

// strike returns the first waiting fault that fits and may strike now.
func (t *faultTable) strike(fits func(*Fault) bool) *Fault {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, f := range t.waiting {
		if !fits(f) {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		if f.Times > 0 {
			if f.Times--; f.Times == 0 {
				t.waiting = slices.Delete(t.waiting, i, i+1)
			}
		}
		struck := *f
		return &struck
	}
	return nil
}

// takeHandOut returns the fault that strikes the poll that hands out w, or nil.
func (t *faultTable) takeHandOut(w *workItem) *Fault {
	return t.strike(func(f *Fault) bool {
		return f.On == "poll" && (f.Session != "" || f.Work != "") && (f.Session == "" || f.Session == w.Session) &&
			(f.Work == "" || f.Work == w.ID) && (f.Environment == "" || f.Environment == w.Environment)
	})
}

// abort ends a request without a reply.
func abort() { panic(http.ErrAbortHandler) }

func (f *Fault) fits(r *http.Request, sub subject) bool {
	op := operation(r.Method, r.URL.Path)
	if op == "poll" && (f.Session != "" || f.Work != "") {
		return false // see takeHandOut
	}
	if op == "stream" && (f.Kind == Drop || f.Kind == SlowBody) {
		return false // a stream has no end to wait for; see CutStream
	}
	if f.On != "*" && f.On != op && f.On != shape(r.Method, r.URL.Path) {
		return false
	}
	return (f.Environment == "" || f.Environment == sub.environment) &&
		(f.Session == "" || f.Session == sub.session) && (f.Work == "" || f.Work == sub.work)
}

// operations names the routes that faults and assertions speak of most.
var operations = map[string]string{
	"GET /v1/environments/*/work/poll":         "poll",
	"POST /v1/environments/*/work/*/ack":       "ack",
	"POST /v1/environments/*/work/*/heartbeat": "heartbeat",
	"POST /v1/environments/*/work/*/stop":      "stop",
	"GET /v1/environments/*/work/stats":        "stats",
	"GET /v1/environments/*/work":              "work.list",
	"GET /v1/environments/*/work/*":            "work.get",
	"POST /v1/environments/*/work/*":           "work.update",
	"POST /v1/sessions":                        "session.create",
	"GET /v1/sessions":                         "session.list",
	"GET /v1/sessions/*":                       "session.get",
	"POST /v1/sessions/*":                      "session.update",
	"POST /v1/sessions/*/archive":              "session.archive",
	"DELETE /v1/sessions/*":                    "session.delete",
	"POST /v1/sessions/*/events":               "events.send",
	"GET /v1/sessions/*/events":                "events.list",
	"GET /v1/sessions/*/events/stream":         "stream",
	"GET /v1/sessions/*/threads":               "threads",
	"GET /v1/skills/*/versions/*":              "skills.get",
	"GET /v1/skills/*/versions/*/content":      "skills.content",
	"GET /v1/memory_stores/*":                  "memory.store",
	"GET /v1/memory_stores/*/memories":         "memory.list",
	"GET /v1/memory_stores/*/memories/*":       "memory.get",
	"POST /v1/memory_stores/*/memories":        "memory.create",
	"POST /v1/memory_stores/*/memories/*":      "memory.update",
	"DELETE /v1/memory_stores/*/memories/*":    "memory.delete",
}

// shape is a method and a path with the ids, every second segment, replaced.
func shape(method, path string) string {
	segments := strings.Split(strings.Trim(path, "/"), "/")
	for i := 2; i < len(segments); i += 2 {
		if i == 4 && len(segments) == 5 && (segments[4] == "poll" || segments[4] == "stats" || segments[4] == "stream") {
			continue // these are verbs
		}
		segments[i] = "*"
	}
	return method + " /" + strings.Join(segments, "/")
}

// operation is the name of a request's operation, or else its shape.
func operation(method, path string) string {
	k := shape(method, path)
	if op, ok := operations[k]; ok {
		return op
	}
	return k
}

type faultKey struct{}

// faultOf returns the fault that strikes a request, for handlers of operations
// that have faults of their own. It is nil for most.
func faultOf(r *http.Request) *Fault {
	f, _ := r.Context().Value(faultKey{}).(*Fault)
	return f
}

// serveFaulty serves a request that a fault strikes.
func (s *Server) serveFaulty(w http.ResponseWriter, r *http.Request, c caller, h handlerFunc, f *Fault) {
	switch f.Kind {
	case Drop:
		_, _ = h(&discard{header: http.Header{}}, r, c)
		panic(http.ErrAbortHandler)
	case SendCode:
		if f.RetryAfter != "" {
			w.Header().Set("retry-after", f.RetryAfter)
		}
		if f.ShouldRetry != nil {
			w.Header().Set("x-should-retry", strconv.FormatBool(*f.ShouldRetry))
		}
		s.refuse(w, r, fail(f.Status, "injected fault"))
	case SlowBody:
		s.slowly(w, r, c, h, f.Delay)
	case Reset:
		reset(w)
	case Hang:
		s.hold(r, f.Delay)
		panic(http.ErrAbortHandler)
	default: // the handler knows
		v, e := h(w, r, c)
		s.reply(w, r, v, e)
	}
}

// hold waits for d, or for the end of the request or the server.
func (s *Server) hold(r *http.Request, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.Context().Done():
	case <-s.ctx.Done():
	}
}

// slowly applies the request, sends the headers and half of the body, and the
// rest after d.
func (s *Server) slowly(w http.ResponseWriter, r *http.Request, c caller, h handlerFunc, d time.Duration) {
	buf := &discard{header: w.Header(), keep: true}
	v, e := h(buf, r, c)
	s.reply(buf, r, v, e)
	body := buf.body.Bytes()
	w.WriteHeader(max(buf.status, http.StatusOK))
	_, _ = w.Write(body[:len(body)/2])
	_ = http.NewResponseController(w).Flush()
	s.hold(r, d)
	_, _ = w.Write(body[len(body)/2:])
}

// reset closes the connection so that the client sees a reset.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // not a plain connection: as close as it gets
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// discard is a response that goes nowhere, or is kept.
type discard struct {
	header http.Header
	status int
	keep   bool
	body   bytes.Buffer
}

func (d *discard) Header() http.Header { return d.header }

func (d *discard) WriteHeader(status int) {
	if d.status == 0 {
		d.status = status
	}
}

func (d *discard) Write(b []byte) (int, error) {
	if d.keep {
		return d.body.Write(b)
	}
	return len(b), nil
}
