package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/session"
)

var _ session.Records = (*Store)(nil)

// Commit stores a change and its events in one transaction.
func (s *Store) Commit(ctx context.Context, c session.Change) error {
	return s.tx(ctx, func(tx *txn) error {
		if c.NewSession != nil {
			if err := putSession(ctx, tx, c.NewSession, false); err != nil {
				return fmt.Errorf("add session %s: %w", c.NewSession.ID, err)
			}
		}
		if c.Session != nil {
			if err := putSession(ctx, tx, c.Session, true); err != nil {
				return fmt.Errorf("store session %s: %w", c.Session.ID, err)
			}
		}
		if c.Work != nil {
			if err := putWork(ctx, tx, c.Work); err != nil {
				return fmt.Errorf("store work %s: %w", c.Work.ID, err)
			}
		}
		if c.Session != nil && c.Session.Phase == session.Over {
			if _, err := tx.ExecContext(ctx, `DELETE FROM memories WHERE session = ?`, c.Session.ID); err != nil {
				return fmt.Errorf("forget the memories of %s: %w", c.Session.ID, err)
			}
		}
		if c.Memory != nil {
			if err := putMemories(ctx, tx, c.Memory); err != nil {
				return fmt.Errorf("store memories of %s: %w", c.Memory.Store, err)
			}
		}
		for _, call := range c.Calls {
			if err := putCall(ctx, tx, c.CallsOf, call); err != nil {
				return fmt.Errorf("store call %s: %w", call.ID, err)
			}
		}
		if c.Agent != nil {
			if err := putAgent(ctx, tx, c.Agent); err != nil {
				return fmt.Errorf("store settings of %s: %w", c.Agent.Agent, err)
			}
		}
		for i := range c.Events {
			if err := addEvent(ctx, tx, &c.Events[i]); err != nil {
				return fmt.Errorf("store event %s: %w", c.Events[i].Type, err)
			}
		}
		return nil
	})
}

func putSession(ctx context.Context, tx *txn, r *session.Record, replace bool) error {
	memo, err := json.Marshal(r.Memo)
	if err != nil {
		return err
	}
	waiting, err := json.Marshal(r.Waiting)
	if err != nil {
		return err
	}
	ref := ""
	if r.Sandbox != nil {
		ref = sandbox.MarshalRef(*r.Sandbox)
	}
	var profile []byte
	if r.Profile != nil {
		if profile, err = json.Marshal(r.Profile); err != nil {
			return err
		}
	}
	onConflict := `ON CONFLICT (id) DO NOTHING`
	if replace {
		onConflict = `ON CONFLICT (id) DO UPDATE SET environment = excluded.environment, agent = excluded.agent,
			agent_name = excluded.agent_name, agent_version = excluded.agent_version, model = excluded.model, title = excluded.title,
			phase = excluded.phase, memo = excluded.memo, waiting = excluded.waiting, backend = excluded.backend,
			sandbox = excluded.sandbox, sandbox_since = excluded.sandbox_since, updated_at = excluded.updated_at,
			ended_at = excluded.ended_at, end_reason = excluded.end_reason,
			profile = excluded.profile, revision = excluded.revision`
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO sessions (id, environment, agent, agent_name, agent_version, model, title, phase, memo,
			waiting, backend, sandbox, sandbox_since, created_at, updated_at, ended_at, end_reason, profile, revision)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) `+onConflict,
		r.ID, r.Environment, r.Agent, r.AgentName, r.AgentVersion, r.Model, r.Title, string(r.Phase), string(memo),
		string(waiting), r.Backend, ref, nanos(r.SandboxSince), nanos(r.CreatedAt), nanos(r.UpdatedAt), nanos(r.EndedAt), r.EndReason,
		string(profile), r.Revision)
	return err
}

func putWork(ctx context.Context, tx *txn, w *session.Work) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO work (id, session, environment, state, secret, token, ttl, beat_at, claimed_at, ended_at, why)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET session = excluded.session, environment = excluded.environment, state = excluded.state,
			secret = excluded.secret, token = excluded.token, ttl = excluded.ttl, beat_at = excluded.beat_at,
			claimed_at = excluded.claimed_at, ended_at = excluded.ended_at, why = excluded.why`,
		w.ID, w.Session, w.Environment, string(w.State), w.Secret, w.Token, int64(w.TTL), nanos(w.BeatAt), nanos(w.ClaimedAt), nanos(w.EndedAt), w.Why)
	return err
}

