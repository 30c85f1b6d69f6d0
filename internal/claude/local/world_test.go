package local

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

// world is a door with an environment, a key for it and an agent: what most
// tests begin with.
type world struct {
	*door
	clock  *ManualClock
	env    string
	envKey string
	agent  string
}

// newWorld opens a world on a manual clock. Everything that goes over the wire
// is checked against the published description of the API.
func newWorld(t *testing.T, o Options, scenarios ...string) *world {
	t.Helper()
	w := &world{clock: NewManualClock(time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC))}
	o.Clock = w.clock
	for _, text := range scenarios {
		sc, err := ParseScenario([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		o.Scenarios = append(o.Scenarios, sc)
		o.Scenario = sc.Name
	}
	w.door = openDoor(t, o)
	w.env = w.want(200, "POST", "/v1/environments", `{"name":"e","config":{"type":"self_hosted"}}`).id()
	w.envKey = w.srv.MintEnvironmentKey(w.env)
	w.agent = w.want(200, "POST", "/v1/agents", `{"name":"a","model":"claude-opus-5-5","tools":[
		{"type":"agent_toolset_20260401"},
		{"type":"custom","name":"deploy","description":"Deploys.","input_schema":{"type":"object"}}]}`).id()
	return w
}

func (r reply) id() string { return r.str("id") }

func (r reply) str(key string) string {
	s, _ := r.Body[key].(string)
	return s
}

// path returns the string at a dotted path of the body.
func (r reply) path(keys ...string) any {
	var v any = r.Body
	for _, k := range keys {
		m, _ := v.(map[string]any)
		v = m[k]
	}
	return v
}

func (w *world) work(suffix string) string { return "/v1/environments/" + w.env + "/work" + suffix }

// session creates a session; text is its first message, "" for none.
func (w *world) session(text string) string {
	w.t.Helper()
	body := fmt.Sprintf(`{"agent":%q,"environment_id":%q`, w.agent, w.env)
	if text != "" {
		body += fmt.Sprintf(`,"initial_events":[%s]`, message(text))
	}
	return w.want(200, "POST", "/v1/sessions", body+"}").id()
}

func message(text string) string {
	return fmt.Sprintf(`{"type":"user.message","content":[{"type":"text","text":%q}]}`, text)
}

func result(call, text string) string {
	return fmt.Sprintf(`{"type":"user.tool_result","tool_use_id":%q,"content":[{"type":"text","text":%q}]}`, call, text)
}

// say sends events with the API key and wants them accepted.
func (w *world) say(session string, events ...string) reply {
	w.t.Helper()
	return w.want(200, "POST", "/v1/sessions/"+session+"/events", `{"events":[`+strings.Join(events, ",")+`]}`)
}

// refused sends events and wants a 400.
func (w *world) refused(session string, events ...string) reply {
	w.t.Helper()
	return w.want(400, "POST", "/v1/sessions/"+session+"/events", `{"events":[`+strings.Join(events, ",")+`]}`)
}

// wild sends a request that the API's description may forbid, around the checker.
func (w *world) wild(method, path, body string, bearer ...string) reply {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header.Set("anthropic-version", "2026-10-21")
	r.Header.Set("anthropic-beta", betaAgents)
	if len(bearer) > 0 {
		r.Header.Set("Authorization", "Bearer "+bearer[0])
	} else {
		r.Header.Set("X-Api-Key", w.key)
	}
	rec := httptest.NewRecorder()
	w.srv.ServeHTTP(rec, r)
	got := reply{Status: rec.Code, Raw: rec.Body.Bytes(), Header: rec.Header()}
	_ = json.Unmarshal(got.Raw, &got.Body) // not every reply is an object
	return got
}

// claim is a claimed item as its worker knows it.
type claim struct{ id, token, session string }

// poll takes an item without waiting; nil when there is none.
func (w *world) poll(query string) *claim {
	w.t.Helper()
	got := w.want(200, "GET", w.work("/poll"+query), "", w.envKey)
	if string(got.Raw) == "null" {
		return nil
	}
	session, _ := got.path("data", "id").(string)
	return &claim{id: got.id(), token: tokenOf(w.t, got.str("secret")), session: session}
}

func tokenOf(t testing.TB, secret string) string {
	t.Helper()
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(secret, "="))
	if err != nil {
		t.Fatalf("the secret is not url-safe base64: %v", err)
	}
	var s struct {
		Token string `json:"sessions_token"`
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		t.Fatalf("the secret is not JSON: %v", err)
	}
	return s.Token
}

// claim polls and acknowledges an item.
func (w *world) claim() claim {
	w.t.Helper()
	c := w.poll("")
	if c == nil {
		w.t.Fatal("there is no work to claim")
	}
	w.want(200, "POST", w.work("/"+c.id+"/ack"), "", w.envKey)
	return *c
}

