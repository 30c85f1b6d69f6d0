// Package claude is the one door to the Claude platform. Everything that Berth
// asks of it or tells it goes through here: the work queue of an environment
// (Queue), one session as its work item sees it (session.Platform), webhooks
// (VerifyWebhook), and the few things that an API key does (Admin).
//
// The requests are made with the official SDK; what to retry, how long to wait
// and how to read an answer is decided here. Nothing is read from the process's
// environment, and no credential appears in an error or a log line.
package claude

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"

	"github.com/berth-dev/berth/internal/session"
)

// DefaultBaseURL is used where no base URL is given.
const DefaultBaseURL = "https://api.anthropic.com"

// timing holds every bound of time in this package.
type timing struct {
	try    time.Duration // one attempt of an ordinary call
	total  time.Duration // all attempts of an ordinary call together
	pause  time.Duration // the longest wait between two attempts; a longer retry-after is the caller's business
	send   time.Duration // one attempt to send results, before the allowance for their size
	stop   time.Duration // all attempts of a stop together (contract §3.4)
	open   time.Duration // from asking for a stream or a download to its first header
	silent time.Duration // a stream or a download without a single byte
	retry  session.Backoff
}

func defaultTiming() timing {
	return timing{
		try:    30 * time.Second,
		total:  90 * time.Second,
		pause:  20 * time.Second,
		send:   15 * time.Second,
		stop:   10 * time.Second,
		open:   30 * time.Second,
		silent: 5 * time.Minute,
		retry:  session.Backoff{Base: 500 * time.Millisecond, Cap: 8 * time.Second},
	}
}

// Bounds of what is accepted from the platform.
const (
	maxReply = 64 << 20 // one JSON answer
	maxError = 1 << 20  // the body of an error answer
	maxFrame = 32 << 20 // one event on a stream (contract §4.7)
)

// conn is one credential's way to the platform. Safe for concurrent use.
type conn struct {
	api  anthropic.Client
	cred credential
	log  *slog.Logger
	time timing
}

// credential is what a request carries: exactly one of the two headers, never
// both (contract §1.1).
type credential struct {
	header string
	value  string
}

func bearer(token string) credential { return credential{"Authorization", token} }
func apiKey(key string) credential   { return credential{"X-Api-Key", key} }

// options sets the one header and clears the other.
func (c credential) options() []option.RequestOption {
	if c.header == "X-Api-Key" {
		return []option.RequestOption{option.WithHeaderDel("Authorization"), option.WithHeader("X-Api-Key", c.value)}
	}
	return []option.RequestOption{option.WithHeaderDel("X-Api-Key"), option.WithAuthToken(c.value)}
}

// usable reports whether the value can stand in a header: printable ASCII
// without spaces.
func (c credential) usable() bool {
	for i := range len(c.value) {
		if c.value[i] <= ' ' || c.value[i] > '~' {
			return false
		}
	}
	return c.value != ""
}

// door is what all connections of one platform share.
type door struct {
	base string
	http *http.Client
	log  *slog.Logger
	time timing
}

func newDoor(base string, client *http.Client, log *slog.Logger, silent time.Duration) (door, error) {
	if base == "" {
		base = DefaultBaseURL
	}
	u, err := url.Parse(base)
	switch {
	case err != nil:
		return door{}, fmt.Errorf("parse base URL: %w", err)
	case u.Scheme != "https" && u.Scheme != "http", u.Host == "":
		return door{}, fmt.Errorf("base URL %q is not an absolute http or https URL", u.Redacted())
	case u.User != nil:
		return door{}, errors.New("the base URL must not carry a user name or password")
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	d := door{base: base, http: httpClient(client), log: log, time: defaultTiming()}
	if silent > 0 {
		d.time.silent = silent
	}
	return d, nil
}

// connect makes the connection of one credential. Retries are this package's
// own (retry.go), so that what is worth repeating is decided in one place.
func (d door) connect(cred credential) *conn {
	opts := []option.RequestOption{
		option.WithoutEnvironmentDefaults(),
		option.WithoutOpenTelemetry(),
		option.WithBaseURL(d.base),
		option.WithHTTPClient(d.http),
		option.WithMaxRetries(0),
		option.WithMiddleware(boundErrors),
	}
	return &conn{
		api:  anthropic.NewClient(append(opts, cred.options()...)...),
		cred: cred,
		log:  d.log,
		time: d.time,
	}
}
