// Package crash stops this process at named points, so that tests can kill the
// very program that ships at the moment they mean: just before an answer is sent,
// just after a change was stored. It stands between the session and what the
// session asks (the queue, the platform, the records, the sandbox) and nowhere
// else, so that no code that decides anything knows of it.
//
// A plan is written as
//
//	before:platform.Answer
//	after:records.Commit.call.started#2
//	during:guest.Call=stop
//	before:records.Commit=hang:3s
//
// and several are separated by commas. before and after speak for themselves
// (after: when the step succeeded); during is a step that has been under way for
// a moment. #2 is the second time that it is reached, without it the first. What
// happens then is kill (SIGKILL to ourselves, so that nothing is tidied up: the
// default), stop (SIGSTOP: whoever watches does what they want to the rest of
// the world and sends SIGCONT), or hang for a while, each time from then on.
//
// Steps are called after the method that carries them out: see steps. A commit
// also has a name for each event that it stores (records.Commit.call.started),
// and records.Commit.beat for the token of a heartbeat.
package crash

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/berth-dev/berth/internal/fault"
)

// Driver stops the process where its plans say. A nil driver stops nothing and
// decorates nothing. Safe for concurrent use.
type Driver struct {
	log *slog.Logger
	act func(plan) // carries out a plan; replaced in tests

	mu    sync.Mutex
	plans []plan
}

// plan is one point and what happens there.
type plan struct {
	when   when
	step   string
	left   int // until it is reached for good
	action action
	hang   time.Duration
}

type when string

const (
	before when = "before"
	during when = "during"
	after  when = "after"
)

type action string

const (
	kill action = "kill"
	stop action = "stop"
	hang action = "hang"
)

// steps are the names of everything that a plan can be about.
var steps = []string{
	"queue.Poll", "queue.Ack", "queue.ForceStop", // after:queue.Poll is about a poll that found something
	"platform.Info", "platform.Stream", "platform.History", "platform.Answer", "platform.Heartbeat", "platform.Stop", "platform.SkillVersion", "platform.SkillArchive",
	commit, "records.LoadSession", "records.OpenWork", "records.LiveSessions",
	"backend.Create", "backend.Attach", "backend.List", "backend.Remove",
	"sandbox.Guest", "sandbox.Destroy",
	"guest.Call", "guest.Recall", "guest.Cancel", "guest.Acknowledge", "guest.Exec",
}

const commit = "records.Commit"

// moment is how long a step has to be under way for "during".
const moment = 50 * time.Millisecond

// Parse reads plans. Without any the driver is nil.
func Parse(text string, log *slog.Logger) (*Driver, error) {
	d := &Driver{log: log}
	d.act = d.carryOut
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		p, err := parse(part)
		if err != nil {
			return nil, fault.Wrap(err, fault.Invalid, "the crash point %q cannot be understood", part).
				WithNext("write one such as after:%s.call.started#2=kill", commit)
		}
		d.plans = append(d.plans, p)
	}
	if len(d.plans) == 0 {
		return nil, nil
	}
	return d, nil
}

func parse(text string) (plan, error) {
	p := plan{left: 1, action: kill}
	point, does, given := strings.Cut(text, "=")
	if given {
		name, long, _ := strings.Cut(does, ":")
		p.action = action(name)
		var err error
		switch p.action {
		case kill, stop:
		case hang:
			p.hang, err = time.ParseDuration(long)
		default:
			err = fmt.Errorf("%q is not kill, stop or hang", does)
		}
		if err != nil {
			return p, err
		}
	}
	point, nth, counted := strings.Cut(point, "#")
	if counted {
		n, err := strconv.Atoi(nth)
		if err != nil || n < 1 {
			return p, fmt.Errorf("%q is not a number from 1", nth)
		}
		p.left = n
	}
	at, step, _ := strings.Cut(point, ":")
	p.when, p.step = when(at), step
	if p.when != before && p.when != during && p.when != after {
		return p, fmt.Errorf("%q is not before, during or after", at)
	}
	if !slices.Contains(steps, step) && !strings.HasPrefix(step, commit+".") {
		return p, fmt.Errorf("there is no step %q", step)
	}
	return p, nil
}

// pass takes one step that is known by the given names.
func (d *Driver) pass(take func() error, names ...string) error {
	d.reach(before, names)
	under := time.AfterFunc(moment, func() { d.reach(during, names) })
	err := take()
	under.Stop()
	if err == nil {
		d.reach(after, names)
	}
	return err
}

// reach carries out what is planned for a point.
func (d *Driver) reach(at when, names []string) {
	var due []plan
	d.mu.Lock()
	for i := range d.plans {
		p := &d.plans[i]
		if p.when != at || !slices.Contains(names, p.step) {
			continue
		}
		if p.left--; p.left == 0 || p.left < 0 && p.action == hang {
			due = append(due, *p)
		}
	}
	d.mu.Unlock()
	for _, p := range due {
		d.act(p)
	}
}

func (d *Driver) carryOut(p plan) {
	if p.action != hang {
		d.log.Warn("crash point reached", "point", string(p.when)+":"+p.step, "action", string(p.action))
	}
	switch p.action {
	case kill:
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // not one instruction more
	case stop:
		resumed := make(chan os.Signal, 1)
		signal.Notify(resumed, syscall.SIGCONT)
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		<-resumed
		signal.Stop(resumed)
	case hang:
		<-time.After(p.hang)
	}
}
