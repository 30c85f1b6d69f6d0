package local

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestScenariosAreReadStrictly(t *testing.T) {
	for name, text := range map[string]string{
		"no name":            "steps: [{message: x}]",
		"no steps":           "name: a",
		"unknown key":        "{name: a, steps: [{mesage: x}]}",
		"two actions":        "{name: a, steps: [{message: x, thinking: true}]}",
		"no action":          "{name: a, steps: [{thread: \"\"}]}",
		"wait for something": "{name: a, steps: [{wait: rain}]}",
		"bad expression":     "{name: a, steps: [{calls: [{tool: bash, expect: {text: '('}}]}]}",
		"no tool":            "{name: a, steps: [{calls: [{input: {}}]}]}",
		"kind":               "{name: a, steps: [{calls: [{tool: x, kind: magic}]}]}",
		"permission":         "{name: a, steps: [{calls: [{tool: x, permission: perhaps}]}]}",
		"person":             "{name: a, steps: [{calls: [{tool: x, person: {says: perhaps}}]}]}",
		"unopened thread":    "{name: a, steps: [{thread: t, message: x}]}",
		"lonely interrupt":   "{name: a, steps: [{message: x, interrupt: {after: 1s}}]}",
		"stop reason":        "{name: a, steps: [{idle: bored}]}",
		"retry":              "{name: a, steps: [{error: {type: unknown_error, message: m, retry: never}}]}",
		"fault":              "{name: a, steps: [{fault: {kind: drop}}]}",
		"fault at the top":   "{name: a, faults: [{kind: gremlin, on: ack}], steps: [{message: x}]}",
	} {
		if _, err := ParseScenario([]byte(text)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestEmbeddedScenariosAreValid(t *testing.T) {
	for _, name := range EmbeddedScenarios() {
		if sc := embeddedScenario(name); sc.Name != name || sc.Description == "" {
			t.Errorf("%s: name %q, description %q", name, sc.Name, sc.Description)
		}
	}
}

func TestAnUnmetExpectationEndsTheSessionLoudly(t *testing.T) {
	for name, expect := range map[string]string{
		"text":  "{text: '^ok$'}",
		"not":   "{not: bad}",
		"error": "{error: true}",
		"state": "{interrupted: true}",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, Options{}, "{name: x, steps: [{calls: [{tool: bash, expect: "+expect+"}]}, {message: never}]}")
			id := w.session("go")
			w.say(id, result(w.awaitCalls(id)[0], "bad"))
			all := w.await(id, "the end", func(all []logEvent) bool { return last(all, "session.status_terminated") != nil })
			if last(all, "session.error") == nil || last(all, "agent.message") != nil {
				t.Errorf("the log is %v", types(all))
			}
			r := w.srv.Scenario(id)
			if r.Done || len(r.Failures) != 1 || !strings.Contains(r.Failures[0], "step 1, call 1 (bash)") {
				t.Errorf("the report is %+v", r)
			}
		})
	}
}

func TestAnUnknownScenarioFailsTheSession(t *testing.T) {
	w := newWorld(t, Options{})
	id := w.want(200, "POST", "/v1/sessions", `{"agent":"`+w.agent+`","environment_id":"`+w.env+
		`","metadata":{"scenario":"nope"},"initial_events":[`+message("go")+`]}`).id()
	w.await(id, "the end", func(all []logEvent) bool { return last(all, "session.status_terminated") != nil })
	if r := w.srv.Scenario(id); len(r.Failures) != 1 || !strings.Contains(r.Failures[0], "demo, echo") {
		t.Errorf("the report is %+v, want the known names", r)
	}
}

func TestTheMetadataChoosesTheScenarioAndALoopBeginsAgain(t *testing.T) {
	w := newWorld(t, Options{}, asking)
	id := w.want(200, "POST", "/v1/sessions", `{"agent":"`+w.agent+`","environment_id":"`+w.env+
		`","metadata":{"scenario":"echo"},"initial_events":[`+message("one")+`]}`).id()
	w.awaitIdle(id, "end_turn")
	w.say(id, message("two"))
	all := w.awaitIdle(id, "end_turn")
	if got := textOf(last(all, "agent.message")["content"]); got != "You said: two" {
		t.Errorf("it said %q", got)
	}
}

