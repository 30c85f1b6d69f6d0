package claude

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/session"
)

func ids(events []session.Event) (out []string) {
	for _, e := range events {
		out = append(out, e.ID)
	}
	return out
}

func TestHistoryFollowsEveryPage(t *testing.T) {
	u := newUpstream(t,
		ok(`{"data":[{"id":"sevt_1","type":"a"},{"id":"sevt_2","type":"b"}],"next_page":"p/2+"}`),
		ok(`{"data":[],"next_page":"p3"}`),
		hangUp, // a lost page is asked for again
		ok(`{"data":[{"id":"sevt_3","type":"c","new":{"x":[1, 2]}}, null, 7],"next_page":null}`),
	)
	var pages [][]string
	var last session.Event
	err := newTestPlatform(t, u).History(t.Context(), time.Time{}, func(events []session.Event) error {
		pages = append(pages, ids(events))
		last = events[len(events)-1]
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([][]string{{"sevt_1", "sevt_2"}, {"sevt_3"}}, pages); d != "" {
		t.Error(d)
	}
	if got := string(last.Raw); got != `{"id":"sevt_3","type":"c","new":{"x":[1, 2]}}` {
		t.Errorf("Raw = %s, want it as received", got)
	}
	var queries []url.Values
	for _, r := range u.requests() {
		q, err := url.ParseQuery(r.Query)
		if err != nil || r.Path != "/v1/sessions/sesn_1/events" {
			t.Fatal(r.Path, err)
		}
		queries = append(queries, q)
	}
	base := func(page ...string) url.Values {
		v := url.Values{"limit": {"1000"}, "order": {"asc"}}
		if len(page) > 0 {
			v["page"] = page
		}
		return v
	}
	if d := cmp.Diff([]url.Values{base(), base("p/2+"), base("p3"), base("p3")}, queries); d != "" {
		t.Error(d)
	}
}

func TestHistorySince(t *testing.T) {
	u := newUpstream(t, ok(`{"data":[],"next_page":null}`))
	since := time.Date(2026, 11, 23, 12, 0, 5, 999, time.FixedZone("", 7200))
	if err := newTestPlatform(t, u).History(t.Context(), since, nil); err != nil {
		t.Fatal(err)
	}
	q, _ := url.ParseQuery(u.only(t).Query)
	if got := q.Get("created_at[gte]"); got != "2026-11-23T10:00:05Z" {
		t.Errorf("created_at[gte] = %q", got)
	}
}

func TestHistoryStopsAtTheReadersError(t *testing.T) {
	enough := errors.New("enough")
	u := newUpstream(t, ok(`{"data":[{"id":"sevt_1"}],"next_page":"p2"}`))
	err := newTestPlatform(t, u).History(t.Context(), time.Time{}, func([]session.Event) error { return enough })
	if err != enough {
		t.Errorf("History = %v, want the reader's own error", err)
	}
	u.only(t)
}

func TestHistoryIsNotCompleteWhenAPageFails(t *testing.T) {
	for name, second := range map[string]http.HandlerFunc{
		"refused":     refuse(404, "not_found_error", "gone"),
		"malformed":   ok(`{"data":[{"id":"sevt_2"`),
		"not a list":  ok(`{"data":{}}`),
		"same cursor": ok(`{"data":[],"next_page":"p2"}`),
	} {
		u := newUpstream(t, ok(`{"data":[{"id":"sevt_1"}],"next_page":"p2"}`), second)
		if err := newTestPlatform(t, u).History(t.Context(), time.Time{}, func([]session.Event) error { return nil }); err == nil {
			t.Errorf("%s: History = nil", name)
		}
	}
}

func TestAPageThatIsTooLargeIsAskedForInSmallerPieces(t *testing.T) {
	var limits []string
	big := strings.Repeat("x", maxReply/2)
	u := newUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		limit := r.URL.Query().Get("limit")
		limits = append(limits, limit)
		switch {
		case limit == "1000":
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"data":[{"id":"sevt_1","x":"%s"},{"id":"sevt_2","x":"%s"}],"next_page":null}`, big, big)
		case r.URL.Query().Get("page") == "":
			ok(`{"data":[{"id":"sevt_1"}],"next_page":"p2"}`)(w, r)
		default:
			ok(`{"data":[{"id":"sevt_2"}],"next_page":null}`)(w, r)
		}
	})
	var got []string
	err := newTestPlatform(t, u).History(t.Context(), time.Time{}, func(e []session.Event) error {
		got = append(got, ids(e)...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"sevt_1", "sevt_2"}, got); d != "" {
		t.Error(d)
	}
	for len(limits) > 1 && limits[1] == "1000" { // a slow host needs a second try for the large one
		limits = limits[1:]
	}
	if d := cmp.Diff([]string{"1000", "100", "100"}, limits); d != "" {
		t.Error(d)
	}
}

func TestAnswerSendsTheContentUnchanged(t *testing.T) {
	content := `[ {"type":"text","text":"<a> & \u00e9 é"} , {"type":"image","x":1.50} ]`
	u := newUpstream(t, ok(`{"data":[]}`))
	p := newTestPlatform(t, u)
	answers := []session.Answer{
		{Call: "sevt_1", Content: json.RawMessage(content)},
		{Call: "sevt_2", Custom: true, IsError: true, Content: json.RawMessage(`[]`)},
		{Call: `s"3`},
	}
	for range 2 {
		if err := p.Answer(t.Context(), answers...); err != nil {
			t.Fatal(err)
		}
	}
	want := `{"events":[{"type":"user.tool_result","tool_use_id":"sevt_1","is_error":false,"content":` + content +
		`},{"type":"user.custom_tool_result","custom_tool_use_id":"sevt_2","is_error":true,"content":[]}` +
		`,{"type":"user.tool_result","tool_use_id":"s\"3","is_error":false}]}`
	for _, r := range u.requests() {
		if d := cmp.Diff(want, r.Body); d != "" {
			t.Error(d)
		}
		if r.Method != "POST" || r.Path != "/v1/sessions/sesn_1/events" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("sent %s %s as %s", r.Method, r.Path, r.Header.Get("Content-Type"))
		}
	}
}

