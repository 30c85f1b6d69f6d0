package claude

import (
	"context"
	"fmt"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"

	"github.com/berth-dev/berth/internal/session"
)

// Stream opens the live event stream with one attempt: the caller reconnects
// and lists the history anyway. The stream lives until Close or until ctx ends.
func (p *platform) Stream(ctx context.Context) (session.Stream, error) {
	what := "stream events of " + p.session
	l, err := p.conn.open(ctx, what, once(0), func(ctx context.Context, opts ...option.RequestOption) error {
		return p.conn.api.Beta.Sessions.Events.StreamEvents(ctx, p.session, anthropic.BetaSessionEventStreamParams{}, opts...).Err()
	})
	if err != nil {
		return nil, err
	}
	return &stream{conn: p.conn, what: what, live: l, frames: newFrames(l, maxFrame)}, nil
}

// stream reads one connection. The SDK's own decoder would do, were it not that
// it drops frames without a name, hides the keep-alive comments that tell a
// quiet connection from a dead one, and fails on events it does not know how to
// decode.
type stream struct {
	conn   *conn
	what   string
	live   *live
	frames *frames
}

// Next returns the next event. io.EOF: the platform closed the stream.
// *session.Refusal: it said why. net.ErrClosed: Close was called. Every error is
// final, also the one of an event that is not JSON: it may have been a call, and
// only the history can tell.
func (s *stream) Next() (session.Event, error) {
	for {
		name, data, err := s.frames.next()
		if err != nil {
			return session.Event{}, err
		}
		switch name {
		case "ping":
			continue
		case "error":
			r := parseEnvelope(data)
			r.Status = statusOf(r.Type)
			if r.RequestID == "" {
				r.RequestID = s.live.res.Header.Get("request-id")
			}
			return session.Event{}, fmt.Errorf("%s: %w", s.what, s.conn.finish(r))
		}
		e, err := decodeEvent(data)
		if err != nil {
			return session.Event{}, fmt.Errorf("%s: decode event: %w", s.what, err)
		}
		if e.Type == "ping" {
			continue
		}
		return e, nil
	}
}

// Close ends the stream and unblocks Next at once. It is idempotent.
func (s *stream) Close() error { return s.live.Close() }
