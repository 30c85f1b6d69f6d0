package local

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// store makes a memory store and returns its path in the API.
func (d *door) store() string {
	d.t.Helper()
	return "/v1/memory_stores/" + d.want(200, "POST", "/v1/memory_stores", `{"name":"Team notes"}`).Body["id"].(string)
}

func (d *door) remember(store, path, content string) map[string]any {
	d.t.Helper()
	return d.want(200, "POST", store+"/memories", fmt.Sprintf(`{"path":%q,"content":%q}`, path, content)).Body
}

func TestMemoryPathRules(t *testing.T) {
	for path, ok := range map[string]bool{
		"/a":                                   true,
		"/a/b.md":                              true,
		"/ü":                                   true,
		"/u\u0308":                             false, // not NFC
		"a":                                    false,
		"/":                                    false,
		"":                                     false,
		"/a/":                                  false,
		"/a//b":                                false,
		"/a/../b":                              false,
		"/./a":                                 false,
		"/a\x00b":                              false,
		"/a\u200bb":                            false, // a format character
		"/a\u2028b":                            false,
		strings.Repeat("/a", 20):               true,
		strings.Repeat("/a", 21):               false,
		"/" + strings.Repeat("a", 1023):        true,
		"/" + strings.Repeat("a", 1024):        false,
		"/..a/b..":                             true,
		"/" + string([]byte{0xff}):             false,
		"/notes/" + strings.Repeat("é", 500):   true,
		"/notes/" + strings.Repeat("é", 1_000): false,
	} {
		if err := checkMemoryPath(path); (err == nil) != ok {
			t.Errorf("path %q: %v, want ok %v", path, err, ok)
		}
	}
}

func TestAPathBelongsToOneMemory(t *testing.T) {
	d := openDoor(t, Options{})
	st := d.store()
	first := d.remember(st, "/notes/todo.md", "a")
	other := d.remember(st, "/other", "b")["id"].(string)
	for _, path := range []string{"/notes/todo.md", "/notes", "/notes/todo.md/deeper"} {
		got := d.call("POST", st+"/memories", `{"path":"`+path+`","content":""}`)
		e, _ := got.Body["error"].(map[string]any)
		if got.Status != 409 || got.errType() != "memory_path_conflict_error" || e["conflicting_memory_id"] != first["id"] {
			t.Errorf("create %s: %d %s, want a conflict with %v", path, got.Status, got.Raw, first["id"])
		}
		if got := d.call("POST", st+"/memories/"+other, `{"path":"`+path+`"}`); got.Status != 409 {
			t.Errorf("rename to %s: %d, want 409", path, got.Status)
		}
	}
	// A memory may move below or above its own old path.
	d.want(200, "POST", st+"/memories/"+other, `{"path":"/other/deeper"}`)
	d.want(200, "POST", st+"/memories/"+other, `{"path":"/other"}`)
	d.want(200, "DELETE", st+"/memories/"+first["id"].(string), "")
	d.remember(st, "/notes", "now free")
}

func TestAHashGuardsUpdateAndDelete(t *testing.T) {
	d := openDoor(t, Options{})
	st := d.store()
	m := d.remember(st, "/a", "one")
	at := st + "/memories/" + m["id"].(string)
	guard := func(hash string) string {
		return `"precondition":{"type":"content_sha256","content_sha256":"` + hash + `"}`
	}
	old, stale := m["content_sha256"].(string), hashOf("something else")
	if old != hashOf("one") {
		t.Errorf("hash %s", old)
	}
	if got := d.call("POST", at, `{"content":"two",`+guard(stale)+`}`); got.Status != 409 || got.errType() != "memory_precondition_failed_error" {
		t.Errorf("stale update: %d %s", got.Status, got.Raw)
	}
	d.want(200, "POST", at, `{"content":"one",`+guard(stale)+`}`) // already so: succeeds although the hash is stale
	d.want(200, "POST", at, `{"content":"two",`+guard(old)+`}`)
	d.want(400, "POST", at, `{"content":"x","precondition":{"type":"content_sha256"}}`)
	d.want(409, "DELETE", at+"?expected_content_sha256="+old, "")
	d.want(200, "DELETE", at+"?expected_content_sha256="+hashOf("two"), "")
	d.want(404, "GET", at, "")
}

