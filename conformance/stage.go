package conformance

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/berth-dev/berth/internal/claude/local"
)

// leaseTTL is short, so that lapsing leases do not make cases long, and long
// enough for a busy machine: workers beat at half of it.
const leaseTTL = 8 * time.Second

// historyPage is how many events a page of history has: few, so that every
// history has several.
const historyPage = 7

// stage is a platform on loopback.
type stage struct {
	server *local.Server
	http   *http.Server
	url    string
	apiKey string
	secret string // that signs webhooks
	served chan struct{}

	mu    sync.Mutex
	hook  string // where webhooks go on to
	hooks []int  // what was answered there
}

func newStage(ctx context.Context, s Subject, alone *Alone) (*stage, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the platform: %w", err)
	}
	st := &stage{url: "http://" + l.Addr().String(), apiKey: "sk-ant-api-conformance-" + rand.Text(), served: make(chan struct{})}
	o := local.Options{
		APIKeys: []string{st.apiKey}, StrictBeta: true, AckIdempotent: true,
		LeaseTTL: leaseTTL, ReclaimAfter: 2 * time.Second, KeepAlive: 5 * time.Second,
		HistoryPage: historyPage, MemoryRoot: s.Memory, RequestLog: 200_000,
	}
	if alone != nil {
		o.StopReply, o.StrictDuplicates, o.AckIdempotent = alone.StopReply, alone.StrictDuplicates, !alone.AckOnce
		if alone.Webhooks {
			st.secret = "whsec_" + base64.StdEncoding.EncodeToString([]byte(rand.Text()))
			o.Webhooks = local.WebhookOptions{
				Endpoints: []local.Endpoint{{URL: st.url + relayPath, Secret: st.secret}},
				Duplicate: alone.Duplicate, Skew: alone.Skew, RetryMin: 200 * time.Millisecond, RetryMax: time.Second,
			}
		}
	}
	st.server = local.New(o)
	mux := http.NewServeMux()
	mux.HandleFunc(relayPath, st.relay)
	mux.Handle("/", st.server)
	st.http = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { // ends with close
		defer close(st.served)
		_ = st.http.Serve(l)
	}()
	return st, nil
}

func (st *stage) close() error {
	err := errors.Join(st.server.Close(), st.http.Close())
	<-st.served
	return err
}

// relayPath takes the platform's webhooks: where they go is known only when the
// worker has been started.
const relayPath = "/_webhooks"

// relay passes a webhook on and remembers what was answered.
func (st *stage) relay(w http.ResponseWriter, r *http.Request) {
	st.mu.Lock()
	to := st.hook
	st.mu.Unlock()
	status := http.StatusServiceUnavailable
	if to != "" {
		if req, err := http.NewRequestWithContext(r.Context(), http.MethodPost, to, io.LimitReader(r.Body, 1<<20)); err == nil {
			req.Header = r.Header.Clone()
			if res, err := http.DefaultTransport.RoundTrip(req); err == nil {
				_ = res.Body.Close() // the status is all that counts
				status = res.StatusCode
			}
		}
	}
	st.mu.Lock()
	st.hooks = append(st.hooks, status)
	st.mu.Unlock()
	w.WriteHeader(status)
}

// ask sends a request with the API key. out may be nil.
func (st *stage) ask(ctx context.Context, method, path string, body, out any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	req, err := http.NewRequestWithContext(ctx, method, st.url+path, bytes.NewReader(raw))
	if err != nil {
		return fmt.Errorf("ask %s: %w", path, err)
	}
	beta := "managed-agents-2026-04-01"
	if strings.HasPrefix(path, "/v1/memory_stores") {
		beta = "agent-memory-2026-07-22"
	}
	req.Header.Set("X-Api-Key", st.apiKey)
	req.Header.Set("anthropic-beta", beta)
	req.Header.Set("anthropic-version", "2026-10-21")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask %s: %w", path, err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, 32<<20))
	if err != nil {
		return fmt.Errorf("ask %s: %w", path, err)
	}
	if res.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, path, res.Status, answer)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("decode the answer of %s: %w", path, err)
	}
	return nil
}

// object is all that most answers are read for.
type object struct {
	ID string `json:"id"`
}

// lane is one worker with an environment of its own.
type lane struct {
	stage       *stage
	subject     Subject
	environment string
	worker      *worker
}

// open makes an environment and starts a worker for it.
func (st *stage) open(ctx context.Context, s Subject) (*lane, error) {
	var env object
	err := st.ask(ctx, "POST", "/v1/environments", map[string]any{"name": "conformance", "config": map[string]any{"type": "self_hosted"}}, &env)
	if err != nil {
		return nil, err
	}
	key := st.server.MintEnvironmentKey(env.ID)
	vars := []string{"ANTHROPIC_BASE_URL=" + st.url, "ANTHROPIC_ENVIRONMENT_ID=" + env.ID, "ANTHROPIC_ENVIRONMENT_KEY=" + key}
	if st.secret != "" {
		vars = append(vars, "ANTHROPIC_WEBHOOK_SIGNING_KEY="+st.secret)
	}
	w, setup, err := startWorker(s, vars...)
	if err != nil {
		return nil, err
	}
	st.mu.Lock()
	st.hook = setup.Webhook
	st.mu.Unlock()
	return &lane{stage: st, subject: s, environment: env.ID, worker: w}, nil
}

// message sends a user.message.
func (st *stage) message(session, text string) error {
	_, err := st.server.Send(session, map[string]any{
		"type": "user.message", "content": []any{map[string]any{"type": "text", "text": text}},
	})
	return err
}
