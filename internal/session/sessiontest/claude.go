package sessiontest

import (
	"bytes"
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
}

// Fate is what becomes of a request.
type Fate int

// The fates. Lost is lost on the way there, Applied on the way back.
const (
	Arrives Fate = iota
	Lost
	Applied
	Hangs   // until the caller gives up
	Refused // with the error that the knob gives
)

// Request is what a knob decides about: the n-th of its kind, from 1.
type Request struct {
	Kind string // info, stream, history, answer, heartbeat, stop, skill
	N    int
	Call string // of an answer
}

type knobs struct {
	decide func(Request) (Fate, error)
	counts map[string]int
	mute   bool // the stream carries nothing
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

// request decides what becomes of a request. When it may arrive, it returns with
// c.mu locked.
func (c *Claude) request(ctx context.Context, kind, call string) (Fate, error) {
	if err := ctx.Err(); err != nil {
		return Lost, err
	}
	c.mu.Lock()
	c.tick()
	c.knobs.counts[kind]++
	fate, err := Arrives, error(nil)
	if c.knobs.decide != nil {
		fate, err = c.knobs.decide(Request{Kind: kind, N: c.knobs.counts[kind], Call: call})
	}
	switch fate {
	case Arrives, Applied:
		return fate, nil
	case Lost:
		err = ErrNoAnswer
	case Hangs:
		c.mu.Unlock()
		<-ctx.Done()
		return fate, ctx.Err()
	}
	c.mu.Unlock()
	return fate, err
}

// lost is the error of a request that was applied and not answered.
func (f Fate) lost() error {
	if f == Applied {
		return ErrNoAnswer
	}
	return nil
}

// door is the platform as one work item sees it.
type door struct {
	*Claude
	work string
}

var _ session.Platform = door{}

func (d door) Info(ctx context.Context) (session.Info, error) {
	f, err := d.request(ctx, "info", "")
	if err != nil {
		return session.Info{}, err
	}
	defer d.mu.Unlock()
	if d.log.Ended() == "deleted" {
		return session.Info{}, refuse(404, "not_found_error", "there is no such session")
	}
	info := d.info
	if d.log.Ended() != "" {
		info.Status = d.log.Ended()
	}
	return info, f.lost()
}

func (d door) Stream(ctx context.Context) (session.Stream, error) {
	f, err := d.request(ctx, "stream", "")
	if err != nil {
		return nil, err
	}
	defer d.mu.Unlock()
	if d.log.Ended() == "deleted" {
		return nil, refuse(404, "not_found_error", "there is no such session")
	}
	if f == Applied {
		return nil, ErrNoAnswer
	}
	s := newStream()
	d.streams[s] = true
	s.closed = func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.streams, s)
	}
	return s, nil
}

// pageSize makes histories come in several pages.
const pageSize = 7

func (d door) History(ctx context.Context, since time.Time, yield func([]session.Event) error) error {
	for from := 0; from >= 0; {
		f, err := d.request(ctx, "history", "")
		if err != nil {
			return err
		}
		if d.log.Ended() == "deleted" {
			d.mu.Unlock()
			return refuse(404, "not_found_error", "there is no such session")
		}
		var page []session.Event
		page, from = d.log.List(since.Truncate(time.Second), from, pageSize)
		d.listed += len(page)
		d.mu.Unlock()
		if err := f.lost(); err != nil {
			return err
		}
		if len(page) > 0 {
			if err := yield(page); err != nil {
				return err
			}
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
	call := ""
	if len(answers) > 0 {
		call = answers[0].Call
	}
	f, err := d.request(ctx, "answer", call)
	if err != nil {
		return err
	}
	defer d.mu.Unlock()
	for _, a := range answers {
		d.posts = append(d.posts, a)
		if err := d.log.Answer(a); err != nil {
			return err
		}
	}
	d.goOn()
	return f.lost()
}

func (d door) Skill(ctx context.Context, s session.Skill) (string, io.ReadCloser, error) {
	f, err := d.request(ctx, "skill", "")
	if err != nil {
		return "", nil, err
	}
	defer d.mu.Unlock()
	if err := f.lost(); err != nil {
		return "", nil, err
	}
	return s.ID, io.NopCloser(bytes.NewReader(fmt.Appendf(nil, "archive of %s", s.ID))), nil
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
