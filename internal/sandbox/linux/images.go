//go:build linux

package linux

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"time"

	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/sandbox/linux/image"
)

// Images other than the host's are made by package image, in the same folder as
// the roots of the host image. A sandbox's record names its root, which is how
// the images in use are known.

var _ sandbox.Images = (*Backend)(nil)

// openImages opens the store of images.
func (b *Backend) openImages() (*image.Store, error) {
	c := b.cfg.Images
	ids := b.runtime.ids
	owners := image.Owners{Single: ids.rootless, Agent: ids.agent}
	if ids.mapped() {
		owners.Base, owners.Count = ids.base, idCount
	}
	o := image.Options{
		Dir: b.images, Owners: owners, Platform: c.Platform, DockerConfig: c.DockerConfig, Insecure: c.Insecure,
		Folders: c.Folders, Refresh: c.Refresh, MaxBytes: c.MaxBytes, PullTimeout: c.PullTimeout, InUse: b.rootsInUse, Logger: b.log,
	}
	if c.Default != "" && c.Default != ImageHost {
		o.Trusted = []string{c.Default}
	}
	return image.Open(o)
}

// rootsInUse counts the sandboxes of each root, running or parked.
func (b *Backend) rootsInUse(context.Context) (map[string]int, error) {
	all, err := b.records()
	if err != nil {
		return nil, err
	}
	used := map[string]int{}
	for _, r := range all {
		used[r.Root]++
	}
	return used, nil
}

// isHost reports whether a Spec's image is the host's programs.
func isHost(text string) bool { return text == "" || text == ImageHost }

// chosen is the root of one sandbox, held until its record names it.
type chosen struct {
	root    image.Root // without a name for the host image
	release func()
}

// choose makes an image ready. It may take long: it is not part of the start,
// which has a bound of its own.
func (b *Backend) choose(ctx context.Context, spec sandbox.Spec) (chosen, error) {
	if isHost(spec.Image) {
		return chosen{release: func() {}}, nil
	}
	root, release, err := b.store.Ensure(ctx, spec.Image, spec.Pulling)
	if err != nil {
		return chosen{}, fmt.Errorf("image of sandbox %s: %w", spec.ID, err)
	}
	if root.Lacks != "" {
		b.log.Warn("sandbox lacks something", "sandbox", spec.ID, "session", spec.Session, "image", spec.Image, "lacks", root.Lacks)
	}
	return chosen{root, release}, nil
}

// over replaces the host image in what all sandboxes share.
func (c chosen) over(p *prepared) *prepared {
	if c.root.Name == "" {
		return p
	}
	return &prepared{binary: p.binary, root: c.root.Name}
}

// env lays a Spec's environment over the image's.
func (c chosen) env(spec map[string]string) map[string]string {
	env := maps.Clone(c.root.Env)
	if env == nil {
		return maps.Clone(spec)
	}
	maps.Copy(env, spec)
	return env
}

// notTheHosts adds what belongs to the store of images to the names that the
// sweep of host images leaves alone.
func (b *Backend) notTheHosts(used map[string]bool) {
	names, _ := filepath.Glob(filepath.Join(b.images, "*")) // the pattern is right
	for _, name := range names {
		if name = filepath.Base(name); !strings.HasPrefix(name, ImageHost+"-") && !strings.HasPrefix(name, making) {
			used[name] = true
		}
	}
}

// Images implements sandbox.Images.
func (b *Backend) Images(ctx context.Context) ([]sandbox.Image, error) { return b.store.List(ctx) }

// PullImage implements sandbox.Images.
func (b *Backend) PullImage(ctx context.Context, reference string, report func(sandbox.ImageProgress)) (sandbox.Image, error) {
	return b.store.Pull(ctx, reference, report)
}

// RemoveImage implements sandbox.Images.
func (b *Backend) RemoveImage(ctx context.Context, idOrReference string) error {
	return b.store.Remove(ctx, idOrReference)
}

// CollectImages implements sandbox.Images.
func (b *Backend) CollectImages(ctx context.Context, unused time.Duration) (sandbox.Collected, error) {
	switch {
	case unused < 0:
		unused = 0
	case unused == 0:
		unused = b.cfg.Images.Keep
		if unused <= 0 {
			unused = defaultKeepImages
		}
	}
	return b.store.Collect(ctx, unused)
}

// checkImage tells whether the configured image can be had.
func (b *Backend) checkImage(ctx context.Context) sandbox.Info {
	const name = "image"
	text := b.cfg.Images.Default
	if isHost(text) {
		return ok(name, "the host's programs")
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	digest, err := b.store.Probe(ctx, text)
	if err != nil {
		return lacking(name, "see the message, and docs/images.md", "%s cannot be had: %v", text, err)
	}
	return ok(name, "%s is %s", text, digest)
}
