package skill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/session"
)

// entry is a version in the cache, as its version.json tells.
type entry struct {
	Skill   string `json:"skill"`
	Version string `json:"version"`
	Name    string `json:"name"`  // of its folder in a sandbox
	Bytes   int64  `json:"bytes"` // of its files
}

// Names inside a version's folder.
const (
	entryName = "version.json"
	filesName = "files"
)

const maxEntry = 16 << 10 // of version.json, in bytes

// held returns a version that is in the cache; fs.ErrNotExist when it is not.
func (c *Cache) held(k key) (*entry, error) {
	f, err := c.root.Open(filepath.Join(k.dir(), entryName))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var e entry
	if err := json.NewDecoder(io.LimitReader(f, maxEntry)).Decode(&e); err != nil {
		return nil, fmt.Errorf("read %s: %w", entryName, err)
	}
	if _, err := Base(e.Name); err != nil {
		return nil, err
	}
	files, err := c.root.Lstat(filepath.Join(k.dir(), filesName))
	if err != nil {
		return nil, fmt.Errorf("find its files: %w", errors.New(err.Error())) // damaged, not absent
	}
	if !files.IsDir() {
		return nil, errors.New("its files are no folder")
	}
	return &e, nil
}

// touch notes that a version is used.
func (c *Cache) touch(k key) {
	now := c.now()
	if err := c.root.Chtimes(filepath.Join(k.dir(), entryName), now, now); err != nil {
		c.log.Warn("use of a skill not noted", "skill", k.skill, "err", err)
	}
}

// fetch brings a version into the cache. Until the last rename everything is
// below one folder with a name of its own, which goes whatever happens.
func (c *Cache) fetch(ctx context.Context, src session.SkillSource, k key, name string) (err error) {
	if _, err := c.held(k); err == nil {
		return nil // somebody was faster
	}
	id := k.version
	if name == "" {
		v, err := src.SkillVersion(ctx, session.Skill{ID: k.skill, Version: k.version})
		if err != nil {
			return remote(err)
		}
		id, name = v.ID, v.Name
	}
	if name, err = Base(name); err != nil {
		return err
	}
	space := temp()
	if err := c.root.Mkdir(space, 0o700); err != nil {
		return noSpace(fmt.Errorf("make folder to unpack to: %w", err))
	}
	defer func() { err = errors.Join(err, c.root.RemoveAll(space)) }()
	archive, size, err := c.download(ctx, src, k.skill, id, space)
	if err != nil {
		return noSpace(err)
	}
	defer archive.Close()
	top, err := Unpack(ctx, c.root, filepath.Join(space, "archive"), archive, size)
	if err != nil {
		return noSpace(err)
	}
	return noSpace(c.place(space, top, k, name))
}

// download keeps the archive in a nameless file, because a zip is read from its
// end.
func (c *Cache) download(ctx context.Context, src session.SkillSource, skill, version, space string) (*os.File, int64, error) {
	body, err := src.SkillArchive(ctx, skill, version)
	if err != nil {
		return nil, 0, remote(err)
	}
	defer body.Close()
	at := filepath.Join(space, "download")
	f, err := c.root.OpenFile(at, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, 0, fmt.Errorf("keep archive: %w", err)
	}
	from := &source{r: io.LimitReader(body, session.MaxSkillArchive+1)}
	n, err := io.Copy(f, from)
	switch {
	case from.err != nil:
		err = remote(from.err)
	case err != nil:
		err = fmt.Errorf("keep archive: %w", err)
	case n > session.MaxSkillArchive:
		err = fault.New(fault.TooLarge, "the archive has more than %d bytes", session.MaxSkillArchive)
	default:
		err = c.root.Remove(at)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, n, nil
}

// source tells failures of the other side from those of our disk.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// place makes a version of what was unpacked: on the disk first, then under its
// name.
func (c *Cache) place(space, top string, k key, name string) error {
	made := filepath.Join(space, "made")
	if err := c.root.Mkdir(made, 0o700); err != nil {
		return err
	}
	if err := c.root.Rename(top, filepath.Join(made, filesName)); err != nil {
		return fmt.Errorf("move the files: %w", err)
	}
	size, err := sizeOf(c.root, filepath.Join(made, filesName))
	if err != nil {
		return fmt.Errorf("measure the files: %w", err)
	}
	b, err := json.Marshal(entry{Skill: k.skill, Version: k.version, Name: name, Bytes: size})
	if err != nil {
		return err
	}
	if err := c.root.WriteFile(filepath.Join(made, entryName), b, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", entryName, err)
	}
	if err := syncAll(c.root); err != nil {
		return fmt.Errorf("write to the disk: %w", err)
	}
	if err := c.root.Mkdir(k.environment, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := c.root.Rename(k.dir(), filepath.Join(space, "damaged")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set a damaged version aside: %w", err)
	}
	if err := c.root.Rename(made, k.dir()); err != nil {
		return fmt.Errorf("put the version in place: %w", err)
	}
	return nil
}

func sizeOf(root *os.Root, dir string) (int64, error) {
	var sum int64
	err := fs.WalkDir(root.FS(), filepath.ToSlash(dir), func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	return sum, err
}
