package session

import (
	"slices"
	"strings"
	"time"
)

// This file records what the platform says, in whatever order and however often
// it arrives: from the stream, from pages of the history, queued and processed.
// Nothing is decided here.

func (st *step) observed(in Observed) {
	if in.Read != 0 && (in.Read != st.reads || !st.reading) {
		return // of a read that was given up
	}
	if in.Read != 0 {
		st.readUntil = st.now.Add(readBound)
	}
	for i := range in.Events {
		ev := &in.Events[i]
		if in.Read != 0 {
			st.listed(ev)
		}
		st.observe(ev, in.Read != 0)
	}
}

// listed notes what a read is made for beside the event itself.
func (st *step) listed(ev *Event) {
	if ev.ProcessedAt.After(st.readHighest) {
		st.readHighest = ev.ProcessedAt
	}
	if st.results != nil && ev.Refers != "" && strings.HasSuffix(ev.Type, "_result") {
		st.results[ev.Refers] = true
	}
}

// observe records one event of the platform.
func (st *step) observe(ev *Event, listed bool) {
	if ev.ID != "" && ev.ProcessedAt.IsZero() && isInput(ev.Type) {
		st.observeQueued(ev)
		return
	}
	if ev.ID != "" && !ev.ProcessedAt.IsZero() {
		delete(st.queued, ev.ID)
		if _, dup := st.seen[ev.ID]; dup {
			if listed && strings.HasPrefix(ev.Type, "session.status_") {
				// Of two statuses with the same time the one that is listed
				// last is the newer one, whichever the stream brought first.
				st.status(ev)
			}
			return
		}
		st.seen[ev.ID] = ev.ProcessedAt
	}
	if ev.ID != "" {
		st.out.Fresh = append(st.out.Fresh, *ev)
	}
	switch ev.Type {
	case "agent.tool_use", "agent.custom_tool_use":
		st.callSeen(ev)
	case "agent.mcp_tool_use":
		st.remote[ev.ID] = true
		delete(st.verdicts, ev.ID)
	case "user.tool_result", "user.custom_tool_result", "agent.tool_result":
		st.answeredBy(ev)
	case "user.tool_confirmation":
		st.confirmed(ev)
	case "user.interrupt":
		st.interrupted(ev)
	case "session.thread_status_terminated":
		if ev.Thread != "" {
			st.ended[ev.Thread] = true
			st.out.Memo = true
		}
	case "session.status_running", "session.status_idle", "session.status_rescheduled", "session.status_terminated":
		st.status(ev)
	case "session.deleted":
		st.over("deleted")
	}
	if !neutral(ev.Type) && ev.Type != "session.status_idle" {
		st.turnOpen()
	}
}

// observeQueued records an input that the platform has accepted and not yet
// processed: it comes again with its time. A verdict counts at once, since it is
// not taken back; an interrupt does not, since its time says what it settles.
func (st *step) observeQueued(ev *Event) {
	if _, done := st.seen[ev.ID]; done || st.queued[ev.ID] {
		return
	}
	st.queued[ev.ID] = true
	if ev.Type == "user.tool_confirmation" {
		st.confirmed(ev)
	}
	if !neutral(ev.Type) {
		st.turnOpen() // a message is about to start a turn
	}
}

// isInput reports whether an event is sent by clients and can therefore be
// queued (contract §4.2).
func isInput(typ string) bool {
	return strings.HasPrefix(typ, "user.") || typ == "system.message"
}

// neutral reports whether an event gives no sign that the turn is over or open
// (contract §4.6).
func neutral(typ string) bool {
	switch typ {
	case "user.tool_confirmation", "user.interrupt", "session.thread_status_terminated", "session.usage":
		return true
	}
	return false
}