func TestEveryChangeAddsOneVersionWithItsAuthor(t *testing.T) {
	d := openDoor(t, Options{})
	st := d.store()
	m := d.remember(st, "/a", "one")
	at := st + "/memories/" + m["id"].(string)
	d.want(200, "POST", at, `{"content":"one","path":"/a"}`) // changes nothing
	d.want(200, "POST", at, `{"content":"two"}`)
	d.want(200, "POST", at, `{"path":"/b"}`)
	d.want(200, "DELETE", at, "")

	var got []any
	for _, v := range d.want(200, "GET", st+"/memory_versions?view=full&memory_id="+m["id"].(string), "").Body["data"].([]any) {
		v := v.(map[string]any)
		got = append(got, []any{v["operation"], v["path"], v["content"]})
		if by := v["created_by"].(map[string]any); by["type"] != "api_actor" || by["api_key_id"] == "" {
			t.Errorf("created by %v", by)
		}
	}
	want := []any{
		[]any{"deleted", "/b", nil}, []any{"modified", "/b", "two"}, []any{"modified", "/a", "two"}, []any{"created", "/a", "one"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
	if n := len(d.want(200, "GET", st+"/memory_versions?operation=modified", "").Body["data"].([]any)); n != 2 {
		t.Errorf("%d modifications, want 2", n)
	}
	if n := len(d.want(200, "GET", st+"/memory_versions?session_id=sesn_none", "").Body["data"].([]any)); n != 0 {
		t.Errorf("%d versions by an unknown session", n)
	}
}

func TestRedactionErasesAVersionButNotThePresentOne(t *testing.T) {
	d := openDoor(t, Options{})
	st := d.store()
	m := d.remember(st, "/a", "secret")
	first := st + "/memory_versions/" + m["memory_version_id"].(string)
	d.want(400, "POST", first+"/redact", "")
	d.want(200, "POST", st+"/memories/"+m["id"].(string), `{"content":"public"}`)
	got := d.want(200, "POST", first+"/redact", "")
	if strings.Contains(string(got.Raw), "secret") || got.Body["redacted_at"] == nil || got.Body["path"] != nil {
		t.Errorf("redacted version %s", got.Raw)
	}
	again := d.want(200, "POST", first+"/redact", "")
	if again.Body["redacted_at"] != got.Body["redacted_at"] {
		t.Errorf("redacted again at %v", again.Body["redacted_at"])
	}
	if raw := d.want(200, "GET", first+"?view=full", "").Raw; strings.Contains(string(raw), "secret") {
		t.Errorf("the redacted version still says %s", raw)
	}
}

func TestMemoryListingByPrefixDepthAndView(t *testing.T) {
	d := openDoor(t, Options{})
	st := d.store()
	for _, p := range []string{"/a.md", "/notes/1", "/notes/2", "/notes/deep/3", "/notes-archive/4"} {
		d.remember(st, p, "x")
	}
	list := func(query string) (items []string) {
		for _, i := range d.want(200, "GET", st+"/memories?"+query, "").Body["data"].([]any) {
			i := i.(map[string]any)
			items = append(items, i["path"].(string))
			if i["type"] == "memory" && (i["content"] != nil) != strings.Contains(query, "view=full") {
				t.Errorf("%s: content %v of %v", query, i["content"], i["path"])
			}
		}
		return items
	}
	for query, want := range map[string][]string{
		"":                             {"/a.md", "/notes-archive/4", "/notes/1", "/notes/2", "/notes/deep/3"},
		"depth=1":                      {"/a.md", "/notes-archive/", "/notes/"},
		"path_prefix=/notes/":          {"/notes/1", "/notes/2", "/notes/deep/3"},
		"path_prefix=/notes/&depth=1":  {"/notes/1", "/notes/2", "/notes/deep/"},
		"view=full&path_prefix=/none/": nil,
		"view=full&limit=2":            {"/a.md", "/notes-archive/4"},
	} {
		if diff := cmp.Diff(want, list(query)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", query, diff)
		}
	}
	for _, bad := range []string{"path_prefix=/notes", "depth=2", "view=huge", "limit=101"} {
		d.want(400, "GET", st+"/memories?"+bad, "")
	}
}

func TestAPageWithContentsHoldsAtMostTwenty(t *testing.T) {
	d := openDoor(t, Options{})
	st := d.store()
	for i := range 25 {
		d.remember(st, "/"+strconv.Itoa(100+i), "x")
	}
	full := d.want(200, "GET", st+"/memories?view=full&limit=100", "").Body
	if n := len(full["data"].([]any)); n != 20 || full["next_page"] == nil {
		t.Errorf("a full page holds %d, next page %v", n, full["next_page"])
	}
	if n := len(d.want(200, "GET", st+"/memories?view=full&limit=100&page="+full["next_page"].(string), "").Body["data"].([]any)); n != 5 {
		t.Errorf("the second page holds %d", n)
	}
	if n := len(d.want(200, "GET", st+"/memories?limit=100", "").Body["data"].([]any)); n != 25 {
		t.Errorf("a basic page holds %d", n)
	}
}

func TestMemoryLimits(t *testing.T) {
	d := openDoor(t, Options{})
	st := d.store()
	d.want(200, "POST", st+"/memories", `{"path":"/max","content":"`+strings.Repeat("x", maxMemoryBytes)+`"}`)
	d.want(400, "POST", st+"/memories", `{"path":"/more","content":"`+strings.Repeat("x", maxMemoryBytes+1)+`"}`)
	d.want(400, "POST", st+"/memories", `{"path":"/null","content":null}`)

	s := newMemoryStores(time.Now)
	made, err := s.create(storeCreate{Name: "full"})
	if err != nil {
		t.Fatal(err)
	}
	full, err := s.find(made.ID)
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxMemories {
		if _, err := full.create("/"+strconv.Itoa(i), "", actor{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := full.create("/one-more", "", actor{}); err == nil || err.Status != 400 {
		t.Errorf("memory %d: %v, want a 400", maxMemories+1, err)
	}
}

func TestAnArchivedStoreIsReadOnly(t *testing.T) {
	d := openDoor(t, Options{})
	st := d.store()
	m := st + "/memories/" + d.remember(st, "/a", "x")["id"].(string)
	d.want(200, "POST", st+"/archive", "")
	d.want(400, "POST", st+"/memories", `{"path":"/b","content":""}`)
	d.want(400, "POST", m, `{"content":"y"}`)
	d.want(400, "POST", st, `{"name":"new"}`)
	if _, err := d.srv.stores.Store(strings.TrimPrefix(st, "/v1/memory_stores/")); err == nil || err.Status != 400 {
		t.Errorf("attaching an archived store: %v, want a 400", err)
	}
	d.want(200, "GET", m, "")
	d.want(200, "DELETE", m, "")
	d.want(200, "DELETE", st, "")
	d.want(404, "GET", st, "")
}

func TestStoreUpdateMergesMetadata(t *testing.T) {
	d := openDoor(t, Options{})
	st := d.store()
	d.want(200, "POST", st, `{"metadata":{"a":"1","b":"2"},"description":"d"}`)
	got := d.want(200, "POST", st, `{"metadata":{"a":null,"c":"3"},"name":"New"}`).Body
	if diff := cmp.Diff(map[string]any{"b": "2", "c": "3"}, got["metadata"]); diff != "" {
		t.Errorf("metadata (-want +got):\n%s", diff)
	}
	if got["name"] != "New" || got["description"] != "d" {
		t.Errorf("store %v", got)
	}
	d.want(400, "POST", "/v1/memory_stores", `{"name":""}`)
	d.want(400, "POST", "/v1/memory_stores", `{"name":"a\u0000b"}`)
}

func TestEnvironmentKeysNeverTouchMemory(t *testing.T) {
	d := openDoor(t, Options{EnvironmentKeys: map[string]string{"env_1": "sk-ant-oat01-test"}})
	st := d.store()
	for _, c := range []struct{ method, path, body string }{
		{"GET", st, ""}, {"GET", st + "/memories", ""}, {"POST", st + "/memories", `{"path":"/a","content":""}`},
	} {
		if got := d.call(c.method, c.path, c.body, "sk-ant-oat01-test"); got.Status != 403 {
			t.Errorf("%s %s: %d, want 403", c.method, c.path, got.Status)
		}
	}
}
