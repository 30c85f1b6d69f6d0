package local

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestATurnGoesFromMessageToEndTurnInTheDocumentedOrder(t *testing.T) {
	w := newWorld(t, Options{}, `
name: one
steps:
  - calls: [{tool: bash, input: {command: ls}}]
  - message: done
`)
	id := w.session("go")
	calls := w.awaitCalls(id)
	w.say(id, result(calls[0], "ok"))
	all := w.awaitIdle(id, "end_turn")
	want := []string{
		"user.message", "session.status_running",
		"span.model_request_start", "agent.tool_use", "span.model_request_end",
		"session.usage", "session.status_idle",
		"user.tool_result", "session.status_running",
		"span.model_request_start", "agent.message", "span.model_request_end",
		"session.usage", "session.status_idle",
	}
	if diff := cmp.Diff(want, types(all)); diff != "" {
		t.Errorf("the log (-want +got):\n%s", diff)
	}
	stamps := []string{}
	for _, e := range all {
		stamps = append(stamps, e.str("processed_at"))
	}
	if !slices.IsSorted(stamps) || len(slices.Compact(stamps)) != len(all) {
		t.Errorf("processed_at does not grow strictly: %v", stamps)
	}
	use := all[3]
	if use["evaluated_permission"] != "allow" || use["name"] != "bash" || use["session_thread_id"] != nil {
		t.Errorf("the call is %v", use)
	}
}

func TestAPartialAnswerSaysWhatRemains(t *testing.T) {
	w := newWorld(t, Options{}, `
name: three
steps: [{calls: [{tool: bash}, {tool: read}, {tool: deploy, kind: custom}]}]
`)
	id := w.session("go")
	calls := w.awaitCalls(id)
	if len(calls) != 3 {
		t.Fatalf("requires_action lists %v, want 3 calls", calls)
	}
	w.say(id, result(calls[1], "b"))
	if left := last(w.history(id), "session.status_idle").requires(); !cmp.Equal(left, []string{calls[0], calls[2]}) {
		t.Errorf("after one answer it requires %v, want %v", left, []string{calls[0], calls[2]})
	}
	w.say(id, result(calls[0], "a"))
	w.say(id, fmt.Sprintf(`{"type":"user.custom_tool_result","custom_tool_use_id":%q}`, calls[2]))
	all := w.awaitIdle(id, "end_turn")
	if n := count(all, "session.status_idle"); n != 4 {
		t.Errorf("there were %d idles, want 3 for the calls and 1 for the end", n)
	}
	if n := count(all, "session.status_running"); n != 2 {
		t.Errorf("there were %d runnings, want 2", n)
	}
	for i, e := range all {
		if e.str("type") == "session.status_idle" && all[i-1].str("type") != "session.usage" {
			t.Errorf("the idle at %d has no session.usage before it", i)
		}
	}
}

