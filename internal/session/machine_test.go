package session_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/tool"
)

// TestMachineKeepsItsPromises lets a platform, a network, a host and a clock do
// everything that the contract allows, in every order, to one machine, and then
// lets things settle: every call that is ours, allowed and not voided has been
// answered once by then, and none ran twice.
func TestMachineKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(func(format string, args ...any) { t.Fatalf(format, args...) })
		w.log.Strict = chance(t, "strict", 2)
		d := driver{t: t, w: w, off: map[string]bool{}, crashes: chance(t, "crashes", 2)}
		for _, trouble := range troubles {
			d.off[trouble] = !chance(t, trouble, 3)
		}
		w.step(session.Claimed{}, -1)
		for range 20 + upTo(t, "actions", 200) {
			d.act()
		}
		d.settle()
		for _, u := range w.log.Uses() {
			ours := session.Owns(u.Name, u.Custom) && u.Allowed() && u.Settled == ""
			if ours && u.Results != 1 {
				t.Fatalf("%s has %d results at the end\n%s", u.ID, u.Results, w)
			}
			if !ours && u.Settled == "" && u.Results > 0 {
				t.Fatalf("%s has a result that it must not have\n%s", u.ID, w)
			}
		}
		for _, c := range w.state.Calls {
			if c.Open() && c.State != session.Held {
				t.Fatalf("%s is %s at the end\n%s", c.ID, c.State, w)
			}
		}
	})
}

// driver makes things happen to a world.
type driver struct {
	t       *rapid.T
	w       *world
	off     map[string]bool // actions that do not happen this time
	crashes bool
}

// troubles are actions that most runs are spared: where everything goes wrong
// all the time, nothing gets far enough to break.
var troubles = []string{
	"interrupt", "end thread", "other client", "end", "frame dropped", "frame doubled", "cut", "read fails", "bad post",
	"lose sandbox", "another guest", "open", "time", "lease lost", "lease stopping", "restart",
}

// upTo draws an integer below n. Unlike rapid's own it favours no number: what
// is rare here is rare because its chance is small.
func upTo(t *rapid.T, label string, n int) int {
	return rapid.Custom(func(t *rapid.T) int {
		v := 0
		for range 16 {
			v <<= 1
			if rapid.Bool().Draw(t, "bit") {
				v |= 1
			}
		}
		return v * n >> 16
	}).Draw(t, label)
}

// chance is true once in n.
func chance(t *rapid.T, label string, n int) bool { return upTo(t, label, n) == n-1 }

func oneOf[T any](t *rapid.T, label string, from []T) T { return from[upTo(t, label, len(from))] }

type action struct {
	name   string
	weight int
	can    bool
	do     func()
}

func (d *driver) act() {
	var names []string
	byName := map[string]action{}
	for _, a := range d.actions() {
		if a.can && !d.off[a.name] {
			byName[a.name] = a
			for range a.weight {
				names = append(names, a.name)
			}
		}
	}
	if len(names) == 0 {
		return
	}
	a := byName[oneOf(d.t, "action", names)]
	a.do()
	d.w.log.Now = later(d.w.log.Now, d.w.now)
}

