package local

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// MessagesBrain is a [Brain] that runs the agent loop with a model behind the
// Messages API: ask the model, make its tool calls, wait for their results, ask
// again, until it has nothing left to do.
//
// It keeps no conversation: every request is built anew from the session's
// history, so that a turn continues after anything that happened in between.
// One MessagesBrain serves any number of sessions at the same time.
type MessagesBrain struct {
	opt       MessagesOptions
	endpoint  string
	authorize func(*http.Request)
}

// MessagesOptions configures a MessagesBrain. APIKey is required.
type MessagesOptions struct {
	// APIKey is sent as X-Api-Key, and appears nowhere else.
	APIKey string
	// BaseURL defaults to https://api.anthropic.com.
	BaseURL string
	// Client sends the requests. Default: http.DefaultClient. It should not have
	// a timeout of its own, since answers are streamed.
	Client *http.Client
	// Model is asked instead of the agents' own models when it is not empty.
	Model string
	// MaxRequests bounds the model requests of one turn. Default 100.
	MaxRequests int
	// MaxTokens bounds the output of one request. Default 16,000.
	MaxTokens int
	// Attempts bounds how often one request is sent before the turn gives up.
	// Default 5.
	Attempts int
	// Timeout bounds one attempt. Default 10 minutes.
	Timeout time.Duration
}

// NewMessagesBrain checks the options and returns a brain. It sends nothing.
func NewMessagesBrain(o MessagesOptions) (*MessagesBrain, error) {
	key := o.APIKey
	o.APIKey = "" // kept in the closure only, where nothing prints it
	if key == "" {
		return nil, errors.New("the model needs an API key; pass one, or use a scripted scenario")
	}
	if o.BaseURL == "" {
		o.BaseURL = "https://api.anthropic.com"
	}
	base, err := url.Parse(o.BaseURL)
	if err != nil || base.Host == "" || base.Scheme != "https" && base.Scheme != "http" {
		return nil, fmt.Errorf("the model's base URL %q is not an http(s) URL", o.BaseURL)
	}
	if o.Client == nil {
		o.Client = http.DefaultClient
	}
	orDefault(&o.MaxRequests, 100)
	orDefault(&o.MaxTokens, 16_000)
	orDefault(&o.Attempts, 5)
	orDefault(&o.Timeout, 10*time.Minute)
	return &MessagesBrain{
		opt:       o,
		endpoint:  strings.TrimSuffix(o.BaseURL, "/") + "/v1/messages",
		authorize: func(r *http.Request) { r.Header.Set("X-Api-Key", key) },
	}, nil
}

// Run implements Brain.
func (b *MessagesBrain) Run(ctx context.Context, t *Turn) error {
	for range b.opt.MaxRequests {
		calls, err := b.ask(ctx, t)
		if refused := (*modelError)(nil); errors.As(err, &refused) {
			t.Stop("retries_exhausted", nil)
			return t.Error(refused.event, refused.Error(), "exhausted")
		}
		if err != nil {
			return err
		}
		if len(calls) > 0 {
			if _, err := t.Wait(ctx, calls...); err != nil {
				return err
			}
		}
		if more := t.More(); len(calls) == 0 && len(more) == 0 {
			return nil
		}
	}
	t.Stop("retries_exhausted", nil)
	return t.Error("tool_use_limit_reached_error",
		fmt.Sprintf("the turn reached its limit of %d model requests", b.opt.MaxRequests), "exhausted")
}

// ask makes one model request, with its retries, and emits what the model said.
// It returns the ids of the calls that the model made.
func (b *MessagesBrain) ask(ctx context.Context, t *Turn) (calls []string, err error) {
	start, err := t.ModelStart("")
	if err != nil {
		return nil, err
	}
	reply, err := b.request(ctx, t, b.bodyFor(t))
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		return nil, errors.Join(err, t.ModelEnd("", start, Tokens{}, true))
	}
	if err := b.say(t, reply, &calls); err != nil {
		return nil, err
	}
	if err := t.ModelEnd("", start, reply.used, false); err != nil {
		return nil, err
	}
	if reply.stopReason == "refusal" {
		t.Stop("refusal", map[string]any{
			"type": "refusal", "category": reply.refusal.Category, "explanation": reply.refusal.Explanation,
		})
	}
	return calls, nil
}

// say emits a reply: what the model thought, its text, then its calls together.
// Text that the model wrote between calls keeps its place before all of them.
func (b *MessagesBrain) say(t *Turn, r *modelReply, ids *[]string) error {
	var text []string
	var calls []Call
	custom := customNames(t.Agent())
	for _, block := range r.blocks {
		switch block.Type {
		case "thinking", "redacted_thinking":
			if err := t.Thinking(""); err != nil {
				return err
			}
		case "text":
			if block.Text != "" {
				text = append(text, block.Text)
			}
		case "tool_use":
			c := Call{Name: block.Name, Input: block.input}
			if custom[block.Name] {
				c.Kind = Custom
			}
			calls = append(calls, c)
		}
	}
	if err := t.Message("", strings.Join(text, "\n\n")); err != nil {
		return err
	}
	made, err := t.Call(calls...)
	*ids = made
	return err
}
