package local

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// GET …/events, of a session and of a thread. The cursor names a place in the
// order, not a number of events: events that appear between two pages are
// neither skipped nor repeated (contract §1.6).

const (
	defaultEvents = 100
	maxEvents     = 1000
)

func (s *Server) listEvents(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	q := r.URL.Query()
	limit := defaultEvents
	if v := q.Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > maxEvents {
			return nil, fail(400, "limit: must be a whole number from 1 to %d", maxEvents)
		}
		limit = n
	}
	limit = min(limit, s.opt.HistoryPage)
	created, err := readRange(q)
	if err != nil {
		return nil, err
	}
	desc, err := readOrder(q, "asc")
	if err != nil {
		return nil, err
	}
	bind := bindOf(q)
	from, err := readPlace(q.Get("page"), bind)
	if err != nil {
		return nil, err
	}
	if faultOf(r).kind() == EmptyPage { // nothing, and a cursor to the same place
		at := place{}
		if from != nil {
			at = *from
		}
		return map[string]any{"data": []any{}, "next_page": at.cursor(bind)}, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	se, t, err := s.threadByPath(r)
	if err != nil {
		return nil, err
	}
	found, more := se.log.page(eventQuery{
		Desc: desc, Types: q["types[]"], Created: created, Thread: threadFilter(t),
	}, from, limit)
	data := make([]map[string]any, len(found))
	for i, e := range found {
		data[i] = e.reply()
	}
	var next any
	if more {
		next = se.log.place(found[len(found)-1]).cursor(bind)
	}
	return map[string]any{"data": data, "next_page": next}, nil
}

// cursor encodes a place together with the query that it belongs to.
func (p place) cursor(bind string) string {
	micros := int64(0)
	if !p.Processed.IsZero() {
		micros = p.Processed.UnixMicro()
	}
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d|%d|%s", micros, p.Seq, bind))
}

// readPlace decodes a cursor; nil when there is none.
func readPlace(cursor, bind string) (*place, *apiError) {
	if cursor == "" {
		return nil, nil
	}
	bad := fail(400, "page: not a cursor of this list")
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	parts := strings.SplitN(string(raw), "|", 3)
	if err != nil || len(parts) != 3 {
		return nil, bad
	}
	if parts[2] != bind {
		return nil, fail(400, "page: the cursor belongs to a list with other filters or another order")
	}
	micros, err := strconv.ParseInt(parts[0], 10, 64)
	if err != nil {
		return nil, bad
	}
	seq, err := strconv.Atoi(parts[1])
	if err != nil || seq < 0 {
		return nil, bad
	}
	p := &place{Seq: seq}
	if micros > 0 {
		p.Processed = time.UnixMicro(micros).UTC()
	}
	if p.Seq == 0 && p.Processed.IsZero() { // the start
		return nil, nil
	}
	return p, nil
}
