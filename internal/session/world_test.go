package session_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/session/sessiontest"
	"github.com/berth-dev/berth/internal/tool"
)

// world is everything around one machine: a platform, a guest, a store, and all
// that is on its way between them. It does what the machine's effects ask for
// when it is told to, in any order, and holds what happens against the promises.
type world struct {
	fail func(format string, args ...any)

	now   time.Time
	log   *sessiontest.Log
	state *session.State
	rules session.Rules
	wake  time.Time
	steps int
	trace []string

	// The store.
	memo  []byte
	calls map[string]session.Call

	// On the way.
	stream    []session.Event // frames that were sent and not received
	open      bool            // a stream is open
	read      *pendingRead
	posts     []pendingPost
	starting  bool
	startedAt time.Time
	endedAt   time.Time // when the sandbox was told to end
	stopWork  *session.StopWork
	reloads   []string // calls that are being read from the store
	replacing string   // why the sandbox is being replaced; "" when it is not

	// The host.
	guest   *guestRun // nil when no sandbox runs
	adopted bool      // the machine was told of it by this process
	started int
	runs    map[string]int // how often each tool ran, over all guests
	asked   map[string]int // how often RunCall was made, over all processes

	// What the machine was told.
	knownCut   time.Time
	knownEnded map[string]bool // threads
	knownDone  map[string]bool // calls with a result
}

type pendingRead struct {
	session.ReadHistory
	from  int
	began time.Time
}

type pendingPost struct {
	session.Answer
	sent time.Time
}

// guestRun is one guest: what it was told and what it answers.
type guestRun struct {
	instance string
	calls    map[string]*guestCall
}

type guestCall struct {
	cancelled bool
	done      bool
	attached  bool // this process waits for it
	forgotten bool
}

var begin = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func newWorld(fail func(string, ...any)) *world {
	w := &world{
		now: begin, log: sessiontest.NewLog(begin), calls: map[string]session.Call{},
		runs: map[string]int{}, asked: map[string]int{}, knownEnded: map[string]bool{}, knownDone: map[string]bool{},
		rules: session.Rules{
			Owns: session.Owns, ReleaseAfter: 5 * time.Second, ReadEvery: 30 * time.Second, SandboxTries: 2,
			CallLimit: func(string, json.RawMessage) time.Duration { return 2 * time.Minute },
		},
	}
	w.fail = func(format string, args ...any) { fail("%s\n%s", fmt.Sprintf(format, args...), w) }
	w.log.Emit = func(ev session.Event) {
		if w.open {
			w.stream = append(w.stream, ev)
		}
	}
	w.state = session.NewState("sesn_1", w.rules)
	return w
}

// step gives the machine one input, stores what changed and does what follows.
// A crash at -1 never happens, at 0 before the change is stored, at n after n-1
// of its effects.
func (w *world) step(in session.Input, crash int) {
	w.steps++
	w.tell(in)
	out := w.state.Step(w.now, in)
	w.wake = out.WakeAt
	w.note("%s %T %+v → lease %s sandbox %s", clock(w.now), in, in, w.state.Lease, w.state.Sandbox)
	for _, e := range out.Effects {
		w.note("    %T %+v", e, e)
	}
	w.check(out)
	if crash == 0 {
		w.restart()
		return
	}
	w.store(out)
	for i, e := range out.Effects {
		if crash == i+1 {
			w.restart()
			return
		}
		w.do(e)
	}
}

// note keeps the last things that happened, for a failed test.
func (w *world) note(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	w.trace = append(w.trace, line[:min(len(line), 300)])
	w.trace = w.trace[max(0, len(w.trace)-60):]
}

// tell notes what the machine is about to know.
func (w *world) tell(in session.Input) {
	obs, ok := in.(session.Observed)
	if !ok || obs.Read != 0 && w.now.Sub(w.read.began) >= session.ReadBound {
		return // perhaps of a read that the machine has given up
	}
	for _, ev := range obs.Events {
		switch {
		case ev.Type == "user.interrupt" && ev.Thread == "" && ev.ProcessedAt.After(w.knownCut):
			w.knownCut = ev.ProcessedAt
		case ev.Type == "session.thread_status_terminated":
			w.knownEnded[ev.Thread] = true
		case strings.HasSuffix(ev.Type, "tool_result"):
			w.knownDone[ev.Refers] = true
		}
	}
}

