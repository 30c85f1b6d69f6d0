package store

import (
	"context"

	"github.com/berth-dev/berth/internal/memory"
	"github.com/berth-dev/berth/internal/session"
)

// putMemories stores what changed about one memory store.
func putMemories(ctx context.Context, tx *txn, c *session.MemoryChange) error {
	put := func(path string, k memory.Known, keep bool) error {
		if !keep {
			_, err := tx.ExecContext(ctx, `DELETE FROM memories WHERE session = ? AND store = ? AND path = ?`, c.Session, c.Store, path)
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO memories (session, store, path, sha256, sent) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (session, store, path) DO UPDATE SET sha256 = excluded.sha256, sent = excluded.sent`,
			c.Session, c.Store, path, k.SHA256, k.Sent)
		return err
	}
	for path, k := range c.Rows {
		if path == "" {
			continue // no file has this path
		}
		if err := put(path, k, k != memory.Known{}); err != nil {
			return err
		}
	}
	return put("", memory.Known{}, c.Ready)
}

// LoadMemory implements session.Records.
func (s *Store) LoadMemory(ctx context.Context, sessionID, storeID string) (map[string]memory.Known, bool, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT path, sha256, sent FROM memories WHERE session = ? AND store = ?`, sessionID, storeID)
	if err != nil {
		return nil, false, err
	}
	defer rows.Close()
	known, ready := map[string]memory.Known{}, false
	for rows.Next() {
		var path string
		var k memory.Known
		if err := rows.Scan(&path, &k.SHA256, &k.Sent); err != nil {
			return nil, false, err
		}
		if path == "" {
			ready = true
		} else {
			known[path] = k
		}
	}
	return known, ready, rows.Err()
}
