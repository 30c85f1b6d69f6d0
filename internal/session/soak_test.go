package session_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/intake"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/sandbox/sandboxtest"
	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/session/sessiontest"
	"github.com/berth-dev/berth/internal/store/storetest"
	"github.com/berth-dev/berth/internal/tool"
)

var (
	soak     = flag.Duration("soak", 0, "how long TestSoak goes on; 0: a few lives")
	soakSeed = flag.Uint64("seed", 1, "of the first life of TestSoak")
)

// TestSoak lets a poller, a keeper and its actors live with a platform, a host
// and a database that misbehave at random, one life after the other. In a
// bubble, hours pass in a moment, so that everything that waits for a time gets
// its turn, and a goroutine that is left over ends the test.
func TestSoak(t *testing.T) {
	began, few := time.Now(), 4
	for n := 0; n < few || time.Since(began) < *soak; n++ {
		seed := *soakSeed + uint64(n)
		ok := t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { newLife(t, seed).live() })
		})
		if !ok {
			t.Fatalf("again with: go test ./internal/session -race -run 'TestSoak$' -seed %d", seed)
		}
	}
}

// life is one host with several sessions.
type life struct {
	t       *testing.T
	rand    *rand.Rand
	claudes []*sessiontest.Claude
	items   sync.Map // session → id of its last work item
	fake    *sandboxtest.Fake
	records *storetest.Memory
	dead    *atomic.Bool // of the keeper that runs: it can write nothing more
	keeper  *session.Keeper
	stop    func() // ends its poller
	calm    atomic.Bool
	did     []string
}

const soakSessions = 3

func newLife(t *testing.T, seed uint64) *life {
	l := &life{t: t, rand: rand.New(rand.NewPCG(seed, 1)), fake: sandboxtest.NewFake(), records: &storetest.Memory{}}
	l.fake.Tool(func(ctx context.Context, c tool.Call) tool.Result {
		select {
		case <-time.After(time.Duration(len(c.ID)*len(c.Input)%7) * time.Second):
			return sandboxtest.Echo(ctx, c)
		case <-ctx.Done():
			return tool.Error("cancelled")
		}
	})
	for i := range soakSessions {
		c := sessiontest.NewClaude(fmt.Sprintf("sesn_%d", i+1), l.script()...)
		fates := rand.New(rand.NewPCG(seed, uint64(i)+2)) // used with the platform locked
		c.Decide(func(r sessiontest.Request) (sessiontest.Fate, error) {
			if l.calm.Load() {
				return sessiontest.Arrives, nil
			}
			switch fates.IntN(40) {
			case 0:
				return sessiontest.Lost, nil
			case 1:
				return sessiontest.Applied, nil
			case 2:
				return sessiontest.Refused, &session.Refusal{Status: []int{429, 500, 503, 529}[fates.IntN(4)], Type: "api_error", Message: "busy"}
			case 3:
				if r.Kind != "stream" { // one that hangs is for its own test
					return sessiontest.Hangs, nil
				}
			}
			return sessiontest.Arrives, nil
		})
		c.Latency(time.Duration(l.rand.IntN(300)) * time.Millisecond)
		l.claudes = append(l.claudes, c)
	}
	return l
}

// script is what an agent does: a few turns with calls of all kinds.
func (l *life) script() turns {
	var out turns
	for range 2 + l.rand.IntN(5) {
		var events []session.Event
		for range 1 + l.rand.IntN(4) {
			ev := session.Event{Name: []string{tool.Bash, tool.Bash, tool.Read, tool.Write, tool.Glob}[l.rand.IntN(5)]}
			ev.Input = fmt.Appendf(nil, `{"command":"%d"}`, l.rand.IntN(1000))
			if l.rand.IntN(6) == 0 {
				ev.Permission = "ask"
			}
			events = append(events, ev)
		}
		out = append(out, calls(events...))
	}
	return out
}

