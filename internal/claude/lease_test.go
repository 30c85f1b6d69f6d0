package claude

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/session"
)

func contextWithCause(t *testing.T) (context.Context, context.CancelCauseFunc) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	t.Cleanup(func() { cancel(nil) })
	return ctx, cancel
}

func TestHeartbeatEchoesTheTokenByteForByte(t *testing.T) {
	for _, expected := range []string{session.NoHeartbeat, "2026-11-23T13:36:16.000000Z", "a+b c&d=é/%20", "2026-11-23T13:36:16+02:00"} {
		u := newUpstream(t, ok(`{"type":"work_heartbeat","last_heartbeat":"2026-11-23T13:36:16.000000Z","lease_extended":true,"state":"active","ttl_seconds":30}`))
		got, err := newTestPlatform(t, u).Heartbeat(t.Context(), expected, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		want := session.Beat{Token: "2026-11-23T13:36:16.000000Z", Extended: true, State: "active", TTL: 30 * time.Second}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		r := u.only(t)
		if r.Method != "POST" || r.Path != "/v1/environments/env_1/work/work_1/heartbeat" {
			t.Errorf("sent %s %s", r.Method, r.Path)
		}
		query, err := url.ParseQuery(r.Query)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(url.Values{"expected_last_heartbeat": {expected}}, query); d != "" {
			t.Error(d)
		}
	}
}

func TestHeartbeatWithoutATokenClaimsAnUnclaimedLeaseOnly(t *testing.T) {
	u := newUpstream(t, ok(`{"last_heartbeat":"","lease_extended":false,"state":"stopped","ttl_seconds":0}`))
	if _, err := newTestPlatform(t, u).Heartbeat(t.Context(), "", 0); err != nil {
		t.Fatal(err)
	}
	if got := u.only(t).Query; got != "expected_last_heartbeat=NO_HEARTBEAT" {
		t.Errorf("query = %q: leaving the parameter out would be unconditional", got)
	}
}

func TestHeartbeatIsSentOnce(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"lost": hangUp, "500": refuse(500, "api_error", "x"), "429": refuse(429, "rate_limit_error", "x"), "409": refuse(409, "conflict_error", "x"),
	} {
		u := newUpstream(t, answer)
		if _, err := newTestPlatform(t, u).Heartbeat(t.Context(), "hb", time.Second); err == nil {
			t.Errorf("%s: no error", name)
		}
		if n := len(u.requests()); n != 1 {
			t.Errorf("%s: sent %d heartbeats, want 1", name, n)
		}
	}
}

func TestHeartbeatReportsALostLease(t *testing.T) {
	u := newUpstream(t, reply(412, "application/json", `{"type":"error","error":{"type":"invalid_request_error",
 "message":"Heartbeat precondition failed: expected hb-1, actual was NULL",
 "details":{"error_code":"heartbeat_precondition_failed","current_state":{"state":"queued"}}},"request_id":"req_7"}`))
	_, err := newTestPlatform(t, u).Heartbeat(t.Context(), "hb-1", time.Second)
	var got *session.Refusal
	if !errors.As(err, &got) {
		t.Fatalf("Heartbeat = %v, want a refusal", err)
	}
	want := &session.Refusal{
		Status: 412, Type: "invalid_request_error", Code: "heartbeat_precondition_failed", RequestID: "req_7",
		Message: "Heartbeat precondition failed: expected hb-1, actual was NULL",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if session.Retryable(err) {
		t.Error("a lost lease counts as retryable")
	}
}

func TestHeartbeatGivesUpAfterItsTimeout(t *testing.T) {
	u := newUpstream(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	_, err := newTestPlatform(t, u).Heartbeat(t.Context(), "hb", 20*time.Millisecond)
	if !errors.Is(err, context.DeadlineExceeded) || !session.Retryable(err) {
		t.Errorf("Heartbeat = %v, want a retryable timeout", err)
	}
}

func TestHeartbeatBoundsTheTTL(t *testing.T) {
	for body, want := range map[string]time.Duration{
		`{"ttl_seconds":-5}`:                  0,
		`{"ttl_seconds":9223372036854775807}`: maxTTL,
		`{}`:                                  0,
	} {
		got, err := newTestPlatform(t, newUpstream(t, ok(body))).Heartbeat(t.Context(), "hb", 0)
		if err != nil || got.TTL != want {
			t.Errorf("%s: TTL %v, %v; want %v", body, got.TTL, err, want)
		}
	}
}

func TestStopSendsForceOnlyWhenAsked(t *testing.T) {
	for force, want := range map[bool]string{true: `{"force":true}`, false: `{}`} {
		u := newUpstream(t, reply(204, "", ""))
		if err := newTestPlatform(t, u).Stop(t.Context(), force); err != nil {
			t.Fatal(err)
		}
		r := u.only(t)
		if r.Body != want || r.Method != "POST" || r.Path != "/v1/environments/env_1/work/work_1/stop" {
			t.Errorf("sent %s %s %s, want body %s", r.Method, r.Path, r.Body, want)
		}
	}
}

func TestStoppingAStoppedItemSucceeds(t *testing.T) {
	u := newUpstream(t, refuse(409, "conflict_error", "already stopped"))
	if err := newTestPlatform(t, u).Stop(t.Context(), true); err != nil {
		t.Errorf("Stop = %v, want nil for a 409", err)
	}
	u.only(t)
}

func TestStopOutlivesItsContext(t *testing.T) {
	u := newUpstream(t, hangUp, reply(503, "text/html", "<h1>busy</h1>"), reply(204, "", ""))
	ctx, cancel := contextWithCause(t)
	cancel(errors.New("leaving"))
	if err := newTestPlatform(t, u).Stop(ctx, true); err != nil {
		t.Errorf("Stop = %v", err)
	}
	if n := len(u.requests()); n != 3 {
		t.Errorf("sent %d requests, want 3: lost, refused, done", n)
	}
}

func TestStopHasABoundOfItsOwn(t *testing.T) {
	u := newUpstream(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	p := newTestPlatform(t, u)
	p.conn.time.stop = 20 * time.Millisecond
	if err := p.Stop(t.Context(), true); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Stop = %v, want a timeout", err)
	}
}

func TestRetriesAreBoundedAndObeyThePlatform(t *testing.T) {
	for _, c := range []struct {
		name   string
		script []http.HandlerFunc
		sent   int
		status int // of the final error; 0 for success
	}{
		{"first time lucky", []http.HandlerFunc{ok(`{"id":"s"}`)}, 1, 0},
		{"5xx then fine", []http.HandlerFunc{refuse(500, "api_error", "x"), refuse(529, "overloaded_error", "x"), ok(`{"id":"s"}`)}, 3, 0},
		{"never fine", []http.HandlerFunc{refuse(500, "api_error", "x")}, 3, 500},
		{"404 is final", []http.HandlerFunc{refuse(404, "not_found_error", "x")}, 1, 404},
		{"x-should-retry false", []http.HandlerFunc{refuse(500, "api_error", "x", "x-should-retry", "false")}, 1, 500},
		{"x-should-retry true", []http.HandlerFunc{refuse(400, "invalid_request_error", "x", "x-should-retry", "true"), ok(`{"id":"s"}`)}, 2, 0},
		{"short retry-after", []http.HandlerFunc{refuse(429, "rate_limit_error", "x", "retry-after-ms", "1"), ok(`{"id":"s"}`)}, 2, 0},
		{"long retry-after is the caller's", []http.HandlerFunc{refuse(429, "rate_limit_error", "x", "retry-after", "600")}, 1, 429},
		{"304 is no success", []http.HandlerFunc{reply(304, "", "")}, 1, 304},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := newUpstream(t, c.script...)
			_, err := newTestPlatform(t, u).Info(t.Context())
			if session.StatusOf(err) != c.status || (err == nil) != (c.status == 0) {
				t.Errorf("err = %v, want status %d", err, c.status)
			}
			if n := len(u.requests()); n != c.sent {
				t.Errorf("sent %d requests, want %d", n, c.sent)
			}
		})
	}
}

