package local

import (
	"net/http"
	"strings"
	"time"
)

// GET …/events/stream (contract §4.7): server-sent events from now on, no
// replay, no content negotiation. Every frame has an event line and one line of
// data. A reader that lags too far, or does not read for a while, is cut off: it
// reconnects and lists.

// frame is one event on the wire.
type frame struct {
	Type string
	Data []byte
}

// stream is one reader. Guarded by Server.mu; frames is closed to end it.
type stream struct {
	filter func(*event) bool
	frames chan frame
	ended  bool
}

func (st *stream) end() {
	if !st.ended {
		st.ended = true
		close(st.frames)
	}
}

// show hands an event to every stream that shows it. Called with s.mu.
func (se *session) show(e *event) {
	if len(se.streams) == 0 {
		return
	}
	f := e.frame()
	for st := range se.streams {
		if st.ended || !st.filter(e) {
			continue
		}
		select {
		case st.frames <- f:
		default:
			st.end() // too slow
		}
	}
}

// closeStreams ends all streams of the session once they have written what they
// have. Called with s.mu.
func (se *session) closeStreams() {
	for st := range se.streams {
		st.end()
	}
}

// CutStreams ends the open streams of a session, "" for those of all. What has
// been emitted already is still written.
func (s *Server) CutStreams(session string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, se := range s.sessions {
		if session == "" || id == session {
			se.closeStreams()
		}
	}
}

// Streams returns how many streams of a session are open.
func (s *Server) Streams(session string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if se, ok := s.sessions[session]; ok {
		return len(se.streams)
	}
	return 0
}

const writeLimit = 10 * time.Second // for one write to a stream

func (s *Server) streamEvents(w http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	for _, d := range r.URL.Query()["event_deltas[]"] {
		if d != "agent.message" && d != "agent.thinking" {
			return nil, fail(400, "event_deltas[]: %q has no deltas", d)
		}
	}
	s.mu.Lock()
	se, t, err := s.threadByPath(r)
	if err != nil {
		s.mu.Unlock()
		return nil, err
	}
	st := &stream{filter: threadFilter(t), frames: make(chan frame, s.opt.StreamBuffer)}
	if s.closed {
		st.end()
	}
	se.streams[st] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(se.streams, st)
		s.mu.Unlock()
	}()

	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-cache")
	w.WriteHeader(http.StatusOK)
	out := &frameWriter{w: w, control: http.NewResponseController(w), fault: faultOf(r)}
	if !out.comment("open") {
		return written{}, nil
	}
	keepAlive := time.NewTicker(s.opt.KeepAlive)
	defer keepAlive.Stop()
	for {
		select {
		case f, more := <-st.frames:
			if !more || !out.frame(f) {
				return written{}, nil
			}
		case <-keepAlive.C:
			if !out.late() || !out.comment("keep-alive") {
				return written{}, nil
			}
		case <-r.Context().Done():
			return written{}, nil
		}
	}
}

// frameWriter writes frames, with the faults that wait for the stream. Its
// methods report whether the stream goes on.
type frameWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
	fault   *Fault
	written int
	kept    *frame // held back by Reorder
}

func (o *frameWriter) write(text string) bool {
	_ = o.control.SetWriteDeadline(time.Now().Add(writeLimit)) // not every connection can
	if _, err := o.w.Write([]byte(text)); err != nil {
		return false
	}
	return o.control.Flush() == nil
}

func (o *frameWriter) comment(text string) bool { return o.write(": " + text + "\n\n") }

func (o *frameWriter) plain(f frame) bool {
	return o.write("event: " + f.Type + "\ndata: " + string(f.Data) + "\n\n")
}

// frame writes one frame. Faults on frames count from 1 and strike at every
// Every-th one.
func (o *frameWriter) frame(f frame) bool {
	o.written++
	if o.fault == nil || o.written%max(o.fault.Every, 1) != 0 {
		return o.release(f)
	}
	switch o.fault.Kind {
	case CutStream:
		o.release(f)
		return false
	case Duplicate:
		return o.release(f) && o.plain(f)
	case Omit:
		return true
	case Reorder:
		if o.kept == nil {
			o.kept = &f
			return true
		}
	case Huge:
		n := o.fault.Bytes
		if n <= 0 {
			n = 40 << 20
		}
		return o.plain(frame{"session.huge", []byte(`{"type":"session.huge","filler":"` + strings.Repeat("x", n) + `"}`)}) && o.release(f)
	case ErrorFrame:
		o.plain(frame{"error", []byte(`{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"req_local"}`)})
		return false
	}
	return o.release(f)
}

// late writes the frame that was held back when none has come to go before it.
func (o *frameWriter) late() bool {
	kept := o.kept
	o.kept = nil
	return kept == nil || o.plain(*kept)
}

// release writes f and, behind it, the frame that was held back.
func (o *frameWriter) release(f frame) bool {
	ok := o.plain(f)
	if kept := o.kept; kept != nil && ok {
		o.kept = nil
		ok = o.plain(*kept)
	}
	return ok
}