func (w *world) beat(status int, c claim, expected string) reply {
	w.t.Helper()
	return w.want(status, "POST", w.work("/"+c.id+"/heartbeat?expected_last_heartbeat="+expected), "", c.token)
}

func (w *world) stop(status int, c claim, body string) reply {
	w.t.Helper()
	return w.want(status, "POST", w.work("/"+c.id+"/stop"), body, c.token)
}

// logEvent is one event of a list or a stream.
type logEvent map[string]any

func (e logEvent) str(key string) string {
	s, _ := e[key].(string)
	return s
}

func (e logEvent) reason() string {
	r, _ := e["stop_reason"].(map[string]any)
	s, _ := r["type"].(string)
	return s
}

// requires returns the calls that an idle event waits for.
func (e logEvent) requires() []string {
	r, _ := e["stop_reason"].(map[string]any)
	var ids []string
	list, _ := r["event_ids"].([]any)
	for _, id := range list {
		s, _ := id.(string)
		ids = append(ids, s)
	}
	return ids
}

func events(r reply) []logEvent {
	var all []logEvent
	data, _ := r.Body["data"].([]any)
	for _, e := range data {
		m, _ := e.(map[string]any)
		all = append(all, m)
	}
	return all
}

// history lists all events of a session.
func (w *world) history(session string) []logEvent {
	w.t.Helper()
	return events(w.want(200, "GET", "/v1/sessions/"+session+"/events?limit=1000", ""))
}

// line is an open stream.
type line struct {
	t      testing.TB
	scan   *bufio.Scanner
	Header http.Header
	close  func()
}

func (w *world) stream(path string) *line {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	r, err := http.NewRequestWithContext(ctx, "GET", w.url+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header.Set("X-Api-Key", w.key)
	r.Header.Set("anthropic-beta", betaAgents)
	r.Header.Set("anthropic-version", "2026-10-21")
	r.Header.Set("Accept", "application/json")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	if res.StatusCode != 200 {
		w.t.Fatalf("stream %s: status %d", path, res.StatusCode)
	}
	l := &line{t: w.t, scan: bufio.NewScanner(res.Body), Header: res.Header, close: func() { cancel(); _ = res.Body.Close() }}
	l.scan.Buffer(nil, 64<<20)
	w.t.Cleanup(l.close)
	return l
}

// next returns the next event, with its event line checked against its type;
// nil at the end of the stream.
func (l *line) next() logEvent {
	l.t.Helper()
	name := ""
	for l.scan.Scan() {
		text := l.scan.Text()
		if n, ok := strings.CutPrefix(text, "event: "); ok {
			name = n
		}
		data, ok := strings.CutPrefix(text, "data: ")
		if !ok {
			continue
		}
		var e logEvent
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			l.t.Fatalf("a data line is not JSON: %v", err)
		}
		if e.str("type") != name {
			l.t.Fatalf("event line %q over data of the type %q", name, e.str("type"))
		}
		return e
	}
	return nil
}

// await follows a session as a client should, stream first and then the list,
// until its history satisfies done, and returns it.
func (w *world) await(session string, what string, done func([]logEvent) bool) []logEvent {
	w.t.Helper()
	l := w.stream("/v1/sessions/" + session + "/events/stream")
	defer l.close()
	for {
		all := w.history(session)
		if done(all) {
			return all
		}
		if l.next() == nil {
			w.t.Fatalf("the stream ended before %s; the log is %v", what, types(all))
		}
	}
}

func types(all []logEvent) []string {
	var names []string
	for _, e := range all {
		names = append(names, e.str("type"))
	}
	return names
}

func last(all []logEvent, typ string) logEvent {
	for _, a := range slices.Backward(all) {
		if a.str("type") == typ {
			return a
		}
	}
	return nil
}

func count(all []logEvent, typ string) int {
	n := 0
	for _, e := range all {
		if e.str("type") == typ {
			n++
		}
	}
	return n
}

// awaitIdle waits until the session is idle for a reason and nothing else has
// happened since.
func (w *world) awaitIdle(session, reason string) []logEvent {
	w.t.Helper()
	return w.await(session, "an idle for "+reason, func(all []logEvent) bool {
		for _, a := range slices.Backward(all) {
			switch typ := a.str("type"); {
			case typ == "session.status_idle":
				return a.reason() == reason
			case strings.HasPrefix(typ, "session.status_"):
				return false
			case a["processed_at"] == nil && typ == "user.message":
				return false
			}
		}
		return false
	})
}

// awaitCalls waits until the session is idle with open calls and returns them.
func (w *world) awaitCalls(session string) []string {
	w.t.Helper()
	return last(w.awaitIdle(session, "requires_action"), "session.status_idle").requires()
}