func TestSendRefusesWhatTheContractRefuses(t *testing.T) {
	w := newWorld(t, Options{StrictDuplicates: true}, `
name: mixed
steps: [{calls: [{tool: bash}, {tool: bash, permission: ask}, {tool: deploy, kind: custom}, {tool: write}]}]
`)
	id := w.session("go")
	calls := w.awaitCalls(id)
	bash, asks, custom, other := calls[0], calls[1], calls[2], calls[3]
	w.say(id, result(other, "done"))
	text := `"content":[{"type":"text","text":"x"}]`
	for name, event := range map[string]string{
		"no type":                `{}`,
		"unknown type":           `{"type":"agent.message",` + text + `}`,
		"unknown field":          `{"type":"user.message",` + text + `,"urgent":true}`,
		"no content":             `{"type":"user.message","content":[]}`,
		"empty text":             `{"type":"user.message","content":[{"type":"text","text":""}]}`,
		"unknown block":          `{"type":"user.message","content":[{"type":"audio"}]}`,
		"block field":            `{"type":"user.message","content":[{"type":"text","text":"x","bold":true}]}`,
		"search in a message":    `{"type":"user.message","content":[{"type":"search_result","source":"s","title":"t","content":[],"citations":{}}]}`,
		"image without data":     `{"type":"user.message","content":[{"type":"image","source":{"type":"base64","media_type":"image/png"}}]}`,
		"image as text":          `{"type":"user.message","content":[{"type":"image","source":{"type":"text","media_type":"text/plain","data":"x"}}]}`,
		"unknown call":           result("sevt_no", "x"),
		"no call":                `{"type":"user.tool_result"}`,
		"long id":                result(strings.Repeat("s", 129), "x"),
		"both ids":               fmt.Sprintf(`{"type":"user.tool_result","tool_use_id":%q,"custom_tool_use_id":%q}`, bash, bash),
		"empty result text":      fmt.Sprintf(`{"type":"user.tool_result","tool_use_id":%q,"content":[{"type":"text","text":""}]}`, bash),
		"custom as built-in":     result(custom, "x"),
		"built-in as custom":     fmt.Sprintf(`{"type":"user.custom_tool_result","custom_tool_use_id":%q}`, bash),
		"answered already":       result(other, "again"),
		"held":                   result(asks, "x"),
		"verdict for no ask":     fmt.Sprintf(`{"type":"user.tool_confirmation","tool_use_id":%q,"result":"allow"}`, bash),
		"unknown verdict":        fmt.Sprintf(`{"type":"user.tool_confirmation","tool_use_id":%q,"result":"maybe"}`, asks),
		"allow with deny text":   fmt.Sprintf(`{"type":"user.tool_confirmation","tool_use_id":%q,"result":"allow","deny_message":"no"}`, asks),
		"long deny text":         fmt.Sprintf(`{"type":"user.tool_confirmation","tool_use_id":%q,"result":"deny","deny_message":%q}`, asks, strings.Repeat("n", 10_001)),
		"unknown thread":         `{"type":"user.interrupt","session_thread_id":"sthr_no"}`,
		"system alone":           `{"type":"system.message",` + text + `}`,
		"system before":          `{"type":"system.message",` + text + `},` + message("x"),
		"outcome without rubric": `{"type":"user.define_outcome","description":"d"}`,
		"outcome iterations":     `{"type":"user.define_outcome","description":"d","rubric":{"type":"text","content":"c"},"max_iterations":21}`,
		"rubric type":            `{"type":"user.define_outcome","description":"d","rubric":{"type":"url"}}`,
		"twice in one":           result(bash, "x") + "," + result(bash, "y"),
	} {
		got := w.wild("POST", "/v1/sessions/"+id+"/events", `{"events":[`+event+`]}`)
		if got.Status != 400 || got.errType() != "invalid_request_error" {
			t.Errorf("%s: status %d %s, want 400", name, got.Status, got.Raw)
		}
	}
	if got := w.wild("POST", "/v1/sessions/"+id+"/events", `{"events":[]}`); got.Status != 400 {
		t.Errorf("no events: status %d, want 400", got.Status)
	}
	if left := last(w.history(id), "session.status_idle").requires(); len(left) != 3 {
		t.Errorf("refused requests have changed what is open: %v", left)
	}
}

func TestSendAcceptsAllKindsOfBlocks(t *testing.T) {
	w := newWorld(t, Options{}, asking)
	id := w.session("go")
	call := w.awaitCalls(id)[0]
	w.say(id, fmt.Sprintf(`{"type":"user.tool_result","tool_use_id":%q,"is_error":true,"content":[
		{"type":"text","text":"x"},
		{"type":"image","source":{"type":"base64","media_type":"image/png","data":"aa"}},
		{"type":"document","title":"t","source":{"type":"text","media_type":"text/plain","data":"d"}},
		{"type":"document","source":{"type":"file","file_id":"file_1"}},
		{"type":"search_result","source":"https://a","title":"t","content":[{"type":"text","text":"y"}],"citations":{"enabled":true}}]}`, call))
	got := last(w.awaitIdle(id, "end_turn"), "user.tool_result")
	if blocks, _ := got["content"].([]any); len(blocks) != 5 || got["is_error"] != true {
		t.Errorf("the log has %v", got)
	}
}

