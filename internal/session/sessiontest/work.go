package sessiontest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/berth-dev/berth/internal/session"
)

// This file holds the work items of a Claude and their leases (contract §3).

// TTL is how long a lease lasts after a heartbeat.
const TTL = 30 * time.Second

// reclaim is how long a polled item is kept from others until it is acknowledged.
const reclaim = 5 * time.Second

type item struct {
	id      string
	state   string // queued, starting, active, stopping, stopped
	handed  time.Time
	token   string
	expires time.Time
}

// Poll hands out an item when the session needs a worker: one that is queued,
// one whose lease has lapsed, or a new one when there is work and no item.
func (c *Claude) Poll() *session.Item {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tick()
	now := time.Now()
	var it *item
	if len(c.items) > 0 {
		it = c.items[len(c.items)-1]
		c.lapse(it)
	}
	if it == nil || it.state == "stopped" {
		if !c.pending() || c.log.Ended() != "" {
			return nil
		}
		it = c.newItem()
	}
	if it.state != "queued" || now.Sub(it.handed) < reclaim {
		return nil
	}
	it.handed = now
	return c.item(it)
}

// Hand makes a new item, whatever becomes of the one before, and acknowledges it.
func (c *Claude) Hand() session.Item {
	c.mu.Lock()
	defer c.mu.Unlock()
	it := c.newItem()
	it.state = "starting"
	return *c.item(it)
}

func (c *Claude) newItem() *item {
	it := &item{id: fmt.Sprintf("work_%s_%d", c.Session, len(c.items)+1), state: "queued"}
	c.items = append(c.items, it)
	return it
}

func (c *Claude) item(it *item) *session.Item {
	return &session.Item{ID: it.id, Environment: "env_1", Type: "session", Session: c.Session, Secret: "secret of " + it.id}
}

// Ack acknowledges an item.
func (c *Claude) Ack(work string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if it := c.find(work); it == nil || it.state != "queued" {
		return refuse(409, "conflict_error", "the item is not queued")
	}
	c.find(work).state = "starting"
	return nil
}

// Door opens the platform for an item.
func (c *Claude) Door(it session.Item) session.Platform { return door{c, it.ID} }

// AskBack puts an item into the state stopping, as an operator would.
func (c *Claude) AskBack(work string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.find(work).state = "stopping"
}

// Steal gives an item's lease to somebody else.
func (c *Claude) Steal(work string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	it := c.find(work)
	it.token, it.expires = "somebody else's", time.Now().Add(time.Hour)
}

// Stops returns the items that were stopped, in order, each time it happened.
func (c *Claude) Stops() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.stops)
}

// State returns an item's state.
func (c *Claude) State(work string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	it := c.find(work)
	c.lapse(it)
	return it.state
}

func (c *Claude) find(work string) *item {
	for _, it := range c.items {
		if it.id == work {
			return it
		}
	}
	return nil
}

// lapse puts an item back into the queue when nobody has beaten it in time.
func (c *Claude) lapse(it *item) {
	if it.state == "active" && time.Now().After(it.expires) {
		it.state, it.token, it.handed = "queued", "", time.Time{}
	}
}

func (d door) Heartbeat(ctx context.Context, expected string, _ time.Duration) (b session.Beat, err error) {
	err = d.do(ctx, "heartbeat", "", func() error {
		it := d.find(d.work)
		d.lapse(it)
		actual := it.token
		if actual == "" {
			actual = session.NoHeartbeat
		}
		switch {
		case it.state == "stopping" || it.state == "stopped":
			b = session.Beat{State: it.state, Token: it.token, TTL: TTL}
			return nil
		case it.state == "queued" && expected == session.NoHeartbeat:
			return refuse(400, "invalid_request_error", "the item was not acknowledged")
		case expected != actual:
			return refuse(412, "invalid_request_error", "Heartbeat precondition failed")
		}
		d.beats++
		it.state, it.expires = "active", time.Now().Add(TTL)
		it.token = fmt.Sprintf("beat %d", d.beats)
		b = session.Beat{State: it.state, Token: it.token, Extended: true, TTL: TTL}
		return nil
	})
	if err != nil {
		return session.Beat{}, err
	}
	return b, nil
}

func (d door) Stop(ctx context.Context, _ bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return d.do(ctx, "stop", "", func() error {
		d.stops = append(d.stops, d.work)
		d.find(d.work).state = "stopped"
		return nil
	})
}
