package local

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEventsAreListedByTypeTimeOrderAndPage(t *testing.T) {
	w := newWorld(t, Options{})
	id := w.session("one")
	all := w.awaitIdle(id, "end_turn")
	path := "/v1/sessions/" + id + "/events"
	list := func(q string) []logEvent { t.Helper(); return events(w.want(200, "GET", path+q, "")) }

	if got := types(list("?types[]=agent.message&types[]=user.message")); !cmp.Equal(got, []string{"user.message", "agent.message"}) {
		t.Errorf("by type: %v", got)
	}
	desc := list("?order=desc")
	slices.Reverse(desc)
	if diff := cmp.Diff(all, desc); diff != "" {
		t.Errorf("descending is not the reverse:\n%s", diff)
	}
	third := all[2].str("processed_at")
	for q, want := range map[string]int{"gt": len(all) - 3, "gte": len(all) - 2, "lt": 2, "lte": 3} {
		if got := list("?created_at[" + q + "]=" + third); len(got) != want {
			t.Errorf("created_at[%s]: %d events, want %d", q, len(got), want)
		}
	}
	for _, order := range []string{"asc", "desc"} {
		var got []logEvent
		cursor := ""
		for {
			r := w.want(200, "GET", path+"?limit=3&order="+order+cursor, "")
			got = append(got, events(r)...)
			if r.Body["next_page"] == nil {
				break
			}
			cursor = "&page=" + r.str("next_page")
		}
		if order == "desc" {
			slices.Reverse(got)
		}
		if diff := cmp.Diff(all, got); diff != "" {
			t.Errorf("%s in pages differs from the whole:\n%s", order, diff)
		}
	}
	first := w.want(200, "GET", path+"?limit=2", "")
	w.want(400, "GET", path+"?limit=2&order=desc&page="+first.str("next_page"), "")
	for _, bad := range []string{"limit=0", "limit=1001", "order=up", "page=zz", "created_at[gt]=yesterday"} {
		if got := w.wild("GET", path+"?"+bad, ""); got.Status != 400 {
			t.Errorf("%s: status %d, want 400", bad, got.Status)
		}
	}
}

func TestACursorStaysRightWhileTheLogGrows(t *testing.T) {
	w := newWorld(t, Options{}, asking)
	id := w.session("go")
	call := w.awaitCalls(id)[0]
	queued := events(w.say(id, message("queued")))[0]
	path := "/v1/sessions/" + id + "/events?limit="
	n := len(w.history(id))
	page := w.want(200, "GET", path+fmt.Sprint(n-1), "") // up to the queued one
	w.say(id, result(call, "ok"))
	w.awaitCalls(id) // by now the queued message has its place
	rest := events(w.want(200, "GET", path+fmt.Sprint(n-1)+"&page="+page.str("next_page"), ""))
	var ids []string
	for _, e := range append(events(page), rest...) {
		if e["processed_at"] != nil {
			ids = append(ids, e.str("id"))
		}
	}
	var want []string
	for _, e := range w.history(id)[:len(ids)] {
		want = append(want, e.str("id"))
	}
	if diff := cmp.Diff(want, ids); diff != "" {
		t.Errorf("pages (-want +got):\n%s", diff)
	}
	if !slices.Contains(ids, queued.str("id")) {
		t.Error("the queued message is on no page")
	}
}