func TestARepeatedResultIsIgnoredWhenLenient(t *testing.T) {
	w := newWorld(t, Options{}, asking)
	id := w.session("go")
	call := w.awaitCalls(id)[0]
	w.say(id, result(call, "first"))
	echo := events(w.say(id, result(call, "second")))[0]
	if echo.str("processed_at") == "" {
		t.Errorf("the repeat is echoed as %v, want it processed", echo)
	}
	all := w.awaitIdle(id, "end_turn")
	if count(all, "user.tool_result") != 1 {
		t.Errorf("the log is %v, want one result", types(all))
	}
}

func TestMessagesWaitUntilTheAgentTakesThem(t *testing.T) {
	w := newWorld(t, Options{}, asking)
	id := w.session("go")
	call := w.awaitCalls(id)[0]
	l := w.stream("/v1/sessions/" + id + "/events/stream")
	echo := events(w.say(id, message("later")))[0]
	if echo["processed_at"] != nil {
		t.Errorf("the echo is processed at %v, want null", echo["processed_at"])
	}
	if e := l.next(); e.str("id") != echo.str("id") || e["processed_at"] != nil {
		t.Errorf("the stream shows %v, want the unprocessed message", e)
	}
	if all := w.history(id); all[len(all)-1].str("id") != echo.str("id") {
		t.Errorf("the list ends with %v, want the queued message", all[len(all)-1])
	}
	w.say(id, result(call, "ok"))
	for {
		e := l.next()
		if e == nil {
			t.Fatal("the stream ended before the message was processed")
		}
		if e.str("id") == echo.str("id") {
			if e["processed_at"] == nil {
				t.Error("the message came again without processed_at")
			}
			break
		}
	}
	w.awaitCalls(id) // it began the next turn
}

func TestAskIsHeldUntilAllowed(t *testing.T) {
	w := newWorld(t, Options{}, `
name: ask
steps: [{calls: [{tool: bash, permission: ask, expect: {text: ran}}]}]
`)
	id := w.session("go")
	call := w.awaitCalls(id)[0]
	use := last(w.history(id), "agent.tool_use")
	if use["evaluated_permission"] != "ask" {
		t.Errorf("the call is %v, want ask", use)
	}
	echo := events(w.say(id, fmt.Sprintf(`{"type":"user.tool_confirmation","tool_use_id":%q,"result":"allow"}`, call)))[0]
	if echo["processed_at"] != nil {
		t.Errorf("the verdict's echo is processed, want null at first")
	}
	all := w.history(id)
	if v := last(all, "user.tool_confirmation"); v["processed_at"] == nil {
		t.Error("the verdict was not processed")
	}
	if left := last(all, "session.status_idle").requires(); len(left) != 1 {
		t.Errorf("after the verdict it requires %v, want the call still", left)
	}
	w.say(id, result(call, "ran"))
	w.awaitIdle(id, "end_turn")
}

func TestDeniedCallsGetASyntheticError(t *testing.T) {
	w := newWorld(t, Options{}, `
name: deny
steps:
  - calls:
      - {tool: bash, permission: deny, expect: {error: true, text: policy}}
      - {tool: write, permission: ask, expect: {error: true, text: "not on my disk"}}
  - message: "fine"
`)
	id := w.session("go")
	calls := w.awaitCalls(id)
	if len(calls) != 1 {
		t.Fatalf("it requires %v, want only the call that asks", calls)
	}
	w.say(id, fmt.Sprintf(`{"type":"user.tool_confirmation","tool_use_id":%q,"result":"deny","deny_message":"not on my disk"}`, calls[0]))
	all := w.awaitIdle(id, "end_turn")
	if n := count(all, "agent.tool_result"); n != 2 {
		t.Errorf("there are %d synthetic results, want 2", n)
	}
	if r := last(all, "agent.tool_result"); r["tool_use_id"] != calls[0] || r["is_error"] != true {
		t.Errorf("the denial reads %v", r)
	}
	if r := w.srv.Scenario(id); len(r.Failures) > 0 || !r.Calls[1].Denied {
		t.Errorf("the scenario reports %+v", r)
	}
}

