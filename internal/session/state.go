package session

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"time"
)

// CallState is where a call stands in the ledger. It only moves forward, in the
// order of the constants; Posted, Settled and Foreign are final, except that a
// foreign call becomes settled when its owner answers it.
type CallState string

// The states of a call.
const (
	Seen     CallState = "seen"     // known, not yet routed: the history is still being read
	Held     CallState = "held"     // waits for a person's verdict
	Ready    CallState = "ready"    // may run as soon as a sandbox and its lane are free
	Started  CallState = "started"  // the guest may have heard of it
	Finished CallState = "finished" // has a result that the platform may not have yet
	Posted   CallState = "posted"   // the platform has our result
	Settled  CallState = "settled"  // closed by the platform or by another client
	Foreign  CallState = "foreign"  // somebody else's to answer
)

// Call is one tool call of a session: a row of the ledger.
type Call struct {
	ID          string // sevt_…
	Thread      string // session_thread_id, "" for the primary thread
	Name        string
	Custom      bool
	Input       json.RawMessage
	Permission  string
	ProcessedAt time.Time // when the platform processed the event
	Seq         int64     // order of arrival within the session, from 1

	State      CallState
	SeenAt     time.Time
	StartedAt  time.Time
	FinishedAt time.Time
	DoneAt     time.Time // posted or settled
	Instance   string    // the guest instance that was told to run it
	Content    json.RawMessage
	IsError    bool
	Reason     string // why it was settled or cancelled

	// The rest is about sending and is not stored: after a restart the history
	// is read before anything is sent, so nothing here needs to survive.
	running   bool      // this process waits for the guest's answer
	posting   bool      // a request is on its way
	doubt     int       // not to be sent again before the read with this number is done; 0: no doubt
	attempts  int       // failed requests so far
	postAfter time.Time // not before
	refusal   string    // why the last request failed
	replaced  bool      // the result was refused and replaced by an error text
	cancelled bool      // Cancel was sent to the guest

	limit time.Duration // of a running call, which the guest enforces
	until time.Time     // when the watchdog acts on the running call or the request; see watch
}

// Open reports whether the call still needs something from us.
func (c *Call) Open() bool {
	switch c.State {
	case Seen, Held, Ready, Started, Finished:
		return true
	}
	return false
}

// SandboxState is what the machine knows of its sandbox.
type SandboxState string

// The states of a session's sandbox.
const (
	SandboxNone     SandboxState = "none"
	SandboxStarting SandboxState = "starting"
	SandboxReady    SandboxState = "ready"
	SandboxEnding   SandboxState = "ending" // it is being replaced: nothing starts in it
)

// LeaseState is what the machine knows of its work item.
type LeaseState string

// The states of a lease.
const (
	LeaseNone    LeaseState = "none"    // no work item, or none any more
	LeaseHeld    LeaseState = "held"    // ours: posts are allowed
	LeaseEnding  LeaseState = "ending"  // asked to stop, or the turn is over
	LeaseForfeit LeaseState = "forfeit" // lost, or may have lapsed: nothing may be posted
)

// State is everything that the machine of one session remembers. It is made by
// NewState, advanced by Step and owned by one goroutine.
type State struct {
	Session string
	Rules   Rules

	// Calls are the calls that may still change: the open ones, and foreign ones
	// that nobody has answered. The others are remembered by their ids alone, so
	// that an event that comes again is known and a long session stays small.
	Calls   map[string]*Call
	refused map[string]bool // closed, but the platform takes no result for them and still waits
	strays  []string        // closed calls that may still run in a sandbox that is not attached yet
	closed  map[string]bool
	remote  map[string]bool // MCP calls, which the platform runs
	seq     int64

	// What the platform said, in whatever order it arrived.
	cutoff   time.Time            // latest session-wide interrupt
	cutoffs  map[string]time.Time // latest interrupt of one thread
	ended    map[string]bool      // terminated threads
	verdicts map[string]string    // confirmations, by call; see confirmed
	answered map[string]bool      // results of calls that were not seen yet
	seen     map[string]time.Time // processed events since the cursor, by id
	queued   map[string]bool      // events seen without processed_at

	// Status of the session at the platform.
	Status     string // "", running, idle, rescheduling, terminated
	StopReason string
	Requires   []string
	statusAt   time.Time // processed_at of the event that set Status
	Ended      string    // "", "terminated", "deleted", "archived"

	// Reading. The cursor is how far the ledger has read the history: it moves
	// when a list was read to its end, never with the stream.
	Cursor      time.Time
	generation  int       // counts connections
	connected   bool      // a stream is open
	blindAt     time.Time // when to read without a stream; zero while one is open
	synced      bool      // the history was read to its end since the last change of connection
	reading     bool      // a read is under way
	readAgain   bool      // another one is wanted after it
	reads       int       // reads begun so far
	readsDone   int       // the last one that was read to its end
	readFor     int       // the generation that the read under way began in
	readHighest time.Time // highest processed_at of the read under way
	readAt      time.Time // when the last read ended
	readNext    time.Time // the next read is wanted then; zero when none is
	readFails   int
	readAll     bool      // the next read starts at the beginning
	readAllFor  time.Time // the status that the last such read was made for
	readUntil   time.Time // when the watchdog gives the read under way up

	// What the platform waits for although it is closed here; see watch.
	owedAt    time.Time       // when to hold the whole history against it
	judging   []string        // the calls that a whole read is about
	judgeRead int             // which has this number
	results   map[string]bool // calls with a result in the whole read under way
	reloading map[string]bool // asked for again from the records
	reposts   map[string]int  // results sent again

	Lease        LeaseState
	Sandbox      SandboxState
	Instance     string
	sandboxTries int
	moveUntil    time.Time // when the watchdog gives up waiting for the start or the end of the sandbox
	moveWhy      string    // why the start takes long; "" when it does not

	turnOverAt time.Time // when the turn was first seen to be over; zero while it is not
	releasing  int       // the read that has to be done before the release; 0: none
	released   bool      // StopWork was issued for this item

	wait Waiting
}