func (w *world) store(out session.Outcome) {
	if out.Memo || out.Waiting != nil {
		w.memo, _ = json.Marshal(w.state.Memo())
	}
	for _, c := range out.Changed {
		w.calls[c.ID] = stored(*c)
	}
}

// stored is what a store keeps of a call.
func stored(c session.Call) session.Call {
	return session.Call{
		ID: c.ID, Thread: c.Thread, Name: c.Name, Custom: c.Custom, Input: c.Input, Permission: c.Permission,
		ProcessedAt: c.ProcessedAt, Seq: c.Seq, State: c.State, SeenAt: c.SeenAt, StartedAt: c.StartedAt,
		FinishedAt: c.FinishedAt, DoneAt: c.DoneAt, Instance: c.Instance, Content: slices.Clone(c.Content),
		IsError: c.IsError, Reason: c.Reason,
	}
}

// restart is kill -9 and a new process with the same store and the same host.
func (w *world) restart() {
	var memo session.Memo
	if w.memo != nil {
		if err := json.Unmarshal(w.memo, &memo); err != nil {
			w.fail("memo: %v", err)
		}
	}
	calls := slices.SortedFunc(maps.Values(w.calls), func(a, b session.Call) int { return int(a.Seq - b.Seq) })
	w.state = session.NewState("sesn_1", w.rules)
	w.state.Restore(memo, calls)
	w.cut()
	w.read, w.posts, w.starting, w.stopWork, w.adopted, w.wake = nil, nil, false, nil, false, time.Time{}
	w.reloads, w.replacing = nil, ""
	if w.guest != nil {
		for _, c := range w.guest.calls {
			c.attached = false
		}
	}
}

func (w *world) cut() { w.open, w.stream = false, nil }

// do begins an effect.
func (w *world) do(e session.Effect) {
	switch e := e.(type) {
	case session.ReadHistory:
		if w.read != nil && w.now.Sub(w.read.began) < session.ReadBound {
			w.fail("a second read began while one is under way since %s\n%s", clock(w.read.began), w)
		}
		w.read = &pendingRead{ReadHistory: e, began: w.now}
	case session.StartSandbox:
		if w.replacing != "" && w.now.Sub(w.endedAt) >= session.EndBound {
			w.guest, w.adopted, w.replacing = nil, false, "" // and the report of it was lost
		}
		if w.starting && w.now.Sub(w.startedAt) < session.StartBound || w.adopted {
			w.fail("the sandbox was started twice")
		}
		w.starting, w.startedAt = true, w.now
	case session.RunCall:
		w.asked[e.ID]++
		if w.asked[e.ID] > 1 {
			w.fail("%s got RunCall twice", e.ID)
		}
		w.mayRun(e.ID)
		w.inOrder(e.ID)
		w.run(e.ID)
	case session.RecallCall:
		w.mayRun(e.ID)
		if c := w.state.Calls[e.ID]; c.Instance != w.guest.instance {
			w.fail("%s is recalled from %s; it ran on %s", e.ID, w.guest.instance, c.Instance)
		}
		w.run(e.ID)
	case session.CancelCall:
		if w.guest != nil && w.guest.calls[e.ID] != nil {
			w.guest.calls[e.ID].cancelled = true
		}
	case session.Forget:
		for _, id := range e.IDs {
			if w.guest != nil && w.guest.calls[id] != nil && w.guest.calls[id].done {
				w.guest.calls[id].forgotten = true
			}
		}
	case session.Post:
		w.posts = slices.DeleteFunc(w.posts, func(p pendingPost) bool { return p.Call == e.ID && w.now.Sub(p.sent) >= session.PostBound })
		w.mayPost(e.ID)
		c := w.state.Calls[e.ID]
		w.posts = append(w.posts, pendingPost{session.Answer{Call: c.ID, Custom: c.Custom, Content: c.Content, IsError: c.IsError}, w.now})
	case session.ReplaceSandbox:
		if !w.adopted {
			w.fail("a sandbox is replaced that does not run")
		}
		w.replacing, w.endedAt = e.Why, w.now
	case session.ReloadCall:
		w.reloads = append(w.reloads, e.ID)
	case session.Warn:
	case session.CheckSession: // the sessions of this world end with an event
	case session.StopWork:
		if w.stopWork != nil {
			w.fail("StopWork was made twice")
		}
		w.stopWork = &e
	default:
		w.fail("unknown effect %T", e)
	}
}

