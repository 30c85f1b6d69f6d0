//go:build linux

package image

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/berth-dev/berth/internal/fault"
)

// remoteSource is one repository of a registry as a source.
type remoteSource struct {
	puller *remote.Puller
	repo   name.Repository
}

func (r remoteSource) manifest(ctx context.Context, h v1.Hash) ([]byte, error) {
	d, err := r.puller.Get(ctx, r.repo.Digest(h.String()))
	if err != nil {
		return nil, err
	}
	return d.Manifest, nil
}

func (r remoteSource) blob(ctx context.Context, h v1.Hash) (io.ReadCloser, error) {
	l, err := r.puller.Layer(ctx, r.repo.Digest(h.String()))
	if err != nil {
		return nil, err
	}
	return l.Compressed()
}

// dialer makes connections to registries.
type dialer struct {
	keys     keychain
	insecure []string
	retry    retry
	http     http.RoundTripper
}

func newDialer(o Options) *dialer {
	t, _ := http.DefaultTransport.(*http.Transport)
	t = t.Clone()
	t.ResponseHeaderTimeout = o.retry.stall
	return &dialer{keys: keychain{o.DockerConfig}, insecure: o.Insecure, retry: o.retry, http: secured{t, o.Insecure}}
}

// secured lets nothing leave this host without TLS but what was configured so,
// neither a redirect nor what a registry says about its tokens.
type secured struct {
	next     http.RoundTripper
	insecure []string
}

// RoundTrip implements http.RoundTripper.
func (s secured) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme == "http" && !loopback(r.URL.Hostname()) && !slices.Contains(s.insecure, r.URL.Host) {
		r = r.Clone(r.Context())
		r.URL.Scheme = "https"
	}
	return s.next.RoundTrip(r)
}

func loopback(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// resolve asks what a reference stands for now. attempts bounds how often
// transient faults are met with another try.
func (d *dialer) resolve(ctx context.Context, ref reference, want v1.Platform, attempts int) (*found, error) {
	puller, err := remote.NewPuller(
		remote.WithAuthFromKeychain(d.keys), remote.WithUserAgent("berth"),
		remote.WithTransport(patient{next: d.http, retry: d.retry, attempts: attempts}),
		remote.WithRetryBackoff(remote.Backoff{Steps: 1}), remote.WithRetryStatusCodes(), // its waits do not end with a context
	)
	if err != nil {
		return nil, err
	}
	src := remoteSource{puller, ref.remote.Context()}
	top, err := puller.Get(ctx, ref.remote)
	if err != nil {
		return nil, explain(ctx, err, ref)
	}
	f, err := follow(ctx, src, top.Descriptor, top.Manifest, want)
	if err != nil {
		return nil, explain(ctx, err, ref)
	}
	f.remote = true
	return f, nil
}

// patient sends a request again when it failed in a way that passes.
type patient struct {
	next     http.RoundTripper
	retry    retry
	attempts int
}

// RoundTrip implements http.RoundTripper.
func (p patient) RoundTrip(r *http.Request) (*http.Response, error) {
	for attempt := 0; ; attempt++ {
		res, err := p.next.RoundTrip(r)
		passes := err != nil && transient(err) || err == nil && (res.StatusCode >= 500 ||
			res.StatusCode == http.StatusTooManyRequests || res.StatusCode == http.StatusRequestTimeout)
		// Only what has no body can be sent again as it is; nothing else is needed to pull.
		if !passes || attempt+1 >= p.attempts || r.Body != nil && r.Body != http.NoBody {
			return res, err
		}
		if res != nil {
			_ = res.Body.Close()
		}
		if !p.retry.pause(r.Context(), attempt) {
			return nil, context.Cause(r.Context())
		}
	}
}

// transient reports whether a failed request may succeed when it is sent again.
// Answers are judged by their status elsewhere.
func transient(err error) bool {
	if errors.Is(err, context.Canceled) {
		return false
	}
	if n, ok := errors.AsType[net.Error](err); ok && n.Timeout() {
		return true
	}
	for _, known := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.ECONNREFUSED, syscall.EPIPE, net.ErrClosed} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// explain turns what went wrong between us and a registry into an error that
// says what to do.
func explain(ctx context.Context, err error, ref reference) error {
	if errors.As(err, new(*fault.Error)) {
		return err
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	host := ref.remote.Context().RegistryStr()
	if host == name.DefaultRegistry {
		host = "docker.io"
	}
	if answer, ok := errors.AsType[*transport.Error](err); ok {
		return refused(answer, err, ref, host)
	}
	if strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		return fault.Wrap(err, fault.Refused, "the registry %s speaks without TLS", host).WithField("image").
			WithNext("add it to sandbox.images.insecure if the network between is yours")
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // without the address, which may carry a signature
	}
	return fault.Wrap(err, fault.Unavailable, "the registry %s cannot be reached", host).WithField("image").
		WithNext("check the name and the network between; an image that was pulled before is used without it")
}

func refused(answer *transport.Error, err error, ref reference, host string) error {
	switch s := answer.StatusCode; {
	case s == http.StatusUnauthorized || s == http.StatusForbidden:
		return fault.Wrap(err, fault.Refused, "the registry %s refuses the image %s", host, ref.text).WithField("image").
			WithNext("check the name; for a private image sign in with docker login, and point sandbox.images.docker_config to its folder")
	case s == http.StatusNotFound:
		return fault.Wrap(err, fault.NotFound, "there is no image %s", ref.text).WithField("image").WithNext("check its name and tag")
	case s == http.StatusTooManyRequests:
		return fault.Wrap(err, fault.Busy, "the registry %s wants fewer requests", host).WithField("image").
			WithNext("wait, or sign in: most registries then allow more")
	default:
		return fault.Wrap(err, fault.Unavailable, "the registry %s answered %d", host, s).WithField("image").WithNext("try again later")
	}
}

// pause waits before the next attempt, longer each time; false when ctx ended.
func (r retry) pause(ctx context.Context, attempt int) bool {
	wait := r.first << min(attempt, 6)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
