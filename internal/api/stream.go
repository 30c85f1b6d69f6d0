package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/berth-dev/berth/internal/fault"
)

// streamEvents is the live event log of a session as server-sent events. Each
// has its seq as id: a client that comes back with Last-Event-ID (or ?after=)
// goes on where it was and misses nothing.
func (s *server) streamEvents(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	from := r.Header.Get("Last-Event-ID")
	if from == "" {
		from = r.URL.Query().Get("after")
	}
	after, err := seqCursor(from)
	if err == nil {
		_, err = s.Records.Session(r.Context(), id)
	}
	if err != nil {
		writeError(w, err)
		return
	}
	rc := http.NewResponseController(w)
	if err := rc.SetWriteDeadline(time.Time{}); err != nil {
		writeError(w, fault.Wrap(err, fault.Internal, "stream"))
		return
	}
	wake, cancel := s.Bus.Subscribe(id)
	defer cancel()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	alive := time.NewTicker(15 * time.Second)
	defer alive.Stop()
	for {
		events, err := s.Records.Events(r.Context(), id, after, 200)
		if err != nil {
			return
		}
		for _, e := range events {
			data, err := json.Marshal(e)
			if err != nil {
				s.Log.Error("an event cannot be encoded", "seq", e.Seq, "err", err)
				continue
			}
			if _, err := fmt.Fprintf(w, "id: %d\nevent: %s\ndata: %s\n\n", e.Seq, e.Type, data); err != nil {
				return
			}
			after = e.Seq
		}
		if err := rc.Flush(); err != nil {
			return
		}
		if len(events) == 200 {
			continue // there is more
		}
		select {
		case <-wake:
		case <-alive.C:
			if _, err := fmt.Fprint(w, ": alive\n\n"); err != nil {
				return
			}
		case <-r.Context().Done():
			return
		case <-s.closing:
			return
		}
	}
}
