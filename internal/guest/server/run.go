//go:build linux

package server

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/berth-dev/berth/internal/guest/wire"
	"github.com/berth-dev/berth/internal/tool"
)

// How long a call may take. The inner bounds are those of the tools; the outer
// one is ours and holds even when a tool ignores everything.
const (
	defaultTimeout = 120 * time.Second // contract §3.4
	maxTimeout     = time.Hour
	innerGrace     = 5 * time.Second        // so that bash's own text about a timeout comes first
	cancelGrace    = 700 * time.Millisecond // a cancelled call is answered after this, whatever its tool does
	wedgeGrace     = 10 * time.Second       // a tool that still runs then costs the worker its life
)

const maxRunning = 64 // calls that run at the same time

const killedText = "the tool process was killed while this call ran; what it did may be incomplete, and shells were restarted"

// timeout returns when a call is stopped, and the figure for the text that says
// so. A longer timeout_ms of bash counts.
func timeout(r wire.Request, input []byte) (after, shown time.Duration) {
	base := r.Timeout
	if base <= 0 {
		base = defaultTimeout
	}
	base = min(base, maxTimeout)
	if r.Name != tool.Bash {
		return base, base
	}
	var in struct {
		Milliseconds float64 `json:"timeout_ms"`
	}
	inner := defaultTimeout
	if json.Unmarshal(input, &in) == nil && in.Milliseconds > 0 {
		inner = time.Duration(min(in.Milliseconds, float64(maxTimeout/time.Millisecond)) * float64(time.Millisecond))
		base = max(base, inner)
	}
	if inner <= base && base < maxTimeout {
		return base + innerGrace, base
	}
	return base, base
}

// acceptCall takes a call while the reading goroutine waits, so that the commands
// of a shell queue in the order of their arrival.
func (s *Server) acceptCall(st *wire.Stream, r wire.Request) {
	c, fresh, code := s.calls.begin(r.ID)
	var t *turn
	if fresh && r.Name == tool.Bash {
		t = s.shells.enter(r.Shell)
	}
	s.wg.Go(func() {
		if code != wire.OK {
			st.End(wire.Trailer{Code: code, Message: refusal(code)})
			return
		}
		if fresh && !s.take(st, r, c, t) {
			return
		}
		s.deliver(st, c)
	})
}

func refusal(code wire.Code) string {
	switch code {
	case wire.Busy:
		return "too many calls are not acknowledged"
	case wire.Invalid:
		return "the call's id is empty or too long"
	}
	return ""
}

// take reads a new call's input and starts it.
func (s *Server) take(st *wire.Stream, r wire.Request, c *call, t *turn) bool {
	input, err := st.ReadAll(context.Background(), wire.MaxInput)
	if err != nil {
		s.calls.withdraw(c)
		s.wg.Go(t.leave)
		st.End(wire.Trailer{Code: wire.Invalid, Message: err.Error()})
		return false
	}
	s.wg.Go(func() { s.run(r, input, c, t) })
	return true
}

// deliver sends the result of c to a stream, once there is one.
func (s *Server) deliver(st *wire.Stream, c *call) {
	select {
	case <-c.done:
	case <-st.Done():
		return
	}
	if c.result == nil {
		st.End(wire.Trailer{Code: wire.Unknown})
		return
	}
	if _, err := st.Write(c.result); err == nil {
		st.End(wire.Trailer{})
	}
}

