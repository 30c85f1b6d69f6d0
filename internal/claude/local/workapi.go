package local

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// The work queue over HTTP (contract §2.2).

const workPath = "/v1/environments/{environment}/work"

func (s *Server) workRoutes() {
	s.handle("GET "+workPath+"/poll", credEnvKey, s.pollWork)
	s.handle("POST "+workPath+"/{work}/ack", credEnvKey, s.ackWork)
	s.handle("POST "+workPath+"/{work}/heartbeat", credEnvKey|credSession, s.beatWork)
	s.handle("POST "+workPath+"/{work}/stop", credAPIKey|credEnvKey|credSession, s.stopWork)
	s.handle("GET "+workPath+"/stats", credAPIKey|credEnvKey, s.workStats)
	s.handle("GET "+workPath, credEnvKey, s.listWork)
	s.handle("GET "+workPath+"/{work}", credAPIKey, s.getWork)
	s.handle("POST "+workPath+"/{work}", credAPIKey, s.updateWork)
}

// workByPath finds the item that the path names. Called with s.mu.
func (s *Server) workByPath(r *http.Request) (*workItem, *apiError) {
	env, err := s.environmentByID(r.PathValue("environment"))
	if err != nil {
		return nil, err
	}
	w, ok := s.queue.items[r.PathValue("work")]
	if !ok || w.Environment != env.ID {
		return nil, fail(404, "work item %q not found", r.PathValue("work"))
	}
	return w, nil
}

// pollWork is a long poll: it answers as soon as there is an item, and with null
// when block_ms have passed without one.
func (s *Server) pollWork(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	block, reclaim, err := pollQuery(r.URL.Query(), s.opt.ReclaimAfter)
	if err != nil {
		return nil, err
	}
	worker := r.Header.Get("Anthropic-Worker-ID")
	var over <-chan time.Time
	if block > 0 {
		t := time.NewTimer(block)
		defer t.Stop()
		over = t.C
	}
	for {
		s.mu.Lock()
		env, err := s.environmentByID(r.PathValue("environment"))
		if err != nil || r.Context().Err() != nil { // never hand out to a caller that has left
			s.mu.Unlock()
			return nil, err
		}
		now := s.now()
		item, next := s.queue.poll(env.ID, worker, reclaim, now)
		if item != nil {
			entry, f := entryOf(r), faultOf(r)
			if f == nil {
				f = s.faults.takeHandOut(item)
			}
			entry.Session, entry.Work, entry.Claim, entry.Fault = item.Session, item.ID, item.claim, f.kind()
			reply := item.reply(s.mintSecret(item, f))
			s.mu.Unlock()
			if f.kind() == Drop && f != faultOf(r) {
				abort()
			}
			return reply, nil
		}
		changed := s.queue.changed
		s.mu.Unlock()
		if block == 0 {
			return nil, nil
		}
		var due <-chan time.Time
		if !next.IsZero() {
			due = s.clock.After(next.Sub(now))
		}
		select {
		case <-over:
			return nil, nil
		case <-changed:
		case <-due:
		case <-r.Context().Done():
		case <-s.ctx.Done():
			return nil, nil
		}
	}
}

// mintSecret makes the secret of one hand-out with a sessions token of its own
// (contract §3.8). Called with s.mu.
func (s *Server) mintSecret(w *workItem, f *Fault) string {
	token := newID("sk-ant-req-")
	s.credentials[token] = credential{kind: credSession, environment: w.Environment, session: w.Session, work: w.ID, claim: w.claim}
	content := map[string]string{"sessions_token": token}
	if s.opt.BaseURL != "" {
		content["api_base_url"] = s.opt.BaseURL
	}
	encoding := base64.RawURLEncoding
	switch f.kind() {
	case SecretAbsent:
		return ""
	case SecretGarbage:
		return "!! this is not base64 !!"
	case SecretNoToken:
		delete(content, "sessions_token")
		content["ingress_token"] = "none"
	case SecretPadded:
		encoding = base64.URLEncoding
		for n := 0; ; n++ { // a length that needs padding
			content["ingress_token"] = strings.Repeat("x", n)
			if b, _ := json.Marshal(content); len(b)%3 != 0 {
				break
			}
		}
	}
	b, err := json.Marshal(content)
	if err != nil { // a map of strings always encodes
		s.log.Error("encoding a work secret", "work", w.ID, "error", err)
		return ""
	}
	return encoding.EncodeToString(b)
}

func (s *Server) ackWork(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	item, err := s.workByPath(r)
	if err != nil {
		return nil, err
	}
	entryOf(r).Session = item.Session
	if err := s.queue.ack(item, s.opt.AckIdempotent, s.now()); err != nil {
		return nil, err
	}
	return item.reply(""), nil
}

