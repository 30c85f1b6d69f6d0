//go:build linux

package image

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
)

// hub is a registry in this process, with faults on demand.
type hub struct {
	*httptest.Server
	host  string
	gets  atomic.Int64                                      // of blobs
	fault func(w http.ResponseWriter, r *http.Request) bool // reports whether it answered
	mu    sync.Mutex
}

func newHub(t testing.TB) *hub {
	t.Helper()
	h := &hub{}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			h.gets.Add(1)
		}
		h.mu.Lock()
		answer := h.fault
		h.mu.Unlock()
		if answer != nil && answer(w, r) {
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(h.Close)
	h.host = strings.TrimPrefix(h.URL, "http://")
	return h
}

func (h *hub) set(f func(w http.ResponseWriter, r *http.Request) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fault = f
}

// imageOf makes an image for this host from layers.
func imageOf(t testing.TB, c v1.Config, layers ...[]byte) v1.Image {
	t.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: hostPlatform().Architecture, Config: c})
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

func (h *hub) push(t testing.TB, repo string, img v1.Image) string {
	t.Helper()
	ref, err := name.ParseReference(h.host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	return ref.Name()
}

// openStore opens a store with quick retries.
func openStore(t testing.TB, change ...func(*Options)) *Store {
	t.Helper()
	o := Options{
		Dir: t.TempDir(), Owners: Owners{Single: os.Geteuid() != 0, Agent: 1000}, MaxBytes: 64 << 20,
		retry: retry{attempts: 3, first: time.Millisecond, stall: 5 * time.Second}, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	for _, f := range change {
		f(&o)
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// ensure takes an image and returns a file of its root.
func ensure(t testing.TB, s *Store, ref, file string) string {
	t.Helper()
	root, release, err := s.Ensure(t.Context(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	b, err := os.ReadFile(filepath.Join(s.opts.Dir, root.Name, file))
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// rubbish lists what a store should not have.
func rubbish(t testing.TB, s *Store) []string {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(s.tmp, "*"))
	if err != nil {
		t.Fatal(err)
	}
	folders, _ := filepath.Glob(filepath.Join(s.opts.Dir, rootPrefix+"*"))
	for _, f := range folders {
		if _, err := s.readRoot(filepath.Base(f)); err != nil {
			left = append(left, f)
		}
	}
	return left
}

func TestAnImageIsPulledOnceAndUsedWithoutItsRegistry(t *testing.T) {
	h := newHub(t)
	base := tarOf(t, entry{name: "etc/issue", text: "base"}, entry{name: "bin/bash", text: "#!"})
	ref := h.push(t, "team/tools:1", imageOf(t, v1.Config{Env: []string{"PATH=/opt/bin:/bin", "ANTHROPIC_API_KEY=secret", "HOME=/x"}, User: "nobody-here"},
		base, tarOf(t, entry{name: "etc/issue", text: "tools"})))
	s := openStore(t)
	var reports []sandbox.ImageProgress
	root, release, err := s.Ensure(t.Context(), ref, func(p sandbox.ImageProgress) { reports = append(reports, p) })
	if err != nil {
		t.Fatal(err)
	}
	release()
	if len(root.Env) != 1 || root.Env["PATH"] != "/opt/bin:/bin" {
		t.Errorf("environment %v", root.Env)
	}
	if !strings.Contains(root.Lacks, "/etc/passwd") || strings.Contains(root.Lacks, "\n") {
		t.Errorf("lacks %q", root.Lacks)
	}
	if len(reports) == 0 || reports[0].Reference != ref {
		t.Errorf("reported %v", reports)
	}
	other := h.push(t, "team/other:1", imageOf(t, v1.Config{}, base, tarOf(t, entry{name: "x", text: "1"})))
	before := h.gets.Load()
	if got := ensure(t, s, other, "etc/issue"); got != "base" {
		t.Errorf("the other image has %q", got)
	}
	if n := h.gets.Load() - before; n != 2 { // its configuration and its own layer
		t.Errorf("%d blobs were loaded; the layer that both have should be shared", n)
	}
	h.Close()
	if got := ensure(t, s, ref, "etc/issue"); got != "tools" {
		t.Errorf("without the registry: %q", got)
	}
	if _, err := s.Pull(t.Context(), ref, nil); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("a pull without the registry: %v", err)
	}
	if left := rubbish(t, s); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	// Another process finds it, too.
	again := openStore(t, func(o *Options) { o.Dir = s.opts.Dir })
	if got := ensure(t, again, ref, "etc/issue"); got != "tools" {
		t.Errorf("after a restart: %q", got)
	}
}

func TestManyWaitForOnePullAndOneMayLeave(t *testing.T) {
	h := newHub(t)
	ref := h.push(t, "a:1", imageOf(t, v1.Config{}, tarOf(t, entry{name: "f", text: "1"})))
	started, hold := make(chan struct{}), make(chan struct{})
	var once sync.Once
	h.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") {
			once.Do(func() { close(started) })
			<-hold
		}
		return false
	})
	s := openStore(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	left := make(chan error, 1)
	go func() { // ends with the cancellation below
		_, _, err := s.Ensure(ctx, ref, nil)
		left <- err
	}()
	<-started
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if _, release, err := s.Ensure(t.Context(), ref, nil); err != nil {
				t.Error(err)
			} else {
				release()
			}
		})
	}
	cancel(errors.New("gone home"))
	err := <-left
	if fault.CodeOf(err) != fault.Timeout || !strings.Contains(err.Error(), "still being pulled") {
		t.Errorf("who left got %v", err)
	}
	close(hold)
	wg.Wait()
	if n := h.gets.Load(); n != 2 {
		t.Errorf("%d blobs were loaded, want the configuration and the layer", n)
	}
}