// open starts a keeper and its poller.
func (l *life) open() {
	l.t.Helper()
	log := slog.New(slog.NewTextHandler(l.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	cfg := session.Config{
		Capacity: 2, ReleaseAfter: 5 * time.Second, WarmFor: 20 * time.Second, ToolTimeout: 2 * time.Minute, ReadEvery: 20 * time.Second, Image: "host",
	}
	l.dead = &atomic.Bool{}
	l.keeper = session.NewKeeper(cfg, l.fake, perishable{l.records, l.dead}, openSeal{}, &event.Bus{}, log)
	queue := soakQueue{l}
	if err := l.keeper.Adopt(l.t.Context(), queue.Platform); err != nil {
		l.t.Fatalf("Adopt: %v", err)
	}
	ctx, cancel := context.WithCancel(l.t.Context())
	var poller sync.WaitGroup
	poller.Go(func() { intake.NewPoller(queue, l.keeper, log).Run(ctx) })
	l.stop = func() { cancel(); poller.Wait() }
}

// shut ends the process: in an orderly way, or so that it writes nothing more.
func (l *life) shut(kill bool) {
	l.dead.Store(kill)
	l.keeper.Close()
	l.stop()
	l.fake.Restart()
}

// perishable are the records of a process that may be killed.
type perishable struct {
	session.Records
	dead *atomic.Bool
}

func (p perishable) Commit(ctx context.Context, c session.Change) error {
	if p.dead.Load() {
		return session.ErrFenced
	}
	return p.Records.Commit(ctx, c)
}

// soakQueue is the queue of all sessions.
type soakQueue struct{ *life }

func (q soakQueue) Environment() string { return "env_1" }

func (q soakQueue) Poll(ctx context.Context, block time.Duration) (*session.Item, error) {
	for _, c := range q.claudes {
		if it := c.Poll(); it != nil {
			q.items.Store(it.Session, it.ID)
			return it, nil
		}
	}
	select {
	case <-time.After(block):
		return nil, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (q soakQueue) of(work string) *sessiontest.Claude {
	for _, c := range q.claudes {
		if id := "work_" + c.Session + "_"; len(work) > len(id) && work[:len(id)] == id {
			return c
		}
	}
	return nil
}

func (q soakQueue) Ack(_ context.Context, work string) error    { return q.of(work).Ack(work) }
func (q soakQueue) ForceStop(context.Context, string) error     { return nil }
func (q soakQueue) Platform(it session.Item) session.Platform   { return q.of(it.ID).Door(it) }
func (q soakQueue) Stats(context.Context) (intake.Stats, error) { return intake.Stats{}, nil }

// live plays a life: trouble for a while, then calm, and everything has to come
// to its end.
func (l *life) live() {
	l.open()
	defer func() {
		l.shut(false)
		refs, _ := l.fake.List(context.Background())
		for _, ref := range refs {
			_ = l.fake.Remove(context.Background(), ref, sandbox.Everything)
		}
	}()
	for range 60 {
		l.trouble()
		<-time.After(time.Duration(l.rand.IntN(4000)) * time.Millisecond)
		if l.keeper.Err() != nil {
			l.t.Fatalf("the keeper gave up: %v", l.keeper.Err())
		}
	}
	l.calm.Store(true)
	l.records.Refuse(nil)
	l.fake.StartError(nil)
	for _, c := range l.claudes {
		c.Mute(false)
	}
	for n := range 4 * 3600 {
		<-time.After(time.Second)
		if l.settled() {
			l.judge()
			return
		}
		if n == 2*3600 {
			// What an earlier process held and could not be closed for want of
			// room is closed by the next start.
			l.shut(false)
			l.open()
		}
	}
	l.t.Fatalf("a session hangs: %s\nafter %q", l.story(), l.did)
}

// trouble does one thing that may happen.
func (l *life) trouble() {
	c := l.claudes[l.rand.IntN(len(l.claudes))]
	id := sandbox.ID(c.Session)
	what := []string{
		"nothing", "cut streams", "mute", "unmute", "drop connection", "lose sandbox", "start error", "no start error", "full disk", "room again",
		"restart", "kill", "ask back", "steal", "interrupt", "verdicts", "verdicts", "open", "sweep", "message",
	}[l.rand.IntN(20)]
	l.did = append(l.did, what+" "+c.Session)
	work := ""
	if v, ok := l.items.Load(c.Session); ok {
		work = v.(string)
	}
	switch what {
	case "cut streams":
		c.CutStreams()
	case "mute", "unmute":
		c.Mute(what == "mute")
	case "drop connection":
		l.fake.DropConnection(id)
	case "lose sandbox":
		l.fake.LoseSandbox(id, sandbox.Exit{Code: -1, Reason: "killed"})
	case "start error":
		l.fake.StartError(errors.New("no memory"))
	case "no start error":
		l.fake.StartError(nil)
	case "full disk":
		l.records.Refuse(errors.New("database or disk is full"))
	case "room again":
		l.records.Refuse(nil)
	case "restart", "kill":
		l.shut(what == "kill")
		<-time.After(time.Duration(l.rand.IntN(40)) * time.Second)
		l.open()
	case "ask back":
		if work != "" && c.State(work) == "active" {
			c.AskBack(work)
		}
	case "steal":
		if work != "" && c.State(work) == "active" {
			c.Steal(work)
		}
	case "interrupt":
		if l.rand.IntN(3) == 0 {
			c.Do(func(log *sessiontest.Log) { log.Interrupt("") })
		}
	case "verdicts":
		verdict := []string{"allow", "allow", "deny"}[l.rand.IntN(3)]
		c.Do(func(log *sessiontest.Log) { decide(log, verdict) })
	case "open":
		ctx, cancel := context.WithTimeout(l.t.Context(), 10*time.Second)
		defer cancel()
		_, _ = l.keeper.Open(ctx, c.Session) // it may be refused for many reasons
	case "sweep":
		if err := l.keeper.Sweep(l.t.Context()); err != nil {
			l.t.Errorf("Sweep: %v", err)
		}
	case "message":
		c.Do(func(log *sessiontest.Log) {
			for _, u := range log.Uses() {
				if u.Pending() {
					return
				}
			}
			bash("again")(log)
			log.Idle()
		})
	}
}

// decide says a person's word about every call that waits for one.
func decide(log *sessiontest.Log, verdict string) {
	for _, u := range log.Uses() {
		if u.Pending() && u.Permission == "ask" && u.Verdict == "" {
			log.Confirm(u.ID, verdict)
		}
	}
}

// settled reports whether every session is over and sleeps. People answer now,
// and an operator ends what was asked back and that nobody works on.
func (l *life) settled() bool {
	all := true
	for _, c := range l.claudes {
		c.Do(func(log *sessiontest.Log) { decide(log, "allow") })
		if v, ok := l.items.Load(c.Session); ok && c.State(v.(string)) == "stopping" && c.Count("heartbeat") > 0 {
			ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
			_ = c.Door(session.Item{ID: v.(string), Session: c.Session}).Stop(ctx, true)
			cancel()
		}
		rec, _, err := l.records.LoadSession(l.t.Context(), c.Session)
		all = all && c.Done() && err == nil && rec.Phase == session.Parked
	}
	work, err := l.records.OpenWork(l.t.Context())
	return all && err == nil && len(work) == 0
}

func (l *life) story() string {
	s := ""
	for _, c := range l.claudes {
		rec, calls, err := l.records.LoadSession(context.Background(), c.Session)
		s += fmt.Sprintf("%s: done %v, phase %s, waits for %s (%s) %v\n", c.Session, c.Done(), rec.Phase, rec.Waiting.For, rec.Waiting.Detail, err)
		for _, call := range calls {
			if call.Open() {
				s += fmt.Sprintf("  %s %s %s %s\n", call.ID, call.Name, call.State, call.Reason)
			}
		}
	}
	work, _ := l.records.OpenWork(context.Background())
	for _, w := range work {
		s += fmt.Sprintf("work %s is %s\n", w.ID, w.State)
	}
	return s
}

// judge holds what became of it against the promises.
func (l *life) judge() {
	synctest.Wait()
	runs := map[string]int{}
	for _, r := range l.fake.Records() {
		if !r.Attached {
			runs[r.Sandbox+" "+r.Call.ID]++
		}
	}
	for _, c := range l.claudes {
		id := sandbox.ID(c.Session)
		c.See(func(log *sessiontest.Log) {
			for _, u := range log.Uses() {
				if u.Results > 1 || u.Results == 0 && u.Settled == "" {
					l.t.Errorf("%s %s has %d results (%q)", c.Session, u.ID, u.Results, u.Settled)
				}
				if n := runs[id+" "+u.ID]; n > 1 {
					l.t.Errorf("%s %s ran %d times", c.Session, u.ID, n)
				} else if n > 0 && !u.Allowed() {
					l.t.Errorf("%s %s ran, and nobody allowed it (%q)", c.Session, u.ID, u.Verdict)
				}
			}
		})
		if _, err := l.fake.Attach(l.t.Context(), sandbox.Ref{ID: id}); !errors.Is(err, sandbox.ErrGone) {
			l.t.Errorf("%s sleeps, and its sandbox runs: %v", c.Session, err)
		}
	}
	if free := l.keeper.Free(); free != 1 && free != 2 { // the poller may hold one for its next question
		l.t.Errorf("%d slots are free, want 2", free)
	}
	if l.t.Failed() {
		l.t.Logf("after %q", l.did)
	}
}
