//go:build linux

package image

import (
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/berth-dev/berth/internal/fault"
)

// kind is where an image comes from.
type kind string

// The kinds, as references begin with them; a registry's have no prefix.
const (
	kindRegistry kind = "registry"
	kindLayout   kind = "oci"
	kindTar      kind = "tar"
	kindFolder   kind = "dir"
)

// maxReference bounds a reference, in bytes.
const maxReference = 2048

// reference is a parsed image reference.
type reference struct {
	text   string // normalised: two ways to write one image are the same text
	kind   kind
	remote name.Reference // of a registry
	path   string         // on the host, absolute and clean, for the other kinds
	tag    string         // of a layout; "" when it holds one image only
}

// pinned reports whether the reference can never stand for something else.
func (r reference) pinned() bool {
	_, ok := r.remote.(name.Digest)
	return ok
}

func (r reference) local() bool { return r.kind != kindRegistry }

// howToWrite is the next step after a reference that cannot be read.
const howToWrite = "write host, a registry's reference such as docker.io/library/debian:12, " +
	"oci:/path[:tag], tar:/path.tar or dir:/path"

func badReference(text, why string) error {
	if len(text) > 200 {
		text = text[:200] + "…"
	}
	return fault.New(fault.Invalid, "%q is not an image: %s", text, why).WithField("image").WithNext(howToWrite)
}

// Normalise returns the one way to write an image reference, or an error that
// says how to write one.
func Normalise(text string) (string, error) {
	r, err := parseReference(text, nil)
	return r.text, err
}

// parseReference is pure; insecure names registries without TLS.
func parseReference(text string, insecure []string) (reference, error) {
	switch {
	case text == "":
		return reference{}, badReference(text, "it is empty")
	case len(text) > maxReference:
		return reference{}, badReference(text, "it is too long")
	case strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return reference{}, badReference(text, "it contains control characters")
	}
	for _, k := range []kind{kindLayout, kindTar, kindFolder} {
		if path, ok := strings.CutPrefix(text, string(k)+":"); ok {
			return parseLocal(text, k, path)
		}
	}
	ref, err := name.ParseReference(text, name.WeakValidation)
	if err != nil {
		return reference{}, badReference(text, err.Error())
	}
	if strings.HasSuffix(ref.Context().RegistryStr(), ":") {
		return reference{}, badReference(text, "there is no such kind of image")
	}
	for _, host := range insecure {
		if ref.Context().RegistryStr() == host {
			if ref, err = name.ParseReference(text, name.WeakValidation, name.Insecure); err != nil {
				return reference{}, badReference(text, err.Error())
			}
		}
	}
	return reference{text: friendly(ref.Name()), kind: kindRegistry, remote: ref}, nil
}

// friendly writes Docker's registry as people know it.
func friendly(ref string) string {
	if rest, ok := strings.CutPrefix(ref, name.DefaultRegistry+"/"); ok {
		return "docker.io/" + rest
	}
	return ref
}

func parseLocal(text string, k kind, path string) (reference, error) {
	r := reference{kind: k, path: path}
	if k == kindLayout {
		if at := strings.LastIndex(path, ":"); at > strings.LastIndex(path, "/") {
			r.path, r.tag = path[:at], path[at+1:]
			if r.tag == "" {
				return reference{}, badReference(text, "the tag behind the path is empty")
			}
		}
	}
	if !filepath.IsAbs(r.path) {
		return reference{}, badReference(text, "its path does not begin with a slash")
	}
	r.path = filepath.Clean(r.path)
	r.text = string(k) + ":" + r.path
	if r.tag != "" {
		r.text += ":" + r.tag
	}
	return r, nil
}

// allowed refuses paths of the host that nobody said images may come from.
func (r reference) allowed(trusted, folders []string) error {
	if !r.local() {
		return nil
	}
	for _, t := range trusted {
		if known, err := parseReference(t, nil); err == nil && known.text == r.text {
			return nil
		}
	}
	path, err := filepath.EvalSymlinks(r.path)
	if err != nil {
		path = r.path // whether it exists is not told to everybody
	}
	for _, f := range folders {
		if whole, err := filepath.EvalSymlinks(f); err == nil {
			f = whole
		}
		if f = filepath.Clean(f); f == "/" || path == f || strings.HasPrefix(path, f+"/") {
			return nil
		}
	}
	return fault.New(fault.Refused, "the image %s lies where images may not come from", r.text).WithField("image").
		WithNext("add its folder to sandbox.images.folders, or make it sandbox.image")
}
