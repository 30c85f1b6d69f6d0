package local

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEnvironmentsKeepMergeAndClear(t *testing.T) {
	w := newWorld(t, Options{})
	path := "/v1/environments/" + w.want(200, "POST", "/v1/environments",
		`{"name":"n","description":"d","config":{"type":"self_hosted"},"metadata":{"a":"1","b":"2","c":"3"}}`).id()
	got := w.want(200, "POST", path, `{"description":null,"metadata":{"a":null,"b":"","d":"4"}}`)
	if diff := cmp.Diff(map[string]any{"c": "3", "d": "4"}, got.Body["metadata"]); diff != "" {
		t.Errorf("metadata (-want +got):\n%s", diff)
	}
	if got.Body["description"] != nil || got.str("name") != "n" {
		t.Errorf("update answered %s, want the name kept and the description cleared", got.Raw)
	}
}

func TestEnvironmentRefusals(t *testing.T) {
	w := newWorld(t, Options{})
	for _, body := range []string{
		`{}`, `{"name":""}`, `{"name":"` + strings.Repeat("n", 257) + `"}`,
		`{"name":"n","scope":"account"}`,
		`{"name":"n","config":{"type":"self_hosted","image":"x"}}`,
		`{"name":"n","config":{"type":"other"}}`,
		`{"name":"n","extra":1}`,
		`{"name":"n","config":{"type":"cloud","networking":{"type":"limited"},"packages":{"type":"packages","pip":["x"]}}}`,
	} {
		r := w.wild("POST", "/v1/environments", body)
		if r.Status != 400 {
			t.Errorf("create %s: status %d, want 400", body, r.Status)
		}
	}
	got := w.want(400, "POST", "/v1/environments/"+w.env, `{"config":{"type":"cloud"}}`)
	if got.path("error", "details", "error_code") != "invalid_config_type_change" {
		t.Errorf("a change of the type answered %s", got.Raw)
	}
}

func TestAnArchivedEnvironmentTakesNoSessionsAndNoUpdates(t *testing.T) {
	w := newWorld(t, Options{})
	id := w.session("before")
	if got := w.want(200, "POST", "/v1/environments/"+w.env+"/archive", ""); got.Body["archived_at"] == nil {
		t.Errorf("archive answered %s", got.Raw)
	}
	got := w.want(400, "POST", "/v1/environments/"+w.env, `{"name":"x"}`)
	if got.path("error", "details", "error_code") != "environment_archived" {
		t.Errorf("an update answered %s", got.Raw)
	}
	w.want(400, "POST", "/v1/sessions", `{"agent":"`+w.agent+`","environment_id":"`+w.env+`"}`)
	w.awaitIdle(id, "end_turn") // existing sessions continue
	if n := len(events(w.want(200, "GET", "/v1/environments", ""))); n != 0 {
		t.Errorf("the list shows %d environments, want the archived one left out", n)
	}
	if n := len(events(w.want(200, "GET", "/v1/environments?include_archived=true", ""))); n != 1 {
		t.Errorf("the full list shows %d environments, want 1", n)
	}
}

func TestAnEnvironmentIsDeletedOnlyWithoutSessions(t *testing.T) {
	w := newWorld(t, Options{})
	id := w.session("")
	w.want(400, "DELETE", "/v1/environments/"+w.env, "")
	w.want(200, "DELETE", "/v1/sessions/"+id, "")
	w.want(200, "DELETE", "/v1/environments/"+w.env, "")
	w.want(404, "GET", "/v1/environments/"+w.env, "")
	w.want(401, "GET", w.work("/poll"), "", w.envKey) // its keys go with it
}

func TestSeededEnvironmentsComeWithTheirKeys(t *testing.T) {
	w := newWorld(t, Options{EnvironmentKeys: map[string]string{"env_demo": "sk-ant-oat01-demo"}})
	w.want(200, "GET", "/v1/environments/env_demo/work/poll", "", "sk-ant-oat01-demo")
}
