package local

import (
	"slices"
	"testing"
	"time"
)

func TestTheRequestLogTellsWhoAskedAboutWhatAndWhatWasHeard(t *testing.T) {
	w := newWorld(t, Options{}, asking)
	id := w.session("go")
	call := w.awaitCalls(id)[0]
	c := w.claim()
	token := w.beat(200, c, "NO_HEARTBEAT").str("last_heartbeat")
	w.beat(200, c, token)
	w.inject(Fault{Kind: LeaseLost})
	w.beat(412, c, "nonsense")
	w.want(200, "POST", "/v1/sessions/"+id+"/events", `{"events":[`+result(call, "x")+`]}`, c.token)

	var beats []string
	for _, r := range w.srv.Requests() {
		if r.Session != id {
			continue
		}
		switch r.Operation {
		case "poll":
			if r.Work != c.id || r.Claim != 1 || r.Credential != "environment key" {
				t.Errorf("poll: %+v", r)
			}
		case "heartbeat":
			beats = append(beats, r.Sent+" "+r.Answer)
			if r.Credential != "sessions token" || r.Claim != 1 || r.Work != c.id {
				t.Errorf("heartbeat: %+v", r)
			}
			if r.Answer == "lost" && (r.Fault != LeaseLost || r.Status != 412) {
				t.Errorf("the struck heartbeat: %+v", r)
			}
		}
	}
	if want := []string{"NO_HEARTBEAT active", token + " active", "nonsense lost"}; !slices.Equal(beats, want) {
		t.Errorf("beats %q, want %q", beats, want)
	}
}

func TestPostsRecordWhereEachCallStood(t *testing.T) {
	w := newWorld(t, Options{StrictDuplicates: true}, `
name: posts
steps:
  - calls:
      - {tool: bash, input: {command: a}}
      - {tool: bash, input: {command: b}, permission: ask}
      - {tool: deploy, kind: custom, client: {text: done, after: 1s}}
`)
	id := w.session("go")
	calls := w.awaitCalls(id)
	c := w.claim()
	send := func(status int, call string) {
		t.Helper()
		w.want(status, "POST", "/v1/sessions/"+id+"/events", `{"events":[`+result(call, "four")+`]}`, c.token)
	}
	send(200, calls[0])
	w.clock.Advance(2 * time.Second) // and the other client answers the third
	send(400, calls[0])
	send(400, calls[1])
	w.refused(id, result("sevt_nobody", "x"))
	w.awaitServed("the other client's answer", func() bool { return len(w.srv.OpenCalls(id)) == 1 })

	var got []string
	for _, p := range w.srv.Posts(id) {
		if p.Call == calls[2] {
			continue
		}
		got = append(got, p.State)
		if p.State == "answered" && (p.Since != 2*time.Second || p.Claim != 1 || p.Accepted) {
			t.Errorf("the second answer: %+v", p)
		}
	}
	if want := []string{"open", "answered", "held", "unknown"}; !slices.Equal(got, want) {
		t.Errorf("posts %q, want %q", got, want)
	}
	if events := w.srv.Events(id); !slices.ContainsFunc(events, func(e Event) bool { return e.Type == "user.custom_tool_result" }) {
		t.Errorf("the other client's answer is not among the %d events", len(events))
	}
}

func TestAFaultOfOneSessionsHandOutLeavesOthersAlone(t *testing.T) {
	w := newWorld(t, Options{}, asking)
	base := w.bare()
	first, second := w.session("go"), w.session("go")
	w.inject(Fault{Kind: Drop, On: "poll", Session: second})
	if c := w.poll(""); c == nil || c.session != first {
		t.Fatalf("the first poll handed out %+v", c)
	}
	if err := w.broken(base, "GET", w.work("/poll"), "", w.envKey); err == nil {
		t.Error("the hand-out of the second session was answered")
	}
	if c := w.poll("?reclaim_older_than_ms=1000"); c != nil {
		t.Fatalf("handed out %+v, want nothing before the reclaim time", c)
	}
	w.clock.Advance(2 * time.Second)
	seen := map[string]bool{}
	for range 2 {
		if c := w.poll("?reclaim_older_than_ms=1000"); c != nil {
			seen[c.session] = true
		}
	}
	if !seen[first] || !seen[second] {
		t.Errorf("handed out again: %v", seen)
	}
	if err := w.srv.Inject(Fault{Kind: Hang, On: "poll", Session: first}); err == nil {
		t.Error("a hang of one session's poll was taken")
	}
}

func TestAHistoryComesInPagesOfTheSizeThatTheOptionsSay(t *testing.T) {
	w := newWorld(t, Options{HistoryPage: 2}, asking)
	id := w.session("go")
	w.awaitServed("a call", func() bool { return len(w.srv.OpenCalls(id)) == 1 })
	first := w.want(200, "GET", "/v1/sessions/"+id+"/events?limit=1000", "")
	if n := len(first.Body["data"].([]any)); n != 2 || first.Body["next_page"] == nil {
		t.Errorf("%d events in a page of 2, next page %v", n, first.Body["next_page"])
	}
}

func TestACallWithAnUnknownPermissionIsHeld(t *testing.T) {
	w := newWorld(t, Options{}, `
name: unknown
steps: [{calls: [{tool: bash, input: {command: a}, permission: unknown}]}]
`)
	id := w.session("go")
	w.awaitServed("a call", func() bool { return len(w.srv.OpenCalls(id)) == 1 })
	c := w.claim()
	if got := w.wild("POST", "/v1/sessions/"+id+"/events", `{"events":[`+result(w.srv.OpenCalls(id)[0], "x")+`]}`, c.token); got.Status != 400 {
		t.Errorf("a result before the verdict: %d, want 400", got.Status)
	}
	if p := w.srv.Posts(id); len(p) != 1 || p[0].State != "held" {
		t.Errorf("posts %+v", p)
	}
}
