package claude

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"
	"github.com/anthropics/anthropic-sdk-go/v2/packages/param"

	"github.com/berth-dev/berth/internal/session"
)

// This file holds the lease of a work item: keeping it and giving it back.

// maxTTL bounds the lease that a heartbeat may report.
const maxTTL = time.Hour

// Heartbeat extends the lease with one request of at most timeout (0: the
// ordinary bound). An empty expected is sent as NoHeartbeat: it is what the
// platform reports when none was recorded, and leaving the parameter out would
// take the lease from whoever holds it.
func (p *platform) Heartbeat(ctx context.Context, expected string, timeout time.Duration) (session.Beat, error) {
	if expected == "" {
		expected = session.NoHeartbeat
	}
	if timeout <= 0 {
		timeout = p.conn.time.try
	}
	answer, err := p.conn.do(ctx, "heartbeat "+p.work, once(timeout), func(ctx context.Context, opts ...option.RequestOption) error {
		_, err := p.conn.api.Beta.Environments.Work.Heartbeat(ctx, p.work, anthropic.BetaEnvironmentWorkHeartbeatParams{
			EnvironmentID:         p.environment,
			ExpectedLastHeartbeat: param.NewOpt(expected),
		}, opts...)
		return err
	})
	if err != nil {
		return session.Beat{}, err
	}
	var b anthropic.BetaSelfHostedWorkHeartbeatResponse
	if err := json.Unmarshal(answer, &b); err != nil {
		return session.Beat{}, fmt.Errorf("decode heartbeat of %s: %w", p.work, err)
	}
	return session.Beat{
		Token:    b.LastHeartbeat,
		Extended: b.LeaseExtended,
		State:    string(b.State),
		TTL:      time.Duration(min(max(b.TTLSeconds, 0), int64(maxTTL/time.Second))) * time.Second,
	}, nil
}

// Stop ends the work item.
func (p *platform) Stop(ctx context.Context, force bool) error {
	return p.conn.stop(ctx, p.environment, p.work, force)
}

// stop is done also when ctx has ended, and takes no longer than its own bound.
// An item that is stopping or stopped already is what was asked for (409).
func (c *conn) stop(ctx context.Context, environment, work string, force bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.time.stop)
	defer cancel()
	params := anthropic.BetaEnvironmentWorkStopParams{EnvironmentID: environment}
	if force {
		params.BetaSelfHostedWorkStopRequest.Force = param.NewOpt(true)
	}
	p := c.again()
	p.fine = http.StatusConflict
	_, err := c.do(ctx, "stop "+work, p, func(ctx context.Context, opts ...option.RequestOption) error {
		_, err := c.api.Beta.Environments.Work.Stop(ctx, work, params, opts...)
		return err
	})
	return err
}