func (s *Server) beatWork(_ http.ResponseWriter, r *http.Request, c caller) (any, *apiError) {
	q := r.URL.Query()
	var ttl time.Duration
	if v := q.Get("desired_ttl_seconds"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 {
			return nil, fail(400, "desired_ttl_seconds: must be a whole number of at least 1")
		}
		ttl = time.Duration(min(n, 300)) * time.Second
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	item, err := s.workByPath(r)
	if err != nil {
		return nil, err
	}
	now := s.now()
	entry := entryOf(r)
	entry.Session, entry.Answer = item.Session, "lost"
	note := func(reply map[string]any) {
		entry.Answer, _ = reply["state"].(string)
		entry.Token, _ = reply["last_heartbeat"].(string)
	}
	switch f := faultOf(r); {
	case f.kind() == LeaseLost && item.held():
		s.queue.lapse(item, now)
	case f.kind() == NotExtended && item.held():
		s.queue.lapse(item, now)
		reply := item.beatReply(false)
		note(reply)
		return reply, nil
	case f.kind() == Stopping && item.live():
		_ = s.queue.stop(item, 0, false, now) // already stopping is as good
	}
	reply, err := s.queue.beat(item, c.claim, q.Get("expected_last_heartbeat"), ttl, now)
	if err != nil {
		return nil, err
	}
	note(reply)
	return reply, nil
}

func (s *Server) stopWork(w http.ResponseWriter, r *http.Request, c caller) (any, *apiError) {
	var body struct {
		Force bool `json:"force"`
	}
	if err := decode(w, r, &body, true); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	item, err := s.workByPath(r)
	if err != nil {
		return nil, err
	}
	entry := entryOf(r)
	entry.Session, entry.Sent = item.Session, "graceful"
	if body.Force {
		entry.Sent = "force"
	}
	if err := s.queue.stop(item, c.claim, body.Force, s.now()); err != nil {
		return nil, err
	}
	if s.opt.StopReply == StopEmpty {
		return noContent{}, nil
	}
	return item.reply(""), nil
}

func (s *Server) workStats(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	env, err := s.environmentByID(r.PathValue("environment"))
	if err != nil {
		return nil, err
	}
	return s.queue.stats(env.ID, s.now()), nil
}

func (s *Server) listWork(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	p, err := pageOf(r, 20, 1000, "work")
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	env, err := s.environmentByID(r.PathValue("environment"))
	if err != nil {
		return nil, err
	}
	s.queue.settle(s.now())
	var all []map[string]any
	for _, w := range s.queue.order {
		if w.Environment == env.ID {
			all = append(all, w.reply(""))
		}
	}
	return list(p, all), nil
}

func (s *Server) getWork(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	item, err := s.workByPath(r)
	if err != nil {
		return nil, err
	}
	s.queue.settle(s.now())
	return item.reply(""), nil
}

func (s *Server) updateWork(w http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	var body struct {
		Metadata map[string]*string `json:"metadata"`
	}
	if err := decode(w, r, &body, false); err != nil {
		return nil, err
	}
	if body.Metadata == nil {
		return nil, failCode(400, "invalid_metadata", "metadata: required")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	item, err := s.workByPath(r)
	if err != nil {
		return nil, err
	}
	if err := item.updateMetadata(body.Metadata); err != nil {
		return nil, err
	}
	return item.reply(""), nil
}

// Work is what the server knows of one work item, for tests and the admin path.
type Work struct {
	ID          string
	Environment string
	Type        string // session or healthcheck
	Session     string
	State       string // queued, starting, active, stopping, stopped
	Claims      int    // how often it was handed out
}

// Works returns all work items of a session, oldest first; "" means of all.
func (s *Server) Works(session string) []Work {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue.settle(s.now())
	var all []Work
	for _, w := range s.queue.order {
		if session == "" || w.Session == session {
			all = append(all, Work{w.ID, w.Environment, w.Type, w.Session, string(w.State), w.claim})
		}
	}
	return all
}

// Enqueue puts an item into an environment's queue without asking whether there
// is a reason: typ is "session" or "healthcheck", and session may be archived or
// not exist (contract §11.2). It returns the item's id.
func (s *Server) Enqueue(environment, typ, session string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.environmentByID(environment); err != nil {
		return "", fmt.Errorf("enqueue work: %w", err)
	}
	return s.queue.add(environment, typ, session, s.now()).ID, nil
}

// ExpireLease lets the lease of a work item lapse now, as if its holder had not
// beaten for the ttl. It reports whether there was a lease.
func (s *Server) ExpireLease(work string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	w, ok := s.queue.items[work]
	if !ok || !w.held() {
		return false
	}
	s.queue.lapse(w, s.now())
	return true
}
