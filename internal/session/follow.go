package session

import (
	"context"
	"errors"
	"time"
)

// streamHealthy is how long a stream must live for its next failure to count as
// the first again (contract §3.4).
const streamHealthy = 5 * time.Second

// follow keeps a live stream open until ctx ends. It decides nothing: every
// event goes to the machine, and so does every connection and its end. A stream
// has no replay, so the machine reads the history after each Connected.
func (a *actor) follow(ctx context.Context, p Platform) {
	failures := 0
	for ctx.Err() == nil {
		opened := time.Now()
		err := a.followOnce(ctx, p)
		if ctx.Err() != nil {
			return
		}
		if in := fatal(err); in != nil {
			a.tell(ctx, message{in: in})
			return
		}
		if time.Since(opened) > streamHealthy {
			failures = 0
		}
		failures++
		a.log.Debug("stream ended", "failures", failures, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(Backoff{Base: 500 * time.Millisecond, Cap: 10 * time.Second}.Wait(failures, err)):
		}
	}
}

// fatal returns what an error means for the run when trying again is no use, nil
// when it may help.
func fatal(err error) Input {
	switch {
	case Gone(err):
		return SessionOver{How: "deleted"}
	case StatusOf(err) != 0 && !Retryable(err):
		return Rejected{Why: err.Error()}
	}
	return nil
}

func (a *actor) followOnce(ctx context.Context, p Platform) error {
	stream, err := p.Stream(ctx)
	if err != nil {
		return err
	}
	defer stream.Close()
	stop := context.AfterFunc(ctx, func() { stream.Close() }) // unblocks Next
	defer stop()
	if !a.tell(ctx, message{in: Connected{}}) {
		return ctx.Err()
	}
	for {
		ev, err := stream.Next()
		if err != nil {
			a.tell(ctx, message{in: Disconnected{}})
			return err
		}
		if !a.tell(ctx, message{in: Observed{Events: []Event{ev}}}) {
			return ctx.Err()
		}
	}
}

// pageWithin bounds the time for one page of the history, and for the session to
// take it in.
const pageWithin = 2 * time.Minute

var errSilent = errors.New("no page of the history for too long")

// readHistory lists events page by page and reports how it went.
func (a *actor) readHistory(runCtx context.Context, p Platform, e ReadHistory) {
	ctx, cancel := context.WithCancelCause(runCtx)
	defer cancel(nil)
	silence := time.AfterFunc(pageWithin, func() { cancel(errSilent) })
	defer silence.Stop()
	err := p.History(ctx, e.Since, func(page []Event) error {
		if !a.tell(ctx, message{in: Observed{Events: page, Read: e.Read}}) {
			return ctx.Err()
		}
		silence.Reset(pageWithin)
		return nil
	})
	in := fatal(err)
	switch {
	case err == nil:
		in = HistoryRead{Read: e.Read}
	case in == nil:
		if runCtx.Err() == nil {
			a.log.Warn("history not read", "err", errors.Join(err, context.Cause(ctx)))
		}
		in = HistoryFailed{Read: e.Read}
	}
	a.tell(runCtx, message{in: in})
}

// sendTimeout bounds one attempt to post a result (contract §3.4).
const sendTimeout = 15 * time.Second

// errLapsed ends a send whose lease could have lapsed under it.
var errLapsed = errors.New("the lease would lapse before the result arrives")

// post sends one answer while the lease certainly holds.
func (a *actor) post(ctx context.Context, cl *claim, answer Answer) {
	left := cl.lease.left()
	if left <= 0 || cl.lease.ctx.Err() != nil {
		a.tell(ctx, message{in: PostFailed{ID: answer.Call, Err: errLapsed}})
		return
	}
	postCtx, cancel := context.WithTimeout(cl.lease.ctx, min(left, sendTimeout))
	defer cancel()
	if err := cl.platform.Answer(postCtx, answer); err != nil {
		if cl.lease.ctx.Err() == nil {
			a.log.Warn("result not taken", "call", answer.Call, "err", err)
		}
		a.tell(ctx, message{in: PostFailed{ID: answer.Call, Err: err}})
		return
	}
	a.tell(ctx, message{in: PostDone{ID: answer.Call}})
}
