package conformance

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/berth-dev/berth/internal/claude/local"
)

// Breach is something that did not hold.
type Breach struct {
	Check  string `json:"check"`
	What   string `json:"what"`
	Beyond string `json:"beyond,omitempty"` // why the contract does not demand it; "" when it does
}

// check is one demand on what was seen, made of every case.
type check struct {
	name  string
	cites string // sections of the contract
	says  string
	of    func(*Trace) []string
}

// checks are made of every case. Those that ask for more than the contract are
// named in beyondAlways, or by a case.
var checks = []check{
	{"story", "§4.5", "the scenario went as written: every result is what its call must give, and every command ran once", story},
	{"once", "§4.6, §12.11", "no command is run again by a claim that follows", once},
	{"answered", "§4.5, §12.32", "no call is left open, and the session does not wait for results that nobody will give", answered},
	{"single", "§4.2, §12.15", "no result is sent for a call that is answered", single},
	{"quiet", "§4.5, §12.14, §12.18", "nothing is sent for calls that are held, denied, interrupted or somebody else's", quiet},
	{"beats", "§3.3", "the first heartbeat expects NO_HEARTBEAT, every later one the last token byte for byte, and none follows a 412", beats},
	{"fenced", "§3.3, §12.5", "a lost lease is not stopped", fenced},
	{"silent", "§12.11", "no result leaves after the lease is known to be lost", silent},
	{"released", "§3.6, §12.7, §12.8", "the work item is stopped when its session needs nothing any more", releasedInTime},
	{"keys", "§1.1, §1.2", "no credential goes where the platform refuses it", keys},
	{"token", "§1.2", "the work item's own token is used where it serves, not the environment key", token},
	{"valid", "§2, §4.2, §16", "no request is refused as invalid", valid},
	{"bounded", "§4.3, §5.1", "results are bounded, valid text", bounded},
	{"memory", "§6.2", "the memory stores hold what they must", memory},
	{"webhooks", "§7", "webhooks are taken when they are genuine and refused when they are not", webhooks},
}

// beyondAlways are the checks that ask for more than the contract in every case.
var beyondAlways = map[string]string{
	"silent": "the contract forbids two workers on one session, and does not say how soon the one that lost its lease falls silent",
	"token":  "the contract calls the token preferred",
	"once":   "the contract has unanswered calls dispatched, and does not say what a new claim knows of those that an old one began",
}

var checkNames = func() (names []string) {
	for _, c := range checks {
		names = append(names, c.name)
	}
	return names
}()

// Judge says what did not hold.
func Judge(t *Trace) []Breach {
	var all []Breach
	for _, c := range checks {
		for _, what := range c.of(t) {
			b := Breach{Check: c.name, What: what, Beyond: t.Case.Beyond[c.name]}
			if b.Beyond == "" {
				b.Beyond = beyondAlways[c.name]
			}
			if c.name == "single" && b.Beyond == "" && doubtful(t) {
				b.Beyond = "an answer had been lost: what a repeated result does is not specified"
			}
			all = append(all, b)
		}
	}
	return all
}

func story(t *Trace) (wrong []string) {
	wrong = slices.DeleteFunc(slices.Clone(t.Report.Failures), ranTwice)
	if t.Late != "" && len(wrong) == 0 {
		wrong = append(wrong, t.Late)
	}
	if t.Case.Items > 0 && len(t.Works) > t.Case.Items {
		wrong = append(wrong, fmt.Sprintf("%d work items were needed, want at most %d", len(t.Works), t.Case.Items))
	}
	return wrong
}

// twice is what the cases print when a line stands in their file twice.
const twice = `matches "TWICE"`

func ranTwice(failure string) bool { return strings.Contains(failure, twice) }

func once(t *Trace) (wrong []string) {
	for _, f := range t.Report.Failures {
		if ranTwice(f) {
			wrong = append(wrong, "a command ran twice")
		}
	}
	return wrong
}

func answered(t *Trace) []string {
	switch {
	case t.Parked:
		return []string{fmt.Sprintf("the session waits for %d results, and its work item was given back", len(t.Open))}
	case len(t.Open) > 0 && t.Late != "":
		return []string{fmt.Sprintf("%d calls were left open", len(t.Open))}
	}
	return nil
}

// race is how long a client may not know yet what the platform knows: some time
// on the way, and more when the machine was so busy that the kit had to wait, too.
func race(t *Trace) time.Duration { return 2*time.Second + 5*t.Lag }

func single(t *Trace) (wrong []string) {
	for _, p := range t.Posts {
		if p.State == "answered" && p.Claim > 0 && !(p.Since < race(t) && otherAnswered(t, p.Call)) {
			wrong = append(wrong, fmt.Sprintf("a result for %s came %s after the call was answered", p.Call, p.Since.Round(time.Millisecond)))
		}
	}
	return wrong
}

