package claude

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"
	"github.com/anthropics/anthropic-sdk-go/v2/packages/param"

	"github.com/berth-dev/berth/internal/session"
)

// Bounds of a listing. A page that is larger than maxReply is asked for again
// with fewer events, down to one.
const (
	pageLimit = 1000
	maxPages  = 10_000
)

// History lists the events of the session, oldest first. Pages without events
// are followed but not handed over.
func (p *platform) History(ctx context.Context, since time.Time, yield func([]session.Event) error) error {
	params := anthropic.BetaSessionEventListParams{
		Limit: param.NewOpt[int64](pageLimit),
		Order: anthropic.BetaSessionEventListParamsOrderAsc,
	}
	if !since.IsZero() {
		// Sent in whole seconds, rounded down: at worst an event is seen twice.
		params.CreatedAtGte = param.NewOpt(since.UTC().Truncate(time.Second))
	}
	for range maxPages {
		events, next, err := p.page(ctx, params)
		if errors.Is(err, errTooLarge) && params.Limit.Value > 1 {
			params.Limit = param.NewOpt(max(params.Limit.Value/10, 1))
			continue
		}
		if err != nil {
			return err
		}
		if len(events) > 0 {
			if err := yield(events); err != nil {
				return err
			}
		}
		switch next {
		case "":
			return nil
		case params.Page.Value:
			return fmt.Errorf("list events of %s: the platform repeats page %q", p.session, next)
		}
		params.Page = param.NewOpt(next)
	}
	return fmt.Errorf("list events of %s: more than %d pages", p.session, maxPages)
}

func (p *platform) page(ctx context.Context, params anthropic.BetaSessionEventListParams) ([]session.Event, string, error) {
	answer, err := p.conn.do(ctx, "list events of "+p.session, p.conn.again(), func(ctx context.Context, opts ...option.RequestOption) error {
		_, err := p.conn.api.Beta.Sessions.Events.List(ctx, p.session, params, opts...)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	var page struct {
		Data []json.RawMessage `json:"data"`
		Next string            `json:"next_page"`
	}
	if err := json.Unmarshal(answer, &page); err != nil {
		return nil, "", fmt.Errorf("decode events of %s: %w", p.session, err)
	}
	events := make([]session.Event, 0, len(page.Data))
	for _, raw := range page.Data {
		e, err := decodeEvent(raw)
		if err != nil {
			// Nothing can be done for an entry that is no event, and the rest
			// of the session must not wait for it.
			p.conn.log.Warn("skipped an entry that is no event", "session", p.session, "err", err)
			continue
		}
		events = append(events, e)
	}
	return events, page.Next, nil
}
