//go:build linux

package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/berth-dev/berth/internal/fault"
)

// found is what a reference stands for, before anything is unpacked.
type found struct {
	digest   string // names the content
	stamp    string // of a local source: changes when the source may have
	platform string
	config   *v1.ConfigFile // nil for a plain root
	layers   []layer
	remote   bool // layers come from a registry, and are worth keeping
	copyFrom string
	close    func() // after unpacking; may be nil
}

// source is where manifests and blobs of an image come from.
type source interface {
	// blob opens a blob; what is read is not verified yet.
	blob(ctx context.Context, h v1.Hash) (io.ReadCloser, error)
	// manifest returns a manifest as it is stored.
	manifest(ctx context.Context, h v1.Hash) ([]byte, error)
}

// maxDepth bounds indexes in indexes.
const maxDepth = 3

// follow goes from a descriptor to the image for the platform.
func follow(ctx context.Context, src source, d v1.Descriptor, raw []byte, want v1.Platform) (*found, error) {
	for range maxDepth {
		if raw == nil {
			var err error
			if raw, err = src.manifest(ctx, d.Digest); err != nil {
				return nil, err
			}
		}
		if len(raw) > maxManifest {
			return nil, fault.New(fault.TooLarge, "the manifest of the image is larger than %d MiB", maxManifest>>20).WithField("image")
		}
		if got := hashOf(raw); got != d.Digest.String() {
			return nil, corrupt("manifest", d.Digest.String(), got)
		}
		if !isIndex(d.MediaType, raw) {
			return readManifest(ctx, src, d, raw, want)
		}
		index, err := v1.ParseIndexManifest(bytes.NewReader(raw))
		if err != nil {
			return nil, unreadable("index", err)
		}
		if d, err = pick(index.Manifests, want); err != nil {
			return nil, err
		}
		raw = nil
	}
	return nil, fault.New(fault.Invalid, "the image has an index in an index, again and again").WithField("image")
}

func unreadable(what string, err error) error {
	return fault.Wrap(err, fault.Invalid, "the image's %s cannot be read", what).WithField("image").
		WithNext("build or push it again in the OCI or Docker format")
}

