package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/berth-dev/berth/internal/session"
)

// AgentSettings implements session.Records.
func (s *Store) AgentSettings(ctx context.Context, agent string) (session.AgentSettings, error) {
	a, err := scanAgent(s.read.QueryRowContext(ctx, `SELECT id, settings, revision, changed_at FROM agents WHERE id = ?`, agent))
	if errors.Is(err, sql.ErrNoRows) {
		return session.AgentSettings{Agent: agent}, nil
	}
	return a, err
}

// AllAgentSettings returns what was set for each agent, by id.
func (s *Store) AllAgentSettings(ctx context.Context) ([]session.AgentSettings, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT id, settings, revision, changed_at FROM agents ORDER BY id`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []session.AgentSettings
	for rows.Next() {
		a, err := scanAgent(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, rows.Err()
}

func scanAgent(row scanner) (session.AgentSettings, error) {
	var a session.AgentSettings
	var settings string
	var changed int64
	if err := row.Scan(&a.Agent, &settings, &a.Revision, &changed); err != nil {
		return a, err
	}
	a.ChangedAt = fromNanos(changed)
	if err := json.Unmarshal([]byte(settings), &a.Settings); err != nil {
		return a, fmt.Errorf("agent %s: settings: %w", a.Agent, err)
	}
	return a, nil
}

// putAgent replaces the row if it has the revision before.
func putAgent(ctx context.Context, tx *txn, a *session.AgentSettings) error {
	var stored int64
	err := tx.QueryRowContext(ctx, `SELECT revision FROM agents WHERE id = ?`, a.Agent).Scan(&stored)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if stored != a.Revision-1 {
		return session.ErrStale
	}
	settings, err := json.Marshal(a.Settings)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO agents (id, settings, revision, changed_at) VALUES (?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET settings = excluded.settings, revision = excluded.revision, changed_at = excluded.changed_at`,
		a.Agent, string(settings), a.Revision, nanos(a.ChangedAt))
	return err
}

// AgentsSeen returns the agents of the sessions here, by id; only one with an id
// that is not "".
func (s *Store) AgentsSeen(ctx context.Context, id string) ([]session.AgentSeen, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT agent, agent_name, agent_version, model, sessions, live, updated_at FROM (
			SELECT agent, agent_name, agent_version, model, updated_at,
				ROW_NUMBER() OVER (PARTITION BY agent ORDER BY updated_at DESC, id) AS place,
				COUNT(*) OVER (PARTITION BY agent) AS sessions,
				SUM(CASE WHEN phase <> ? THEN 1 ELSE 0 END) OVER (PARTITION BY agent) AS live
			FROM sessions WHERE agent <> '' AND (? = '' OR agent = ?)
		) AS latest WHERE place = 1 ORDER BY agent`, string(session.Over), id, id)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []session.AgentSeen
	for rows.Next() {
		var a session.AgentSeen
		var last int64
		if err := rows.Scan(&a.ID, &a.Name, &a.Version, &a.Model, &a.Sessions, &a.Live, &last); err != nil {
			return nil, err
		}
		a.LastAt = fromNanos(last)
		out = append(out, a)
	}
	return out, rows.Err()
}

// SessionsOf returns the sessions of an agent that are not over, the one that
// changed last first: at most limit.
func (s *Store) SessionsOf(ctx context.Context, agent string, limit int) ([]session.Record, error) {
	return s.sessions(ctx, `WHERE agent = ? AND phase <> ? ORDER BY updated_at DESC, id LIMIT ?`, agent, string(session.Over), limit)
}
