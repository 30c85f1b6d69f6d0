// Package store is the only place that knows SQL. It keeps sessions, the ledger
// of calls, work items, webhooks and the event log in one SQLite database (WAL);
// the statements are portable, so that another dialect can follow.
//
// Times are stored as Unix nanoseconds, zero for "never". Every write happens in
// a transaction that first checks the fence: a process that lost its data
// directory to a successor fails with session.ErrFenced.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/berth-dev/berth/internal/fault"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Store is an open database. Safe for concurrent use.
type Store struct {
	writer *writer
	read   *sql.DB
	lock   *os.File
	path   string
}

// fileName is the name of the database in its directory.
const fileName = "berth.db"

// Lock takes a data directory without opening its database: fault.Conflict when
// a process has it. Closing the result gives it up.
func Lock(dir string) (io.Closer, error) { return lockDir(dir) }

// reserveSize is the space that is held back for the next start, in bytes.
const reserveSize = 4 << 20

// maxReaders bounds the connections that read at the same time.
const maxReaders = 4

// Open opens the database of a data directory, creating and migrating it, and
// takes it over from whoever wrote it before. The directory is locked while the
// store is open: fault.Conflict when another process has it.
func Open(ctx context.Context, dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "the data directory cannot be made").WithField("data_dir").
			WithNext("set BERTH_DATA_DIR to a folder that you may write to")
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	// The reserve is given up for the start, so that a full disk does not keep
	// the server from coming up and making room.
	reserve := filepath.Join(dir, "reserve")
	_ = os.Remove(reserve) // there may be none
	s, err := open(ctx, filepath.Join(dir, fileName))
	if err != nil {
		lock.Close()
		if fault.CodeOf(err) != fault.Internal {
			return nil, err
		}
		return nil, fault.Wrap(err, fault.Unavailable, "the database in %s cannot be opened", dir).
			WithNext("check that its disk has room and that this user may write there")
	}
	_ = os.WriteFile(reserve, make([]byte, reserveSize), 0o600) // without room for it there is none
	s.lock = lock
	return s, nil
}

func open(ctx context.Context, path string) (*Store, error) {
	// SQLite gives its other files the mode of the first, which it would make
	// readable for everybody.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Chmod(0o600), f.Close()); err != nil {
		return nil, err
	}
	s := &Store{path: path}
	wasUnclean := unclean(path)
	if err := checkLog(path + "-wal"); err != nil {
		return nil, damaged(path, err)
	}
	write, err := connect(path, "immediate", 1)
	if err != nil {
		return nil, err
	}
	if wasUnclean {
		err = examine(ctx, write, path, "quick_check", checkWithin)
		if errors.Is(err, context.DeadlineExceeded) {
			err = nil // too large to be looked at now
		}
	}
	if err == nil {
		err = migrate(ctx, write)
	}
	if err == nil { // a log begins anew with each process: see checkLog
		_, err = write.ExecContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`)
	}
	if err != nil {
		write.Close()
		return nil, s.named(err)
	}
	read, err := connect(path, "deferred", maxReaders)
	if err != nil {
		write.Close()
		return nil, err
	}
	s.writer, s.read = &writer{db: write, turn: make(chan struct{}, 1)}, read
	err = write.QueryRowContext(ctx, `UPDATE fence SET epoch = epoch + 1 WHERE id = 1 RETURNING epoch`).Scan(&s.writer.epoch)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take over the database: %w", s.named(err)), write.Close(), read.Close())
	}
	return s, nil
}

func connect(path, txlock string, conns int) (*sql.DB, error) {
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() + "?_txlock=" + txlock +
		"&_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=foreign_keys(ON)"
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}

func migrate(ctx context.Context, db *sql.DB) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, files)
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate the database: %w", err)
	}
	return nil
}

// Epoch is the number of times that the database was taken over.
func (s *Store) Epoch() int64 { return s.writer.epoch }

// Ping reports whether the database can be read and written.
func (s *Store) Ping(ctx context.Context) error {
	return s.tx(ctx, func(tx *txn) error {
		_, err := tx.ExecContext(ctx, `UPDATE fence SET epoch = epoch WHERE id = 1`)
		return err
	})
}

// Close closes the database and gives up the directory.
func (s *Store) Close() error {
	err := errors.Join(s.read.Close(), s.writer.close())
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	return err
}

// tx runs fn in a fenced transaction, perhaps together with others.
func (s *Store) tx(ctx context.Context, fn func(*txn) error) error {
	return s.named(s.writer.run(ctx, fn))
}

// nanos is the stored form of a time.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// fromNanos is its inverse.
func fromNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}
