//go:build linux

package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What is known of images, on disk.

// errNoSpace and errQuota are the two ways a disk is full.
var errNoSpace, errQuota error = unix.ENOSPC, unix.EDQUOT

// format is part of a root's name: a change of how roots are made gives new
// ones, and the old ones are collected.
const format = "1"

// rootPrefix begins the name of every root folder.
const rootPrefix = "root-"

// rootName names the root of an image for some owners.
func rootName(digest string, o Owners) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %t %d %d %d", format, digest, o.Single, o.Base, o.Count, o.Agent))
	return rootPrefix + hex.EncodeToString(sum[:12])
}

// rootRecord is what is known of a root. It exists once the root is complete.
// The time of its last use is the file's own.
type rootRecord struct {
	Digest   string            `json:"digest"`
	Platform string            `json:"platform,omitempty"`
	Layers   []string          `json:"layers,omitempty"` // digests that are kept in blobs
	Bytes    int64             `json:"bytes"`
	Files    int               `json:"files"`
	Made     time.Time         `json:"made"`
	Env      map[string]string `json:"env,omitempty"`
	Lacks    string            `json:"lacks,omitempty"`

	used time.Time
}

// refRecord is what a reference stood for.
type refRecord struct {
	Reference string    `json:"reference"`
	Platform  string    `json:"platform"`
	Digest    string    `json:"digest"`
	Root      string    `json:"root"`
	Stamp     string    `json:"stamp,omitempty"`
	Checked   time.Time `json:"checked"`
}

// maxRecord bounds a record when it is read.
const maxRecord = 1 << 20

func (s *Store) rootFile(name string) string { return filepath.Join(s.roots, name+".json") }
func (s *Store) refFile(ref reference) string {
	sum := sha256.Sum256([]byte(ref.text + " " + platformName(s.platform)))
	return filepath.Join(s.refs, hex.EncodeToString(sum[:12])+".json")
}

// readRoot returns a complete root's record; fs.ErrNotExist when there is none.
func (s *Store) readRoot(name string) (rootRecord, error) {
	var r rootRecord
	at, err := readRecord(s.rootFile(name), &r)
	if err != nil {
		return r, err
	}
	r.used = at
	if _, err := os.Stat(filepath.Join(s.opts.Dir, name)); err != nil {
		return r, err
	}
	return r, nil
}

func (s *Store) readRef(ref reference) (refRecord, error) {
	var r refRecord
	_, err := readRecord(s.refFile(ref), &r)
	return r, err
}

// readRecord reads a record and returns when its file was last touched.
func readRecord(file string, out any) (time.Time, error) {
	f, err := os.Open(file)
	if err != nil {
		return time.Time{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return time.Time{}, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err != nil {
		return time.Time{}, err
	}
	if err := json.Unmarshal(b, out); err != nil {
		return time.Time{}, fmt.Errorf("%w: %s is damaged", fs.ErrNotExist, filepath.Base(file)) // as good as none
	}
	return info.ModTime(), nil
}

// writeRecord writes a record that is whole or absent after a crash.
func (s *Store) writeRecord(file string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	tmp, err := os.CreateTemp(s.tmp, "record-")
	if err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	defer os.Remove(tmp.Name()) // when it was not moved into place
	_, err = tmp.Write(b)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	if err := os.Rename(tmp.Name(), file); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return syncFolder(filepath.Dir(file))
}

func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// syncAll writes everything in a folder to its disk, and more: one call for
// tens of thousands of files.
func syncAll(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// allRoots returns the records of all complete roots by name.
func (s *Store) allRoots() (map[string]rootRecord, error) {
	names, err := recordNames(s.roots)
	if err != nil {
		return nil, err
	}
	out := map[string]rootRecord{}
	for _, name := range names {
		if r, err := s.readRoot(name); err == nil {
			out[name] = r
		}
	}
	return out, nil
}

// allRefs returns the records of all references by file.
func (s *Store) allRefs() (map[string]refRecord, error) {
	names, err := recordNames(s.refs)
	if err != nil {
		return nil, err
	}
	out := map[string]refRecord{}
	for _, name := range names {
		var r refRecord
		file := filepath.Join(s.refs, name+".json")
		if _, err := readRecord(file, &r); err == nil {
			out[file] = r
		}
	}
	return out, nil
}

func recordNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var out []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".json"); ok {
			out = append(out, name)
		}
	}
	return out, nil
}

func sorted(names []string) []string {
	slices.Sort(names)
	return names
}
