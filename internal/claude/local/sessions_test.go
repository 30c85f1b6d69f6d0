package local

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// asking is a scenario of two turns with a call each.
const asking = `
name: asking
steps:
  - calls: [{tool: bash, input: {command: one}}]
  - wait: message
  - calls: [{tool: bash, input: {command: two}}]
`

func TestASessionIsIdleUntilItHasWork(t *testing.T) {
	w := newWorld(t, Options{})
	id := w.session("")
	if got := w.want(200, "GET", "/v1/sessions/"+id, ""); got.str("status") != "idle" {
		t.Errorf("the status is %s, want idle", got.str("status"))
	}
	if c := w.poll(""); c != nil {
		t.Errorf("a session without work has a work item %v", c)
	}
	w.say(id, message("now"))
	if c := w.poll(""); c == nil || c.session != id {
		t.Errorf("after a message the queue has %v, want the session's item", c)
	}
}

func TestSessionCreateRefusals(t *testing.T) {
	w := newWorld(t, Options{})
	with := func(more string) string {
		return fmt.Sprintf(`{"agent":%q,"environment_id":%q%s}`, w.agent, w.env, more)
	}
	many := strings.TrimSuffix(strings.Repeat(message("x")+",", 51), ",")
	outcome := `{"type":"user.define_outcome","description":"d","rubric":{"type":"text","content":"c"}}`
	for _, tt := range []struct {
		body string
		want int
	}{
		{with(`,"extra":1`), 400},
		{with(`,"title":"` + strings.Repeat("t", 501) + `"`), 400},
		{with(`,"metadata":{"` + strings.Repeat("k", 65) + `":""}`), 400},
		{with(`,"initial_events":[` + many + `]`), 400},
		{with(`,"initial_events":[{"type":"user.interrupt"}]`), 400},
		{with(`,"initial_events":[` + outcome + `,` + outcome + `]`), 400},
		{with(`,"resources":[{"type":"file","file_id":"file_1"}]`), 400},
		{with(`,"resources":[{"type":"github_repository","url":"https://github.com/a/b"}]`), 400},
		{with(`,"resources":[{"type":"memory_store","memory_store_id":"memstore_no"}]`), 404},
		{with(`,"budget":{"type":"limit","max_list_cost":{"amount":"ten","currency":"USD"}}`), 400},
		{fmt.Sprintf(`{"environment_id":%q}`, w.env), 400},
		{fmt.Sprintf(`{"agent":"agent_no","environment_id":%q}`, w.env), 404},
		{fmt.Sprintf(`{"agent":%q,"environment_id":"env_no"}`, w.agent), 404},
		{fmt.Sprintf(`{"agent":{"type":"agent","id":%q,"version":7},"environment_id":%q}`, w.agent, w.env), 404},
		{fmt.Sprintf(`{"agent":{"type":"agent","id":%q,"tools":[]},"environment_id":%q}`, w.agent, w.env), 400},
	} {
		if got := w.wild("POST", "/v1/sessions", tt.body); got.Status != tt.want {
			t.Errorf("create %.150s: status %d %s, want %d", tt.body, got.Status, got.Raw, tt.want)
		}
	}
	got := w.wild("POST", "/v1/sessions", with(`,"resources":[{"type":"file","file_id":"file_1"}]`))
	if m, _ := got.path("error", "message").(string); !strings.Contains(m, "`resources` are not supported with self-hosted environments") {
		t.Errorf("a file resource is refused with %q", m)
	}
}

func TestOverridesReplaceThePartsOfTheSnapshot(t *testing.T) {
	w := newWorld(t, Options{})
	got := w.want(200, "POST", "/v1/sessions", fmt.Sprintf(
		`{"agent":{"type":"agent_with_overrides","id":%q,"system":"Be brief.","tools":[]},"environment_id":%q}`, w.agent, w.env))
	if got.path("agent", "system") != "Be brief." || len(got.path("agent", "tools").([]any)) != 0 {
		t.Errorf("the snapshot is %v", got.Body["agent"])
	}
}