// run runs a call once and keeps its result. It returns when the tool has
// really ended, which may be later than the result.
func (s *Server) run(r wire.Request, input []byte, c *call, t *turn) {
	defer t.leave()
	unbegun := tool.Error(fmt.Sprintf("tool %q was not run: it was stopped before it began.", r.Name))
	cancelled := tool.Error(fmt.Sprintf("tool %q was stopped before it was done. It may have had some of its effects.", r.Name))
	if !t.wait(c.cancel) {
		s.finish(c, unbegun)
		return
	}
	select {
	case s.running <- struct{}{}:
		defer func() { <-s.running }()
	case <-c.cancel:
		s.finish(c, unbegun)
		return
	}
	after, shown := timeout(r, input)
	timer := time.NewTimer(after)
	defer timer.Stop()

	job := s.start(r, input)
	res := cancelled
	select {
	case <-job.ended:
		s.finish(c, job.result)
		return
	case <-timer.C:
		res = tool.Error(fmt.Sprintf("tool %q timed out after %s", r.Name, shown))
	case <-c.cancel:
	}
	job.cancel()
	if !job.wait(cancelGrace) {
		s.finish(c, res)
		if !job.wait(wedgeGrace) {
			s.log.Warn("tool ignores its end", "call", c.id, "tool", r.Name)
			s.workers.recycle(job.conn())
			<-job.ended
		}
		return
	}
	s.finish(c, res)
}

func (s *Server) finish(c *call, r tool.Result) {
	b, err := json.Marshal(wire.Bound(r))
	if err != nil {
		b, _ = json.Marshal(tool.Error("the result cannot be encoded"))
	}
	s.calls.finish(c, b)
}

// job is one call in the hands of a worker.
type job struct {
	ended  chan struct{} // closed when the tool has ended or its worker died
	result tool.Result   // to be read after ended
	stop   context.CancelFunc
	stream chan *wire.Stream // cap 1: the stream to the worker, once there is one
}

func (s *Server) start(r wire.Request, input []byte) *job {
	ctx, cancel := context.WithCancel(context.Background())
	j := &job{ended: make(chan struct{}), stop: cancel, stream: make(chan *wire.Stream, 1)}
	s.wg.Go(func() {
		defer close(j.ended)
		defer cancel()
		j.result = s.ask(ctx, r, input, j.stream)
	})
	return j
}

// ask hands a call to the worker and waits until the tool has ended. When ctx
// ends the worker is told so and goes on being waited for.
func (s *Server) ask(ctx context.Context, r wire.Request, input []byte, handed chan<- *wire.Stream) tool.Result {
	mend(s.cfg.Workdir)
	conn, err := s.workers.conn(ctx)
	if err != nil {
		return tool.Error(fmt.Sprintf("the tool process could not be started: %v", err))
	}
	st, err := conn.Open(ctx, wire.Request{Op: wire.OpCall, Name: r.Name, Shell: r.Shell, Env: s.environment(nil)})
	if err != nil {
		return tool.Error(killedText)
	}
	handed <- st
	told := make(chan struct{})
	unneeded := context.AfterFunc(ctx, func() { defer close(told); tellCancelled(conn, st) })
	defer func() {
		if !unneeded() {
			<-told
		}
	}()
	if _, err := st.Write(input); err == nil {
		st.CloseBody()
	}
	answer, err := st.ReadAll(context.Background(), wire.MaxMessage)
	if err != nil {
		return tool.Error(killedText)
	}
	var res tool.Result
	if err := json.Unmarshal(answer, &res); err != nil {
		return tool.Error("the tool process gave an answer that makes no sense")
	}
	return res
}

// tellCancelled asks the worker to stop what runs for st.
func tellCancelled(conn *wire.Conn, st *wire.Stream) {
	ctx, cancel := context.WithTimeout(context.Background(), cancelGrace)
	defer cancel()
	if c, err := conn.Open(ctx, wire.Request{Op: wire.OpCancel, Stream: st.ID()}); err == nil {
		c.CloseBody()
		_, _ = c.ReadAll(ctx, wire.MaxPayload)
		c.Reset()
	}
}

func (j *job) cancel() { j.stop() }

// wait reports whether the tool ended within d.
func (j *job) wait(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-j.ended:
		return true
	case <-t.C:
		return false
	}
}

// conn returns the session of the worker that runs the job, nil when it was
// never handed over.
func (j *job) conn() *wire.Session {
	select {
	case st := <-j.stream:
		return st.Session()
	default:
		return nil
	}
}
