package conformance

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/claude/local"
)

var began = time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)

// at is a moment of a trace.
func at(d time.Duration) time.Time { return began.Add(d) }

// good is what the platform sees of a worker that does everything right.
func good() *Trace {
	beat := func(d time.Duration, sent, token string) local.Request {
		return local.Request{
			Operation: "heartbeat", Credential: "sessions token", Session: "sesn_1", Work: "work_1", Claim: 1, Status: 200,
			Began: at(d), At: at(d), Sent: sent, Answer: "active", Token: token,
		}
	}
	ask := func(d time.Duration, op string) local.Request {
		return local.Request{
			Operation: op, Credential: "sessions token", Session: "sesn_1", Work: "work_1", Claim: 1, Status: 200, Began: at(d), At: at(d),
		}
	}
	return &Trace{
		Case:    Case{Name: "work/a", Ends: "end_turn"},
		Session: "sesn_1",
		Report:  local.Report{Done: true},
		Events: []local.Event{
			{ID: "sevt_1", Type: "agent.tool_use"},
			{ID: "sevt_2", Type: "user.tool_result", Fields: map[string]any{"content": []any{map[string]any{"type": "text", "text": "ok"}}}},
		},
		Posts:    []local.Post{{At: at(5 * time.Second), Session: "sesn_1", Call: "sevt_1", Work: "work_1", Claim: 1, State: "open", Accepted: true}},
		Requests: []local.Request{beat(0, "NO_HEARTBEAT", "t1"), ask(0, "session.get"), ask(0, "events.list"), beat(3*time.Second, "t1", "t2"), ask(6*time.Second, "stop")},
		Works:    []local.Work{{ID: "work_1", State: "stopped", Claims: 1}},
		Status:   "idle", Released: time.Second,
	}
}

func TestTheJudgeHasNothingAgainstAWorkerThatDoesEverythingRight(t *testing.T) {
	if b := Judge(good()); len(b) > 0 {
		t.Errorf("%+v", b)
	}
}

func TestTheJudgeSees(t *testing.T) {
	lost := func(tr *Trace) { // from the second heartbeat on
		tr.Requests[3].Status, tr.Requests[3].Answer, tr.Requests[3].Token, tr.Requests[3].Fault = 412, "lost", "", local.LeaseLost
	}
	for name, c := range map[string]struct {
		check string
		spoil func(*Trace)
	}{
		"a failed expectation":          {"story", func(tr *Trace) { tr.Report.Failures = []string{"the text differs"} }},
		"a story that does not end":     {"story", func(tr *Trace) { tr.Late = "after 60s the scenario is at step 1" }},
		"one item too many":             {"story", func(tr *Trace) { tr.Case.Items = 1; tr.Works = append(tr.Works, tr.Works[0]) }},
		"a command that ran twice":      {"once", func(tr *Trace) { tr.Report.Failures = []string{`the text "TWICE" ` + twice} }},
		"a parked session":              {"answered", func(tr *Trace) { tr.Parked = true; tr.Open = []string{"sevt_1"} }},
		"a second result":               {"single", func(tr *Trace) { p := tr.Posts[0]; p.State = "answered"; tr.Posts = append(tr.Posts, p) }},
		"a result for a held call":      {"quiet", func(tr *Trace) { tr.Posts[0].State, tr.Posts[0].Accepted = "held", false }},
		"a result for a denied call":    {"quiet", func(tr *Trace) { tr.Posts[0].State = "denied" }},
		"a result long after the end":   {"quiet", func(tr *Trace) { tr.Posts[0].State, tr.Posts[0].Since = "settled", time.Minute }},
		"a result for nobody's call":    {"quiet", func(tr *Trace) { tr.Posts[0].State, tr.Posts[0].Accepted = "unknown", false }},
		"a first heartbeat with a word": {"beats", func(tr *Trace) { tr.Requests[0].Sent = "t0" }},
		"an old token":                  {"beats", func(tr *Trace) { tr.Requests[3].Sent = "t0" }},
		"a token with another spelling": {"beats", func(tr *Trace) { tr.Requests[3].Sent = "T1" }},
		"a heartbeat without a token":   {"beats", func(tr *Trace) { tr.Requests[3].Sent = "" }},
		"a heartbeat after a 412": {"beats", func(tr *Trace) {
			lost(tr)
			again := tr.Requests[3]
			again.Fault, again.Began = "", at(9*time.Second)
			tr.Requests[4] = again
		}},
		"a stop after a 412":    {"fenced", lost},
		"a result after a 412":  {"silent", func(tr *Trace) { lost(tr); tr.Posts[0].At = at(10 * time.Second) }},
		"an item that is kept":  {"released", func(tr *Trace) { tr.Released = 0 }},
		"a key that is refused": {"keys", func(tr *Trace) { tr.Requests[2].Status = 403 }},
		"the wrong key of two": {"token", func(tr *Trace) {
			tr.Requests[2].Credential, tr.Requests[2].Began = "environment key", at(time.Second)
		}},
		"an invalid request": {"valid", func(tr *Trace) { tr.Requests[2].Status = 400 }},
		"an endless result":  {"bounded", func(tr *Trace) { textOf(tr)["text"] = strings.Repeat("x", resultLimit+1) }},
		"an empty result":    {"bounded", func(tr *Trace) { tr.Events[1].Fields = nil }},
		"a memory that did not arrive": {"memory", func(tr *Trace) {
			tr.Case.Stores = []Store{{Want: map[string]string{"/a": "x"}}}
			tr.Memories = []map[string]string{{}}
		}},
		"a webhook of long ago":         {"webhooks", func(tr *Trace) { tr.Case.Alone = &Alone{Webhooks: true, Skew: -time.Hour}; tr.Hooks = []int{200} }},
		"a webhook that is not taken":   {"webhooks", func(tr *Trace) { tr.Case.Alone = &Alone{Webhooks: true}; tr.Hooks = []int{400} }},
		"a stale webhook let by nobody": {"webhooks", func(tr *Trace) { tr.Case.Alone = &Alone{Webhooks: true, Skew: time.Hour} }},
	} {
		t.Run(name, func(t *testing.T) {
			tr := good()
			c.spoil(tr)
			b := Judge(tr)
			if !slices.ContainsFunc(b, func(b Breach) bool { return b.Check == c.check }) {
				t.Errorf("nothing by the check %s: %+v", c.check, b)
			}
		})
	}
}

