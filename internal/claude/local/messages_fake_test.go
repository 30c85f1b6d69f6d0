package local

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/claude/local/openapitest"
)

// fakeModel is the Messages API: it answers the n-th request with the n-th
// reply, under the published description.
type fakeModel struct {
	url string

	mu       sync.Mutex
	replies  []http.HandlerFunc
	requests []map[string]any
}

func newFakeModel(t testing.TB, replies ...http.HandlerFunc) *fakeModel {
	m := &fakeModel{replies: replies}
	web := httptest.NewServer(openapitest.Validated(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Api-Key") != "sk-model" {
			t.Errorf("the model was asked with the key %q", r.Header.Get("X-Api-Key"))
		}
		raw, err := io.ReadAll(r.Body)
		var body map[string]any
		if err == nil {
			err = json.Unmarshal(raw, &body)
		}
		if err != nil {
			t.Errorf("model request: %v", err)
		}
		m.mu.Lock()
		m.requests = append(m.requests, body)
		n := len(m.requests)
		m.mu.Unlock()
		if n > len(m.replies) {
			t.Errorf("unexpected model request %d: %s", n, raw)
			n = len(m.replies)
		}
		m.replies[n-1](w, r)
	})))
	t.Cleanup(web.Close)
	m.url = web.URL
	return m
}

// asked returns the requests so far.
func (m *fakeModel) asked() []map[string]any {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]map[string]any(nil), m.requests...)
}

// said streams a reply of blocks: strings are texts, cut into two deltas;
// modelTool stands for a call with InputSchema as its input.
func said(stop string, blocks ...any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		frame := func(typ string, fields map[string]any) {
			fields["type"] = typ
			b, _ := json.Marshal(fields) // built of plain values below
			fmt.Fprintf(w, "event: %s\ndata: %s\n\n", typ, b)
		}
		frame("message_start", map[string]any{"message": map[string]any{
			"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-opus-5-5", "content": []any{},
			"stop_reason": nil, "stop_sequence": nil, "stop_details": nil, "container": nil, "diagnostics": nil,
			"usage": map[string]any{
				"input_tokens": 10, "output_tokens": 1, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 3,
				"cache_creation": nil, "inference_geo": nil, "server_tool_use": nil, "service_tier": nil, "output_tokens_details": nil,
				"speed": nil,
			},
		}})
		fmt.Fprint(w, "event: ping\ndata: {\"type\": \"ping\"}\n\n")
		for i, b := range blocks {
			var start, deltas []map[string]any
			switch b := b.(type) {
			case string:
				start = append(start, map[string]any{"type": "text", "text": "", "citations": nil})
				for _, part := range []string{b[:len(b)/2], b[len(b)/2:]} {
					deltas = append(deltas, map[string]any{"type": "text_delta", "text": part})
				}
			case modelTool:
				input, _ := json.Marshal(b.InputSchema)
				start = append(start, map[string]any{
					"type": "tool_use", "id": "toolu_1", "name": b.Name, "input": map[string]any{}, "caller": map[string]any{"type": "direct"},
				})
				for _, part := range []string{string(input[:1]), string(input[1:])} {
					deltas = append(deltas, map[string]any{"type": "input_json_delta", "partial_json": part})
				}
			}
			frame("content_block_start", map[string]any{"index": i, "content_block": start[0]})
			for _, d := range deltas {
				frame("content_block_delta", map[string]any{"index": i, "delta": d})
			}
			frame("content_block_stop", map[string]any{"index": i})
		}
		var details any
		if stop == "refusal" {
			details = map[string]any{"type": "refusal", "category": "cyber", "explanation": "no"}
		}
		frame("message_delta", map[string]any{
			"delta": map[string]any{"stop_reason": stop, "stop_sequence": nil, "stop_details": details, "container": nil},
			"usage": map[string]any{
				"output_tokens": 7, "input_tokens": nil, "cache_read_input_tokens": nil, "cache_creation_input_tokens": nil,
				"server_tool_use": nil, "output_tokens_details": nil,
			},
		})
		frame("message_stop", map[string]any{})
	}
}

func refused(status int, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		writeJSON(w, status, map[string]any{
			"type": "error", "request_id": "req_1", "error": map[string]any{"type": statusTypes[status], "message": "not now"},
		})
	}
}

// follower reads a session's stream.
type follower struct {
	t      testing.TB
	events chan map[string]any
}

// follow opens the stream of a session; events from now on can be awaited.
func (d *door) follow(session string) *follower {
	d.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, err := http.NewRequestWithContext(ctx, "GET", d.url+"/v1/sessions/"+session+"/events/stream", nil)
	if err != nil {
		d.t.Fatal(err)
	}
	r.Header.Set("X-Api-Key", d.key)
	r.Header.Set("anthropic-version", "2026-10-21")
	r.Header.Set("anthropic-beta", betaAgents)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		d.t.Fatal(err)
	}
	f := &follower{t: d.t, events: make(chan map[string]any, 1000)}
	done := make(chan struct{})
	go func() { // ended by the cleanup below
		defer close(done)
		defer close(f.events)
		lines := bufio.NewScanner(res.Body)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var e map[string]any
				if json.Unmarshal([]byte(data), &e) == nil {
					f.events <- e
				}
			}
		}
	}()
	d.t.Cleanup(func() {
		cancel()
		_ = res.Body.Close() // the reader is being ended anyway
		<-done
	})
	return f
}

// until returns the events up to the first one that matches.
func (f *follower) until(what string, match func(e map[string]any) bool) (seen []map[string]any) {
	f.t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case e, ok := <-f.events:
			if !ok {
				f.t.Fatalf("the stream ended before %s; seen %v", what, typesOf(seen))
			}
			seen = append(seen, e)
			if match(e) {
				return seen
			}
		case <-deadline:
			f.t.Fatalf("no %s; seen %v", what, typesOf(seen))
		}
	}
}

// idle waits for a session.status_idle with a reason.
func (f *follower) idle(reason string) []map[string]any {
	f.t.Helper()
	return f.until("idle "+reason, func(e map[string]any) bool {
		stop, _ := e["stop_reason"].(map[string]any)
		return e["type"] == "session.status_idle" && stop["type"] == reason
	})
}

// typ waits for an event of a type and returns it.
func (f *follower) typ(typ string) map[string]any {
	f.t.Helper()
	seen := f.until(typ, func(e map[string]any) bool { return e["type"] == typ })
	return seen[len(seen)-1]
}

func typesOf(events []map[string]any) (types []string) {
	for _, e := range events {
		types = append(types, fmt.Sprint(e["type"]))
	}
	return types
}

// session makes an environment, an agent with the fields (JSON, without braces)
// and a session without events, and follows it.
func (d *door) session(agent string) (id string, f *follower) {
	d.t.Helper()
	env := d.want(200, "POST", "/v1/environments", `{"name":"e","config":{"type":"self_hosted"}}`).Body["id"].(string)
	a := d.want(200, "POST", "/v1/agents", `{"name":"n","model":"claude-opus-5-5",`+agent+`}`).Body["id"].(string)
	id = d.want(200, "POST", "/v1/sessions", `{"agent":"`+a+`","environment_id":"`+env+`"}`).Body["id"].(string)
	return id, d.follow(id)
}

func (d *door) events(session, events string) reply {
	d.t.Helper()
	return d.want(200, "POST", "/v1/sessions/"+session+"/events", `{"events":[`+events+`]}`)
}
