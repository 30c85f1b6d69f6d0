package session

import "time"

// This file decides when the history is read. The stream has no replay and may
// lose events, so every change of connection is followed by a read, a busy
// session is read every now and then, and a result whose fate is not known is
// looked up before it is sent again. Where no stream can be had, reading alone
// carries the session.

// Overlap is how far a history read reaches back before the cursor: events with
// a slightly older processed_at may become visible late.
const Overlap = 2 * time.Second

// Reading without a stream.
const (
	blindAfter = 3 * time.Second  // a stream is waited for so long
	blindEvery = 10 * time.Second // then the history is read at this pace
)

// wantRead asks for a read that begins from now on; after a failure not before
// its pause is over.
func (st *step) wantRead() {
	switch {
	case st.reading:
		st.readAgain = true
	case st.readNext.IsZero():
		st.readNext = st.now
	}
}

// doubt marks a result that may have been delivered without our knowing: it is
// not sent again before a read of the history that begins after now.
func (st *step) doubt(c *Call) {
	c.doubt = st.reads + 1
	st.wantRead()
}

// readDue returns when the next read begins; zero when nothing asks for one.
func (s *State) readDue() time.Time {
	switch {
	case s.reading || s.released:
		return time.Time{}
	case !s.readNext.IsZero():
		return s.readNext
	case !s.connected:
		return s.blindAt
	case s.synced && s.busy():
		return s.readAt.Add(s.Rules.ReadEvery)
	}
	return time.Time{}
}

// read begins a read when one is due.
func (st *step) read() {
	if due := st.readDue(); due.IsZero() || due.After(st.now) {
		return
	}
	st.reads++
	st.reading, st.readNext, st.readFor, st.readHighest = true, time.Time{}, st.generation, time.Time{}
	st.readUntil, st.results = st.now.Add(readBound), nil
	since := st.Cursor
	if st.readAll || since.IsZero() {
		since = time.Time{}
		if st.judgeRead == st.reads {
			st.results = map[string]bool{}
		}
	} else {
		since = since.Add(-Overlap)
	}
	st.effect(ReadHistory{Since: since, Read: st.reads})
}

// historyRead closes a read that came to its end.
func (st *step) historyRead(in HistoryRead) {
	if !st.reading || in.Read != st.reads {
		return // of a run that is over
	}
	st.reading, st.readsDone, st.readFails, st.readAt, st.readAll = false, st.reads, 0, st.now, false
	if st.readAgain {
		st.readAgain, st.readNext = false, st.now
	}
	if !st.connected {
		st.blindAt = st.now.Add(blindEvery)
	}
	if st.readFor == st.generation {
		st.synced = true
	}
	for _, c := range st.Calls {
		if c.doubt <= st.reads {
			c.doubt = 0 // this read began after the doubt, and found no answer
		}
	}
	if st.results != nil {
		st.judge()
	}
	st.moveCursor()
	if st.missing() && !st.readAllFor.Equal(st.statusAt) {
		// The call became visible later than the overlap allows for: once, the
		// whole history is read.
		st.readAll, st.readAllFor = true, st.statusAt
		st.wantRead()
	}
}

// moveCursor moves the cursor to the end of what was just read. While something
// is queued at the platform it stays: lists are by the time of creation, and a
// queued event is created before what is processed now.
func (st *step) moveCursor() {
	st.out.Memo = true
	if len(st.queued) > 0 || !st.readHighest.After(st.Cursor) {
		return
	}
	st.Cursor = st.readHighest
	for id, at := range st.seen {
		if at.Before(st.Cursor.Add(-2 * Overlap)) {
			delete(st.seen, id)
		}
	}
}

func (st *step) historyFailed(in HistoryFailed) {
	if !st.reading || in.Read != st.reads {
		return
	}
	st.reading, st.readAgain, st.releasing = false, false, 0
	st.readFails++
	st.readNext = st.now.Add(delay(st.readFails, 500*time.Millisecond, 10*time.Second))
}
