package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// A model request may fail for a while: overload, rate limits, faults of the
// network. Such failures are told as session.error with retry_status retrying,
// and the request is sent again after a pause that doubles, or as long as the
// API asks for. Other failures, and too many, end the turn.

const (
	firstPause    = time.Second
	longestPause  = 60 * time.Second
	maxErrorBytes = 64 << 10
)

// modelError is a failed model request.
type modelError struct {
	event   string // the type of the session.error
	message string
	retry   bool
	after   time.Duration // how long the API asks to wait, 0 when it does not
}

// Error is fit for a client's eyes: it holds what the API said and no header.
func (e *modelError) Error() string { return e.message }

// failure classifies an answer of the API.
func failure(status int, typ, message string) *modelError {
	e := &modelError{event: "model_request_failed_error", message: fmt.Sprintf("the model API answered %d %s: %s", status, typ, message)}
	switch {
	case status == http.StatusTooManyRequests:
		e.event, e.retry = "model_rate_limited_error", true
	case status == 529:
		e.event, e.retry = "model_overloaded_error", true
	case status == http.StatusPaymentRequired:
		e.event = "billing_error"
	case status >= 500 || status == http.StatusRequestTimeout || status == http.StatusConflict:
		e.retry = true
	}
	return e
}

// request sends one model request until it succeeds, fails for good, or has had
// all its attempts.
func (b *MessagesBrain) request(ctx context.Context, t *Turn, body modelRequest) (*modelReply, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode model request: %w", err)
	}
	pause := firstPause
	for attempt := 1; ; attempt++ {
		reply, err := b.send(ctx, raw)
		if err == nil {
			return reply, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		failed := (*modelError)(nil)
		if !errors.As(err, &failed) { // no answer, or half of one
			failed = &modelError{event: "model_request_failed_error", message: "the model API gave no whole answer: " + err.Error(), retry: true}
		}
		if !failed.retry || attempt >= b.opt.Attempts {
			return nil, failed
		}
		if err := t.Error(failed.event, failed.message, "retrying"); err != nil {
			return nil, err
		}
		wait := max(pause, failed.after)
		if err := t.Pause(ctx, min(wait, longestPause)); err != nil {
			return nil, err
		}
		pause *= 2
	}
}

// send makes one attempt.
func (b *MessagesBrain) send(ctx context.Context, body []byte) (*modelReply, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, b.opt.Timeout, errors.New("the model took too long"))
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, b.endpoint, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("make model request: %w", err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "text/event-stream")
	r.Header.Set("anthropic-version", "2023-06-01")
	b.authorize(r)
	res, err := b.opt.Client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("ask the model: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusOK {
		return readReply(res.Body)
	}
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxErrorBytes))
	if err != nil {
		return nil, fmt.Errorf("read refusal: %w", err)
	}
	var envelope struct {
		Error struct {
			Type    string `json:"type"`
			Message string `json:"message"`
		} `json:"error"`
	}
	if json.Unmarshal(raw, &envelope) != nil || envelope.Error.Message == "" {
		envelope.Error.Message = "no reason given"
	}
	failed := failure(res.StatusCode, envelope.Error.Type, envelope.Error.Message)
	failed.after = retryAfter(res.Header)
	switch res.Header.Get("x-should-retry") {
	case "true":
		failed.retry = true
	case "false":
		failed.retry = false
	}
	return nil, failed
}

// retryAfter reads retry-after-ms and retry-after in seconds.
func retryAfter(h http.Header) time.Duration {
	if ms, err := strconv.ParseFloat(h.Get("retry-after-ms"), 64); err == nil && ms > 0 {
		return time.Duration(ms * float64(time.Millisecond))
	}
	if s, err := strconv.ParseFloat(h.Get("retry-after"), 64); err == nil && s > 0 {
		return time.Duration(s * float64(time.Second))
	}
	return 0
}
