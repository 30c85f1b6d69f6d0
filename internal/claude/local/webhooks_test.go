package local

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const hookSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// bell is a receiver of webhooks.
type bell struct {
	*httptest.Server
	rung chan ring
}

type ring struct {
	Type, Session, Thread, ID string
	Header                    http.Header
	Body                      []byte
}

// newBell answers the n-th delivery with the n-th status, and the rest with 200.
func newBell(t *testing.T, statuses ...int) *bell {
	b := &bell{rung: make(chan ring, 100)}
	n := 0
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		var e struct {
			ID   string `json:"id"`
			Data struct {
				Type   string `json:"type"`
				ID     string `json:"id"`
				Thread string `json:"session_thread_id"`
			} `json:"data"`
		}
		if err := json.Unmarshal(body, &e); err != nil {
			t.Error(err)
		}
		status := 200
		if n < len(statuses) {
			status = statuses[n]
		}
		n++
		if status/100 == 3 {
			w.Header().Set("Location", "/elsewhere")
		}
		w.WriteHeader(status)
		b.rung <- ring{e.Data.Type, e.Data.ID, e.Data.Thread, e.ID, r.Header, body}
	}))
	t.Cleanup(b.Close)
	return b
}

func TestWebhooksTellTheLifeOfASession(t *testing.T) {
	b := newBell(t)
	w := newWorld(t, Options{Webhooks: WebhookOptions{Endpoints: []Endpoint{{URL: b.URL, Secret: hookSecret}}}}, `
name: life
steps: [{open_thread: a}, {end_thread: a}, {calls: [{tool: bash}]}]
`)
	id := w.session("go")
	w.say(id, result(w.awaitCalls(id)[0], "x"))
	w.awaitIdle(id, "end_turn")
	w.want(200, "POST", "/v1/sessions/"+id, `{"title":"t"}`)
	w.want(200, "POST", "/v1/sessions/"+id+"/archive", "")
	w.want(200, "DELETE", "/v1/sessions/"+id, "")
	signer, err := standardwebhooks.NewWebhook(hookSecret)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for !seen["session.deleted"] {
		r := <-b.rung
		seen[r.Type] = true
		if err := signer.VerifyIgnoringTimestamp(r.Body, r.Header); err != nil {
			t.Errorf("%s: %v", r.Type, err)
		}
		if r.Header.Get("webhook-id") != r.ID {
			t.Errorf("webhook-id is %q, want %q", r.Header.Get("webhook-id"), r.ID)
		}
		if r.Type == "session.thread_idled" && r.Thread == "" {
			t.Error("a thread's notification names no thread")
		}
	}
	for _, typ := range []string{
		"environment.created", "session.created", "session.running", "session.status_run_started", "session.requires_action",
		"session.idled", "session.status_idled", "session.updated", "session.thread_created", "session.thread_idled",
		"session.thread_terminated", "session.status_terminated", "session.archived",
	} {
		if !seen[typ] {
			t.Errorf("there was no %s", typ)
		}
	}
}

func TestFailedDeliveriesAreTriedThreeTimesUnderOneID(t *testing.T) {
	b := newBell(t, 500, 404, 503, 200)
	w := newWorld(t, Options{Webhooks: WebhookOptions{Endpoints: []Endpoint{
		{URL: b.URL, Secret: hookSecret, Events: []string{"session.created"}},
	}}})
	first := w.session("")
	var ids, times []string
	for i := range 3 {
		if i > 0 {
			w.clock.AwaitAlarm(5 * time.Second)
			w.clock.Advance(2 * time.Minute)
		}
		r := <-b.rung
		ids, times = append(ids, r.ID), append(times, r.Header.Get("webhook-timestamp"))
	}
	if len(slices.Compact(ids)) != 1 || len(slices.Compact(times)) != 3 {
		t.Errorf("ids %v at %v, want one id and three stamps", ids, times)
	}
	second := w.session("")
	if r := <-b.rung; r.Session != second || r.Session == first {
		t.Errorf("after three failures came %s of %s, want the next notification", r.Type, r.Session)
	}
	if s := w.srv.Webhooks()[0]; s.Failed != 1 || s.Disabled {
		t.Errorf("the endpoint's state is %+v", s)
	}
}

func TestARedirectDisablesAnEndpointAndOthersGoOn(t *testing.T) {
	gone, good := newBell(t, 302), newBell(t)
	only := []string{"session.created"}
	w := newWorld(t, Options{Webhooks: WebhookOptions{Duplicate: true, Skew: -10 * time.Minute, Endpoints: []Endpoint{
		{URL: gone.URL, Secret: hookSecret, Events: only}, {URL: good.URL, Secret: hookSecret, Events: only},
	}}})
	w.session("")
	w.session("")
	<-gone.rung
	var ids []string
	for range 4 {
		r := <-good.rung
		ids = append(ids, r.ID)
		want := strconv.FormatInt(w.clock.Now().Add(-10*time.Minute).Unix(), 10)
		if got := r.Header.Get("webhook-timestamp"); got != want {
			t.Errorf("the stamp is %s, want it skewed to %s", got, want)
		}
	}
	if ids[0] != ids[1] || ids[2] != ids[3] || ids[0] == ids[2] {
		t.Errorf("the ids are %v, want each twice", ids)
	}
	if err := w.srv.AwaitWebhooks(t.Context(), func(all []WebhookState) bool { return all[0].Disabled && all[1].Delivered == 4 }); err != nil {
		t.Error(err)
	}
	if len(gone.rung) != 0 {
		t.Error("the disabled endpoint was called again")
	}
}