// otherAnswered reports whether another client answered the call.
func otherAnswered(t *Trace, call string) bool {
	return slices.ContainsFunc(t.Posts, func(p local.Post) bool { return p.Call == call && p.State == "open" && p.Work == "" })
}

// doubtful reports whether a worker may not know that a result arrived.
func doubtful(t *Trace) bool {
	return slices.ContainsFunc(t.Requests, func(r local.Request) bool { return r.Operation == "events.send" && r.Fault != "" })
}

func quiet(t *Trace) (wrong []string) {
	for _, p := range t.Posts {
		switch {
		case p.State == "open" || p.State == "answered" || p.State == "settled" && p.Since < race(t):
		case p.Work == "" && p.Claim == 0 && p.Accepted: // a pretend client of the case
		default:
			wrong = append(wrong, fmt.Sprintf("a result was sent for %s, which was %s", p.Call, p.State))
		}
	}
	return wrong
}

// claim is one hand-out of an item.
type claim struct {
	work   string
	number int
}

// byClaim sorts requests that carry a token by hand-out.
func byClaim(t *Trace) (order []claim, all map[claim][]local.Request) {
	all = map[claim][]local.Request{}
	for _, r := range t.Requests {
		k := claim{r.Work, r.Claim}
		if r.Claim == 0 || r.Operation == "poll" {
			continue
		}
		if all[k] == nil {
			order = append(order, k)
		}
		all[k] = append(all[k], r)
	}
	return order, all
}

func beats(t *Trace) (wrong []string) {
	order, all := byClaim(t)
	for _, k := range order {
		heard, lost, first := []string{"NO_HEARTBEAT"}, time.Time{}, true
		for _, r := range all[k] {
			if r.Operation != "heartbeat" {
				continue
			}
			switch {
			case r.Sent == "":
				wrong = append(wrong, "a heartbeat expects nothing: it would take any lease")
			case first && r.Sent != "NO_HEARTBEAT" && !continues(t):
				wrong = append(wrong, "the first heartbeat of a claim expects "+r.Sent)
			case !first && !slices.Contains(heard, r.Sent) && !continues(t):
				wrong = append(wrong, fmt.Sprintf("a heartbeat expects %s, want %s", r.Sent, heard[len(heard)-1]))
			}
			if !lost.IsZero() && r.Began.After(lost.Add(race(t))) {
				wrong = append(wrong, fmt.Sprintf("a heartbeat %s after a 412", r.Began.Sub(lost).Round(time.Millisecond)))
			}
			first = false
			if r.Status == 200 && r.Token != "" {
				if arrived(t, r) { // what was heard for certain replaces what came before
					heard = heard[:0]
				}
				heard = append(heard, r.Token)
			}
			if r.Status == 412 && arrived(t, r) && lost.IsZero() {
				lost = r.At
			}
		}
	}
	return wrong
}

// arrived reports whether the client heard the answer, for certain: nothing struck
// it, it was there, and the machine was not so busy that it may have given up.
func arrived(t *Trace, r local.Request) bool {
	return r.Fault != local.Drop && r.Fault != local.Reset && r.Fault != local.Hang && r.Fault != local.SlowBody &&
		!r.Gone && r.At.Sub(r.Began) < time.Second && t.Lag < time.Second
}

// continues reports whether the worker was ended by the case: another process may
// go on with what the first one knew.
func continues(t *Trace) bool {
	return slices.ContainsFunc(t.Case.Do, func(a Action) bool { return a.Do == "kill" || a.Do == "terminate" })
}

// lostAt is when a claim was told that its lease is lost; zero for never.
func lostAt(t *Trace, requests []local.Request) time.Time {
	for _, r := range requests {
		if r.Operation == "heartbeat" && r.Status == 412 && arrived(t, r) {
			return r.At
		}
	}
	return time.Time{}
}

func fenced(t *Trace) (wrong []string) {
	order, all := byClaim(t)
	for _, k := range order {
		at := lostAt(t, all[k])
		for _, r := range all[k] {
			if !at.IsZero() && r.Operation == "stop" && r.Began.After(at) {
				wrong = append(wrong, fmt.Sprintf("%s was stopped %s after a 412", k.work, r.Began.Sub(at).Round(time.Millisecond)))
			}
		}
	}
	return wrong
}

func silent(t *Trace) (wrong []string) {
	_, all := byClaim(t)
	for _, p := range t.Posts {
		at := lostAt(t, all[claim{p.Work, p.Claim}])
		if !at.IsZero() && p.At.After(at.Add(race(t)/4)) {
			wrong = append(wrong, fmt.Sprintf("a result for %s left %s after a 412", p.Call, p.At.Sub(at).Round(time.Millisecond)))
		}
	}
	return wrong
}

