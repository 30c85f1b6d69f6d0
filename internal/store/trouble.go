package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/berth-dev/berth/internal/fault"
)

// This file is about what a disk does to a database: it is full, read-only,
// slow, or gives back other bytes than were written. Each has its own words and
// its own next step, because each is mended differently.

// named gives a failure of the database the words of whoever has to mend it.
func (s *Store) named(err error) error {
	var e *sqlite.Error
	if !errors.As(err, &e) || fault.CodeOf(err) != fault.Internal {
		return err
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_FULL:
		return fault.Wrap(err, fault.Unavailable, "the disk of the data directory is full").
			WithNext("make room on it; work goes on by itself")
	case sqlite3.SQLITE_READONLY:
		return fault.Wrap(err, fault.Unavailable, "the data directory cannot be written: its disk is read-only").
			WithNext("look into the kernel's log for why, and mount it writable")
	case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN:
		return fault.Wrap(err, fault.Unavailable, "the disk of the data directory fails").
			WithNext("look into the kernel's log")
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return fault.Wrap(err, fault.Unavailable, "another program holds the database").
			WithNext("end what has berth.db open beside the server; work goes on by itself")
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return damaged(s.path, err)
	}
	return err
}

// damaged is what is said of a database that gives back other bytes than were
// written. A server does not repair it: what the ledger said is what keeps calls
// from running twice.
func damaged(path string, err error) error {
	next := "stop the server and follow docs/recovery.md"
	if info, missing := os.Stat(path + copySuffix); missing == nil {
		next += fmt.Sprintf("; %s is a good copy of %s", path+copySuffix, info.ModTime().UTC().Format(time.DateTime))
	}
	return fault.Wrap(err, fault.Unavailable, "the database %s is damaged", path).WithNext("%s", next)
}

// checkWithin bounds the look at a database after an unclean end; one that is
// too large for it is looked at by berth doctor.
const checkWithin = 10 * time.Second

// unclean reports whether the last process did not close the database.
func unclean(path string) bool {
	info, err := os.Stat(path + "-wal")
	return err == nil && info.Size() > 0
}

// examine looks for damage, within a time: an error is damage, or why it could
// not be looked for.
func examine(ctx context.Context, db *sql.DB, path, how string, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	rows, err := db.QueryContext(ctx, `PRAGMA `+how+`(3)`)
	if err != nil {
		return err
	}
	defer rows.Close()
	var found []string
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return err
		}
		if line != "ok" {
			found = append(found, strings.TrimSpace(line))
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if len(found) > 0 {
		return damaged(path, errors.New(strings.Join(found, "; ")))
	}
	return nil
}

// Check looks at the database of a data directory, that of a running server
// too, and changes nothing. It returns what it found in one line.
func Check(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, fileName)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return "there is none yet", nil
	}
	if err := checkLog(path + "-wal"); err != nil {
		return "", damaged(path, err)
	}
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?mode=ro&_pragma=busy_timeout(2000)")
	if err != nil {
		return "", err
	}
	defer db.Close()
	began := time.Now()
	switch err := examine(ctx, db, path, "integrity_check", 3*checkWithin); {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("no damage found in %s, which did not suffice to look at all of it", 3*checkWithin), nil
	case err != nil:
		return "", (&Store{path: path}).named(err)
	}
	text := fmt.Sprintf("whole (looked at in %s)", time.Since(began).Round(time.Millisecond))
	if info, err := os.Stat(path + copySuffix); err == nil {
		text += ", last copied at " + info.ModTime().UTC().Format(time.DateTime)
	}
	return text, nil
}

const copySuffix = ".copy"

// Copy keeps a good copy of the database beside it, unless there is one that is
// younger than age. A copy is whole or is not made: a damaged table fails it,
// and then the last one stays.
func (s *Store) Copy(ctx context.Context, age time.Duration) error {
	at := s.path + copySuffix
	if info, err := os.Stat(at); err == nil && time.Since(info.ModTime()) < age {
		return nil
	}
	fresh := at + ".new"
	f, err := os.OpenFile(fresh, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600) // SQLite would make it readable for everybody
	if err != nil {
		return fmt.Errorf("copy the database: %w", err)
	}
	defer f.Close()
	if _, err = s.read.ExecContext(ctx, `VACUUM INTO ?`, fresh); err == nil {
		if err = f.Sync(); err == nil {
			err = os.Rename(fresh, at)
		}
	}
	if err != nil {
		_ = os.Remove(fresh)
		return fmt.Errorf("copy the database: %w", s.named(err))
	}
	return nil
}
