package store

import (
	"context"
	"time"

	"github.com/berth-dev/berth/internal/event"
)

// Events returns the log of a session ("" for all) in order of seq: at most
// limit events after the given one.
func (s *Store) Events(ctx context.Context, session string, after int64, limit int) ([]event.Event, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT seq, at, session, type, source, data FROM events
		WHERE (? = '' OR session = ?) AND seq > ? ORDER BY seq LIMIT ?`, session, session, after, limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []event.Event
	for rows.Next() {
		var e event.Event
		var at int64
		var typ string
		var data []byte
		if err := rows.Scan(&e.Seq, &at, &e.Session, &typ, &e.Source, &data); err != nil {
			return nil, err
		}
		e.At, e.Type, e.Data = fromNanos(at), event.Type(typ), data
		out = append(out, e)
	}
	return out, rows.Err()
}

// Webhook is a delivery as it was received and verified.
type Webhook struct {
	ID         string
	Type       string
	Session    string
	ReceivedAt time.Time
	Body       []byte
}

// AddWebhook stores a delivery once. It reports false when the id is known
// already: a repeated delivery.
func (s *Store) AddWebhook(ctx context.Context, w Webhook) (fresh bool, err error) {
	err = s.tx(ctx, func(tx *txn) error {
		res, err := tx.ExecContext(ctx, `INSERT INTO webhooks (id, type, session, received_at, body) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (id) DO NOTHING`, w.ID, w.Type, w.Session, nanos(w.ReceivedAt), w.Body)
		if err != nil {
			return err
		}
		n, err := res.RowsAffected()
		fresh = n == 1
		return err
	})
	return fresh, err
}

// PruneWebhooks removes deliveries received before the given time.
func (s *Store) PruneWebhooks(ctx context.Context, before time.Time) error {
	return s.tx(ctx, func(tx *txn) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM webhooks WHERE received_at < ?`, nanos(before))
		return err
	})
}

// LastEvent returns the seq of the newest event, 0 when there is none.
func (s *Store) LastEvent(ctx context.Context) (int64, error) {
	var seq int64
	return seq, s.read.QueryRowContext(ctx, `SELECT COALESCE(MAX(seq), 0) FROM events`).Scan(&seq)
}
