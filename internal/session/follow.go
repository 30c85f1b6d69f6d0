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
		switch {
		case StatusOf(err) == 404:
			a.tell(ctx, message{in: SessionOver{How: "deleted"}})
			return
		case StatusOf(err) != 0 && !Retryable(err):
			a.tell(ctx, message{in: Rejected{Why: err.Error()}})
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

// readHistory lists events page by page and reports how it went.
func (a *actor) readHistory(ctx context.Context, p Platform, e ReadHistory) {
	err := p.History(ctx, e.Since, func(page []Event) error {
		if !a.tell(ctx, message{in: Observed{Events: page, Read: e.Read}}) {
			return ctx.Err()
		}
		return nil
	})
	switch {
	case err == nil:
		a.tell(ctx, message{in: HistoryRead{Read: e.Read}})
	case StatusOf(err) == 404:
		a.tell(ctx, message{in: SessionOver{How: "deleted"}})
	case StatusOf(err) != 0 && !Retryable(err):
		a.tell(ctx, message{in: Rejected{Why: err.Error()}})
	default:
		if ctx.Err() == nil {
			a.log.Warn("history not read", "err", err)
		}
		a.tell(ctx, message{in: HistoryFailed{Read: e.Read}})
	}
}

// sendTimeout bounds one attempt to post a result (contract §3.4).
const sendTimeout = 15 * time.Second

// errLapsed ends a send whose lease could have lapsed under it.
var errLapsed = errors.New("the lease would lapse before the result arrives")

// post sends one answer while the lease certainly holds.
func (a *actor) post(ctx context.Context, cl *claim, answer Answer) {
	left := cl.lease.validUntil().Sub(a.keeper.now())
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