func textOf(tr *Trace) map[string]any {
	return tr.Events[1].Fields["content"].([]any)[0].(map[string]any)
}

func TestTheJudgeForgives(t *testing.T) {
	for name, spoil := range map[string]func(*Trace){
		"a repeated heartbeat whose answer was lost": func(tr *Trace) {
			tr.Posts[0].At = at(2 * time.Second)
			tr.Requests[3].Fault, tr.Requests[3].Status = local.Drop, 0
			tr.Requests[4] = tr.Requests[3]
			tr.Requests[4].Fault, tr.Requests[4].Status, tr.Requests[4].Token = "", 412, ""
		},
		"a result that crossed an interrupt": func(tr *Trace) { tr.Posts[0].State, tr.Posts[0].Since = "settled", time.Second },
		"a late result on a busy machine": func(tr *Trace) {
			tr.Lag = 10 * time.Second
			tr.Posts[0].State, tr.Posts[0].Since = "settled", 20*time.Second
		},
		"another client's answer": func(tr *Trace) { tr.Posts[0].Work, tr.Posts[0].Claim = "", 0 },
		"what a fault refused":    func(tr *Trace) { tr.Requests[2].Status, tr.Requests[2].Fault = 400, local.SendCode },
		"the end of a session":    func(tr *Trace) { tr.Case.Ends = "terminated"; tr.Requests[2].Status = 404 },
		"the environment key before the first heartbeat": func(tr *Trace) {
			tr.Requests[2].Credential, tr.Requests[2].Began = "environment key", at(-time.Second)
		},
		"the environment key for want of a token": func(tr *Trace) {
			tr.Requests[2].Credential = "environment key"
			tr.Requests = append(tr.Requests, local.Request{Operation: "poll", Fault: local.SecretAbsent, Claim: 1})
		},
	} {
		t.Run(name, func(t *testing.T) {
			tr := good()
			spoil(tr)
			if b := Judge(tr); len(b) > 0 {
				t.Errorf("%+v", b)
			}
		})
	}
}

func TestWhatGoesBeyondTheContractIsNoFailure(t *testing.T) {
	tr := good()
	tr.Requests[2].Credential, tr.Requests[2].Began = "environment key", at(time.Second)
	if v := verdict(Judge(tr)); v != Beyond {
		t.Errorf("the verdict is %s", v)
	}
	tr.Report.Failures = []string{"x"}
	if v := verdict(Judge(tr)); v != Fails {
		t.Errorf("with a breach the verdict is %s", v)
	}
	tr.Case.Beyond = map[string]string{"story": "it is not demanded"}
	if v := verdict(Judge(tr)); v != Beyond {
		t.Errorf("with a breach that the case excuses the verdict is %s", v)
	}
	tr = good() // a second result is a breach, unless an answer was lost
	p := tr.Posts[0]
	p.State = "answered"
	tr.Posts = append(tr.Posts, p)
	if v := verdict(Judge(tr)); v != Fails {
		t.Errorf("with a second result the verdict is %s", v)
	}
	tr.Requests = append(tr.Requests, local.Request{Operation: "events.send", Fault: local.Drop})
	if v := verdict(Judge(tr)); v != Beyond {
		t.Errorf("with a second result after a lost answer the verdict is %s", v)
	}
}