func putCall(ctx context.Context, tx *txn, sessionID string, c *session.Call) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO calls (session, id, seq, thread, name, custom, input, permission, processed_at, state,
			seen_at, started_at, finished_at, done_at, instance, content, is_error, reason)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (session, id) DO UPDATE SET processed_at = excluded.processed_at, state = excluded.state, started_at = excluded.started_at,
			finished_at = excluded.finished_at, done_at = excluded.done_at, instance = excluded.instance,
			content = COALESCE(excluded.content, calls.content), is_error = excluded.is_error, reason = excluded.reason`,
		sessionID, c.ID, c.Seq, c.Thread, c.Name, c.Custom, []byte(c.Input), c.Permission, nanos(c.ProcessedAt), string(c.State),
		nanos(c.SeenAt), nanos(c.StartedAt), nanos(c.FinishedAt), nanos(c.DoneAt), c.Instance, orNull(c.Content), c.IsError, c.Reason)
	return err
}

// orNull stores nothing instead of an empty value, so that COALESCE keeps what
// is there.
func orNull(b []byte) any {
	if len(b) == 0 {
		return nil
	}
	return b
}

func addEvent(ctx context.Context, tx *txn, e *event.Event) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO events (at, session, type, source, data) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (session, source) WHERE source <> '' DO NOTHING`,
		nanos(e.At), e.Session, string(e.Type), e.Source, []byte(e.Data))
	return err
}

const sessionColumns = `id, environment, agent, agent_name, agent_version, model, title, phase, memo, waiting, backend, sandbox,
	sandbox_since, created_at, updated_at, ended_at, end_reason, profile, revision`

type scanner interface{ Scan(dest ...any) error }

func scanSession(row scanner) (session.Record, error) {
	var r session.Record
	var phase, memo, waiting, ref, profile string
	var since, created, updated, ended int64
	err := row.Scan(&r.ID, &r.Environment, &r.Agent, &r.AgentName, &r.AgentVersion, &r.Model, &r.Title, &phase, &memo, &waiting,
		&r.Backend, &ref, &since, &created, &updated, &ended, &r.EndReason, &profile, &r.Revision)
	if err != nil {
		return r, err
	}
	r.Phase, r.SandboxSince, r.CreatedAt = session.Phase(phase), fromNanos(since), fromNanos(created)
	r.UpdatedAt, r.EndedAt = fromNanos(updated), fromNanos(ended)
	if err := json.Unmarshal([]byte(memo), &r.Memo); err != nil {
		return r, fmt.Errorf("session %s: memo: %w", r.ID, err)
	}
	if err := json.Unmarshal([]byte(waiting), &r.Waiting); err != nil {
		return r, fmt.Errorf("session %s: waiting: %w", r.ID, err)
	}
	if ref != "" {
		parsed, err := sandbox.UnmarshalRef(ref)
		if err != nil {
			return r, fmt.Errorf("session %s: sandbox: %w", r.ID, err)
		}
		r.Sandbox = &parsed
	}
	if profile != "" {
		if err := json.Unmarshal([]byte(profile), &r.Profile); err != nil {
			return r, fmt.Errorf("session %s: profile: %w", r.ID, err)
		}
	}
	return r, nil
}

