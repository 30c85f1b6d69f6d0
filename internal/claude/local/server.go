// Package local is a stand-in for the part of the Claude platform that a
// self_hosted environment touches: environments, the work queue with its leases,
// sessions, events, agents, skills, memory stores and webhooks, over HTTP and in
// memory. Official SDK workers run against it unchanged. It serves demos,
// development without an account, and tests, for which it can inject faults and
// run on a clock that the test moves by hand.
//
// One mutex guards all state. A handler decodes without the lock, decides with
// it, and writes without it. What drives an agent is a [Brain]: a scenario from a
// file, or a model behind the Messages API.
package local

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

// StopReply says how POST …/stop answers. The platform's specification and its
// observed behaviour differ (contract §2.2), and clients must live with both.
type StopReply string

// The two replies.
const (
	StopJSON  StopReply = "json"  // 200 with the work item
	StopEmpty StopReply = "empty" // 204, no body, no content type
)

// Options configures a Server. The zero value works: it accepts no credential
// until one is minted, and answers every session with the built-in scenario
// "echo".
type Options struct {
	// Clock rules leases, reclaims, time stamps, webhook retries and the pauses
	// of scenarios. Default: the real one. The length of a long poll and the
	// keep-alives of a stream are always real time, since they are about the
	// connection: a frozen clock must not freeze clients.
	Clock Clock
	// APIKeys are accepted as X-Api-Key. More can be minted at run time.
	APIKeys []string
	// EnvironmentKeys maps an environment id to a key for it. Environments that
	// do not exist are created as self_hosted under that id.
	EnvironmentKeys map[string]string
	// AdminKey opens /_local/…, sent as X-Api-Key or Bearer. "" closes it: 404.
	AdminKey string

	// StopReply defaults to StopJSON.
	StopReply StopReply
	// AckIdempotent makes a second ack of a starting item a 200 with the item
	// instead of a 409.
	AckIdempotent bool
	// StrictDuplicates makes a result for a call that is already answered or
	// settled a 400; otherwise it is accepted, echoed to its sender and has no
	// effect.
	StrictDuplicates bool
	// StrictBeta enforces the anthropic-beta rules (contract §1.3): 404 without
	// the right one, 400 for two that exclude each other.
	StrictBeta bool
	// StopRequeues follows an item that is stopped while its session still has
	// calls or messages open with a new item. The platform is not known to do so
	// (contract §3.1, §12.32), hence off by default. With it, no message is lost
	// to a worker that is just leaving, and a worker that keeps failing gets the
	// work again and again.
	StopRequeues bool

	// LeaseTTL is how long a lease lives after ack or a heartbeat: default 300 s,
	// at most 300 s.
	LeaseTTL time.Duration
	// ReclaimAfter is when a polled item that nobody acknowledged is handed out
	// again, unless the poll says otherwise. Default 5 s.
	ReclaimAfter time.Duration
	// KeepAlive is the time between comments on an idle stream. Default 15 s.
	KeepAlive time.Duration
	// StreamBuffer is how many events a stream's reader may lag before it is
	// disconnected. Default 1024.
	StreamBuffer int
	// HistoryPage is the most events in one page of a history, whatever the limit
	// asks for. Default 1000.
	HistoryPage int
	// MemoryRoot is where sessions mount their memory stores. Default /mnt/memory.
	MemoryRoot string
	// RequestLog is how many requests Requests remembers. Default 10,000.
	RequestLog int
	// BaseURL is put into work secrets as api_base_url when not empty.
	BaseURL string

	// Webhooks lists the endpoints to notify. None: no webhooks, as with
	// cma-server (contract §10).
	Webhooks WebhookOptions

	// Brain drives the agents of sessions that name no scenario. Default: the
	// scenario Scenario.
	Brain Brain
	// Scenario is the scenario of sessions that name none in metadata.scenario,
	// when there is no Brain. Default "echo".
	Scenario string
	// Scenarios are known by name beside the embedded ones.
	Scenarios []*Scenario

	// Logger hears what is worth knowing, never a credential. Default: nothing.
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.Clock == nil {
		o.Clock = RealClock()
	}
	if o.StopReply == "" {
		o.StopReply = StopJSON
	}
	orDefault(&o.LeaseTTL, 300*time.Second)
	o.LeaseTTL = min(o.LeaseTTL, 300*time.Second)
	orDefault(&o.ReclaimAfter, 5*time.Second)
	orDefault(&o.KeepAlive, 15*time.Second)
	orDefault(&o.StreamBuffer, 1024)
	orDefault(&o.HistoryPage, maxEvents)
	orDefault(&o.RequestLog, 10_000)
	if o.MemoryRoot == "" {
		o.MemoryRoot = "/mnt/memory"
	}
	if o.Scenario == "" {
		o.Scenario = "echo"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func orDefault[T int | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// Server is the local platform. It is an http.Handler; give it to an http.Server
// or to httptest. Safe for concurrent use.
type Server struct {
	opt    Options
	log    *slog.Logger
	clock  Clock
	mux    *http.ServeMux
	agents agentSource  // set by agentRoutes
	stores memorySource // set by memoryRoutes

	ctx    context.Context // the server's own life; the parent of every turn and delivery
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // every goroutine of the server

	requests *requestLog
	faults   *faultTable
	hooks    *webhookSender
	scripted *scriptedBrain

	// mu guards everything below, and may guard the state of resources. It is
	// never held across I/O.
	mu           sync.Mutex
	closed       bool
	last         time.Time // the newest stamp given out
	credentials  map[string]credential
	environments map[string]*environment
	envOrder     []string
	queue        *queue
	sessions     map[string]*session
	sessionOrder []string
	posts        []Post // the newest results that clients sent
}

// agentSource knows agents; sessions are created from it.
type agentSource interface {
	// Agent returns the snapshot that a new session keeps of an agent: version 0
	// means the latest. overrides holds the raw fields of agent_with_overrides
	// (model, system, tools, mcp_servers, skills) that replace the agent's own
	// and are validated and resolved like those of POST /v1/agents; nil for none.
	// The map belongs to the caller. Called without Server.mu.
	Agent(id string, version int, overrides map[string]json.RawMessage) (map[string]any, *apiError)
}

// memorySource knows memory stores; sessions attach them.
type memorySource interface {
	// Store returns what a session's resource shows of a store: 404 when there is
	// none, 400 when it is archived. Called without Server.mu.
	Store(id string) (storeInfo, *apiError)
}

// storeInfo is the snapshot of a memory store that a session's resource keeps.
type storeInfo struct {
	Name        string
	Description string
}

// New makes a server. The caller closes it.
func New(o Options) *Server {
	o = o.withDefaults()
	s := &Server{
		opt: o, log: o.Logger, clock: o.Clock, mux: http.NewServeMux(),
		requests:     newRequestLog(o.RequestLog),
		faults:       newFaultTable(),
		credentials:  map[string]credential{},
		environments: map[string]*environment{},
		sessions:     map[string]*session{},
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.queue = newQueue(o.LeaseTTL)
	s.queue.ended = s.workEnded
	s.hooks = newWebhookSender(s, o.Webhooks)
	s.scripted = newScriptedBrain(s, o.Scenarios)
	for _, key := range o.APIKeys {
		s.credentials[key] = credential{kind: credAPIKey, id: newID("apikey_")}
	}
	for env, key := range o.EnvironmentKeys {
		s.seedEnvironment(env)
		s.credentials[key] = credential{kind: credEnvKey, environment: env}
	}
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.refuse(w, r, fail(http.StatusNotFound, "no route %s %s", r.Method, r.URL.Path))
	})
	s.agentRoutes()
	s.memoryRoutes()
	s.environmentRoutes()
	s.sessionRoutes()
	s.threadRoutes()
	s.workRoutes()
	s.adminRoutes()
	return s
}

// Handler returns the server itself, for callers that want an http.Handler.
func (s *Server) Handler() http.Handler { return s }

// Close ends all turns, streams and deliveries and waits for them. Requests
// after it are answered 503. It always returns nil.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	for _, se := range s.sessions {
		se.closeStreams()
	}
	s.mu.Unlock()
	s.cancel(errClosed)
	s.wg.Wait()
	return nil
}

// now returns a time that is later than every one it returned before, so that
// events have a strict order (contract §11.1). Called with s.mu.
func (s *Server) now() time.Time {
	t := s.clock.Now().UTC().Truncate(time.Microsecond)
	if !t.After(s.last) {
		t = s.last.Add(time.Microsecond)
	}
	s.last = t
	return t
}