func TestAnswerIsSentOnce(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"lost": hangUp, "500": refuse(500, "api_error", "x"), "409": refuse(409, "conflict_error", "x"),
		"asked to": refuse(429, "rate_limit_error", "x", "x-should-retry", "true", "retry-after-ms", "1"),
	} {
		u := newUpstream(t, answer)
		if err := newTestPlatform(t, u).Answer(t.Context(), session.Answer{Call: "sevt_1"}); err == nil {
			t.Errorf("%s: no error", name)
		}
		if n := len(u.requests()); n != 1 {
			t.Errorf("%s: sent %d times, want once", name, n)
		}
	}
}

func TestAnswersThatCannotSucceedAreNotSent(t *testing.T) {
	for name, c := range map[string]struct {
		content string
		status  int
	}{
		"not JSON":  {`[{"type":`, 400},
		"too large": {`"` + strings.Repeat("x", maxSend) + `"`, 413},
	} {
		u := newUpstream(t, ok(`{}`))
		err := newTestPlatform(t, u).Answer(t.Context(), session.Answer{Call: "sevt_1", Content: json.RawMessage(c.content)})
		if session.StatusOf(err) != c.status || session.Retryable(err) {
			t.Errorf("%s: Answer = %.200v, want a final %d", name, err, c.status)
		}
		if n := len(u.requests()); n != 0 {
			t.Errorf("%s: sent %d requests", name, n)
		}
	}
}

func TestNoAnswersMakeNoRequest(t *testing.T) {
	u := newUpstream(t, ok(`{}`))
	if err := newTestPlatform(t, u).Answer(t.Context()); err != nil || len(u.requests()) != 0 {
		t.Errorf("Answer = %v after %d requests", err, len(u.requests()))
	}
}
