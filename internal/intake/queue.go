package intake

import (
	"context"
	"time"

	"github.com/berth-dev/berth/internal/session"
)

// Queue is one environment's work queue (contract §2.2), spoken to with the
// environment key. internal/claude implements it. Safe for concurrent use.
// Errors are *session.Refusal when the platform answered.
type Queue interface {
	// Environment is the id of the environment that this queue belongs to.
	Environment() string
	// Poll asks for one item and waits up to block for it (999 ms at most; zero
	// returns at once); nil without an error when there is none.
	Poll(ctx context.Context, block time.Duration) (*session.Item, error)
	// Ack claims a polled item.
	Ack(ctx context.Context, workID string) error
	// ForceStop ends an item that no session will run; a 409 is success.
	ForceStop(ctx context.Context, workID string) error
	// Platform opens the door for one item, with the item's own token when its
	// secret has one, else with the environment key and a warning in the log.
	Platform(item session.Item) session.Platform
	// Stats reads the depth of the queue.
	Stats(ctx context.Context) (Stats, error)
}

// Stats is what the platform knows of its queue.
type Stats struct {
	Depth        int64     `json:"depth"`   // waiting to be claimed
	Pending      int64     `json:"pending"` // handed out, not acknowledged
	OldestQueued time.Time `json:"oldest_queued_at,omitzero"`
	Pollers      int64     `json:"workers_polling"`
}