func TestMemoryStoresAreMountedByTheirSlug(t *testing.T) {
	w := newWorld(t, Options{})
	store := w.want(200, "POST", "/v1/memory_stores", `{"name":"Team  Notes!","description":"d"}`).id()
	got := w.want(200, "POST", "/v1/sessions", fmt.Sprintf(
		`{"agent":%q,"environment_id":%q,"resources":[{"type":"memory_store","memory_store_id":%q,"access":"read_only"}]}`, w.agent, w.env, store))
	want := []any{map[string]any{
		"type": "memory_store", "memory_store_id": store, "access": "read_only", "instructions": nil,
		"name": "Team  Notes!", "description": "d", "mount_path": "/mnt/memory/team-notes",
	}}
	if diff := cmp.Diff(want, got.Body["resources"]); diff != "" {
		t.Errorf("resources (-want +got):\n%s", diff)
	}
	path := "/v1/sessions/" + got.id() + "/resources"
	w.want(200, "GET", path, "")
	w.want(200, "GET", path+"/"+store, "")
	w.want(400, "DELETE", path+"/"+store, "")
	w.want(404, "GET", path+"/sesrsc_no", "")
	w.want(400, "POST", path, `{"type":"file","file_id":"file_1"}`)
	twice := fmt.Sprintf(`{"type":"memory_store","memory_store_id":%q}`, store)
	w.want(400, "POST", "/v1/sessions", fmt.Sprintf(
		`{"agent":%q,"environment_id":%q,"resources":[%s,%s]}`, w.agent, w.env, twice, twice))
}

func TestSessionUpdateSaysWhatChanged(t *testing.T) {
	w := newWorld(t, Options{})
	id := w.session("")
	path := "/v1/sessions/" + id
	w.want(200, "POST", path, `{"title":"t","metadata":{"a":"1"}}`)
	w.want(200, "POST", path, `{"title":"t"}`) // no change, no event
	w.want(200, "POST", path, `{"agent":{"tools":[]}}`)
	w.want(400, "POST", path, `{"vault_ids":["vlt_1"]}`)
	got := w.want(400, "POST", path, `{"budget":{"type":"limit","max_list_cost":{"amount":"10","currency":"USD"}}}`)
	if got.path("error", "details", "error_code") != "budget_create_only" {
		t.Errorf("a late budget is refused with %s", got.Raw)
	}
	all := w.history(id)
	if count(all, "session.updated") != 2 {
		t.Fatalf("the log is %v, want two updates", types(all))
	}
	if all[0]["title"] != "t" || all[0]["agent"] != nil || all[1]["agent"] == nil || all[1]["title"] != nil {
		t.Errorf("the updates are %v and %v, want only what changed", all[0], all[1])
	}
}

func TestARunningSessionIsNeitherArchivedNorDeleted(t *testing.T) {
	w := newWorld(t, Options{}, "{name: slow, steps: [{pause: 1h}]}")
	id := w.session("go")
	w.clock.AwaitAlarm(time.Minute)
	w.want(400, "POST", "/v1/sessions/"+id+"/archive", "")
	w.want(400, "DELETE", "/v1/sessions/"+id, "")
	w.want(400, "POST", "/v1/sessions/"+id, `{"agent":{"tools":[]}}`)
	w.say(id, `{"type":"user.interrupt"}`)
	w.want(200, "POST", "/v1/sessions/"+id+"/archive", "")
}

func TestAnArchivedSessionReadsAsTerminatedAndTakesNothing(t *testing.T) {
	w := newWorld(t, Options{}, asking)
	id := w.session("go")
	calls := w.awaitCalls(id)
	got := w.want(200, "POST", "/v1/sessions/"+id+"/archive", "")
	if got.str("status") != "terminated" || got.Body["archived_at"] == nil {
		t.Errorf("archive answered %s", got.Raw)
	}
	w.refused(id, result(calls[0], "late"))
	w.refused(id, message("late"))
	if all := w.history(id); last(all, "session.status_terminated") == nil {
		t.Errorf("the log is %v, want a session.status_terminated", types(all))
	}
	if n := len(events(w.want(200, "GET", "/v1/sessions", ""))); n != 0 {
		t.Errorf("the list shows %d sessions, want the archived one left out", n)
	}
}

func TestDeletionEndsStreamsAndWork(t *testing.T) {
	w := newWorld(t, Options{}, asking)
	id := w.session("go")
	w.awaitCalls(id)
	l := w.stream("/v1/sessions/" + id + "/events/stream")
	w.want(200, "DELETE", "/v1/sessions/"+id, "")
	if e := l.next(); e.str("type") != "session.deleted" {
		t.Errorf("the stream shows %v, want session.deleted", e)
	}
	if e := l.next(); e != nil {
		t.Errorf("the stream goes on with %v", e)
	}
	w.want(404, "GET", "/v1/sessions/"+id, "")
	w.want(404, "POST", "/v1/sessions/"+id+"/events", `{"events":[`+message("x")+`]}`)
	if c := w.poll(""); c != nil {
		t.Errorf("the deleted session still has work: %v", c)
	}
}