// Session returns one session. fault.NotFound when there is none.
func (s *Store) Session(ctx context.Context, id string) (session.Record, error) {
	r, err := scanSession(s.read.QueryRowContext(ctx, `SELECT `+sessionColumns+` FROM sessions WHERE id = ?`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return r, fault.New(fault.NotFound, "there is no session %q here", id).WithNext("list them with: berth sessions list")
	}
	return r, err
}

// LoadSession implements session.Records.
func (s *Store) LoadSession(ctx context.Context, id string) (session.Record, []session.Call, error) {
	r, err := s.Session(ctx, id)
	if err != nil {
		return r, nil, err
	}
	calls, err := s.calls(ctx, `CASE WHEN state IN ('posted', 'settled') THEN NULL ELSE input END`,
		`CASE WHEN state IN ('posted', 'settled') THEN NULL ELSE content END`, `WHERE session = ? ORDER BY seq`, id)
	return r, calls, err
}

// LoadCall implements session.Records.
func (s *Store) LoadCall(ctx context.Context, sessionID, id string) (session.Call, error) {
	calls, err := s.calls(ctx, `input`, `content`, `WHERE session = ? AND id = ?`, sessionID, id)
	if err == nil && len(calls) == 0 {
		err = fault.New(fault.NotFound, "session %s has no call %q", sessionID, id)
	}
	if err != nil {
		return session.Call{}, err
	}
	return calls[0], nil
}

// LiveSessions implements session.Records.
func (s *Store) LiveSessions(ctx context.Context) ([]session.Record, error) {
	return s.sessions(ctx, `WHERE phase <> ? ORDER BY created_at`, string(session.Over))
}

// Sessions returns sessions, the one that changed last first: at most limit of
// those that changed before the given time (zero: all).
func (s *Store) Sessions(ctx context.Context, before time.Time, limit int) ([]session.Record, error) {
	latest := int64(math.MaxInt64)
	if !before.IsZero() {
		latest = nanos(before)
	}
	return s.sessions(ctx, `WHERE updated_at < ? ORDER BY updated_at DESC, id LIMIT ?`, latest, limit)
}

func (s *Store) sessions(ctx context.Context, where string, args ...any) ([]session.Record, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT `+sessionColumns+` FROM sessions `+where, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []session.Record
	for rows.Next() {
		r, err := scanSession(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, rows.Err()
}

// Calls returns the ledger of a session in order of arrival: at most limit calls
// after the given seq, with inputs and results.
func (s *Store) Calls(ctx context.Context, sessionID string, after int64, limit int) ([]session.Call, error) {
	return s.calls(ctx, `input`, `content`, `WHERE session = ? AND seq > ? ORDER BY seq LIMIT ?`, sessionID, after, limit)
}

func (s *Store) calls(ctx context.Context, input, content, where string, args ...any) ([]session.Call, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT id, seq, thread, name, custom, `+input+`, permission, processed_at, state, seen_at,
		started_at, finished_at, done_at, instance, `+content+`, is_error, reason FROM calls `+where, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []session.Call
	for rows.Next() {
		var c session.Call
		var state string
		var in, result []byte
		var processed, seen, started, finished, done int64
		err := rows.Scan(&c.ID, &c.Seq, &c.Thread, &c.Name, &c.Custom, &in, &c.Permission, &processed, &state, &seen,
			&started, &finished, &done, &c.Instance, &result, &c.IsError, &c.Reason)
		if err != nil {
			return nil, err
		}
		c.Input, c.Content, c.State = in, result, session.CallState(state)
		c.ProcessedAt, c.SeenAt, c.StartedAt = fromNanos(processed), fromNanos(seen), fromNanos(started)
		c.FinishedAt, c.DoneAt = fromNanos(finished), fromNanos(done)
		out = append(out, c)
	}
	return out, rows.Err()
}

const workColumns = `id, session, environment, state, secret, token, ttl, beat_at, claimed_at, ended_at, why`

// OpenWork implements session.Records.
func (s *Store) OpenWork(ctx context.Context) ([]session.Work, error) {
	return s.work(ctx, `WHERE state IN (?, ?) ORDER BY claimed_at`, string(session.WorkClaimed), string(session.WorkHeld))
}

// Work returns the work items of a session, oldest first, without secrets.
func (s *Store) Work(ctx context.Context, sessionID string) ([]session.Work, error) {
	work, err := s.work(ctx, `WHERE session = ? ORDER BY claimed_at`, sessionID)
	for i := range work {
		work[i].Secret = nil
	}
	return work, err
}

func (s *Store) work(ctx context.Context, where string, args ...any) ([]session.Work, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT `+workColumns+` FROM work `+where, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []session.Work
	for rows.Next() {
		var w session.Work
		var state string
		var ttl, beat, claimed, ended int64
		if err := rows.Scan(&w.ID, &w.Session, &w.Environment, &state, &w.Secret, &w.Token, &ttl, &beat, &claimed, &ended, &w.Why); err != nil {
			return nil, err
		}
		w.State, w.TTL, w.BeatAt = session.WorkState(state), time.Duration(ttl), fromNanos(beat)
		w.ClaimedAt, w.EndedAt = fromNanos(claimed), fromNanos(ended)
		out = append(out, w)
	}
	return out, rows.Err()
}
