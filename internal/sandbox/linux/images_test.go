//go:build linux

package linux_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/sandbox/linux"
	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/internal/tool"
)

var libraries = regexp.MustCompile(`/\S+`)

// smallRoot packs a root of a few programs of this host and the libraries that
// they need, with owners and modes of its own.
func smallRoot(t testing.TB, programs ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	add := func(h *tar.Header, content []byte) {
		h.Size = int64(len(content))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]bool{}
	copyFile := func(from, to string) {
		if seen[to] {
			return
		}
		seen[to] = true
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		add(&tar.Header{Name: strings.TrimPrefix(to, "/"), Mode: 0o755, Typeflag: tar.TypeReg}, b)
	}
	for _, p := range programs {
		path, err := exec.LookPath(p)
		if err != nil {
			t.Fatal(err)
		}
		copyFile(path, "/bin/"+p)
		out, _ := exec.Command("ldd", path).CombinedOutput() // a static program has none
		for line := range strings.Lines(string(out)) {
			for _, lib := range libraries.FindAllString(line, -1) {
				if _, err := os.Stat(lib); err == nil {
					copyFile(lib, lib)
				}
			}
		}
	}
	add(&tar.Header{Name: "etc/passwd", Mode: 0o644, Typeflag: tar.TypeReg}, []byte("root:x:0:0::/root:/bin/bash\nservice:x:12:12::/:/bin/false\n"))
	add(&tar.Header{Name: "marked", Mode: 0o640, Uid: 12, Gid: 12, Typeflag: tar.TypeReg}, []byte("by the image\n"))
	add(&tar.Header{Name: "su", Mode: 0o4755, Typeflag: tar.TypeReg}, []byte("#!/bin/bash\nid -u\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

var smallPrograms = []string{"bash", "cat", "id", "ls", "stat", "stty", "touch"}

func layered(t testing.TB, c v1.Config, layers ...[]byte) v1.Image {
	t.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, Config: c})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range layers {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			t.Fatal(err)
		}
	}
	return img
}

// imageReferences puts one image everywhere an image may come from.
func imageReferences(t testing.TB, dir string) map[string]string {
	t.Helper()
	root := smallRoot(t, smallPrograms...)
	img := layered(t, v1.Config{Env: []string{"FROM_IMAGE=yes", "ANTHROPIC_API_KEY=leaked"}, User: "service"}, root)
	hub := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(hub.Close)
	ref, err := name.NewTag(strings.TrimPrefix(hub.URL, "http://") + "/tools:1")
	if err != nil {
		t.Fatal(err)
	}
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	check(remote.Write(ref, img))
	l, err := layout.Write(filepath.Join(dir, "layout"), empty.Index)
	check(err)
	check(l.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "1"})))
	check(tarball.WriteToFile(filepath.Join(dir, "saved.tar"), ref, img))
	check(os.WriteFile(filepath.Join(dir, "root.tar"), root, 0o644))
	folder := filepath.Join(dir, "folder")
	check(os.Mkdir(folder, 0o755))
	unpack := exec.Command("tar", "-xf", filepath.Join(dir, "root.tar"), "-C", folder)
	said, err := unpack.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	return map[string]string{
		"registry": ref.Name(), "layout": "oci:" + filepath.Join(dir, "layout") + ":1", "docker archive": "tar:" + filepath.Join(dir, "saved.tar"),
		"root tarball": "tar:" + filepath.Join(dir, "root.tar"), "folder": "dir:" + folder,
	}
}

