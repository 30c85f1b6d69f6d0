package local

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// Webhooks (contract §7): a notification for each thing that happens to a
// session, signed as Standard Webhooks, tried up to three times, in no
// guaranteed order. A redirect disables an endpoint at once.

// WebhookOptions configures the sender. Unlike the platform, it delivers to
// plain HTTP and to private addresses: it is a stand-in for development.
type WebhookOptions struct {
	Endpoints []Endpoint
	// Duplicate delivers every notification twice.
	Duplicate bool
	// RetryMin and RetryMax bound the jittered exponential wait between tries, on
	// the platform's clock. Defaults 5 s and 120 s.
	RetryMin, RetryMax time.Duration
	// Skew is added to webhook-timestamp, to test the receiver's tolerance.
	Skew time.Duration
	// Client defaults to one with a timeout of 10 s.
	Client *http.Client
}

// Endpoint is one receiver.
type Endpoint struct {
	URL    string
	Secret string   // whsec_…
	Events []string // types to send; empty: all
}

// WebhookState is what became of an endpoint, for tests.
type WebhookState struct {
	URL       string
	Delivered int // notifications that were acknowledged with 2xx
	Failed    int // notifications given up
	Dropped   int // notifications lost because the queue was full
	Disabled  bool
}

const (
	webhookTries = 3
	webhookQueue = 10_000
)

type webhookSender struct {
	opt       WebhookOptions
	server    *Server
	endpoints []*endpoint

	mu      sync.Mutex    // guards the states
	changed chan struct{} // closed and replaced when one changes
}

type endpoint struct {
	Endpoint
	signer *standardwebhooks.Webhook
	queue  chan notification
	state  WebhookState
}

type notification struct {
	id   string
	body []byte
}

func newWebhookSender(s *Server, o WebhookOptions) *webhookSender {
	orDefault(&o.RetryMin, 5*time.Second)
	orDefault(&o.RetryMax, 120*time.Second)
	if o.Client == nil {
		o.Client = &http.Client{Timeout: 10 * time.Second}
	}
	client := *o.Client
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	o.Client = &client
	h := &webhookSender{opt: o, server: s, changed: make(chan struct{})}
	for _, e := range o.Endpoints {
		signer, err := standardwebhooks.NewWebhook(e.Secret)
		if err != nil {
			s.log.Error("webhook endpoint left out: its secret is not whsec_ and base64", "url", e.URL)
			continue
		}
		ep := &endpoint{Endpoint: e, signer: signer, queue: make(chan notification, webhookQueue), state: WebhookState{URL: e.URL}}
		h.endpoints = append(h.endpoints, ep)
		s.wg.Go(func() { h.deliver(s.ctx, ep) })
	}
	return h
}

// notify queues a notification about an object. It does not block. Called with
// Server.mu.
func (h *webhookSender) notify(typ, id string, extra map[string]any) {
	if len(h.endpoints) == 0 {
		return
	}
	data := map[string]any{"type": typ, "id": id, "organization_id": "org_local", "workspace_id": "wrkspc_local"}
	maps.Copy(data, extra)
	n := notification{id: newID("whe_")}
	var err error
	n.body, err = json.Marshal(map[string]any{
		"type": "event", "id": n.id, "created_at": stamp(h.server.clock.Now()), "data": data,
	})
	if err != nil {
		h.server.log.Error("encoding a webhook", "type", typ, "error", err) // strings always encode
		return
	}
	copies := 1
	if h.opt.Duplicate {
		copies = 2
	}
	for _, ep := range h.endpoints {
		if len(ep.Events) > 0 && !slices.Contains(ep.Events, typ) {
			continue
		}
		for range copies {
			select {
			case ep.queue <- n:
			default:
				h.count(ep, func(s *WebhookState) { s.Dropped++ })
			}
		}
	}
}

func (h *webhookSender) count(ep *endpoint, f func(*WebhookState)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(&ep.state)
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *webhookSender) disabled(ep *endpoint) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return ep.state.Disabled
}

// deliver sends an endpoint's notifications one after the other. What is queued
// while it is disabled is not sent later.
func (h *webhookSender) deliver(ctx context.Context, ep *endpoint) {
	for {
		select {
		case <-ctx.Done():
			return
		case n := <-ep.queue:
			if !h.disabled(ep) {
				h.try(ctx, ep, n)
			}
		}
	}
}

func (h *webhookSender) try(ctx context.Context, ep *endpoint, n notification) {
	for attempt := range webhookTries {
		if attempt > 0 {
			select {
			case <-h.server.clock.After(h.backoff(attempt)):
			case <-ctx.Done():
				return
			}
		}
		status, err := h.post(ctx, ep, n)
		switch {
		case err == nil && status >= 200 && status < 300:
			h.count(ep, func(s *WebhookState) { s.Delivered++ })
			return
		case err == nil && status >= 300 && status < 400:
			h.count(ep, func(s *WebhookState) { s.Disabled = true; s.Failed++ })
			h.server.log.Warn("webhook endpoint disabled: it answered with a redirect", "url", ep.URL)
			return
		}
	}
	if ctx.Err() == nil {
		h.count(ep, func(s *WebhookState) { s.Failed++ })
	}
}

// backoff doubles from RetryMin to RetryMax, with up to a quarter of jitter.
func (h *webhookSender) backoff(attempt int) time.Duration {
	d := h.opt.RetryMin << (attempt - 1)
	d += time.Duration(rand.Int64N(int64(d)/4 + 1))
	return min(d, h.opt.RetryMax)
}

func (h *webhookSender) post(ctx context.Context, ep *endpoint, n notification) (status int, err error) {
	at := h.server.clock.Now().Add(h.opt.Skew)
	signature, err := ep.signer.Sign(n.id, at, n.body)
	if err != nil {
		return 0, fmt.Errorf("sign webhook: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, ep.URL, bytes.NewReader(n.body))
	if err != nil {
		return 0, fmt.Errorf("make webhook request: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(standardwebhooks.HeaderWebhookID, n.id)
	req.Header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(at.Unix(), 10))
	req.Header.Set(standardwebhooks.HeaderWebhookSignature, signature)
	resp, err := h.opt.Client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("post webhook: %w", err)
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	return resp.StatusCode, resp.Body.Close()
}

// states returns the endpoints' states and a channel that closes when they
// change.
func (h *webhookSender) states() ([]WebhookState, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []WebhookState
	for _, ep := range h.endpoints {
		all = append(all, ep.state)
	}
	return all, h.changed
}

// Webhooks returns the state of the endpoints, in the order of the options.
func (s *Server) Webhooks() []WebhookState {
	all, _ := s.hooks.states()
	return all
}

// AwaitWebhooks waits until the endpoints' states satisfy done.
func (s *Server) AwaitWebhooks(ctx context.Context, done func([]WebhookState) bool) error {
	for {
		all, changed := s.hooks.states()
		if done(all) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