// Rules are the settings that decisions depend on.
type Rules struct {
	// Owns reports whether Berth answers calls of this name.
	Owns func(name string, custom bool) bool
	// ReleaseAfter is how long the work item is kept after the turn is over.
	ReleaseAfter time.Duration
	// ReadEvery is the longest time without reading the history while the
	// session is busy: it finds what the stream may have lost. Zero means a
	// minute.
	ReadEvery time.Duration
	// SandboxTries bounds the attempts to start a sandbox before calls are
	// answered with the error.
	SandboxTries int
	// CallLimit is how long the guest lets a call of this name and input run.
	// Zero bounds nothing.
	CallLimit func(name string, input json.RawMessage) time.Duration
}

// NewState returns the state of a session that was never seen before.
func NewState(session string, rules Rules) *State {
	if rules.ReadEvery <= 0 {
		rules.ReadEvery = time.Minute
	}
	return &State{
		Session: session, Rules: rules,
		Calls: map[string]*Call{}, closed: map[string]bool{}, refused: map[string]bool{}, remote: map[string]bool{},
		reloading: map[string]bool{}, reposts: map[string]int{},
		cutoffs: map[string]time.Time{}, ended: map[string]bool{},
		verdicts: map[string]string{}, answered: map[string]bool{}, seen: map[string]time.Time{}, queued: map[string]bool{},
		Lease: LeaseNone, Sandbox: SandboxNone,
	}
}

// Memo is the part of a state, beside the calls, that is stored.
type Memo struct {
	Cursor   time.Time            `json:"cursor,omitzero"`
	Cutoff   time.Time            `json:"cutoff,omitzero"`
	Cutoffs  map[string]time.Time `json:"cutoffs,omitempty"`
	Ended    []string             `json:"ended_threads,omitempty"`
	Verdicts map[string]string    `json:"verdicts,omitempty"`
	Answered []string             `json:"answered,omitempty"`

	Status     string    `json:"status,omitempty"`
	StopReason string    `json:"stop_reason,omitempty"`
	Requires   []string  `json:"requires,omitempty"`
	StatusAt   time.Time `json:"status_at,omitzero"`
	EndedAs    string    `json:"ended_as,omitempty"`
}

// Memo returns what has to be stored beside the calls.
func (s *State) Memo() Memo {
	m := Memo{
		Cursor: s.Cursor, Cutoff: s.cutoff, Cutoffs: maps.Clone(s.cutoffs), Verdicts: maps.Clone(s.verdicts),
		Status: s.Status, StopReason: s.StopReason, Requires: s.Requires, StatusAt: s.statusAt, EndedAs: s.Ended,
	}
	for t := range s.ended {
		m.Ended = append(m.Ended, t)
	}
	for id := range s.answered {
		m.Answered = append(m.Answered, id)
	}
	slices.Sort(m.Ended)
	slices.Sort(m.Answered)
	return m
}

// Restore fills a new state from what was stored.
func (s *State) Restore(m Memo, calls []Call) {
	s.Cursor, s.cutoff = m.Cursor, m.Cutoff
	s.Status, s.StopReason, s.Requires, s.statusAt, s.Ended = m.Status, m.StopReason, m.Requires, m.StatusAt, m.EndedAs
	maps.Copy(s.cutoffs, m.Cutoffs)
	for _, t := range m.Ended {
		s.ended[t] = true
	}
	maps.Copy(s.verdicts, m.Verdicts)
	for _, id := range m.Answered {
		s.answered[id] = true
	}
	for i := range calls {
		c := calls[i]
		s.seq = max(s.seq, c.Seq)
		if !c.Open() && c.State != Foreign {
			s.closed[c.ID] = true
			continue
		}
		c.cancelled = c.State == Started && c.Reason != ""
		s.Calls[c.ID] = &c
	}
}

// inOrder returns the calls that may still change in the order of the platform:
// by processed_at, then by arrival.
func (s *State) inOrder() []*Call {
	calls := slices.Collect(maps.Values(s.Calls))
	slices.SortFunc(calls, func(a, b *Call) int {
		if d := a.ProcessedAt.Compare(b.ProcessedAt); d != 0 {
			return d
		}
		return cmp.Compare(a.Seq, b.Seq)
	})
	return calls
}