func TestSessionsAreListedByFilters(t *testing.T) {
	w := newWorld(t, Options{})
	var ids []string
	for range 3 {
		ids = append(ids, w.session(""))
	}
	list := func(query string) []string {
		t.Helper()
		var got []string
		for _, e := range events(w.want(200, "GET", "/v1/sessions"+query, "")) {
			got = append(got, e.str("id"))
		}
		return got
	}
	if diff := cmp.Diff([]string{ids[2], ids[1], ids[0]}, list("")); diff != "" {
		t.Errorf("default order (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(ids, list("?order=asc&agent_id="+w.agent+"&agent_version=1&statuses[]=idle")); diff != "" {
		t.Errorf("filtered (-want +got):\n%s", diff)
	}
	for _, none := range []string{"?agent_id=agent_x", "?agent_version=2", "?statuses[]=running", "?deployment_id=d", "?memory_store_id=m"} {
		if got := list(none); got != nil {
			t.Errorf("%s lists %v, want nothing", none, got)
		}
	}
	first := w.want(200, "GET", "/v1/sessions?limit=2", "")
	second := w.want(200, "GET", "/v1/sessions?limit=2&page="+first.str("next_page"), "")
	if first.Body["prev_page"] != nil || second.str("prev_page") == "" || len(events(second)) != 1 {
		t.Errorf("pages: %s then %s", first.Raw, second.Raw)
	}
	w.want(400, "GET", "/v1/sessions?limit=2&order=asc&page="+first.str("next_page"), "")
	w.want(400, "GET", "/v1/sessions?page=zzz", "")
}

// Work creation (contract §3.1).

func TestASessionNeverHasTwoLiveItems(t *testing.T) {
	w := newWorld(t, Options{}, asking)
	id := w.session("go")
	w.say(id, message("again"), message("and again"))
	if n := len(w.srv.Works(id)); n != 1 {
		t.Fatalf("the session has %d items, want 1", n)
	}
	c := w.claim()
	w.say(id, message("more"))
	if n := len(w.srv.Works(id)); n != 1 {
		t.Fatalf("a message to an attended session made item %d", n)
	}
	w.stop(200, c, `{"force":true}`)
	w.say(id, message("wake up"))
	works := w.srv.Works(id)
	if len(works) != 2 || works[1].State != "queued" || works[1].ID == works[0].ID {
		t.Errorf("after the stop and a message the items are %v, want a new queued one", works)
	}
}

func TestAMessageDuringStoppingIsNotLost(t *testing.T) {
	w := newWorld(t, Options{}, asking)
	id := w.session("go")
	c := w.claim()
	w.stop(200, c, `{}`)
	w.say(id, message("more"))
	if n := len(w.srv.Works(id)); n != 1 {
		t.Fatalf("there are %d items while one is stopping, want 1", n)
	}
	w.stop(200, c, `{"force":true}`)
	if works := w.srv.Works(id); len(works) != 2 || works[1].State != "queued" {
		t.Errorf("after the end of the stopping item there are %v, want a new one", works)
	}
}

func TestAnInterruptRequeuesAStuckSession(t *testing.T) {
	w := newWorld(t, Options{}, asking)
	id := w.session("go")
	w.awaitCalls(id)
	w.stop(200, w.claim(), `{"force":true}`) // the worker gave up
	if c := w.poll(""); c != nil {
		t.Fatalf("a stuck session was queued again by itself: %v", c)
	}
	w.say(id, `{"type":"user.interrupt"}`)
	if c := w.poll(""); c == nil || c.session != id {
		t.Errorf("after the interrupt the queue has %v, want an item of the session", c)
	}
}

func TestAnInterruptOfARestingSessionMakesNoWork(t *testing.T) {
	w := newWorld(t, Options{})
	id := w.session("")
	w.say(id, `{"type":"user.interrupt"}`)
	if works := w.srv.Works(id); len(works) != 0 {
		t.Errorf("the items are %v, want none", works)
	}
}

func TestStopRequeuesIsASwitch(t *testing.T) {
	w := newWorld(t, Options{StopRequeues: true}, asking)
	id := w.session("go")
	w.awaitCalls(id)
	w.stop(200, w.claim(), `{"force":true}`)
	if c := w.poll(""); c == nil || c.session != id {
		t.Errorf("the queue has %v, want a new item for the open call", c)
	}
}