func TestPoliciesOfTheAgentDecideByDefault(t *testing.T) {
	w := newWorld(t, Options{}, `
name: policy
steps: [{calls: [{tool: bash}, {tool: write}, {tool: web_search}]}]
`)
	w.agent = w.want(200, "POST", "/v1/agents", `{"name":"b","model":"claude-opus-5-5","tools":[{"type":"agent_toolset_20260401",
		"default_config":{"permission_policy":{"type":"always_ask"}},
		"configs":[{"name":"bash","permission_policy":{"type":"always_allow"}},{"name":"web_search","permission_policy":{"type":"auto"}}]}]}`).id()
	id := w.session("go")
	calls := w.awaitCalls(id)
	got := map[string]any{}
	for _, e := range w.history(id) {
		if e.str("type") == "agent.tool_use" {
			got[e.str("name")] = e["evaluated_permission"]
		}
	}
	if diff := cmp.Diff(map[string]any{"bash": "allow", "write": "ask", "web_search": "allow"}, got); diff != "" {
		t.Errorf("permissions (-want +got):\n%s", diff)
	}
	if len(calls) != 2 || count(w.history(id), "agent.tool_result") != 1 {
		t.Errorf("it requires %v, want web_search served by the platform", calls)
	}
}

func TestAnInterruptSettlesCallsAndTheNextMessageGoesOn(t *testing.T) {
	w := newWorld(t, Options{StrictDuplicates: true}, asking)
	id := w.session("go")
	call := w.awaitCalls(id)[0]
	w.say(id, `{"type":"user.interrupt"}`)
	all := w.awaitIdle(id, "end_turn")
	if i := last(all, "user.interrupt"); i["processed_at"] == nil {
		t.Error("the interrupt was not processed")
	}
	w.refused(id, result(call, "late"))
	w.say(id, message("go on"))
	next := w.awaitCalls(id)
	if len(next) != 1 || next[0] == call {
		t.Errorf("the next turn requires %v, want one new call", next)
	}
}

func TestAnInterruptAndAMessageInOneRequest(t *testing.T) {
	w := newWorld(t, Options{}, asking)
	id := w.session("go")
	call := w.awaitCalls(id)[0]
	w.say(id, `{"type":"user.interrupt"}`, message("instead"))
	if next := w.awaitCalls(id); len(next) != 1 || next[0] == call {
		t.Errorf("the new turn requires %v, want one new call", next)
	}
}

func TestAnOutcomeIsProcessedOnReceiptAndStartsWork(t *testing.T) {
	w := newWorld(t, Options{}, asking)
	id := w.session("")
	echo := events(w.say(id, `{"type":"user.define_outcome","description":"d","rubric":{"type":"text","content":"c"}}`))[0]
	if echo["processed_at"] == nil || echo.str("outcome_id") == "" || echo["max_iterations"] != 3.0 {
		t.Errorf("the outcome is echoed as %v", echo)
	}
	w.awaitCalls(id)
	if w.poll("") == nil {
		t.Error("the outcome made no work")
	}
}

func TestASystemMessageFollowsAUserEvent(t *testing.T) {
	w := newWorld(t, Options{})
	id := w.session("")
	w.say(id, message("hi"), `{"type":"system.message","content":[{"type":"text","text":"be kind"}]}`)
	all := w.awaitIdle(id, "end_turn")
	if got := types(all)[:3]; !cmp.Equal(got, []string{"user.message", "system.message", "session.status_running"}) {
		t.Errorf("the log begins with %v", got)
	}
}