func (st *step) callSeen(ev *Event) {
	if ev.ID == "" || st.closed[ev.ID] {
		return
	}
	if c := st.Calls[ev.ID]; c != nil {
		if c.ProcessedAt.IsZero() && !ev.ProcessedAt.IsZero() {
			c.ProcessedAt = ev.ProcessedAt
			st.touch(c)
		}
		return
	}
	st.seq++
	c := &Call{
		ID: ev.ID, Thread: ev.Thread, Name: ev.Name, Custom: ev.Type == "agent.custom_tool_use",
		Input: ev.Input, Permission: ev.Permission, ProcessedAt: ev.ProcessedAt,
		Seq: st.seq, State: Seen, SeenAt: st.now,
	}
	if !st.Rules.Owns(c.Name, c.Custom) {
		c.State = Foreign
	}
	st.Calls[c.ID] = c
	st.touch(c)
	if st.answered[c.ID] {
		delete(st.answered, c.ID)
		st.out.Memo = true
		st.close(c, Settled, "answered before it was seen")
	}
}

// answeredBy closes the call that a result in the log speaks about: our own post
// comes back this way too.
func (st *step) answeredBy(ev *Event) {
	c := st.Calls[ev.Refers]
	delete(st.reloading, ev.Refers) // whatever was lost, there is a result now
	st.judging = slices.DeleteFunc(st.judging, func(id string) bool { return id == ev.Refers })
	switch {
	case c == nil:
		if ev.Refers != "" && !st.closed[ev.Refers] {
			st.answered[ev.Refers] = true
			st.out.Memo = true
		}
	case c.State == Finished && ev.Type != "agent.tool_result":
		st.close(c, Posted, "")
	case c.State == Started:
		st.cancel(c, "answered by somebody else")
		st.close(c, Settled, "answered by somebody else while it ran")
	default:
		st.close(c, Settled, "answered by the platform or by another client")
	}
}

// confirmed records a verdict. The order in which verdicts arrive proves
// nothing, so the strictest known word wins: deny, then allow, then words that
// are not known, which hold the call.
func (st *step) confirmed(ev *Event) {
	if ev.Refers == "" || st.closed[ev.Refers] || st.remote[ev.Refers] {
		return
	}
	if old, ok := st.verdicts[ev.Refers]; ok && slices.Index(verdictOrder, ev.Verdict) <= slices.Index(verdictOrder, old) {
		return
	}
	st.verdicts[ev.Refers] = ev.Verdict
	st.out.Memo = true
}

var verdictOrder = []string{"allow", "deny"}

// interrupted records an interrupt. Only a processed one counts, and it settles
// the calls that were processed at or before it (contract §4.5).
func (st *step) interrupted(ev *Event) {
	switch {
	case ev.ProcessedAt.IsZero():
	case ev.Thread == "" && ev.ProcessedAt.After(st.cutoff):
		st.cutoff = ev.ProcessedAt
		st.out.Memo = true
	case ev.Thread != "" && ev.ProcessedAt.After(st.cutoffs[ev.Thread]):
		st.cutoffs[ev.Thread] = ev.ProcessedAt
		st.out.Memo = true
	}
}

func (st *step) status(ev *Event) {
	if ev.Type == "session.status_terminated" {
		st.over("terminated") // final, whenever it is heard of
	}
	if ev.ProcessedAt.Before(st.statusAt) {
		return // an older status that arrived late
	}
	st.statusAt, st.out.Memo = ev.ProcessedAt, true
	st.StopReason, st.Requires = "", nil
	switch ev.Type {
	case "session.status_running":
		st.Status = "running"
	case "session.status_rescheduled":
		st.Status = "rescheduling"
	case "session.status_terminated":
		st.Status = "terminated"
	case "session.status_idle":
		st.Status, st.StopReason, st.Requires = "idle", ev.StopReason, ev.Requires
		if st.missing() {
			st.wantRead() // the stream lost the event that it speaks of
		}
	}
}

// missing reports whether the platform waits for a call that is not known here.
func (s *State) missing() bool {
	return slices.ContainsFunc(s.Requires, func(id string) bool {
		return s.Calls[id] == nil && !s.closed[id] && !s.remote[id]
	})
}

// turnOpen forgets that the turn seemed to be over.
func (st *step) turnOpen() { st.turnOverAt, st.releasing = time.Time{}, 0 }
