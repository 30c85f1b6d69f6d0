package sessiontest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/berth-dev/berth/internal/session"
)

// Claude is a platform with one session: its log, its stream, its work items and
// their leases. It runs on the clock of time.Now, so that it lives in a
// testing/synctest bubble. Safe for concurrent use.
type Claude struct {
	Session string

	mu      sync.Mutex
	log     *Log
	script  []func(*Log) // turns of the agent that are still to come
	acting  bool         // the agent waits for results
	streams map[*stream]bool
	items   []*item
	info    session.Info
	knobs   knobs
	beats   int
	stops   []string
	listed  int
	posts   []session.Answer
	stores  map[string]*Store
}

// Fate is what becomes of a request.
type Fate int

// The fates. Lost is lost on the way there, Applied on the way back.
const (
	Arrives Fate = iota
	Lost
	Applied
	Hangs     // until the caller gives up
	Refused   // with the error that the knob gives
	Forgotten // answered with yes, and nothing is done
)

// Request is what a knob decides about: the n-th of its kind, from 1.
type Request struct {
	Kind string // info, stream, history, answer, heartbeat, stop, skill, archive, memory.list and so on
	N    int
	Call string // of an answer; of a skill its id
}

type knobs struct {
	decide  func(Request) (Fate, error)
	counts  map[string]int
	mute    bool          // the stream carries nothing
	latency time.Duration // of a request and its answer together
	noToken bool          // work items carry no token for memory stores
}

// ErrNoAnswer is what a caller sees of a request that was lost.
var ErrNoAnswer = errors.New("connection reset by peer")

// NewClaude returns a platform whose agent does one turn after the other: the
// next one begins when every call of the last has been answered, and after the
// last the session is idle.
func NewClaude(id string, turns ...func(*Log)) *Claude {
	c := &Claude{
		Session: id, log: NewLog(time.Now()), script: turns, streams: map[*stream]bool{},
		info:  session.Info{ID: id, Status: "running", AgentID: "agent_1", AgentName: "tester", AgentVersion: 1},
		knobs: knobs{counts: map[string]int{}},
	}
	c.log.Emit = c.emit
	c.Do(func(l *Log) { l.Event("user.message"); l.Running() })
	return c
}

// Decide sets what becomes of requests; nil lets all arrive. It is called with
// the platform locked and must not use it.
func (c *Claude) Decide(f func(Request) (Fate, error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.knobs.decide = f
}

// Mute keeps live streams open and carries nothing on them.
func (c *Claude) Mute(mute bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.knobs.mute = mute
}

// Latency makes every request take its time.
func (c *Claude) Latency(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.knobs.latency = d
}

// SetInfo changes what the session looks like.
func (c *Claude) SetInfo(change func(*session.Info)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.info)
}

// Do changes the log, and lets the agent go on if it can.
func (c *Claude) Do(f func(*Log)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tick()
	f(c.log)
	c.goOn()
}

// See reads the log.
func (c *Claude) See(f func(*Log)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(c.log)
}

// CutStreams ends every open stream.
func (c *Claude) CutStreams() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.streams {
		s.end(io.ErrUnexpectedEOF)
	}
	clear(c.streams)
}

// Posts returns every answer that arrived, accepted or not.
func (c *Claude) Posts() []session.Answer {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]session.Answer(nil), c.posts...)
}

// Count returns how many requests of a kind were made.
func (c *Claude) Count(kind string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.knobs.counts[kind]
}

// Done reports whether every turn is over and every call has been answered or
// settled.
func (c *Claude) Done() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.script) == 0 && !c.pending()
}

func (c *Claude) pending() bool {
	for _, u := range c.log.Uses() {
		if u.Pending() {
			return true
		}
	}
	return false
}

// tick brings the log's clock up to date.
func (c *Claude) tick() {
	if now := time.Now(); now.After(c.log.Now) {
		c.log.Now = now
	}
}

// goOn lets the agent do its next turn when nothing is open.
func (c *Claude) goOn() {
	for !c.pending() && c.log.Ended() == "" && (c.acting || len(c.script) > 0) {
		c.log.Running()
		c.acting = false
		if len(c.script) > 0 {
			turn := c.script[0]
			c.script = c.script[1:]
			turn(c.log)
		}
		c.log.Idle()
	}
	c.acting = c.pending()
}

func (c *Claude) emit(ev session.Event) {
	if c.knobs.mute {
		return
	}
	for s := range c.streams {
		s.send(ev)
	}
}

