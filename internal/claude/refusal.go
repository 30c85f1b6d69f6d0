package claude

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2"

	"github.com/berth-dev/berth/internal/session"
)

// maxMessage bounds the text of a refusal, in bytes.
const maxMessage = 2 << 10

// maxRetryAfter bounds what a retry-after header may ask for.
const maxRetryAfter = time.Hour

// explain turns what the SDK returned into this package's errors: *Refusal when
// the platform answered, the cause of ctx when that ended, else the error as it
// is. All are wrapped with what was being done.
func (c *conn) explain(ctx context.Context, what string, err error) error {
	if err == nil {
		return nil
	}
	if api, ok := errors.AsType[*anthropic.Error](err); ok {
		return fmt.Errorf("%s: %w", what, c.refusal(api))
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: the platform did not answer in time: %w", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (c *conn) refusal(e *anthropic.Error) *session.Refusal {
	r := parseEnvelope([]byte(e.RawJSON()))
	r.Status = e.StatusCode
	if e.RequestID != "" {
		r.RequestID = e.RequestID
	}
	if e.Response != nil {
		r.RetryAfter = retryAfter(e.Response.Header, time.Now())
		r.Retry = shouldRetry(e.Response.Header)
	}
	return c.finish(r)
}

// finish makes a refusal presentable: it has a message of bounded length, and
// the message does not repeat the credential.
func (c *conn) finish(r *session.Refusal) *session.Refusal {
	r.Message = strings.ReplaceAll(r.Message, c.cred.value, "[credential]")
	if len(r.Message) > maxMessage {
		r.Message = strings.ToValidUTF8(r.Message[:maxMessage], "") + "…"
	}
	if r.Message == "" {
		r.Message = strings.ToLower(http.StatusText(r.Status))
	}
	return r
}

// parseEnvelope reads the platform's error envelope (contract §1.5) as far as
// it is one. Other bodies, such as a proxy's page, leave the result empty.
func parseEnvelope(raw []byte) *session.Refusal {
	var top struct {
		Error     json.RawMessage `json:"error"`
		RequestID json.RawMessage `json:"request_id"`
	}
	r := &session.Refusal{}
	if json.Unmarshal(raw, &top) != nil {
		return r
	}
	e := object(top.Error)
	r.Type, r.Message = e.text("type"), e.text("message")
	r.Code = e.object("details").text("error_code")
	r.RequestID = text(top.RequestID)
	return r
}

// retryAfter reads retry-after-ms, or else retry-after in seconds or as a date.
func retryAfter(h http.Header, now time.Time) time.Duration {
	var d time.Duration
	if ms, err := strconv.ParseFloat(h.Get("Retry-After-Ms"), 64); err == nil {
		d = scale(ms, time.Millisecond)
	} else if s, err := strconv.ParseFloat(h.Get("Retry-After"), 64); err == nil {
		d = scale(s, time.Second)
	} else if at, err := http.ParseTime(h.Get("Retry-After")); err == nil {
		d = at.Sub(now)
	}
	return min(max(d, 0), maxRetryAfter)
}

// scale multiplies without overflow; NaN is zero.
func scale(n float64, unit time.Duration) time.Duration {
	if !(n > 0) {
		return 0
	}
	return time.Duration(min(n*float64(unit), float64(maxRetryAfter)))
}

func shouldRetry(h http.Header) *bool {
	switch h.Get("X-Should-Retry") {
	case "true":
		return new(true)
	case "false":
		return new(false)
	}
	return nil
}

// statusOf is the status that belongs to an error type, for errors that arrive
// on a stream, after its 200. Unknown types count as the platform's fault.
func statusOf(errorType string) int {
	switch errorType {
	case "invalid_request_error":
		return http.StatusBadRequest
	case "authentication_error":
		return http.StatusUnauthorized
	case "billing_error":
		return http.StatusPaymentRequired
	case "permission_error":
		return http.StatusForbidden
	case "not_found_error":
		return http.StatusNotFound
	case "conflict_error":
		return http.StatusConflict
	case "request_too_large":
		return http.StatusRequestEntityTooLarge
	case "rate_limit_error":
		return http.StatusTooManyRequests
	case "timeout_error":
		return http.StatusGatewayTimeout
	case "overloaded_error":
		return 529
	}
	return http.StatusInternalServerError
}

// fields is a JSON object read without expectations: a member that is missing
// or of another kind than asked for is empty.
type fields map[string]json.RawMessage

func object(raw json.RawMessage) fields {
	var f fields
	if json.Unmarshal(raw, &f) != nil {
		return nil
	}
	return f
}

func (f fields) object(name string) fields { return object(f[name]) }
func (f fields) text(name string) string   { return text(f[name]) }

// has reports whether the member is there and not null.
func (f fields) has(name string) bool {
	raw, ok := f[name]
	return ok && !isNull(raw)
}

func text(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

func isNull(raw []byte) bool {
	raw = bytes.TrimSpace(raw)
	return len(raw) == 0 || bytes.Equal(raw, []byte("null"))
}