// TestImages runs sandboxes from images of every kind. TestOrdinaryUser runs it
// again without root.
func TestImages(t *testing.T) {
	needNamespaces(t)
	dir, sources := dataDir(t), t.TempDir()
	b, err := linux.New(linux.Config{
		DataDir: dir, Binary: testbin.Path(t), Images: linux.Images{Folders: []string{sources}}, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	defer clearAll(t, b)
	for kind, ref := range imageReferences(t, sources) {
		t.Run(kind, func(t *testing.T) {
			spec := sandbox.Spec{
				ID: sandbox.ID(kind), Session: kind, Image: ref, Env: map[string]string{"FROM_SPEC": "yes"},
				Shares: []sandbox.Share{{Path: "/mnt/memory/notes"}},
			}
			box, err := b.Create(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			g, err := box.Guest(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			r, err := g.Call(t.Context(), tool.Call{ID: "1", Name: tool.Bash, Input: []byte(`{"command":` + fmt.Sprintf("%q", strings.Join([]string{
				"id -u; stat -c %u /bin/bash; stat -c %a /su",
				"echo $FROM_SPEC $FROM_IMAGE $ANTHROPIC_API_KEY.",
				"touch /workspace/w /tmp/t /mnt/memory/notes/n && echo writable",
				"touch /bin/x 2>/dev/null || echo closed",
				"cat /etc/hostname; ls -1d /proc/1 /dev/null /home/agent; ls /lib/modules /boot 2>/dev/null; true",
			}, "; ")) + `}`)})
			if err != nil {
				t.Fatal(err)
			}
			fromImage := " yes ."
			if kind == "root tarball" || kind == "folder" {
				fromImage = " ." // they have no configuration
			}
			uid := "1000"
			closed := "closed\n"
			if os.Geteuid() != 0 {
				uid, closed = "0", "" // one user for all, who may write over the overlay
			}
			want := uid + "\n0\n755\nyes" + fromImage + "\nwritable\n" + closed + "berth\n/dev/null\n/home/agent\n/proc/1"
			if len(r.Content) != 1 || strings.TrimSpace(r.Content[0].Text) != want {
				t.Errorf("got %q\nwant %q", r.Content, want)
			}
			images, err := b.Images(t.Context())
			if err != nil || len(images) == 0 {
				t.Fatalf("images: %v, %v", images, err)
			}
			if got, err := b.CollectImages(t.Context(), -1); err != nil || got.Images > 0 || images[0].Sandboxes != 1 {
				t.Errorf("collected what is in use: %+v, %v", got, err)
			}
			if err := b.RemoveImage(t.Context(), ref); fault.CodeOf(err) != fault.Conflict {
				t.Errorf("removed what is in use: %v", err)
			}
			if err := box.Destroy(t.Context(), sandbox.Everything); err != nil {
				t.Fatal(err)
			}
			if err := b.RemoveImage(t.Context(), ref); err != nil {
				t.Errorf("not removed: %v", err)
			}
		})
	}
	if images, err := b.Images(t.Context()); err != nil || len(images) > 0 {
		t.Errorf("left: %v, %v", images, err)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "images", "cache", "[bt]*", "*"))
	if len(left) > 0 {
		t.Errorf("left on disk: %q", left)
	}
}

func TestAnImageWithoutAShellIsToldInOneLine(t *testing.T) {
	t.Parallel()
	needNamespaces(t)
	dir, sources := dataDir(t), t.TempDir()
	b, err := linux.New(linux.Config{DataDir: dir, Binary: testbin.Path(t), Images: linux.Images{Folders: []string{sources}}})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	defer clearAll(t, b)
	file := filepath.Join(sources, "root.tar")
	if err := os.WriteFile(file, smallRoot(t, "cat"), 0o644); err != nil {
		t.Fatal(err)
	}
	box, err := b.Create(t.Context(), sandbox.Spec{ID: sandbox.ID("x"), Session: "x", Image: "tar:" + file})
	if err != nil {
		t.Fatal(err)
	}
	g, err := box.Guest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out, err := g.Exec(t.Context(), sandbox.Exec{Argv: []string{"cat", "/etc/passwd"}})
	if err != nil || !strings.Contains(string(out.Stdout), "agent:x:1000") || !strings.Contains(string(out.Stdout), "service") {
		t.Errorf("cat: %s, %v", out.Stdout, err)
	}
	r, err := g.Call(t.Context(), tool.Call{ID: "2", Name: tool.Bash, Input: []byte(`{"command":"true"}`)})
	if err != nil || !r.IsError {
		t.Errorf("bash: %v, %v; want an error result", r, err)
	}
	images, err := b.Images(t.Context())
	if err != nil || len(images) != 1 || !strings.Contains(images[0].Lacks, "/bin/bash") || strings.Contains(images[0].Lacks, "\n") {
		t.Errorf("images %+v, %v", images, err)
	}
}

func TestImagesThatCannotBe(t *testing.T) {
	t.Parallel()
	b := open(t, testbin.Path(t), dataDir(t))
	defer b.Close()
	for text, want := range map[string]fault.Code{
		"dir:/usr": fault.Refused, "tar:/etc/passwd": fault.Refused, "oci:x": fault.Invalid, "UPPER": fault.Invalid,
		"127.0.0.1:1/nobody/listens:1": fault.Unavailable,
	} {
		_, err := b.Create(t.Context(), sandbox.Spec{ID: sandbox.ID("x"), Session: "x", Image: text})
		f := fault.Public(err)
		if f.Code != want || f.Field != "image" || f.Next == "" {
			t.Errorf("%s: %v, want %s with its field and the next step", text, err, want)
		}
	}
	if refs, err := b.List(t.Context()); err != nil || len(refs) > 0 {
		t.Errorf("left behind: %v, %v", refs, err)
	}
}
