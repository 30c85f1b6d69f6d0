package local

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestPollHandsOutAnItemOnceAndAgainAfterTheReclaimTime(t *testing.T) {
	w := newWorld(t, Options{})
	id := w.session("hello")
	first := w.poll("")
	if first == nil || first.session != id {
		t.Fatalf("the first poll got %v, want the item of %s", first, id)
	}
	if again := w.poll(""); again != nil {
		t.Fatalf("the item was handed out twice: %v", again)
	}
	w.clock.Advance(4900 * time.Millisecond)
	if again := w.poll(""); again != nil {
		t.Fatal("the item came back before reclaim_older_than_ms")
	}
	if again := w.poll("?reclaim_older_than_ms=1000"); again == nil || again.id != first.id {
		t.Fatalf("a poll with a shorter reclaim time got %v, want %s", again, first.id)
	}
	w.clock.Advance(5100 * time.Millisecond)
	third := w.poll("")
	if third == nil || third.id != first.id {
		t.Fatalf("after the reclaim time the poll got %v, want %s", third, first.id)
	}
	if third.token == first.token {
		t.Error("two hand-outs share a token")
	}
}

func TestPollRefusesWrongBlocks(t *testing.T) {
	w := newWorld(t, Options{})
	for _, q := range []string{"block_ms=0", "block_ms=1000", "block_ms=x", "block_ms=-1", "reclaim_older_than_ms=0"} {
		w.want(400, "GET", w.work("/poll?"+q), "", w.envKey)
	}
	got := w.want(200, "GET", w.work("/poll?block_ms=1"), "", w.envKey)
	if string(got.Raw) != "null" || got.Header.Get("Content-Type") != "application/json" {
		t.Errorf("an empty poll answered %q as %q, want null as JSON", got.Raw, got.Header.Get("Content-Type"))
	}
}

func TestABlockedPollReturnsAsSoonAsThereIsWork(t *testing.T) {
	w := newWorld(t, Options{})
	w.session("held by somebody") // its lease is the alarm that tells that the poll waits
	w.claim()
	got := make(chan string, 1)
	go func() { got <- pollBlocked(w, 999) }()
	w.clock.AwaitAlarm(time.Minute)
	id := w.session("hello")
	if answer := <-got; !strings.Contains(answer, id) {
		t.Errorf("the blocked poll answered %s, want the item of %s", answer, id)
	}
}

func TestABlockedPollSeesALeaseLapse(t *testing.T) {
	w := newWorld(t, Options{LeaseTTL: 10 * time.Second})
	w.session("hello")
	w.claim()
	got := make(chan string, 1)
	go func() { got <- pollBlocked(w, 999) }()
	w.clock.AwaitAlarm(5 * time.Second)
	w.clock.Advance(11 * time.Second)
	if answer := <-got; !strings.Contains(answer, `"state":"queued"`) {
		t.Errorf("the blocked poll answered %s, want the item whose lease lapsed", answer)
	}
}

// pollBlocked polls from another goroutine and returns the body.
func pollBlocked(w *world, ms int) string {
	r, err := http.NewRequestWithContext(context.Background(), "GET", w.url+w.work("/poll?block_ms=")+strconv.Itoa(ms), nil)
	if err != nil {
		return err.Error()
	}
	r.Header.Set("Authorization", "Bearer "+w.envKey)
	r.Header.Set("anthropic-beta", betaAgents)
	r.Header.Set("anthropic-version", "2026-10-21")
	r.Header.Set("Anthropic-Worker-ID", "blocked")
	return string(w.send(r).Raw)
}