func TestFaultsOfARegistry(t *testing.T) {
	t.Parallel()
	layerText := tarOf(t, entry{name: "f", text: strings.Repeat("content", 20000)})
	for name, c := range map[string]struct {
		fault func(n *atomic.Int64, w http.ResponseWriter, r *http.Request, blob func() []byte) bool
		want  fault.Code // "" when the pull succeeds
		says  string
	}{
		"two 500s": {func(n *atomic.Int64, w http.ResponseWriter, _ *http.Request, _ func() []byte) bool {
			if n.Add(1) > 2 {
				return false
			}
			w.WriteHeader(http.StatusInternalServerError)
			return true
		}, "", ""},
		"500s for ever": {func(_ *atomic.Int64, w http.ResponseWriter, _ *http.Request, _ func() []byte) bool {
			w.WriteHeader(http.StatusBadGateway)
			return true
		}, fault.Unavailable, "answered 502"},
		"a layer cut in the middle": {func(n *atomic.Int64, w http.ResponseWriter, _ *http.Request, blob func() []byte) bool {
			if n.Add(1) > 2 {
				return false
			}
			b := blob()
			w.Header().Set("Content-Length", fmt.Sprint(len(b)))
			_, _ = w.Write(b[:len(b)/2])
			panic(http.ErrAbortHandler)
		}, "", ""},
		"a layer always cut": {func(_ *atomic.Int64, w http.ResponseWriter, _ *http.Request, blob func() []byte) bool {
			_, _ = w.Write(blob()[:10])
			panic(http.ErrAbortHandler)
		}, fault.Unavailable, "cannot be reached"},
		"a wrong layer": {func(_ *atomic.Int64, w http.ResponseWriter, _ *http.Request, blob func() []byte) bool {
			b := bytes.Clone(blob())
			b[len(b)/2] ^= 1
			_, _ = w.Write(b)
			return true
		}, fault.Unavailable, "not what its manifest says"},
		"a longer layer": {func(_ *atomic.Int64, w http.ResponseWriter, _ *http.Request, blob func() []byte) bool {
			_, _ = w.Write(append(bytes.Clone(blob()), "more"...))
			return true
		}, fault.Unavailable, "longer"},
		"a layer that stalls": {func(n *atomic.Int64, w http.ResponseWriter, r *http.Request, blob func() []byte) bool {
			if n.Add(1) > 1 {
				return false
			}
			_, _ = w.Write(blob()[:10])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return true
		}, "", ""},
		"gone": {func(_ *atomic.Int64, w http.ResponseWriter, _ *http.Request, _ func() []byte) bool {
			w.WriteHeader(http.StatusNotFound)
			return true
		}, fault.NotFound, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			img := imageOf(t, v1.Config{}, layerText)
			ref := h.push(t, "a:1", img)
			layers, err := img.Layers()
			if err != nil {
				t.Fatal(err)
			}
			digest, _ := layers[0].Digest()
			blob := func() []byte {
				r, err := layers[0].Compressed()
				if err != nil {
					t.Error(err)
					return make([]byte, 100)
				}
				defer r.Close()
				b, _ := io.ReadAll(r)
				return b
			}
			var n atomic.Int64
			h.set(func(w http.ResponseWriter, r *http.Request) bool {
				return strings.HasSuffix(r.URL.Path, digest.String()) && c.fault(&n, w, r, blob)
			})
			s := openStore(t, func(o *Options) { o.retry.stall = 2 * time.Second })
			_, release, err := s.Ensure(t.Context(), ref, nil)
			if release != nil {
				release()
			}
			if fault.CodeOf(err) != c.want || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %s %q", err, c.want, c.says)
			}
			if err != nil && (fault.Public(err).Next == "" || fault.Public(err).Field != "image") {
				t.Errorf("%v does not say the field and what to do", err)
			}
			if left := rubbish(t, s); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
			if blobs, _ := filepath.Glob(filepath.Join(s.blobs, "*")); err != nil && len(blobs) > 0 {
				t.Errorf("kept %q", blobs)
			}
		})
	}
}

