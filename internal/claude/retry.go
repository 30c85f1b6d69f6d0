package claude

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2/option"

	"github.com/berth-dev/berth/internal/session"
)

// plan says how often a call is made and how long each attempt may take.
type plan struct {
	attempts int
	try      time.Duration
	limit    int64 // of the answer, in bytes; 0 means maxReply
	fine     int   // a refusal with this status is success
}

// once is for calls whose caller must find out first whether a lost one arrived.
func once(try time.Duration) plan { return plan{attempts: 1, try: try} }

// again is for calls that may be repeated without harm.
func (c *conn) again() plan { return plan{attempts: 3, try: c.time.try} }

// request is one SDK call that takes further options.
type request func(ctx context.Context, opts ...option.RequestOption) error

// do makes a call by its plan and returns the body of a 2xx answer, whatever
// its content type: an empty 204 is an empty body. Attempts stop when the error
// is not worth repeating (repeatable), when the platform asks for a
// longer pause than we hold a caller for, or when ctx or the call's total time
// ends; the error is then that of the last attempt.
func (c *conn) do(ctx context.Context, what string, p plan, send request) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, max(c.time.total, p.try))
	defer cancel()
	for attempt := 1; ; attempt++ {
		answer, err := c.try(ctx, what, p, send)
		if err == nil || p.fine != 0 && session.StatusOf(err) == p.fine {
			return answer, nil
		}
		if attempt >= p.attempts || !repeatable(err) || errors.Is(err, errTooLarge) {
			return nil, err
		}
		if !c.pause(ctx, attempt, err) {
			return nil, err
		}
	}
}

// repeatable reports whether a call may be made again at once: when it may succeed
// later, unless the platform asks not to.
func repeatable(err error) bool {
	if r, ok := errors.AsType[*session.Refusal](err); ok && r.Retry != nil {
		return *r.Retry
	}
	return session.Retryable(err)
}

func (c *conn) try(ctx context.Context, what string, p plan, send request) ([]byte, error) {
	var (
		answer []byte
		res    *http.Response
	)
	err := send(ctx,
		option.WithRequestTimeout(p.try),
		option.WithMiddleware(boundReply(cmp.Or(p.limit, maxReply))),
		option.WithResponseBodyInto(&answer),
		option.WithResponseInto(&res),
	)
	if err == nil && res != nil && res.StatusCode/100 != 2 {
		err = c.finish(&session.Refusal{Status: res.StatusCode, RequestID: res.Header.Get("request-id")})
	}
	if err != nil {
		return nil, c.explain(ctx, what, err)
	}
	return answer, nil
}

// pause waits before the next attempt; false when that would be too long.
func (c *conn) pause(ctx context.Context, failures int, err error) bool {
	var r *session.Refusal
	if errors.As(err, &r) && r.RetryAfter > c.time.pause {
		return false
	}
	wait := c.time.retry.Wait(failures, err)
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < wait {
		return false
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
