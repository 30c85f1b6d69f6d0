// Package sessiontest holds a platform in memory for tests of what works for
// one: Log, a pure model of one session's event log with the platform's own
// rules, and Claude, which serves logs and leases through session.Platform, with
// knobs for what goes wrong.
package sessiontest

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/berth-dev/berth/internal/session"
)

// Log is one session at the platform: its events and what the platform makes of
// them (contract §4). Not safe for concurrent use.
type Log struct {
	// Strict refuses a second result for a call; else it is taken and ignored.
	Strict bool
	// Now is the platform's clock. Every event moves it by a millisecond.
	Now time.Time
	// Emit, if set, is called with every event as the live stream carries it.
	Emit func(session.Event)

	entries []*entry // in order of creation, which is the order of lists
	calls   []*Use
	ended   string          // "", terminated, deleted
	threads map[string]bool // that have ended
}

type entry struct {
	session.Event
	created time.Time
}

// Use is a call as the platform knows it.
type Use struct {
	session.Event
	Custom bool
	// Verdict is what a person said: allow, deny, or any other word; "" before.
	Verdict string
	// Results counts the results that were accepted from workers. It is more
	// than one only when the log is not strict.
	Results int
	Content json.RawMessage // of the first one
	IsError bool
	// Settled says why no result is taken any more, other than a result of ours.
	Settled string
}

// NewLog returns an empty log whose clock begins at now.
func NewLog(now time.Time) *Log {
	return &Log{Strict: true, Now: now, threads: map[string]bool{}}
}

func (l *Log) add(typ string, ev session.Event) session.Event { return l.insert(typ, ev, false) }

func (l *Log) insert(typ string, ev session.Event, queued bool) session.Event {
	l.Now = l.Now.Add(time.Millisecond)
	if ev.ID == "" {
		ev.ID = fmt.Sprintf("sevt_%04d", len(l.entries)+1)
	}
	ev.Type, ev.ProcessedAt = typ, l.Now
	if queued {
		ev.ProcessedAt = time.Time{}
	}
	l.entries = append(l.entries, &entry{ev, l.Now})
	l.emit(ev)
	return ev
}

func (l *Log) emit(ev session.Event) {
	if l.Emit != nil {
		l.Emit(ev)
	}
}

// Call adds a call of the agent's. The event's name, input, permission and
// thread are taken from ev.
func (l *Log) Call(custom bool, ev session.Event) session.Event {
	typ := "agent.tool_use"
	if custom {
		typ = "agent.custom_tool_use"
	}
	if ev.Input == nil {
		ev.Input = json.RawMessage(`{}`)
	}
	ev = l.add(typ, ev)
	u := &Use{Event: ev, Custom: custom}
	l.calls = append(l.calls, u)
	if ev.Permission == "deny" {
		l.settle(u, "denied")
	}
	return ev
}

// Event adds an event without consequences, e.g. agent.message.
func (l *Log) Event(typ string) session.Event { return l.add(typ, session.Event{}) }

// Idle adds the status that follows from the open calls: requires_action with
// all of them, or end_turn.
func (l *Log) Idle() session.Event {
	ev := session.Event{StopReason: "end_turn"}
	for _, u := range l.calls {
		if u.Pending() {
			ev.StopReason = "requires_action"
			ev.Requires = append(ev.Requires, u.ID)
		}
	}
	return l.add("session.status_idle", ev)
}

// Running adds the status that follows a message or the last result.
func (l *Log) Running() session.Event { return l.Event("session.status_running") }

// Confirm adds a person's verdict. A denied call gets its synthetic result.
func (l *Log) Confirm(call, verdict string) {
	l.add("user.tool_confirmation", session.Event{Refers: call, Verdict: verdict})
	l.confirmed(call, verdict)
}

func (l *Log) confirmed(call, verdict string) {
	u := l.Use(call)
	if u == nil || !u.Pending() || u.Verdict == "allow" {
		return
	}
	u.Verdict = verdict
	if verdict == "deny" {
		l.settle(u, "denied")
	}
}

// settle adds the platform's own result.
func (l *Log) settle(u *Use, why string) {
	u.Settled = why
	l.add("agent.tool_result", session.Event{Refers: u.ID})
}

// Interrupt adds a processed interrupt of the session, or of one thread.
func (l *Log) Interrupt(thread string) session.Event {
	ev := l.add("user.interrupt", session.Event{Thread: thread})
	l.interrupted(ev)
	return ev
}

func (l *Log) interrupted(ev session.Event) {
	for _, u := range l.calls {
		if u.Pending() && (ev.Thread == "" || ev.Thread == u.Thread) && !u.ProcessedAt.After(ev.ProcessedAt) {
			u.Settled = "interrupted"
		}
	}
}