// do makes a request: apply runs with the platform locked, unless the request is
// lost on its way there, and its error is the answer.
func (c *Claude) do(ctx context.Context, kind, call string, apply func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c.mu.Lock()
	c.knobs.counts[kind]++
	fate, err := Arrives, error(nil)
	if c.knobs.decide != nil {
		fate, err = c.knobs.decide(Request{Kind: kind, N: c.knobs.counts[kind], Call: call})
	}
	way := c.knobs.latency / 2
	c.mu.Unlock()

	switch {
	case fate == Lost:
		return ErrNoAnswer
	case fate == Hangs:
		<-ctx.Done()
		return ctx.Err()
	case fate == Refused:
		return err
	case fate == Forgotten:
		return nil
	}
	if err := travel(ctx, way); err != nil {
		return err
	}
	c.mu.Lock()
	c.tick()
	err = apply()
	c.mu.Unlock()
	if lost := travel(ctx, way); lost != nil {
		return lost
	}
	if fate == Applied {
		return ErrNoAnswer
	}
	return err
}

func travel(ctx context.Context, way time.Duration) error {
	if way <= 0 {
		return nil
	}
	t := time.NewTimer(way)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// door is the platform as one work item sees it.
type door struct {
	*Claude
	work string
}

var _ session.Platform = door{}

// there is refused for a session that was deleted.
func (c *Claude) there() error {
	if c.log.Ended() == "deleted" {
		return refuse(404, "not_found_error", "there is no such session")
	}
	return nil
}

func (d door) Info(ctx context.Context) (info session.Info, err error) {
	err = d.do(ctx, "info", "", func() error {
		info = d.info
		if d.log.Ended() != "" {
			info.Status = d.log.Ended()
		}
		return d.there()
	})
	return info, err
}

func (d door) Stream(ctx context.Context) (session.Stream, error) {
	s := newStream()
	s.closed = func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.streams, s)
	}
	err := d.do(ctx, "stream", "", func() error {
		d.streams[s] = true
		return d.there()
	})
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// pageSize makes histories come in several pages.
const pageSize = 7

func (d door) History(ctx context.Context, since time.Time, yield func([]session.Event) error) error {
	for from := 0; from >= 0; {
		var page []session.Event
		err := d.do(ctx, "history", "", func() error {
			page, from = d.log.List(since.Truncate(time.Second), from, pageSize)
			d.listed += len(page)
			return d.there()
		})
		if err == nil && len(page) > 0 {
			err = yield(page)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Listed returns how many events were listed, in all reads together.
func (c *Claude) Listed() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.listed
}

func (d door) Answer(ctx context.Context, answers ...session.Answer) error {
	return d.do(ctx, "answer", answers[0].Call, func() error {
		for _, a := range answers {
			d.posts = append(d.posts, a)
			if err := d.log.Answer(a); err != nil {
				return err
			}
		}
		d.goOn()
		return nil
	})
}

func (d door) SkillVersion(ctx context.Context, s session.Skill) (session.SkillVersion, error) {
	err := d.do(ctx, "skill", s.ID, func() error { return nil })
	return session.SkillVersion{ID: cmp.Or(s.Version, "skver_1"), Name: s.ID}, err
}

func (d door) SkillArchive(ctx context.Context, skill, version string) (io.ReadCloser, error) {
	if err := d.do(ctx, "archive", skill, func() error { return nil }); err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(fmt.Appendf(nil, "archive of %s in %s", skill, version))), nil
}

// stream is one open stream.
type stream struct {
	events chan session.Event
	over   chan struct{}
	once   sync.Once
	err    error
	closed func()
}

func newStream() *stream {
	return &stream{events: make(chan session.Event, 4096), over: make(chan struct{}), closed: func() {}}
}

func (s *stream) send(ev session.Event) {
	select {
	case s.events <- ev:
	default:
		s.end(errors.New("the reader is too slow"))
	}
}

func (s *stream) end(err error) {
	s.once.Do(func() {
		s.err = err
		close(s.over)
	})
}

func (s *stream) Next() (session.Event, error) {
	select {
	case ev := <-s.events:
		return ev, nil
	default:
	}
	select {
	case ev := <-s.events:
		return ev, nil
	case <-s.over:
		return session.Event{}, s.err
	}
}

func (s *stream) Close() error {
	s.end(io.ErrClosedPipe)
	s.closed()
	return nil
}
