package skill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"sync"

	"github.com/berth-dev/berth/internal/session"
)

// manifestName is the file that says which versions a folder shows. It never
// says more than is true, at whatever point a process died.
const manifestName = ".versions.json"

// manifest has the version of each name.
type manifest map[string]shown

type shown struct {
	Skill   string `json:"skill"`
	Version string `json:"version"`
}

const maxManifest = 1 << 20

// atOnce bounds the downloads of one session.
const atOnce = 4

// found is what the cache has for one wanted skill.
type found struct {
	entry *entry
	key   key
	err   error
}

// Show implements session.SkillCache. A skill that cannot be had now stays as it
// was shown before, if it was.
func (c *Cache) Show(ctx context.Context, src session.SkillSource, environment string, wanted []session.Skill, dir string) []session.ShownSkill {
	out := make([]session.ShownSkill, len(wanted))
	for i, s := range wanted {
		out[i].Skill = s
	}
	all := c.findAll(ctx, src, environment, wanted)
	defer func() {
		for _, f := range all {
			if f.err == nil {
				c.release(f.key)
			}
		}
	}()
	root, err := os.OpenRoot(dir)
	if err == nil {
		defer root.Close()
		err = c.fill(root, all, out)
	}
	if err != nil {
		for i := range out {
			out[i].Err = errors.Join(out[i].Err, noSpace(fmt.Errorf("show the skill: %w", err)))
		}
	}
	return out
}

func (c *Cache) findAll(ctx context.Context, src session.SkillSource, environment string, wanted []session.Skill) []found {
	all := make([]found, len(wanted))
	slots := make(chan struct{}, atOnce)
	var group sync.WaitGroup
	for i, s := range wanted {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			f := &all[i]
			f.entry, f.key, f.err = c.find(ctx, src, environment, s)
		})
	}
	group.Wait()
	return all
}

// fill makes the folder show what was found, and notes in out what became of it.
func (c *Cache) fill(root *os.Root, all []found, out []session.ShownSkill) error {
	have := readManifest(root)
	owner := map[string]int{} // index of the skill that a name belongs to
	next := manifest{}
	for i, f := range all {
		if f.err != nil {
			out[i].Err = f.err
			if name, former := have.of(out[i].Skill.ID); former != "" && exists(root, name) {
				out[i].Name, out[i].Version = name, former
				out[i].Err = fmt.Errorf("%w; version %s, which was shown before, stays", f.err, former)
				if _, taken := owner[name]; !taken {
					owner[name], next[name] = i, have[name]
				}
			}
			continue
		}
		name := f.entry.Name
		out[i].Name, out[i].Version = name, f.key.version
		if former, taken := owner[name]; taken {
			out[former].Err = errors.Join(out[former].Err,
				fmt.Errorf("it is not shown, because skill %s has the same name, %q, and comes later in the list", f.key.skill, name))
		}
		owner[name], next[name] = i, shown{f.key.skill, f.key.version}
	}
	if maps.Equal(have, next) && tidy(root, next) {
		return nil
	}
	kept := manifest{}
	for name, v := range next {
		if have[name] == v && exists(root, name) {
			kept[name] = v
		}
	}
	if err := kept.write(root); err != nil {
		return err
	}
	if err := empty(root, kept); err != nil {
		return err
	}
	for name, i := range owner {
		if _, done := kept[name]; done || all[i].err != nil {
			continue
		}
		if err := c.show(root, name, all[i].key); err != nil {
			out[i].Err = noSpace(fmt.Errorf("show the skill: %w", err))
			delete(next, name)
			continue
		}
		out[i].Fresh = true
	}
	return next.write(root)
}

// show puts a version's files into the folder under a name that is free.
func (c *Cache) show(root *os.Root, name string, k key) (err error) {
	space := temp()
	defer func() {
		if err != nil {
			err = errors.Join(err, root.RemoveAll(space))
		}
	}()
	from, err := c.root.OpenRoot(filepath.Join(k.dir(), filesName))
	if err != nil {
		return err
	}
	defer from.Close()
	err = fs.WalkDir(from.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		at := path.Join(space, p)
		if d.IsDir() {
			if err := root.Mkdir(at, 0o755); err != nil {
				return err
			}
			return root.Chmod(at, 0o755)
		}
		return c.share(from, p, filepath.Join(k.dir(), filesName, p), root, at)
	})
	if err != nil {
		return err
	}
	return root.Rename(space, name)
}

// share gives a file a second name, or copies it where that cannot be.
func (c *Cache) share(from *os.Root, p, cached string, root *os.Root, at string) error {
	if link(c.root, cached, root, at) == nil {
		return nil
	}
	in, err := from.Open(p)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := root.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err == nil {
		err = out.Chmod(info.Mode().Perm())
	}
	return errors.Join(err, out.Close())
}

// tidy reports whether a folder holds what a manifest says and nothing else.
func tidy(root *os.Root, m manifest) bool {
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return false
	}
	n := 0
	for _, e := range entries {
		if e.Name() == manifestName {
			continue
		}
		if _, listed := m[e.Name()]; !listed || !e.IsDir() {
			return false
		}
		n++
	}
	return n == len(m)
}

// empty removes everything from a folder that a manifest does not say.
func empty(root *os.Root, m manifest) error {
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, listed := m[e.Name()]; listed || e.Name() == manifestName {
			continue
		}
		if err := root.RemoveAll(e.Name()); err != nil {
			return fmt.Errorf("remove a former skill: %w", err)
		}
	}
	return nil
}

func exists(root *os.Root, name string) bool {
	info, err := root.Lstat(name)
	return err == nil && info.IsDir()
}

// readManifest returns an empty one when there is none that can be read: then
// everything is shown anew.
func readManifest(root *os.Root) manifest {
	m := manifest{}
	f, err := root.Open(manifestName)
	if err != nil {
		return m
	}
	defer f.Close()
	if json.NewDecoder(io.LimitReader(f, maxManifest)).Decode(&m) != nil || m == nil {
		return manifest{}
	}
	return m
}

// of returns the name and the version under which a skill is shown.
func (m manifest) of(skill string) (name, version string) {
	for name, v := range m {
		if v.Skill == skill {
			return name, v.Version
		}
	}
	return "", ""
}

func (m manifest) write(root *os.Root) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	space := temp()
	if err := root.WriteFile(space, b, 0o644); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", manifestName, err), root.Remove(space))
	}
	if err := root.Rename(space, manifestName); err != nil {
		return fmt.Errorf("write %s: %w", manifestName, err)
	}
	return nil
}