func (d *driver) actions() []action {
	w := d.w
	held := w.state.Lease == session.LeaseHeld
	running := w.guest != nil && len(w.guest.calls) > 0
	return []action{
		// The platform.
		{"call", 4, w.log.Ended() == "" && len(d.some(pending)) < 8, d.call},
		{"status", 1, w.log.Ended() == "", func() {
			if chance(d.t, "idle", 2) {
				w.log.Idle()
			} else {
				w.log.Running()
			}
		}},
		{"confirm", 2, d.some(asking) != nil, d.confirm},
		{"interrupt", 1, w.log.Ended() == "", d.interrupt},
		{"process", 2, len(w.log.Queued()) > 0, func() {
			w.log.Process(oneOf(d.t, "queued", w.log.Queued()).ID)
		}},
		{"end thread", 1, w.log.Ended() == "", func() { w.log.EndThread("t2") }},
		{"other client", 1, d.some(pending) != nil, func() { w.log.AnswerAs(d.pick(pending)) }},
		{"message", 1, w.log.Ended() == "" && len(w.log.Queued()) < 3, func() { w.log.Queue("user.message", session.Event{}) }},
		{"end", 1, w.log.Ended() == "", func() { w.log.End("terminated") }},

		// The network.
		{"connect", 10, held && !w.open, func() { w.open = true; d.step(session.Connected{}) }},
		{"frame", 10, len(w.stream) > 0, func() { d.frame(true, true) }},
		{"frame dropped", 2, len(w.stream) > 0, func() { d.frame(true, false) }},
		{"frame doubled", 1, len(w.stream) > 0, func() { d.frame(false, true) }},
		{"cut", 1, w.open, func() { w.cut(); d.step(session.Disconnected{}) }},
		{"page", 15, w.read != nil && w.read.from >= 0, d.page},
		{"read ends", 20, w.read != nil && w.read.from < 0, func() {
			in := session.HistoryRead{Read: w.read.Read}
			w.read = nil
			d.step(in)
		}},
		{"read fails", 1, w.read != nil, func() {
			in := session.HistoryFailed{Read: w.read.Read}
			w.read = nil
			d.step(in)
		}},
		{"post", 10, len(w.posts) > 0, func() { d.post("taken") }},
		{"bad post", 10, len(w.posts) > 0, func() { d.post(oneOf(d.t, "fate", fates)) }},

		// The host.
		{"start", 8, w.starting, d.start},
		{"finish", 4, running, func() { d.guestCall().done = true }},
		{"answer", 8, d.answerable() != "", func() { d.answer(d.answerable()) }},
		{"lose sandbox", 1, w.guest != nil && w.adopted, func() {
			w.guest, w.adopted, w.replacing = nil, false, ""
			d.step(session.SandboxDown{Why: "out of memory"})
		}},
		{"replace", 8, w.replacing != "", d.replace},
		{"another guest", 1, w.guest != nil && w.adopted, func() {
			w.newGuest()
			d.step(session.SandboxUp{Instance: w.guest.instance})
		}},
		{"reload", 8, len(w.reloads) > 0, d.reload},
		{"open", 1, true, func() { d.step(session.SandboxWanted{}) }},

		// The clock and the process.
		{"tick", 4, !w.wake.IsZero(), func() { w.now = later(w.now, w.wake); d.tick() }},
		{"time", 2, true, func() {
			w.now = w.now.Add(time.Duration(1+upTo(d.t, "ms", 20_000)) * time.Millisecond)
		}},
		{"lease lost", 1, held, func() { d.step(session.LeaseLost{Why: "412"}) }},
		{"lease stopping", 1, held, func() { d.step(session.LeaseStopping{Why: "stopping"}) }},
		{"conclude", 8, w.stopWork != nil, d.conclude},
		{"claim", 8, w.stopWork == nil && w.state.Lease == session.LeaseNone && (w.log.Ended() == "" || w.state.Ended == ""), func() {
			d.step(session.Claimed{Alive: w.log.Ended() == ""})
		}},
		{"restart", 1, true, w.restart},
	}
}

// step gives the machine an input, and sometimes crashes in the middle.
func (d *driver) step(in session.Input) {
	crash := -1
	if d.crashes && chance(d.t, "crash", 30) {
		crash = upTo(d.t, "crash at", 4)
	}
	d.w.step(in, crash)
}

