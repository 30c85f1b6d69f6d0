package local

import (
	"strings"
	"testing"
)

func TestTheAdminDoorIsClosedWithoutAKey(t *testing.T) {
	w := newWorld(t, Options{})
	if got := w.wild("GET", "/_local/requests", ""); got.Status != 404 {
		t.Errorf("without an admin key the path answers %d, want 404", got.Status)
	}
}

func TestTheAdminDoorDoesWhatTheServerDoes(t *testing.T) {
	const key = "admin-secret"
	w := newWorld(t, Options{AdminKey: key}, asking)
	admin := func(want int, method, path, body string) reply {
		t.Helper()
		got := w.wild(method, "/_local"+path, body, key)
		if got.Status != want {
			t.Fatalf("%s %s: status %d %s, want %d", method, path, got.Status, got.Raw, want)
		}
		return got
	}
	if got := w.wild("GET", "/_local/requests", ""); got.Status != 403 {
		t.Errorf("an API key opens the admin door: %d", got.Status)
	}
	if got := w.wild("GET", "/v1/sessions", "", key); got.Status != 403 {
		t.Errorf("the admin key opens the API: %d", got.Status)
	}

	envKey := admin(200, "POST", "/keys", `{"environment":"`+w.env+`"}`).str("key")
	w.want(200, "GET", w.work("/poll"), "", envKey)
	admin(404, "POST", "/keys", `{"environment":"env_no"}`)
	apiKey := admin(200, "POST", "/keys", "").str("key")
	if !strings.HasPrefix(apiKey, "sk-ant-api") {
		t.Errorf("the minted key is %q", apiKey)
	}

	admin(200, "POST", "/scenarios", "name: pushed\nsteps:\n  - message: hi\n")
	admin(400, "POST", "/scenarios", "name: pushed\n")
	if got := admin(200, "GET", "/scenarios", ""); got.Body["demo"] == "" || got.Body["pushed"] == nil {
		t.Errorf("the scenarios are %s", got.Raw)
	}
	id := w.session("go")
	w.awaitCalls(id)
	if got := admin(200, "GET", "/sessions/"+id+"/scenario", ""); got.str("scenario") != "asking" || got.Body["step"] != 1.0 {
		t.Errorf("the report is %s", got.Raw)
	}
	admin(404, "GET", "/sessions/sesn_no/scenario", "")

	before := w.clock.Now()
	admin(200, "POST", "/clock", `{"advance":"90s"}`)
	if d := w.clock.Now().Sub(before).Seconds(); d != 90 {
		t.Errorf("the clock moved by %v s, want 90", d)
	}
	admin(400, "POST", "/clock", `{"advance":"-1s"}`)

	admin(200, "POST", "/faults", `{"kind":"status","on":"session.get","status":529}`)
	w.want(529, "GET", "/v1/sessions/"+id, "")
	admin(400, "POST", "/faults", `{"kind":"status"}`)
	admin(400, "POST", "/faults", `{"kind":"drop","on":"poll","wheel":1}`)
	admin(200, "DELETE", "/faults", "")

	c := w.claim()
	if got := admin(200, "POST", "/work/"+c.id+"/expire", ""); got.Body["expired"] != true {
		t.Errorf("expire answered %s", got.Raw)
	}
	w.beat(412, c, "NO_HEARTBEAT")
	admin(200, "POST", "/work", `{"environment":"`+w.env+`","type":"healthcheck"}`)
	admin(404, "POST", "/work", `{"environment":"env_no","type":"healthcheck"}`)
	if got := admin(200, "GET", "/work", ""); len(events(got)) != 2 {
		t.Errorf("the work is %s", got.Raw)
	}

	l := w.stream("/v1/sessions/" + id + "/events/stream")
	admin(200, "POST", "/streams/cut", `{"session":"`+id+`"}`)
	if e := l.next(); e != nil {
		t.Errorf("the cut stream goes on with %v", e)
	}
	if got := admin(200, "GET", "/requests", ""); strings.Contains(string(got.Raw), envKey) || len(events(got)) == 0 {
		t.Errorf("the requests are %.200s", got.Raw)
	}
	admin(200, "GET", "/webhooks", "")
}