// guarded puts a registry behind a password: basic, or by a token service.
func (h *hub) guarded(user, password string, token bool) {
	h.set(func(w http.ResponseWriter, r *http.Request) bool {
		u, p, basic := r.BasicAuth()
		right := basic && u == user && p == password
		switch {
		case r.URL.Path == "/token":
			if !right {
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			_ = json.NewEncoder(w).Encode(map[string]string{"token": "granted"})
			return true
		case token && r.Header.Get("Authorization") == "Bearer granted", !token && right:
			return false
		case token:
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="hub"`, h.URL+"/token"))
		default:
			w.Header().Set("WWW-Authenticate", `Basic realm="hub"`)
		}
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
}

func TestCredentialsComeFromTheDockerConfiguration(t *testing.T) {
	for _, token := range []bool{false, true} {
		h := newHub(t)
		ref := h.push(t, "private/a:1", imageOf(t, v1.Config{}, tarOf(t, entry{name: "f", text: "1"})))
		h.guarded("me", "word", token)
		for _, c := range []struct {
			name, config string
			want         fault.Code
		}{
			{"right", fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, h.host, base64.StdEncoding.EncodeToString([]byte("me:word"))), ""},
			{"wrong", fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, h.host, base64.StdEncoding.EncodeToString([]byte("me:other"))), fault.Refused},
			{"none", `{}`, fault.Refused},
			{"no file", "", fault.Refused},
			{"for another registry", `{"auths":{"other.example":{"auth":"bWU6d29yZA=="}}}`, fault.Refused},
			{"broken", `{`, fault.Invalid},
		} {
			t.Run(fmt.Sprintf("token %v %s", token, c.name), func(t *testing.T) {
				dir := t.TempDir()
				if c.config != "" {
					if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(c.config), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				s := openStore(t, func(o *Options) { o.DockerConfig = dir })
				_, release, err := s.Ensure(t.Context(), ref, nil)
				if err == nil {
					release()
				}
				if fault.CodeOf(err) != c.want {
					t.Errorf("%v, want %q", err, c.want)
				}
				if err != nil && (strings.Contains(err.Error(), "word") && !strings.Contains(err.Error(), "password") || strings.Contains(err.Error(), "bWU6")) {
					t.Errorf("it gives the password away: %v", err)
				}
			})
		}
	}
}

func TestWithoutTLSOnlyOnThisHostOrAsConfigured(t *testing.T) {
	seen := ""
	s := secured{insecure: []string{"registry.lan:5000"}, next: roundTrip(func(r *http.Request) { seen = r.URL.String() })}
	for url, want := range map[string]string{
		"http://127.0.0.1:5000/v2/":        "http://127.0.0.1:5000/v2/",
		"http://[::1]:5000/v2/":            "http://[::1]:5000/v2/",
		"http://registry.lan:5000/v2/":     "http://registry.lan:5000/v2/",
		"http://registry.lan:5001/v2/":     "https://registry.lan:5001/v2/",
		"http://10.1.2.3:5000/v2/":         "https://10.1.2.3:5000/v2/",
		"http://cdn.example/blob":          "https://cdn.example/blob",
		"https://localhost.example.com/x":  "https://localhost.example.com/x",
		"http://localhost.example.com/x":   "https://localhost.example.com/x",
		"http://registry.localhost:5000/x": "http://registry.localhost:5000/x",
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = s.RoundTrip(req)
		if seen != want || req.URL.String() != url {
			t.Errorf("%s became %s, want %s", url, seen, want)
		}
	}
}

type roundTrip func(*http.Request)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) {
	f(r)
	return nil, errors.New("not sent")
}

func TestATagIsLookedUpAgainWhenItsTimeHasCome(t *testing.T) {
	h := newHub(t)
	push := func(text string) string {
		return h.push(t, "a:latest", imageOf(t, v1.Config{}, tarOf(t, entry{name: "f", text: text})))
	}
	ref := push("1")
	now := time.Now()
	s := openStore(t, func(o *Options) { o.Refresh, o.now = time.Hour, func() time.Time { return now } })
	never := openStore(t)
	for _, store := range []*Store{s, never} {
		if got := ensure(t, store, ref, "f"); got != "1" {
			t.Errorf("first %q", got)
		}
	}
	push("2")
	now = now.Add(59 * time.Minute)
	if got := ensure(t, s, ref, "f"); got != "1" {
		t.Errorf("before its time: %q", got)
	}
	now = now.Add(2 * time.Minute)
	if got := ensure(t, s, ref, "f"); got != "2" {
		t.Errorf("after its time: %q", got)
	}
	if got := ensure(t, never, ref, "f"); got != "1" {
		t.Errorf("without a time: %q", got)
	}
	if _, err := never.Pull(t.Context(), ref, nil); err != nil {
		t.Error(err)
	}
	if got := ensure(t, never, ref, "f"); got != "2" {
		t.Errorf("after a pull: %q", got)
	}
	h.set(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(500); return true })
	now = now.Add(2 * time.Hour)
	if got := ensure(t, s, ref, "f"); got != "2" {
		t.Errorf("with the registry down: %q", got)
	}
}