// tick is due: it must bring about something, or a later time to look again.
func (d *driver) tick() {
	w := d.w
	reads, posts, open, replacing := w.read, len(w.posts), w.stopWork, w.replacing
	w.step(session.Tick{}, -1)
	did := w.read != reads || len(w.posts) != posts || w.stopWork != open || w.replacing != replacing
	if !did && !w.wake.IsZero() && !w.wake.After(w.now) {
		d.t.Fatalf("a tick at %s came to nothing and wants another one at %s\n%s", clock(w.now), clock(w.wake), w)
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (d *driver) call() {
	kind := oneOf(d.t, "name", []string{tool.Bash, tool.Bash, tool.Bash, tool.Read, tool.Write, tool.Edit, "web_search", "custom"})
	thread := oneOf(d.t, "thread", []string{"", "", "t1", "t2"})
	if d.w.log.ThreadEnded(thread) {
		thread = ""
	}
	permission := oneOf(d.t, "permission", []string{"", "", "allow", "ask", "ask", "deny", "mystery"})
	d.w.log.Call(kind == "custom", session.Event{Name: kind, Thread: thread, Permission: permission})
}

func pending(w *world, id string) bool { return w.log.Use(id).Pending() }

// asking are the calls that a person may still decide about.
func asking(w *world, id string) bool {
	u := w.log.Use(id)
	queued := slices.ContainsFunc(w.log.Queued(), func(ev session.Event) bool { return ev.Refers == id })
	return u.Pending() && !queued && u.Permission != "" && u.Permission != "allow" && u.Verdict != "allow"
}

// some returns the calls of the platform that are of a kind, pick draws one.
func (d *driver) some(which func(*world, string) bool) []string {
	var ids []string
	for _, u := range d.w.log.Uses() {
		if which(d.w, u.ID) {
			ids = append(ids, u.ID)
		}
	}
	return ids
}

func (d *driver) pick(which func(*world, string) bool) string {
	return oneOf(d.t, "call", d.some(which))
}

func (d *driver) confirm() {
	call := d.pick(asking)
	word := oneOf(d.t, "verdict", []string{"allow", "allow", "deny", "perhaps"})
	if chance(d.t, "queued", 2) {
		d.w.log.Queue("user.tool_confirmation", session.Event{Refers: call, Verdict: word})
		return
	}
	d.w.log.Confirm(call, word)
}

func (d *driver) interrupt() {
	thread := oneOf(d.t, "thread", []string{"", "", "t1"})
	if chance(d.t, "queued", 2) {
		d.w.log.Queue("user.interrupt", session.Event{Thread: thread})
		return
	}
	d.w.log.Interrupt(thread)
}

// frame takes the next frame of the stream, or the one after it.
func (d *driver) frame(remove, deliver bool) {
	w := d.w
	i := 0
	if len(w.stream) > 1 && chance(d.t, "swap", 10) {
		i = 1
	}
	ev := w.stream[i]
	if remove {
		w.stream = slices.Delete(w.stream, i, i+1)
	}
	if deliver {
		d.step(session.Observed{Events: []session.Event{ev}})
	}
}

func (d *driver) page() {
	w := d.w
	r := w.read
	page, next := w.log.List(r.Since.Truncate(time.Second), r.from, 1+upTo(d.t, "page size", 30))
	r.from = next
	d.step(session.Observed{Events: page, Read: r.Read})
}

// fates are what can become of a post.
var fates = []string{"taken and lost", "answer lost", "request lost", "503", "429", "413", "504 but taken", "401"}

var errNoAnswer = errors.New("connection reset by peer")

func (d *driver) post(fate string) {
	w := d.w
	i := upTo(d.t, "post", len(w.posts))
	a := w.posts[i].Answer
	w.posts = slices.Delete(w.posts, i, i+1)
	refusal := func(status int) error { return &session.Refusal{Status: status, Type: "api_error"} }
	var err error
	switch fate {
	case "taken":
		err = w.log.Answer(a)
	case "taken and lost": // the platform says yes and forgets it
	case "answer lost":
		_ = w.log.Answer(a)
		err = errNoAnswer
	case "504 but taken":
		_ = w.log.Answer(a)
		err = refusal(504)
	case "request lost":
		err = errNoAnswer
	case "503":
		err = refusal(503)
	case "429":
		err = refusal(429)
	case "413":
		if err = refusal(413); !strings.Contains(string(a.Content), "result of") {
			err = w.log.Answer(a) // an error text is small
		}
	case "401":
		err = refusal(401)
	}
	if err == nil {
		d.step(session.PostDone{ID: a.Call})
	} else {
		d.step(session.PostFailed{ID: a.Call, Err: err})
	}
}

// replace ends the sandbox as the watchdog wants it.
func (d *driver) replace() {
	w := d.w
	why := w.replacing
	w.guest, w.adopted, w.replacing = nil, false, ""
	d.step(session.SandboxDown{Why: why})
}

// reload reads a call from the store.
func (d *driver) reload() {
	w := d.w
	id := w.reloads[0]
	w.reloads = w.reloads[1:]
	c := w.calls[id]
	d.step(session.CallReloaded{ID: id, Call: &c})
}

func (w *world) newGuest() {
	w.started++
	w.guest = &guestRun{instance: fmt.Sprint("instance-", w.started), calls: map[string]*guestCall{}}
}

// start ends a start of the sandbox: the one that runs is found, a new one is
// made, or it fails.
func (d *driver) start() {
	w := d.w
	w.starting = false
	switch oneOf(d.t, "start", []string{"found", "found", "new", "fails"}) {
	case "fails":
		w.guest, w.adopted = nil, false
		d.step(session.SandboxDown{Starting: true, Why: "no space left on device"})
		return
	case "new":
		w.newGuest()
	case "found":
		if w.guest == nil {
			w.newGuest()
		}
	}
	w.adopted = true
	d.step(session.SandboxUp{Instance: w.guest.instance})
}

func (d *driver) guestCall() *guestCall {
	return d.w.guest.calls[oneOf(d.t, "guest call", sorted(d.w.guest.calls))]
}

// answerable returns a call whose result the guest may hand over, "" when there
// is none.
func (d *driver) answerable() string {
	if d.w.guest == nil {
		return ""
	}
	for _, id := range sorted(d.w.guest.calls) {
		if c := d.w.guest.calls[id]; c.attached && (c.done || c.cancelled) {
			return id
		}
	}
	return ""
}

func (d *driver) answer(id string) {
	c := d.w.guest.calls[id]
	c.attached = false
	switch {
	case c.forgotten:
		d.step(session.CallLost{ID: id, Why: "acknowledged before"})
	case c.done:
		d.step(session.CallFinished{ID: id, Result: tool.Text("result of " + id)})
	default:
		c.done = true
		d.step(session.CallFinished{ID: id, Result: tool.Error("cancelled")})
	}
}

// conclude ends a run as an actor does: what is under way is cancelled and still
// reports, then the item is given back.
func (d *driver) conclude() {
	w := d.w
	w.cut()
	w.read = nil
	for len(w.posts) > 0 {
		d.post(oneOf(d.t, "fate", []string{"answer lost", "request lost"}))
	}
	if w.starting {
		w.starting = false
		d.step(session.SandboxDown{Starting: true, Why: "the run ended"})
	}
	if w.guest != nil {
		for _, id := range sorted(w.guest.calls) {
			if w.guest != nil && w.guest.calls[id].attached {
				w.guest.calls[id].cancelled = true
				d.answer(id)
			}
		}
	}
	if w.stopWork != nil { // no crash on the way
		w.stopWork = nil
		d.step(session.Released{})
	}
}