// Queue adds an input that is not processed yet: it has no time. Process
// processes it. A yes to a call counts from now on.
func (l *Log) Queue(typ string, ev session.Event) session.Event {
	if u := l.Use(ev.Refers); u != nil && typ == "user.tool_confirmation" && ev.Verdict == "allow" && u.Pending() {
		u.Verdict = "allow"
	}
	return l.insert(typ, ev, true)
}

// Queued returns the inputs that are not processed yet.
func (l *Log) Queued() []session.Event {
	var out []session.Event
	for _, e := range l.entries {
		if e.ProcessedAt.IsZero() {
			out = append(out, e.Event)
		}
	}
	return out
}

// Process processes a queued input: it gets its time, and keeps its place.
func (l *Log) Process(id string) {
	i := slices.IndexFunc(l.entries, func(e *entry) bool { return e.ID == id })
	l.Now = l.Now.Add(time.Millisecond)
	e := l.entries[i]
	e.ProcessedAt = l.Now
	l.emit(e.Event)
	switch e.Type {
	case "user.interrupt":
		l.interrupted(e.Event)
	case "user.tool_confirmation":
		l.confirmed(e.Refers, e.Verdict)
	}
}

// EndThread adds the end of a thread, which settles its calls.
func (l *Log) EndThread(thread string) session.Event {
	l.threads[thread] = true
	ev := l.add("session.thread_status_terminated", session.Event{Thread: thread})
	for _, u := range l.calls {
		if u.Pending() && u.Thread == thread {
			u.Settled = "thread ended"
		}
	}
	return ev
}

// ThreadEnded reports whether a thread has ended.
func (l *Log) ThreadEnded(thread string) bool { return l.threads[thread] }

// End ends the session: terminated or deleted.
func (l *Log) End(how string) session.Event {
	l.ended = how
	for _, u := range l.calls {
		if u.Pending() {
			u.Settled = how
		}
	}
	if how == "deleted" {
		return l.Event("session.deleted")
	}
	return l.Event("session.status_terminated")
}

// Ended returns how the session ended, "" while it has not.
func (l *Log) Ended() string { return l.ended }

// AnswerAs is another client's result.
func (l *Log) AnswerAs(call string) session.Event {
	u := l.Use(call)
	u.Settled = "answered by another client"
	return l.add(resultType(u.Custom), session.Event{Refers: call})
}

// Answer is a worker's result. A lenient log takes a second result without an
// event.
func (l *Log) Answer(a session.Answer) error {
	u := l.Use(a.Call)
	switch {
	case l.ended == "deleted":
		return refuse(404, "not_found_error", "there is no such session")
	case u == nil || u.Custom != a.Custom:
		return refuse(400, "invalid_request_error", "there is no such call")
	case u.Results > 0 && !l.Strict:
		u.Results++
		return nil
	case u.Results > 0:
		return refuse(400, "invalid_request_error", "the call has a result")
	case u.Settled != "":
		return refuse(400, "invalid_request_error", "the call takes no result: "+u.Settled)
	case len(a.Content) == 0:
		return refuse(400, "invalid_request_error", "content: text must not be empty")
	}
	u.Results, u.Content, u.IsError = 1, slices.Clone(a.Content), a.IsError
	l.add(resultType(u.Custom), session.Event{Refers: a.Call})
	return nil
}

func resultType(custom bool) string {
	if custom {
		return "user.custom_tool_result"
	}
	return "user.tool_result"
}

func refuse(status int, typ, message string) *session.Refusal {
	return &session.Refusal{Status: status, Type: typ, Message: message, RequestID: "req_test"}
}

// List returns a page: events created at or after since, from the given position
// on, at most limit of them (0: all), and the next position, -1 at the end.
func (l *Log) List(since time.Time, from, limit int) ([]session.Event, int) {
	var page []session.Event
	for i := from; i < len(l.entries); i++ {
		e := l.entries[i]
		if e.created.Before(since) {
			continue
		}
		if limit > 0 && len(page) == limit {
			return page, i
		}
		page = append(page, e.Event)
	}
	return page, -1
}

// Use returns a call, nil when there is none.
func (l *Log) Use(id string) *Use {
	for _, u := range l.calls {
		if u.ID == id {
			return u
		}
	}
	return nil
}

// Uses returns all calls.
func (l *Log) Uses() []*Use { return l.calls }

// Pending reports whether the platform still takes a result.
func (u *Use) Pending() bool { return u.Settled == "" && u.Results == 0 }

// Allowed reports whether a worker may run the call: without a question, or
// after a person's yes.
func (u *Use) Allowed() bool {
	switch u.Permission {
	case "", "allow":
		return u.Verdict == "" || u.Verdict == "allow"
	case "deny":
		return false
	}
	return u.Verdict == "allow"
}