func releasedInTime(t *Trace) []string {
	if t.Late != "" || t.Parked || len(t.Report.Failures) > 0 || t.Released > 0 || t.Case.Item != "" {
		return nil // something else is wrong, or all is well
	}
	return []string{"the work item was not given back"}
}

func keys(t *Trace) (wrong []string) {
	for _, r := range t.Requests {
		if r.Fault == "" && (r.Status == 401 || r.Status == 403) {
			wrong = append(wrong, fmt.Sprintf("%s with %s: %d", r.Operation, r.Credential, r.Status))
		}
	}
	return compact(wrong)
}

// ofTheToken are the operations that a sessions token serves.
var ofTheToken = []string{"heartbeat", "session.get", "stream", "events.list", "events.send", "skills.get", "skills.content"}

func token(t *Trace) (wrong []string) {
	spoilt := slices.ContainsFunc(t.Requests, func(r local.Request) bool {
		return strings.HasPrefix(string(r.Fault), "secret_") && r.Fault != local.SecretPadded
	})
	if spoilt || t.Case.Item != "" {
		return nil
	}
	_, all := byClaim(t)
	for _, r := range t.Requests {
		if r.Credential == "environment key" && slices.Contains(ofTheToken, r.Operation) && held(all, r.Began) {
			wrong = append(wrong, r.Operation+" with the environment key")
		}
	}
	return compact(wrong)
}

// held reports whether some claim beat before and after a moment: then there was
// a token to use. A session that nobody works on has none.
func held(all map[claim][]local.Request, at time.Time) bool {
	for _, requests := range all {
		before, after := false, false
		for _, r := range requests {
			if r.Operation == "heartbeat" && r.Status == 200 {
				before, after = before || r.At.Before(at), after || r.Began.After(at)
			}
		}
		if before && after {
			return true
		}
	}
	return false
}

func valid(t *Trace) (wrong []string) {
	over := t.Case.Ends != "end_turn" || t.Case.Item != "" || len(t.Report.Failures) > 0
	for _, r := range t.Requests {
		refused := r.Status >= 400 && r.Status < 500 && !slices.Contains([]int{401, 403, 408, 409, 412, 429}, r.Status)
		if r.Fault == "" && refused && !over {
			wrong = append(wrong, fmt.Sprintf("%s was answered %d", r.Operation, r.Status))
		}
	}
	for _, p := range t.Posts { // what the checks of results speak of
		if !p.Accepted && p.State != "open" {
			wrong = slices.DeleteFunc(wrong, func(w string) bool { return w == "events.send was answered 400" })
		}
	}
	return compact(wrong)
}

// resultLimit is more than any tool of the toolset gives.
const resultLimit = 512 << 10

func bounded(t *Trace) (wrong []string) {
	for _, e := range t.Events {
		if e.Type != "user.tool_result" && e.Type != "user.custom_tool_result" {
			continue
		}
		switch text := e.Text(); {
		case len(text) > resultLimit:
			wrong = append(wrong, fmt.Sprintf("a result has %d bytes", len(text)))
		case !utf8.ValidString(text):
			wrong = append(wrong, "a result is not valid text")
		case text == "":
			wrong = append(wrong, "a result is empty")
		}
	}
	return wrong
}

func memory(t *Trace) (wrong []string) {
	if t.Late != "" || len(t.Memories) != len(t.Case.Stores) {
		return nil
	}
	for i, s := range t.Case.Stores {
		if s.Want != nil && !maps.Equal(s.Want, t.Memories[i]) {
			wrong = append(wrong, fmt.Sprintf("the store %s holds %q, want %q", s.Name, t.Memories[i], s.Want))
		}
	}
	return wrong
}

// tolerance of a webhook's time stamp (contract §7).
const tolerance = 5 * time.Minute

func webhooks(t *Trace) []string {
	if t.Case.Alone == nil || !t.Case.Alone.Webhooks {
		return nil
	}
	taken, refused := 0, 0
	for _, status := range t.Hooks {
		if status >= 200 && status < 300 {
			taken++
		} else if status >= 400 && status < 500 {
			refused++
		}
	}
	genuine := t.Case.Alone.Skew.Abs() < tolerance
	switch {
	case genuine && taken == 0:
		return []string{fmt.Sprintf("no webhook was taken: %v", t.Hooks)}
	case !genuine && taken > 0:
		return []string{fmt.Sprintf("%d webhooks were taken although their time is %s off", taken, t.Case.Alone.Skew)}
	case !genuine && refused == 0:
		return []string{fmt.Sprintf("no webhook was refused: %v", t.Hooks)}
	}
	return nil
}

func compact(s []string) []string {
	slices.Sort(s)
	return slices.Compact(s)
}
