//go:build linux

package image

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/berth-dev/berth/internal/fault"
)

func TestReferencesAreNormalised(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a", 64)
	for text, want := range map[string]string{
		"debian":                      "docker.io/library/debian:latest",
		"debian:12":                   "docker.io/library/debian:12",
		"docker.io/library/debian:12": "docker.io/library/debian:12",
		"me/tools":                    "docker.io/me/tools:latest",
		"ghcr.io/x/y@" + digest:       "ghcr.io/x/y@" + digest,
		"localhost:5000/a/b:c":        "localhost:5000/a/b:c",
		"oci:/srv/layout":             "oci:/srv/layout",
		"oci:/srv//layout/:tag":       "oci:/srv/layout:tag",
		"tar:/srv/x.tar.zst":          "tar:/srv/x.tar.zst",
		"dir:/srv/root/":              "dir:/srv/root",
	} {
		if got, err := Normalise(text); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "oci:relative", "dir:", "ftp:/x", "Upper/Case", "a b", "x@sha256:short", "tar:x\n", strings.Repeat("a", 3000), "oci:/x:"} {
		_, err := Normalise(text)
		f := fault.Public(err)
		if err == nil || f.Code != fault.Invalid || f.Field != "image" || f.Next == "" {
			t.Errorf("%.50q: %v; want an error that names the field and the next step", text, err)
		}
	}
}

func TestPathsOfTheHostAreClosedByDefault(t *testing.T) {
	dir := t.TempDir()
	open, closed := filepath.Join(dir, "open"), filepath.Join(dir, "closed")
	for _, d := range []string{open, closed} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(closed, filepath.Join(open, "link")); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{
		"dir:" + open: true, "dir:" + open + "/x": true, "dir:" + closed: false, "dir:" + open + "/../closed": false, "dir:" + open + "/link": false,
		"tar:" + closed + "/one.tar": true, "dir:/": false, "debian": true, "dir:" + open + "er": false,
	} {
		ref, err := parseReference(text, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = ref.allowed([]string{"tar:" + closed + "/one.tar"}, []string{open})
		if (err == nil) != want {
			t.Errorf("%s: %v, want allowed = %v", text, err, want)
		}
		if err != nil && fault.CodeOf(err) != fault.Refused {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestAPlatformIsPicked(t *testing.T) {
	d := func(platform string, kind string) v1.Descriptor {
		out := v1.Descriptor{Digest: v1.Hash{Algorithm: "sha256", Hex: platform + kind}}
		if platform != "" {
			p, _ := v1.ParsePlatform(platform)
			out.Platform = p
		}
		if kind != "" {
			out.Annotations = map[string]string{"vnd.docker.reference.type": kind}
		}
		return out
	}
	amd, arm := v1.Platform{OS: "linux", Architecture: "amd64"}, v1.Platform{OS: "linux", Architecture: "arm64"}
	all := []v1.Descriptor{d("linux/arm64", "attestation-manifest"), d("windows/amd64", ""), d("linux/arm64/v8", ""), d("linux/amd64", "")}
	if got, err := pick(all, amd); err != nil || got.Digest.Hex != "linux/amd64" {
		t.Errorf("amd64: %v, %v", got.Digest, err)
	}
	if got, err := pick(all, arm); err != nil || got.Digest.Hex != "linux/arm64/v8" {
		t.Errorf("arm64: %v, %v", got.Digest, err)
	}
	if _, err := pick(all, v1.Platform{OS: "linux", Architecture: "s390x"}); err == nil || !strings.Contains(err.Error(), "linux/amd64") {
		t.Errorf("a platform that is not there: %v", err)
	}
	if got, err := pick([]v1.Descriptor{d("", "")}, arm); err != nil || got.Digest.Hex != "" {
		t.Errorf("the only one: %v, %v", got, err)
	}
	if _, err := pick(nil, amd); err == nil {
		t.Error("an empty index was accepted")
	}
}
