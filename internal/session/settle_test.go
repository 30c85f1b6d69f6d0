package session_test

import (
	"time"

	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/tool"
)

// settle lets everything go well until nothing happens any more.
func (d *driver) settle() {
	w := d.w
	for _, ev := range w.log.Queued() {
		w.log.Process(ev.ID)
	}
	for _, u := range w.log.Uses() {
		if asking(w, u.ID) && u.Permission != "deny" {
			w.log.Confirm(u.ID, "allow")
		}
	}
	claims, quiet := 0, 0
	for range 3000 {
		w.log.Now = later(w.log.Now, w.now)
		var err error
		switch {
		case w.stopWork != nil:
			d.concludeWell()
		case w.state.Lease != session.LeaseHeld && (claims < 3 || d.owed()):
			claims++
			w.step(session.Claimed{Alive: w.log.Ended() == ""}, -1)
		case w.state.Lease != session.LeaseHeld:
			return
		case !w.open:
			w.open = true
			w.step(session.Connected{}, -1)
		case len(w.stream) > 0:
			ev := w.stream[0]
			w.stream = w.stream[1:]
			w.step(session.Observed{Events: []session.Event{ev}}, -1)
		case w.read != nil && w.read.from >= 0:
			page, next := w.log.List(w.read.Since.Truncate(time.Second), w.read.from, 100)
			w.read.from = next
			w.step(session.Observed{Events: page, Read: w.read.Read}, -1)
		case w.read != nil:
			in := session.HistoryRead{Read: w.read.Read}
			w.read = nil
			w.step(in, -1)
		case len(w.posts) > 0:
			a := w.posts[0].Answer
			w.posts = w.posts[1:]
			if err = w.log.Answer(a); err == nil {
				w.step(session.PostDone{ID: a.Call}, -1)
			} else {
				w.step(session.PostFailed{ID: a.Call, Err: err}, -1)
			}
			quiet = 0
		case w.starting:
			w.starting = false
			if w.guest == nil {
				w.newGuest()
			}
			w.adopted = true
			w.step(session.SandboxUp{Instance: w.guest.instance}, -1)
		case w.replacing != "":
			d.replace()
		case len(w.reloads) > 0:
			d.reload()
		case d.finishOne():
			quiet = 0
		case w.log.Ended() == "" && !d.idle():
			w.log.Idle()
		case quiet > 5:
			return // nothing but a look at the history now and then
		case !w.wake.IsZero():
			quiet++
			w.now = later(w.now, w.wake)
			d.tick()
		default:
			return
		}
	}
	d.t.Fatalf("things do not settle\n%s", w)
}

// idle reports whether the machine knows the status that the platform has now.
func (d *driver) idle() bool {
	events, _ := d.w.log.List(time.Time{}, 0, 0)
	return len(events) > 0 && events[len(events)-1].Type == "session.status_idle" && d.w.state.Status == "idle"
}

// owed reports whether the platform waits for a result of ours.
func (d *driver) owed() bool {
	for _, u := range d.w.log.Uses() {
		if session.Owns(u.Name, u.Custom) && u.Allowed() && u.Pending() {
			return true
		}
	}
	return false
}

func (d *driver) concludeWell() {
	w := d.w
	w.cut()
	w.read, w.posts = nil, nil
	if w.starting {
		w.starting = false
		w.step(session.SandboxDown{Starting: true, Why: "the run ended"}, -1)
	}
	for d.finishOne() {
	}
	w.stopWork = nil
	w.step(session.Released{}, -1)
}

func (d *driver) finishOne() bool {
	w := d.w
	if w.guest == nil {
		return false
	}
	for _, id := range sorted(w.guest.calls) {
		c := w.guest.calls[id]
		if !c.attached {
			continue
		}
		c.attached, c.done = false, true
		if c.forgotten {
			w.step(session.CallLost{ID: id, Why: "acknowledged before"}, -1)
		} else {
			w.step(session.CallFinished{ID: id, Result: tool.Text("result of " + id)}, -1)
		}
		return true
	}
	return false
}