func TestOneClaimantAtATime(t *testing.T) {
	w := newWorld(t, Options{})
	for range 3 {
		w.session("hello")
	}
	var (
		mu  sync.Mutex
		got = map[string]int{}
		all sync.WaitGroup
	)
	for range 12 {
		all.Go(func() {
			w.srv.mu.Lock()
			item, _ := w.srv.queue.poll(w.env, "", time.Minute, w.srv.now())
			w.srv.mu.Unlock()
			if item != nil {
				mu.Lock()
				got[item.ID]++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if len(got) != 3 {
		t.Errorf("12 concurrent polls took %d items, want 3", len(got))
	}
	for id, n := range got {
		if n != 1 {
			t.Errorf("item %s was handed out %d times", id, n)
		}
	}
}

func TestAckMovesAHandedOutItemToStarting(t *testing.T) {
	w := newWorld(t, Options{})
	w.session("hello")
	w.srv.mu.Lock()
	id := w.srv.queue.order[0].ID
	w.srv.mu.Unlock()
	w.want(409, "POST", w.work("/"+id+"/ack"), "", w.envKey) // nobody polled it
	c := w.poll("")
	got := w.want(200, "POST", w.work("/"+c.id+"/ack"), "", w.envKey)
	if got.str("state") != "starting" || got.Body["acknowledged_at"] == nil || got.Body["secret"] != nil {
		t.Errorf("ack answered %s", got.Raw)
	}
	w.want(409, "POST", w.work("/"+c.id+"/ack"), "", w.envKey)
	w.want(404, "POST", w.work("/work_nope/ack"), "", w.envKey)
}

func TestAckCanBeIdempotent(t *testing.T) {
	w := newWorld(t, Options{AckIdempotent: true})
	w.session("hello")
	c := w.claim()
	w.want(200, "POST", w.work("/"+c.id+"/ack"), "", w.envKey)
	w.beat(200, c, "NO_HEARTBEAT")
	w.want(409, "POST", w.work("/"+c.id+"/ack"), "", w.envKey) // active: it is somebody's
}

func TestHeartbeatsCompareTheTokenByteForByte(t *testing.T) {
	w := newWorld(t, Options{LeaseTTL: 30 * time.Second})
	w.session("hello")
	c := w.claim()
	first := w.beat(200, c, "NO_HEARTBEAT")
	if first.str("state") != "active" || first.Body["lease_extended"] != true || first.Body["ttl_seconds"] != 30.0 {
		t.Fatalf("the first beat answered %s", first.Raw)
	}
	token := first.str("last_heartbeat")
	w.clock.Advance(10 * time.Second)
	second := w.beat(200, c, token)
	if second.str("last_heartbeat") == token {
		t.Error("two beats have the same token")
	}
	stale := w.beat(412, c, token)
	if stale.path("error", "details", "error_code") != "heartbeat_precondition_failed" {
		t.Errorf("the 412 has no error code: %s", stale.Raw)
	}
	if got := stale.path("error", "details", "current_state", "last_heartbeat"); got != second.str("last_heartbeat") {
		t.Errorf("current_state.last_heartbeat = %v, want %v", got, second.str("last_heartbeat"))
	}
	w.beat(412, c, "NO_HEARTBEAT")
	w.want(200, "POST", w.work("/"+c.id+"/heartbeat"), "", c.token) // unconditional
}

func TestAnUnclaimedLeaseRefusesAnyTokenButNoHeartbeat(t *testing.T) {
	w := newWorld(t, Options{})
	w.session("hello")
	c := w.claim()
	got := w.beat(412, c, "hb-1")
	want := "Heartbeat precondition failed: expected hb-1, actual was NULL"
	if got.path("error", "message") != want || got.errType() != "invalid_request_error" {
		t.Errorf("the 412 says %v, want %q", got.path("error", "message"), want)
	}
}

func TestDesiredTTLIsClamped(t *testing.T) {
	w := newWorld(t, Options{})
	w.session("hello")
	c := w.claim()
	got := w.want(200, "POST", w.work("/"+c.id+"/heartbeat?desired_ttl_seconds=900"), "", c.token)
	if got.Body["ttl_seconds"] != 300.0 {
		t.Errorf("ttl_seconds = %v, want 300", got.Body["ttl_seconds"])
	}
	w.want(400, "POST", w.work("/"+c.id+"/heartbeat?desired_ttl_seconds=x"), "", c.token)
}

func TestALapsedLeaseIsQueuedAgainAndTheOldHolderIsOut(t *testing.T) {
	w := newWorld(t, Options{LeaseTTL: 10 * time.Second})
	w.session("hello")
	old := w.claim()
	token := w.beat(200, old, "NO_HEARTBEAT").str("last_heartbeat")
	w.clock.Advance(11 * time.Second)
	got := w.beat(412, old, token)
	if state := got.path("error", "details", "current_state", "state"); state != "queued" {
		t.Errorf("the state after the lapse is %v, want queued", state)
	}
	w.stop(409, old, `{"force":true}`)
	fresh := w.claim()
	if fresh.id != old.id {
		t.Fatalf("the lapsed item came back as %s, want %s", fresh.id, old.id)
	}
	w.beat(412, old, "NO_HEARTBEAT") // its claim is not the present one
	w.stop(409, old, `{"force":true}`)
	w.beat(200, fresh, "NO_HEARTBEAT")
	w.want(200, "GET", "/v1/sessions/"+old.session, "", old.token) // reading is still allowed
}

func TestAnAckWithoutABeatLapsesToo(t *testing.T) {
	w := newWorld(t, Options{LeaseTTL: 10 * time.Second})
	w.session("hello")
	c := w.claim()
	w.clock.Advance(11 * time.Second)
	if again := w.poll(""); again == nil || again.id != c.id {
		t.Errorf("the acknowledged item that nobody beat for came back as %v", again)
	}
}

func TestAGracefulStopIsSeenAtTheNextBeatAndEndedByForce(t *testing.T) {
	for _, mode := range []StopReply{StopJSON, StopEmpty} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWorld(t, Options{StopReply: mode})
			w.session("hello")
			c := w.claim()
			w.beat(200, c, "NO_HEARTBEAT")
			status := 200
			if mode == StopEmpty {
				status = 204
			}
			got := w.want(status, "POST", w.work("/"+c.id+"/stop"), `{}`)
			if mode == StopEmpty && (len(got.Raw) != 0 || got.Header.Get("Content-Type") != "") {
				t.Errorf("the empty reply has a body %q or a type %q", got.Raw, got.Header.Get("Content-Type"))
			}
			if mode == StopJSON && got.str("state") != "stopping" {
				t.Errorf("stop answered %s", got.Raw)
			}
			w.want(409, "POST", w.work("/"+c.id+"/stop"), `{}`)
			beat := w.beat(200, c, "anything")
			if beat.str("state") != "stopping" || beat.Body["lease_extended"] != false {
				t.Errorf("the beat after stop answered %s", beat.Raw)
			}
			w.stop(status, c, `{"force":true}`)
			w.stop(409, c, `{"force":true}`)
			if state := w.beat(200, c, "anything").str("state"); state != "stopped" {
				t.Errorf("the beat after the end says %s", state)
			}
		})
	}
}

func TestStopRefusesUnknownFields(t *testing.T) {
	w := newWorld(t, Options{})
	w.session("hello")
	c := w.claim()
	if got := w.wild("POST", w.work("/"+c.id+"/stop"), `{"forced":true}`, c.token); got.Status != 400 {
		t.Errorf("an unknown field answered %d, want 400", got.Status)
	}
}

func TestAStoppingItemWhoseHolderIsGoneEnds(t *testing.T) {
	w := newWorld(t, Options{LeaseTTL: 10 * time.Second})
	w.session("hello")
	c := w.claim()
	w.stop(200, c, `{}`)
	w.clock.Advance(11 * time.Second)
	if got := w.want(200, "GET", w.work("/"+c.id), ""); got.str("state") != "stopped" {
		t.Errorf("the state is %s, want stopped", got.str("state"))
	}
}

func TestStatsCountWaitingPendingAndWorkers(t *testing.T) {
	w := newWorld(t, Options{})
	w.session("a")
	w.session("b")
	w.poll("")
	got := w.want(200, "GET", w.work("/stats"), "", w.envKey)
	if got.Body["depth"] != 1.0 || got.Body["pending"] != 1.0 || got.Body["oldest_queued_at"] == nil {
		t.Errorf("stats are %s, want depth 1 and pending 1", got.Raw)
	}
	pollBlocked(w, 1)
	if got = w.want(200, "GET", w.work("/stats"), ""); got.Body["workers_polling"] != 1.0 {
		t.Errorf("workers_polling = %v, want 1", got.Body["workers_polling"])
	}
	w.clock.Advance(31 * time.Second)
	if got = w.want(200, "GET", w.work("/stats"), ""); got.Body["workers_polling"] != 0.0 {
		t.Errorf("workers_polling = %v after 31 s, want 0", got.Body["workers_polling"])
	}
}

func TestTheSecretIsOnlyInThePollReply(t *testing.T) {
	w := newWorld(t, Options{})
	w.session("a")
	c := w.claim()
	for _, got := range []reply{
		w.want(200, "GET", w.work("/"+c.id), ""),
		w.want(200, "GET", w.work(""), "", w.envKey),
		w.want(200, "POST", w.work("/"+c.id), `{"metadata":{"a":"b"}}`),
		w.want(200, "POST", w.work("/"+c.id+"/stop"), `{}`),
	} {
		if strings.Contains(string(got.Raw), c.token) || !strings.Contains(string(got.Raw), `"secret":null`) {
			t.Errorf("the secret shows in %s", got.Raw)
		}
	}
}

func TestWorkMetadataIsMergedAndBounded(t *testing.T) {
	w := newWorld(t, Options{})
	w.session("a")
	c := w.claim()
	w.want(200, "POST", w.work("/"+c.id), `{"metadata":{"a":"1","b":"2"}}`)
	got := w.want(200, "POST", w.work("/"+c.id), `{"metadata":{"a":null,"c":"3"}}`)
	if m, _ := got.Body["metadata"].(map[string]any); len(m) != 2 || m["b"] != "2" || m["c"] != "3" {
		t.Errorf("metadata = %v, want b and c", got.Body["metadata"])
	}
	bad := w.want(400, "POST", w.work("/"+c.id), `{"metadata":{"`+strings.Repeat("k", 65)+`":"1"}}`)
	if bad.path("error", "details", "error_code") != "invalid_metadata" {
		t.Errorf("the refusal has no code: %s", bad.Raw)
	}
}

func TestWorkIsListedInPages(t *testing.T) {
	w := newWorld(t, Options{})
	for range 3 {
		w.session("a")
	}
	first := w.want(200, "GET", w.work("?limit=2"), "", w.envKey)
	next := first.str("next_page")
	second := w.want(200, "GET", w.work("?limit=2&page="+next), "", w.envKey)
	if len(events(first)) != 2 || len(events(second)) != 1 || second.Body["next_page"] != nil {
		t.Errorf("pages of %d and %d items, want 2 and 1", len(events(first)), len(events(second)))
	}
}