func (w *world) run(id string) {
	if w.guest == nil || !w.adopted {
		w.fail("%s runs without a sandbox", id)
		return
	}
	c := w.guest.calls[id]
	if c == nil {
		w.runs[id]++
		c = &guestCall{}
		w.guest.calls[id] = c
	}
	if c.attached {
		w.fail("%s is asked for twice", id)
	}
	c.attached = true
}

// mayRun holds a run against the platform's own view.
func (w *world) mayRun(id string) {
	u := w.log.Use(id)
	switch {
	case w.state.Lease != session.LeaseHeld:
		w.fail("%s runs without a lease (%s)", id, w.state.Lease)
	case !session.Owns(u.Name, u.Custom):
		w.fail("%s is somebody else's and runs", id)
	case !u.Allowed():
		w.fail("%s runs with permission %q and verdict %q", id, u.Permission, u.Verdict)
	case w.voided(u) || w.knownDone[id]:
		w.fail("%s runs after the machine knew that it is void or answered", id)
	}
}

// voided reports whether the machine was told that the platform voided a call.
func (w *world) voided(u *sessiontest.Use) bool {
	return !u.ProcessedAt.After(w.knownCut) || u.Thread != "" && w.knownEnded[u.Thread]
}

func (w *world) mayPost(id string) {
	u := w.log.Use(id)
	switch {
	case w.state.Lease != session.LeaseHeld:
		w.fail("%s is posted without a lease (%s)", id, w.state.Lease)
	case !session.Owns(u.Name, u.Custom):
		w.fail("%s is somebody else's and is posted", id)
	case w.voided(u) || w.knownDone[id]:
		w.fail("%s is posted after the machine knew that it is void or answered", id)
	case slices.ContainsFunc(w.posts, func(a pendingPost) bool { return a.Call == id }):
		w.fail("%s is posted while it is being posted", id)
	}
}

// inOrder holds that commands of one shell run in the order of the platform.
func (w *world) inOrder(id string) {
	call := w.state.Calls[id]
	if call.Name != tool.Bash {
		return
	}
	for _, o := range w.state.Calls {
		before := o.ProcessedAt.Before(call.ProcessedAt)
		busy := o.State == session.Ready || o.State == session.Started
		if o.Name == tool.Bash && o.Thread == call.Thread && before && busy {
			w.fail("%s runs while the earlier %s of the same shell is %s", id, o.ID, o.State)
		}
	}
}

// check holds what is true after every step.
func (w *world) check(out session.Outcome) {
	if out.Waiting != nil && out.Waiting.For == "" {
		w.fail("the session waits for nothing that it can name")
	}
	for _, c := range w.state.Calls {
		if c.Open() && out.Waiting != nil && out.Waiting.For == session.ForNothing {
			w.fail("%s is %s and the session says that it waits for nothing", c.ID, c.State)
		}
	}
	for id, n := range w.runs {
		if n > 1 {
			w.fail("the tool of %s ran %d times", id, n)
		}
	}
	for _, u := range w.log.Uses() {
		if u.Results > 1 {
			w.fail("%s has %d results", u.ID, u.Results)
		}
	}
}

// String tells where everything stands, for a failed test.
func (w *world) String() string {
	s := fmt.Sprintf("lease %s sandbox %s/%s ended %q status %s/%s cursor %s wake %s now %s read %v posts %d open %v\n", w.state.Lease, w.state.Sandbox,
		w.state.Instance, w.state.Ended, w.state.Status, w.state.StopReason, clock(w.state.Cursor), clock(w.wake), clock(w.now), w.read, len(w.posts), w.open)
	for _, u := range w.log.Uses() {
		state := session.CallState("closed or not seen")
		if c := w.state.Calls[u.ID]; c != nil {
			state = c.State
		}
		s += fmt.Sprintf("  %s %s thread %q permission %q verdict %q settled %q results %d at %s: %s\n", u.ID, u.Name, u.Thread, u.Permission, u.Verdict, u.Settled, u.Results, clock(u.ProcessedAt), state)
	}
	return s + strings.Join(w.trace, "\n")
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func clock(t time.Time) string { return t.Format("05.000") }