func TestChildThreadsCrossPostTheirCalls(t *testing.T) {
	w := newWorld(t, Options{}, `
name: team
steps:
  - open_thread: reviewer
  - {thread: reviewer, message: "only mine"}
  - {thread: reviewer, calls: [{tool: read, expect: {text: seen}}]}
  - end_thread: reviewer
  - message: "done"
`)
	id := w.session("go")
	call := w.awaitCalls(id)[0]
	all := w.history(id)
	use := last(all, "agent.tool_use")
	child := use.str("session_thread_id")
	if child == "" || last(all, "session.thread_created")["session_thread_id"] != child {
		t.Fatalf("the child's call is %v", use)
	}
	if last(all, "agent.message") != nil {
		t.Error("the child's message shows on the session")
	}
	if i := last(all, "session.thread_status_idle"); i.reason() != "requires_action" || !cmp.Equal(i.requires(), []string{call}) {
		t.Errorf("the child is idle as %v", i)
	}
	echo := events(w.say(id, result(call, "seen")))[0]
	if echo["session_thread_id"] != child {
		t.Errorf("the result is echoed as %v, want the thread set by the server", echo)
	}
	all = w.awaitIdle(id, "end_turn")
	if n := count(all, "session.thread_status_running"); n != 2 {
		t.Errorf("the child ran %d times, want 2", n)
	}
	threads := events(w.want(200, "GET", "/v1/sessions/"+id+"/threads", ""))
	if len(threads) != 2 || threads[0]["parent_thread_id"] != nil || threads[1].str("parent_thread_id") != threads[0].str("id") {
		t.Fatalf("threads: %v", threads)
	}
	own := events(w.want(200, "GET", "/v1/sessions/"+id+"/threads/"+child+"/events", ""))
	if last(own, "agent.message") == nil || last(own, "user.message") != nil {
		t.Errorf("the child's own log is %v", types(own))
	}
	primary := events(w.want(200, "GET", "/v1/sessions/"+id+"/threads/"+threads[0].str("id")+"/events", ""))
	if last(primary, "agent.tool_use") != nil || last(primary, "user.message") == nil {
		t.Errorf("the primary log is %v", types(primary))
	}
	w.want(200, "GET", "/v1/sessions/"+id+"/threads/"+child, "")
	w.want(404, "GET", "/v1/sessions/"+id+"/threads/sthr_no", "")
	if got := w.want(200, "POST", "/v1/sessions/"+id+"/threads/"+child+"/archive", ""); got.str("status") != "terminated" {
		t.Errorf("the archived thread is %s", got.Raw)
	}
}

func TestAThreadInterruptSettlesThatThreadOnly(t *testing.T) {
	w := newWorld(t, Options{StrictDuplicates: true}, `
name: two
steps:
  - open_thread: a
  - {thread: a, calls: [{tool: bash, expect: {interrupted: true}}], interrupt: {after: 1m, thread: a}}
  - calls: [{tool: bash, expect: {text: ok}}]
`)
	id := w.session("go")
	w.awaitCalls(id)
	w.clock.AwaitAlarm(30 * time.Second)
	w.clock.Advance(2 * time.Minute)
	all := w.await(id, "the primary call", func(all []logEvent) bool { return count(all, "agent.tool_use") == 2 })
	if i := last(all, "user.interrupt"); i.str("session_thread_id") == "" {
		t.Errorf("the interrupt is %v, want it for a thread", i)
	}
	calls := w.awaitCalls(id)
	w.say(id, result(calls[0], "ok"))
	w.awaitIdle(id, "end_turn")
	if r := w.srv.Scenario(id); !r.Done || len(r.Failures) > 0 {
		t.Errorf("the scenario reports %+v", r)
	}
}

func TestTerminatingAThreadSettlesItsCalls(t *testing.T) {
	w := newWorld(t, Options{})
	brain := &brainFunc{}
	w.srv.opt.Brain = brain
	settled := make(chan []Result, 1)
	brain.run = func(ctx context.Context, t *Turn) error {
		child, err := t.CreateThread("helper", nil)
		if err != nil {
			return err
		}
		ids, err := t.Call(Call{Name: "bash", Thread: child})
		if err != nil {
			return err
		}
		if err := t.ThreadMessage("", child, "stop that"); err != nil {
			return err
		}
		if err := t.TerminateThread(child); err != nil {
			return err
		}
		results, err := t.Wait(ctx, ids...)
		settled <- results
		return err
	}
	id := w.session("go")
	if r := <-settled; !r[0].Interrupted {
		t.Errorf("the call of the ended thread is %+v, want it settled", r)
	}
	all := w.awaitIdle(id, "end_turn")
	if last(all, "session.thread_status_terminated") == nil || last(all, "agent.thread_message_sent") == nil {
		t.Errorf("the log is %v", types(all))
	}
}
