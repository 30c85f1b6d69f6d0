// Package skill keeps the skills of agents unpacked on this host (contract §6.1).
//
//	<data>/skills/
//	    <environment>/<skill>@<version>/
//	        version.json     what it is, and last used at its own mtime
//	        files/           the skill, read-only for everybody by its modes
//	    .new-…/              what is being made or removed; swept at the start
//
// A version is downloaded and unpacked once, by whoever needs it first, and put
// in place by one rename, so that what has its name is whole. A sandbox gets its
// skills as hard links (show.go): all sessions share one copy, and a version may
// leave the cache while sandboxes still show it.
//
// Archives are hostile: nothing in them can name a place outside the folder of
// their skill, and their members, sizes and depths are bounded (unpack.go).
package skill

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/session"
)

// Config is what Open needs.
type Config struct {
	Dir    string        // belongs to the cache alone; made when it is missing
	Keep   time.Duration // a version that nobody used for so long is removed; zero: never
	Size   int64         // of all versions, unpacked, in bytes; zero: no bound
	Logger *slog.Logger
}

// Cache implements session.SkillCache. One process at a time may use a folder.
type Cache struct {
	cfg  Config
	root *os.Root
	log  *slog.Logger
	now  func() time.Time
	work sync.WaitGroup // flights

	mu      sync.Mutex
	pins    map[key]int     // versions that somebody is about to show
	flights map[key]*flight // versions that are being made or removed
}

var _ session.SkillCache = (*Cache)(nil)

// Open opens the cache and removes what an earlier process left half made.
func Open(cfg Config) (*Cache, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of skills: %w", err)
	}
	root, err := os.OpenRoot(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open the folder of skills: %w", err)
	}
	c := &Cache{cfg: cfg, root: root, log: cfg.Logger, now: time.Now, pins: map[key]int{}, flights: map[key]*flight{}}
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("list the folder of skills: %w", err), root.Close())
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			if err := root.RemoveAll(e.Name()); err != nil {
				c.log.Warn("remains of a skill not removed", "err", err)
			}
		}
	}
	return c, nil
}

// Close waits for downloads, whose callers have to be gone.
func (c *Cache) Close() error {
	c.work.Wait()
	return c.root.Close()
}

// key names a version. Versions are told apart by environment, so that no
// platform can put something into another one's cache.
type key struct{ environment, skill, version string }

var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)

func (k key) check() error {
	for what, id := range map[string]string{"environment": k.environment, "skill": k.skill, "version": k.version} {
		if !idPattern.MatchString(id) {
			return fault.New(fault.Invalid, "%.100q is not the id of a skill's %s", id, what)
		}
	}
	return nil
}

func (k key) dir() string { return filepath.Join(k.environment, k.skill+"@"+k.version) }

const tempPrefix = ".new-"

func temp() string { return tempPrefix + rand.Text() }

// flight is something that goes on with a version, for everybody who waits.
type flight struct {
	done    chan struct{} // closed when err is set
	err     error
	cancel  context.CancelCauseFunc // nil: it cannot be stopped
	waiting int                     // under Cache.mu; the last one to leave cancels it
}

// Bounds of one download, whoever waits for it.
const (
	fetchWithin = 2 * time.Minute
	fetchTries  = 3
)

// obtain returns a version, from the cache or from src, and pins it: release
// must follow. name is that of the version, "" when it has to be asked for.
func (c *Cache) obtain(ctx context.Context, src session.SkillSource, k key, name string) (*entry, error) {
	if err := k.check(); err != nil {
		return nil, err
	}
	if err := c.pin(ctx, k); err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		e, err := c.held(k)
		if err == nil {
			c.touch(k)
			return e, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			c.log.Warn("a skill in the cache is damaged; it is made anew", "skill", k.skill, "version", k.version, "err", err)
		}
		own := false
		if try <= fetchTries {
			own, err = c.join(ctx, src, k, name)
		}
		again := err == nil || !own || transient(err)
		if err != nil && again && try < fetchTries {
			again = pause(ctx, try, err)
		}
		if ctx.Err() != nil || !again || err != nil && try >= fetchTries {
			c.release(k)
			return nil, cmp.Or(err, context.Cause(ctx))
		}
	}
}

// transient reports whether a failure may be gone next time: the platform's may,
// those of an archive or of this host's disk are not.
func transient(err error) bool {
	var r *remoteError
	return errors.As(err, &r) && session.Retryable(err) && fault.CodeOf(err) != fault.TooLarge
}

// remoteError marks what went wrong on the platform's side.
type remoteError struct{ err error }

func (e *remoteError) Error() string { return e.err.Error() }
func (e *remoteError) Unwrap() error { return e.err }

func remote(err error) error {
	if err == nil {
		return nil
	}
	return &remoteError{err}
}

func pause(ctx context.Context, failures int, err error) bool {
	wait := time.NewTimer(session.Backoff{Cap: 10 * time.Second}.Wait(failures, err))
	defer wait.Stop()
	select {
	case <-wait.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// pin keeps a version from being removed. It waits while that is going on.
func (c *Cache) pin(ctx context.Context, k key) error {
	for {
		c.mu.Lock()
		f := c.flights[k]
		if f == nil || f.cancel != nil { // nothing, or a download
			c.pins[k]++
			c.mu.Unlock()
			return nil
		}
		c.mu.Unlock()
		select {
		case <-f.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (c *Cache) release(k key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pins[k]--; c.pins[k] <= 0 {
		delete(c.pins, k)
	}
}

// join waits for the download of a version that the caller has pinned, and
// begins it if nobody has: then it is the caller's own. It ends with ctx; the
// download ends when nobody waits for it any more.
func (c *Cache) join(ctx context.Context, src session.SkillSource, k key, name string) (own bool, err error) {
	c.mu.Lock()
	f := c.flights[k]
	if own = f == nil; own {
		fetch, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
		f = &flight{done: make(chan struct{}), cancel: cancel}
		c.flights[k] = f
		c.work.Go(func() {
			within, stop := context.WithTimeoutCause(fetch, fetchWithin, fmt.Errorf("skill %s was not there within %s", k.skill, fetchWithin))
			defer stop()
			c.land(k, f, c.fetch(within, src, k, name))
		})
	}
	f.waiting++
	c.mu.Unlock()
	select {
	case <-f.done:
		err = f.err
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.waiting--; f.waiting == 0 {
		f.cancel(err)
	}
	return own, err
}

// land ends a flight.
func (c *Cache) land(k key, f *flight, err error) {
	c.mu.Lock()
	delete(c.flights, k)
	c.mu.Unlock()
	f.err = err
	close(f.done)
}

// newest stands for the version that is the newest when it is asked for.
const newest = "latest"

// find returns the version that a skill means, pinned. One that is named and
// cached costs no request.
func (c *Cache) find(ctx context.Context, src session.SkillSource, environment string, s session.Skill) (*entry, key, error) {
	k, name := key{environment, s.ID, s.Version}, ""
	if s.Version == "" || s.Version == newest {
		for try := 1; ; try++ {
			v, err := src.SkillVersion(ctx, s)
			if err == nil {
				k.version, name = v.ID, v.Name
				break
			}
			err = remote(err)
			if try >= fetchTries || !transient(err) || !pause(ctx, try, err) {
				return nil, k, err
			}
		}
	}
	e, err := c.obtain(ctx, src, k, name)
	return e, k, err
}
