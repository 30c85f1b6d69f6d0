package skill

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// stock is a version as the sweep sees it.
type stock struct {
	key   key
	used  time.Time
	bytes int64 // 0 when it is damaged
}

// Sweep removes versions that nobody has used for long, and those that were used
// longest ago while all of them together are too large. What sandboxes show
// stays with them: their files are the same, by another name.
func (c *Cache) Sweep(ctx context.Context) error {
	all, err := c.stocktake()
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b stock) int { return cmp.Or(a.used.Compare(b.used), strings.Compare(a.key.dir(), b.key.dir())) })
	var sum int64
	for _, s := range all {
		sum += s.bytes
	}
	now := c.now()
	var errs []error
	for _, s := range all {
		old := c.cfg.Keep > 0 && now.Sub(s.used) > c.cfg.Keep
		large := c.cfg.Size > 0 && sum > c.cfg.Size
		if ctx.Err() != nil || !old && !large {
			break // the others were used later
		}
		removed, err := c.remove(s.key)
		if err != nil {
			errs = append(errs, fmt.Errorf("remove skill %s: %w", s.key.dir(), err))
		}
		if removed {
			sum -= s.bytes
			c.log.Info("skill removed from the cache", "skill", s.key.skill, "version", s.key.version, "used", s.used)
		}
	}
	return errors.Join(errs...)
}

func (c *Cache) stocktake() ([]stock, error) {
	var all []stock
	environments, err := fs.ReadDir(c.root.FS(), ".")
	if err != nil {
		return nil, fmt.Errorf("list skills: %w", err)
	}
	for _, env := range environments {
		if !idPattern.MatchString(env.Name()) {
			continue
		}
		versions, err := fs.ReadDir(c.root.FS(), env.Name())
		if err != nil {
			return nil, fmt.Errorf("list skills of %s: %w", env.Name(), err)
		}
		for _, v := range versions {
			skill, version, ok := strings.Cut(v.Name(), "@")
			s := stock{key: key{env.Name(), skill, version}}
			if !ok || s.key.check() != nil {
				continue
			}
			if e, err := c.held(s.key); err == nil {
				s.bytes = e.Bytes
			}
			if info, err := c.root.Lstat(filepath.Join(s.key.dir(), entryName)); err == nil {
				s.used = info.ModTime()
			}
			all = append(all, s)
		}
	}
	return all, nil
}

// remove takes a version out, unless somebody is about to show it. It is gone
// with one rename; what is left of it after a crash goes with the next start.
func (c *Cache) remove(k key) (bool, error) {
	c.mu.Lock()
	if c.pins[k] > 0 || c.flights[k] != nil {
		c.mu.Unlock()
		return false, nil
	}
	f := &flight{done: make(chan struct{})}
	c.flights[k] = f
	c.mu.Unlock()
	space := temp()
	err := c.root.Rename(k.dir(), space)
	c.land(k, f, err)
	if err != nil {
		return false, err
	}
	return true, c.root.RemoveAll(space)
}