func TestRefusalsTellWhatThePlatformSaid(t *testing.T) {
	u := newUpstream(t, refuse(429, "rate_limit_error", "slow down, "+token, "request-id", "req_head", "retry-after", "600", "x-should-retry", "true"))
	_, err := newTestPlatform(t, u).Info(t.Context())
	var got *session.Refusal
	if !errors.As(err, &got) {
		t.Fatalf("err = %v, want a refusal", err)
	}
	want := &session.Refusal{
		Status: 429, Type: "rate_limit_error", Message: "slow down, [credential]",
		RequestID: "req_head", RetryAfter: 10 * time.Minute, Retry: new(true),
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if strings.Contains(err.Error(), token) {
		t.Errorf("the error has the token: %v", err)
	}
}

func TestARefusalWithoutTheEnvelopeStillSpeaks(t *testing.T) {
	for _, body := range []string{"", "<html>bad gateway</html>", `{"error":"no"}`, `[1]`, strings.Repeat("x", 2*maxError)} {
		u := newUpstream(t, reply(502, "text/html", body))
		_, err := newTestPlatform(t, u).Info(t.Context())
		if session.StatusOf(err) != 502 || !strings.Contains(err.Error(), "bad gateway") {
			t.Errorf("err = %v, want a 502 with its meaning", err)
		}
	}
}

func TestALongMessageIsCut(t *testing.T) {
	u := newUpstream(t, refuse(400, "invalid_request_error", strings.Repeat("é", maxMessage)))
	_, err := newTestPlatform(t, u).Info(t.Context())
	if len(err.Error()) > maxMessage+200 {
		t.Errorf("the message has %d bytes", len(err.Error()))
	}
}

func TestNetworkErrorsPassThrough(t *testing.T) {
	u := newUpstream(t, hangUp)
	_, err := newTestPlatform(t, u).Info(t.Context())
	if !errors.Is(err, io.EOF) || session.StatusOf(err) != 0 || !session.Retryable(err) {
		t.Errorf("err = %v, want the network's own", err)
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		key, value string
		want       time.Duration
	}{
		{"Retry-After", "2", 2 * time.Second},
		{"Retry-After", "0.5", 500 * time.Millisecond},
		{"Retry-After", "-3", 0},
		{"Retry-After", "NaN", 0},
		{"Retry-After", "1e300", maxRetryAfter},
		{"Retry-After", "soon", 0},
		{"Retry-After", now.Add(90 * time.Second).Format(http.TimeFormat), 90 * time.Second},
		{"Retry-After", now.Add(-time.Hour).Format(http.TimeFormat), 0},
		{"Retry-After-Ms", "250", 250 * time.Millisecond},
		{"Other", "250", 0},
	} {
		if got := retryAfter(http.Header{c.key: {c.value}}, now); got != c.want {
			t.Errorf("%s: %s = %v, want %v", c.key, c.value, got, c.want)
		}
	}
}
