package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/berth-dev/berth/internal/api"
	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
)

// client speaks to a running server's API.
type client struct {
	base  string // http://host:port
	token string
	http  *http.Client
}

// maxAnswer bounds one answer, in bytes.
const maxAnswer = 64 << 20

func newClient(server, token string) *client {
	return &client{base: strings.TrimSuffix(server, "/"), token: token, http: &http.Client{}}
}

// call sends one request and decodes the answer into out, unless out is nil.
func (c *client) call(ctx context.Context, method, path string, in, out any) error {
	return c.callWith(ctx, method, path, nil, in, out)
}

// callWith is call with further headers.
func (c *client) callWith(ctx context.Context, method, path string, header http.Header, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	res, err := c.send(ctx, method, path, body, header)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(out); err != nil {
		return fmt.Errorf("read the server's answer: %w", err)
	}
	return nil
}

// send returns the response when it is a success and the server's fault when it
// is not.
func (c *client) send(ctx context.Context, method, path string, body io.Reader, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "the server's address %q is not a URL", c.base).WithField("--server")
	}
	maps.Copy(req.Header, header)
	req.Header.Set("Authorization", "Bearer "+c.token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, c.unreachable(err)
	}
	if res.StatusCode < 300 {
		return res, nil
	}
	defer res.Body.Close()
	var p api.Problem
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&p); err != nil || p.Code == "" {
		return nil, fault.New(fault.FromStatus(res.StatusCode), "the server at %s answered %s", c.base, res.Status).
			WithNext("check that --server points to a berth server")
	}
	return nil, &fault.Error{Code: p.Code, Message: p.Detail, Field: p.Field, Next: p.Next}
}

func (c *client) unreachable(err error) error {
	return fault.Wrap(err, fault.Unavailable, "no berth server answers at %s", c.base).
		WithNext("start one with: berth serve (or: berth demo), or name it with --server")
}

func (c *client) session(ctx context.Context, id string) (api.Session, error) {
	var s api.Session
	return s, c.call(ctx, http.MethodGet, "/api/v1/sessions/"+url.PathEscape(id), nil, &s)
}

// all reads every page of a list, at most limit entries.
func all[T any](ctx context.Context, c *client, path string, limit int) ([]T, error) {
	var out []T
	after := ""
	for len(out) < limit {
		q := url.Values{"limit": {strconv.Itoa(min(limit-len(out), 200))}}
		if after != "" {
			q.Set("after", after)
		}
		var page api.Page[T]
		if err := c.call(ctx, http.MethodGet, path+"?"+q.Encode(), nil, &page); err != nil {
			return nil, err
		}
		out = append(out, page.Data...)
		if page.Next == "" {
			break
		}
		after = page.Next
	}
	return out, nil
}

// follow calls fn for every event of a session from the given seq on, and goes
// on over broken connections, until fn returns false or an error, or ctx ends.
func (c *client) follow(ctx context.Context, id string, after int64, fn func(event.Event) (bool, error)) error {
	for failures := 0; ; {
		before := after
		done, err := c.followOnce(ctx, id, &after, fn)
		if done || ctx.Err() != nil {
			return err
		}
		if f := fault.CodeOf(err); err != nil && f != fault.Unavailable && f != fault.Internal {
			return err
		}
		if after > before {
			failures = 0
		}
		if failures++; failures > 5 {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Duration(failures) * 300 * time.Millisecond):
		}
	}
}

func (c *client) followOnce(ctx context.Context, id string, after *int64, fn func(event.Event) (bool, error)) (done bool, err error) {
	path := "/api/v1/sessions/" + url.PathEscape(id) + "/events/stream?after=" + strconv.FormatInt(*after, 10)
	res, err := c.send(ctx, http.MethodGet, path, nil, nil)
	if err != nil {
		return false, err
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var e event.Event
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return false, fmt.Errorf("read an event: %w", err) // a line that was cut off
		}
		more, err := fn(e)
		if err != nil || !more {
			return true, err
		}
		*after = e.Seq
	}
	if err := lines.Err(); err != nil && !errors.Is(err, context.Canceled) {
		return false, c.unreachable(err)
	}
	return false, nil
}
