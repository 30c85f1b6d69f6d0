package session

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/berth-dev/berth/internal/sandbox"
)

// A call may run for an hour, and a guest that hangs would be missed for as long.
// So while calls run the guest is asked for a sign of life now and then. One that gives none is connected to anew, because the
// connection may be what is wrong; one that stays silent has its sandbox
// replaced.
const (
	pulseEvery  = 15 * time.Second
	pulseWithin = 10 * time.Second
	// pulseMisses is how many signs of life in a row may be missing. An agent that
	// uses all of its processor time delays them, and must not lose its sandbox
	// for that.
	pulseMisses = 4
)

// pulse watches over the guest until ctx ends, which it does with the sandbox.
func (a *actor) pulse(ctx context.Context, sb sandbox.Sandbox) {
	tick := time.NewTicker(pulseEvery)
	defer tick.Stop()
	for missed := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if a.running.Load() == 0 {
			missed = 0
			continue
		}
		err := beatOnce(ctx, sb)
		switch {
		case err == nil:
			missed = 0
			continue
		case ctx.Err() != nil, errors.Is(err, sandbox.ErrGone):
			return
		}
		missed++
		a.log.Warn("the guest gave no sign of life", "missed", missed, "err", err)
		if missed >= pulseMisses {
			why := fmt.Sprintf("its guest gave no sign of life for about %s", (pulseMisses * pulseEvery).Round(time.Second))
			a.tell(ctx, message{apply: func() { a.fence(ctx, sb, why) }})
			return
		}
	}
}

// beatOnce asks for one sign of life. A connection on which none comes is closed:
// the next one starts anew, and the calls on it attach again.
func beatOnce(ctx context.Context, sb sandbox.Sandbox) error {
	ctx, cancel := context.WithTimeout(ctx, pulseWithin)
	defer cancel()
	g, err := sb.Guest(ctx)
	if err != nil {
		return err
	}
	if err := g.Ping(ctx); err != nil {
		return errors.Join(err, g.Close())
	}
	return nil
}