func TestAPretendPersonDecidesAfterAWhile(t *testing.T) {
	w := newWorld(t, Options{}, `
name: person
steps:
  - calls:
      - {tool: bash, permission: ask, person: {says: deny, because: "not today", after: 1m}, expect: {text: "not today", error: true}}
      - {tool: mail, kind: mcp, server: post, permission: ask, served: sent, person: {says: allow, after: 1m}, expect: {text: sent}}
`)
	id := w.session("go")
	w.awaitCalls(id)
	w.clock.AwaitAlarms(2, time.Minute)
	w.clock.Advance(time.Minute)
	w.awaitIdle(id, "end_turn")
	if r := w.srv.Scenario(id); !r.Done || len(r.Failures) > 0 {
		t.Errorf("the report is %+v", r)
	}
}

func TestTheOtherSteps(t *testing.T) {
	w := newWorld(t, Options{}, `
name: others
steps:
  - thinking: true
  - error: {type: model_overloaded_error, message: busy, retry: retrying}
  - idle: refusal
  - fail: "gave up"
  - archive: true
`)
	id := w.session("go")
	all := w.awaitIdle(id, "refusal")
	if e, _ := last(all, "session.error")["error"].(map[string]any); e["type"] != "model_overloaded_error" {
		t.Errorf("the error is %v", e)
	}
	w.say(id, message("on"))
	w.awaitIdle(id, "retries_exhausted")
	w.say(id, message("on"))
	w.await(id, "the archive", func(all []logEvent) bool { return last(all, "session.status_terminated") != nil })
	if got := w.want(200, "GET", "/v1/sessions/"+id, ""); got.Body["archived_at"] == nil {
		t.Errorf("the session is %s, want it archived", got.str("status"))
	}
}

func TestAScenarioCanEndOrRemoveItsSession(t *testing.T) {
	w := newWorld(t, Options{}, "{name: bye, steps: [{wait: message}, {delete: true}]}")
	id := w.session("")
	l := w.stream("/v1/sessions/" + id + "/events/stream")
	w.say(id, message("go"))
	seen := ""
	for e := l.next(); e != nil; e = l.next() {
		seen = e.str("type")
	}
	if seen != "session.deleted" {
		t.Errorf("the stream ended with %s, want session.deleted", seen)
	}
	if err := w.srv.AddScenario(&Scenario{Name: "end", Steps: []Step{{Terminate: true}}}); err != nil {
		t.Fatal(err)
	}
	w.srv.opt.Scenario = "end"
	id = w.session("go")
	all := w.await(id, "the end", func(all []logEvent) bool { return last(all, "session.status_terminated") != nil })
	if last(all, "session.status_idle") != nil {
		t.Errorf("the log is %v, want no idle at the end", types(all))
	}
}

func TestAScenarioInjectsFaultsForItsSession(t *testing.T) {
	w := newWorld(t, Options{}, `
name: faulty
faults: [{kind: status, on: session.get, status: 529}]
steps: [{fault: {kind: not_extended}}, {wait: message}]
`)
	other := w.session("")
	id := w.session("go")
	w.awaitIdle(id, "end_turn")
	w.want(200, "GET", "/v1/sessions/"+other, "")
	w.want(529, "GET", "/v1/sessions/"+id, "")
	w.want(200, "GET", "/v1/sessions/"+id, "")
	if got := w.beat(200, w.claim(), "NO_HEARTBEAT"); got.Body["lease_extended"] != false {
		t.Errorf("the beat answered %s", got.Raw)
	}
}

// The demo is played by the official worker, in a folder of the test.
func TestTheDemoWorks(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	data, err := embedded.ReadFile("scenarios/demo.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(data), "/workspace", dir)
	for _, pause := range []string{"600ms", "800ms", "1s"} { // a frozen clock would wait for ever
		text = strings.ReplaceAll(text, "  - pause: "+pause+"\n", "")
	}
	w := newWorld(t, Options{LeaseTTL: workerLease}, text)
	id := w.session("Show me what you can do.")
	w.startWorkerIn(dir)
	all := w.finished(id)
	if n := count(all, "user.tool_result"); n < 10 {
		t.Errorf("the demo made %d calls, want at least 10", n)
	}
	report, err := os.ReadFile(filepath.Join(dir, "report.md"))
	if err != nil || !strings.Contains(string(report), "168 primes") {
		t.Errorf("report.md is %q (%v)", report, err)
	}
}
