package claude

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2/option"

	"github.com/berth-dev/berth/internal/session"
)

// errSilent is why a body without data for too long was given up.
var errSilent = errors.New("no data for too long; the connection is taken for dead")

// live is an answer whose body is read as it arrives. A body that stays silent
// for too long ends with errSilent. Not safe for concurrent use, except Close.
type live struct {
	what   string
	res    *http.Response
	cancel context.CancelCauseFunc // of the request; ends a blocked Read
	cause  func() error            // why the request ended; nil while it lives
	silent time.Duration
}

// open makes a request and returns once its 2xx header is there. The body lives
// until Close, or until ctx ends. Attempts follow p; p.try is not used.
func (c *conn) open(ctx context.Context, what string, p plan, send request) (*live, error) {
	for attempt := 1; ; attempt++ {
		l, err := c.openOnce(ctx, what, send)
		if err == nil || attempt >= p.attempts || !repeatable(err) || !c.pause(ctx, attempt, err) {
			return l, err
		}
	}
}

func (c *conn) openOnce(ctx context.Context, what string, send request) (*live, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	late := time.AfterFunc(c.time.open, func() {
		cancel(fmt.Errorf("no answer within %v: %w", c.time.open, context.DeadlineExceeded))
	})
	var res *http.Response
	err := send(ctx, option.WithResponseBodyInto(&res))
	inTime := late.Stop()
	switch {
	case err != nil:
		err = c.explain(ctx, what, err)
	case !inTime:
		err = fmt.Errorf("%s: %w", what, context.Cause(ctx))
	case res.StatusCode/100 != 2:
		err = fmt.Errorf("%s: %w", what,
			c.finish(&session.Refusal{Status: res.StatusCode, RequestID: res.Header.Get("request-id")}))
	}
	if err != nil {
		cancel(err)
		if res != nil && res.Body != nil {
			res.Body.Close()
		}
		return nil, err
	}
	cause := func() error { return context.Cause(ctx) }
	return &live{what: what, res: res, cancel: cancel, cause: cause, silent: c.time.silent}, nil
}

// Read reads from the body.
func (l *live) Read(p []byte) (int, error) {
	watch := time.AfterFunc(l.silent, func() { l.cancel(errSilent) })
	n, err := l.res.Body.Read(p)
	watch.Stop()
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := l.cause(); cause != nil {
			err = cause
		}
		err = fmt.Errorf("%s: %w", l.what, err)
	}
	return n, err
}

// Close gives the connection up; a Read that is under way returns net.ErrClosed.
// It is idempotent.
func (l *live) Close() error {
	l.cancel(net.ErrClosed)
	return l.res.Body.Close()
}
