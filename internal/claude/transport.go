package claude

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2/option"

	"github.com/berth-dev/berth/internal/fault"
)

// This file makes HTTP safe for requests that carry credentials and for answers
// of unknown size.

// errTooLarge is the error of a body that exceeds its bound.
var errTooLarge = fault.New(fault.TooLarge, "the answer is larger than Berth accepts")

// httpClient returns a client of our own: a copy of base, or one with a fresh
// transport. It has no overall timeout, which would cut streams; every call has
// its own bounds. A connection whose peer is gone is noticed by pings.
func httpClient(base *http.Client) *http.Client {
	c := &http.Client{}
	if base != nil {
		*c = *base
		c.Timeout = 0
	}
	if c.Transport == nil {
		t, ok := http.DefaultTransport.(*http.Transport)
		if ok {
			t = t.Clone()
			t.HTTP2 = &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second}
			t.MaxIdleConnsPerHost = 16
			c.Transport = t
		}
	}
	if c.CheckRedirect == nil {
		c.CheckRedirect = checkRedirect
	}
	return c
}

// checkRedirect lets a GET follow at most three redirects and never lets a
// credential travel: net/http drops Authorization on another host but keeps
// X-Api-Key, and neither may fall back to clear text.
func checkRedirect(next *http.Request, via []*http.Request) error {
	first := via[0]
	switch {
	case len(via) > 3:
		return errors.New("more than three redirects")
	case first.Method != http.MethodGet:
		return fmt.Errorf("refusing to follow a redirect of a %s; check the base URL", first.Method)
	case first.URL.Scheme == "https" && next.URL.Scheme != "https":
		return errors.New("refusing to follow a redirect from https to " + next.URL.Scheme)
	}
	if next.URL.Host != first.URL.Host {
		next.Header.Del("X-Api-Key")
		next.Header.Del("Authorization")
	}
	return nil
}

// boundErrors cuts the body of an error answer, which the SDK reads whole.
func boundErrors(req *http.Request, next option.MiddlewareNext) (*http.Response, error) {
	res, err := next(req)
	if err == nil && res.StatusCode >= 400 {
		res.Body = body{io.LimitReader(res.Body, maxError), res.Body}
	}
	return res, err
}

// boundReply refuses a body of more than limit bytes.
func boundReply(limit int64) option.Middleware {
	return func(req *http.Request, next option.MiddlewareNext) (*http.Response, error) {
		res, err := next(req)
		if err == nil && res.StatusCode < 400 {
			res.Body = body{&bounded{from: res.Body, left: limit}, res.Body}
		}
		return res, err
	}
}

// body reads from one place and closes another.
type body struct {
	io.Reader
	io.Closer
}

// bounded is a reader that fails, rather than ends, after left bytes.
type bounded struct {
	from io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errTooLarge
	}
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.from.Read(p)
	b.left -= int64(n)
	if b.left < 0 {
		return n - 1, errTooLarge
	}
	return n, err
}
