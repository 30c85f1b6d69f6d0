package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/berth-dev/berth/internal/session"
)

// This file is how the store writes. SQLite has one writer, so whoever has the
// writing turn carries out what everybody else asked for meanwhile, in one
// transaction: many sessions at once cost about as many syncs of the disk as one.

// maxBatch bounds what one transaction carries out.
const maxBatch = 128

// writer is the writing connection and those who wait for it.
type writer struct {
	db    *sql.DB
	epoch int64
	turn  chan struct{} // holds a token while somebody has the turn

	mu    sync.Mutex
	queue []*job

	// Of whoever has the turn:
	conn  *sql.Conn // nil until it is needed, and after a failure
	stmts map[string]*sql.Stmt
}

// job is one wish. err may be read after done is closed.
type job struct {
	fn   func(*txn) error
	done chan struct{}
	err  error
}

// txn is a transaction under way. Statements are prepared once and kept. Its
// methods have the form of sql.Tx; their contexts are not looked at, because a
// transaction may carry the changes of several callers.
type txn struct{ w *writer }

// run carries out fn in a fenced transaction, perhaps together with others. It
// waits no longer than ctx for it to begin; fn may be called again when another
// one's failed.
func (w *writer) run(ctx context.Context, fn func(*txn) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	j := &job{fn: fn, done: make(chan struct{})}
	w.mu.Lock()
	w.queue = append(w.queue, j)
	w.mu.Unlock()
	select {
	case w.turn <- struct{}{}:
		w.work(j)
		<-w.turn
	case <-j.done:
	case <-ctx.Done():
		if w.withdraw(j) {
			return fmt.Errorf("begin: %w", ctx.Err())
		}
		<-j.done // somebody is carrying it out
	}
	return j.err
}

// withdraw takes back a wish that nobody has begun.
func (w *writer) withdraw(j *job) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := slices.Index(w.queue, j)
	if at < 0 {
		return false
	}
	w.queue = slices.Delete(w.queue, at, at+1)
	return true
}

// work carries out wishes until j is among those that were. With the turn.
func (w *writer) work(j *job) {
	for {
		select {
		case <-j.done:
			return
		default:
		}
		w.mu.Lock()
		n := min(len(w.queue), maxBatch)
		batch := slices.Clone(w.queue[:n])
		w.queue = slices.Delete(w.queue, 0, n)
		w.mu.Unlock()
		w.batch(batch)
	}
}

// batch carries out wishes together, or each alone when one of them fails, so
// that the others do not suffer from it.
func (w *writer) batch(batch []*job) {
	guilty, err := w.transact(batch)
	for _, j := range batch {
		if j.err = err; guilty && len(batch) > 1 {
			_, j.err = w.transact([]*job{j})
		}
		close(j.done)
	}
}

// transact makes one fenced transaction of wishes. guilty: it failed because of
// one of them, not because nothing can be written.
func (w *writer) transact(batch []*job) (guilty bool, err error) {
	if err := w.connect(); err != nil {
		return false, fmt.Errorf("begin: %w", err)
	}
	defer func() {
		if err == nil {
			return
		}
		// After some failures SQLite has rolled back by itself, and then this
		// fails: a new connection is beyond doubt.
		if _, failed := w.exec(`ROLLBACK`); failed != nil {
			w.disconnect()
		}
	}()
	if _, err := w.exec(`BEGIN IMMEDIATE`); err != nil {
		return false, fmt.Errorf("begin: %w", err)
	}
	var epoch int64
	if err := w.row(`SELECT epoch FROM fence WHERE id = 1`).Scan(&epoch); err != nil {
		return false, fmt.Errorf("check the fence: %w", err)
	}
	if epoch != w.epoch {
		return false, session.ErrFenced
	}
	for _, j := range batch {
		if err := j.fn(&txn{w}); err != nil {
			return true, err
		}
	}
	if _, err := w.exec(`COMMIT`); err != nil {
		return false, fmt.Errorf("commit: %w", err)
	}
	return false, nil
}

// connect makes the connection ready for a transaction.
func (w *writer) connect() error {
	if w.conn != nil {
		return nil
	}
	conn, err := w.db.Conn(context.Background())
	if err != nil {
		return err
	}
	w.conn, w.stmts = conn, map[string]*sql.Stmt{}
	return nil
}

// disconnect gives the connection up; the next transaction makes another.
func (w *writer) disconnect() {
	if w.conn == nil {
		return
	}
	for _, s := range w.stmts {
		_ = s.Close()
	}
	// The pool must not hand it out again.
	_ = w.conn.Raw(func(any) error { return driver.ErrBadConn })
	_ = w.conn.Close()
	w.conn, w.stmts = nil, nil
}

// close waits for the turn and closes the connection.
func (w *writer) close() error {
	w.turn <- struct{}{}
	defer func() { <-w.turn }()
	for _, s := range w.stmts {
		_ = s.Close()
	}
	if w.conn != nil {
		_ = w.conn.Close()
	}
	w.conn, w.stmts = nil, nil
	return w.db.Close()
}

func (w *writer) prepare(query string) (*sql.Stmt, error) {
	if s := w.stmts[query]; s != nil {
		return s, nil
	}
	if w.conn == nil {
		return nil, errors.New("there is no connection")
	}
	s, err := w.conn.PrepareContext(context.Background(), query)
	if err == nil {
		w.stmts[query] = s
	}
	return s, err
}

func (w *writer) exec(query string, args ...any) (sql.Result, error) {
	s, err := w.prepare(query) //nolint:sqlclosecheck // it is kept for the next time
	if err != nil {
		return nil, err
	}
	return s.ExecContext(context.Background(), args...)
}

// row is the one row of a query, or why there is none.
func (w *writer) row(query string, args ...any) scanner {
	s, err := w.prepare(query) //nolint:sqlclosecheck // it is kept for the next time
	if err != nil {
		return noRow{err}
	}
	return s.QueryRowContext(context.Background(), args...)
}

type noRow struct{ err error }

func (r noRow) Scan(...any) error { return r.err }

// ExecContext carries out a statement without rows.
func (t *txn) ExecContext(_ context.Context, query string, args ...any) (sql.Result, error) {
	return t.w.exec(query, args...)
}

// QueryRowContext returns the one row of a query, or why there is none.
func (t *txn) QueryRowContext(_ context.Context, query string, args ...any) scanner {
	return t.w.row(query, args...)
}