func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// isIndex trusts the content more than the media type that came with it.
func isIndex(t types.MediaType, raw []byte) bool {
	var shape struct {
		MediaType types.MediaType `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
	}
	if json.Unmarshal(raw, &shape) == nil && shape.MediaType != "" {
		return shape.MediaType.IsIndex()
	}
	return shape.Manifests != nil || t.IsIndex()
}

// pick chooses the manifest for a platform. It is pure.
func pick(manifests []v1.Descriptor, want v1.Platform) (v1.Descriptor, error) {
	var have []string
	var images []v1.Descriptor
	best := -1
	for _, d := range manifests {
		if d.Annotations["vnd.docker.reference.type"] != "" {
			continue // a signature or the like
		}
		images = append(images, d)
		if d.Platform == nil {
			continue
		}
		p := *d.Platform
		have = append(have, platformName(p))
		if p.OS != want.OS || p.Architecture != want.Architecture {
			continue
		}
		if want.Variant != "" && p.Variant != want.Variant {
			continue
		}
		if best < 0 {
			best = len(images) - 1
		}
	}
	switch {
	case best >= 0:
		return images[best], nil
	case len(images) == 1 && images[0].Platform == nil:
		return images[0], nil // its configuration says what it is for
	case len(images) == 0:
		return v1.Descriptor{}, fault.New(fault.Invalid, "the image's index names no image").WithField("image")
	}
	slices.Sort(have)
	have = slices.Compact(have)
	return v1.Descriptor{}, noPlatform(want, strings.Join(have[:min(len(have), 20)], ", "))
}

func noPlatform(want v1.Platform, have string) error {
	return fault.New(fault.Invalid, "the image is not made for %s, but for %s", platformName(want), have).WithField("image").
		WithNext("choose another image, or a platform of it in sandbox.images.platform")
}

func platformName(p v1.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// hostPlatform is what this host runs.
func hostPlatform() v1.Platform { return v1.Platform{OS: "linux", Architecture: runtime.GOARCH} }

// parsePlatform reads linux/arch[/variant]; "" is this host's.
func parsePlatform(text string) (v1.Platform, error) {
	if text == "" {
		return hostPlatform(), nil
	}
	p, err := v1.ParsePlatform(text)
	if err != nil || p.OS != "linux" || p.Architecture == "" || p.OSVersion != "" {
		return v1.Platform{}, fault.New(fault.Invalid, "%q is not a platform", text).WithField("sandbox.images.platform").
			WithNext("write one such as linux/amd64 or linux/arm64")
	}
	return *p, nil
}

// readManifest reads an image's manifest and configuration.
func readManifest(ctx context.Context, src source, d v1.Descriptor, raw []byte, want v1.Platform) (*found, error) {
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, unreadable("manifest", err)
	}
	if m.SchemaVersion != 2 || m.Config.Digest.Hex == "" {
		return nil, fault.New(fault.Unsupported, "the image has a manifest of an old version").WithField("image").
			WithNext("push it again with a current tool")
	}
	if len(m.Layers) > MaxLayers {
		return nil, fault.New(fault.TooLarge, "the image has %d layers, more than %d", len(m.Layers), MaxLayers).
			WithField("image").WithNext("build it with fewer layers")
	}
	config, err := readConfig(ctx, src, m.Config)
	if err != nil {
		return nil, err
	}
	f := &found{digest: d.Digest.String(), config: config}
	if f.platform, err = checkPlatform(config, want); err != nil {
		return nil, err
	}
	if len(config.RootFS.DiffIDs) != len(m.Layers) {
		return nil, fault.New(fault.Invalid, "the image's manifest has %d layers, and its configuration %d", len(m.Layers), len(config.RootFS.DiffIDs)).
			WithField("image").WithNext("build it again")
	}
	for i, l := range m.Layers {
		if err := supported(l); err != nil {
			return nil, err
		}
		f.layers = append(f.layers, layer{
			digest: l.Digest.String(), size: l.Size, diff: config.RootFS.DiffIDs[i].String(),
			open: func(ctx context.Context) (io.ReadCloser, error) { return src.blob(ctx, l.Digest) },
		})
	}
	return f, nil
}

func supported(l v1.Descriptor) error {
	switch t := string(l.MediaType); {
	case l.Digest.Algorithm != "sha256":
		return fault.New(fault.Unsupported, "the image uses the digest %.40s", l.Digest).WithField("image").WithNext("push it with sha256 digests")
	case l.Size < 0:
		return fault.New(fault.Invalid, "a layer of the image has the size %d", l.Size).WithField("image")
	case strings.Contains(t, "tar"): // in all ways to compress one; the content tells which
		return nil
	default:
		return fault.New(fault.Unsupported, "it is not an image of files but holds %.100q", t).WithField("image").
			WithNext("choose a container image")
	}
}

func readConfig(ctx context.Context, src source, d v1.Descriptor) (*v1.ConfigFile, error) {
	r, err := src.blob(ctx, d.Digest)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	raw, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("read the image's configuration: %w", err)
	}
	if got := hashOf(raw); got != d.Digest.String() {
		return nil, corrupt("configuration", d.Digest.String(), got)
	}
	c, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return nil, unreadable("configuration", err)
	}
	return c, nil
}

// checkPlatform refuses an image of another platform. One that does not say is
// believed; what it lacks is found when it was unpacked.
func checkPlatform(c *v1.ConfigFile, want v1.Platform) (string, error) {
	p := v1.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}
	if p.OS == "" {
		p.OS = want.OS
	}
	if p.Architecture == "" {
		p.Architecture = want.Architecture
	}
	if p.OS != want.OS || p.Architecture != want.Architecture {
		return "", noPlatform(want, platformName(p))
	}
	return platformName(p), nil
}
