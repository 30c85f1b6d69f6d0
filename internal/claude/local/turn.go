package local

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"time"
)

// Turn is a brain's hand on one session for one turn. Its methods are safe for
// concurrent use; those that emit fail with ErrInterrupted or ErrSessionOver
// once the turn is over, and emit nothing then.
type Turn struct {
	s      *Server
	se     *session
	cancel context.CancelCauseFunc
	input  []Event

	// Guarded by Server.mu.
	over    error // set when the turn ended before Run returned
	reason  map[string]any
	details any
	after   afterTurn
}

type afterTurn int

const (
	stay afterTurn = iota
	archive
	remove
)

// Session returns the session's id.
func (t *Turn) Session() string { return t.se.ID }

// Agent returns the session's snapshot of its agent as decoded JSON (contract
// §2.4). The caller must not change it.
func (t *Turn) Agent() map[string]any {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	return t.se.Agent
}

// Metadata returns the session's metadata.
func (t *Turn) Metadata() map[string]string {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	return maps.Clone(t.se.Metadata)
}

// Resources returns the session's resources as decoded JSON.
func (t *Turn) Resources() []map[string]any {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	return slices.Clone(t.se.Resources)
}

// Input returns the events that started this turn.
func (t *Turn) Input() []Event { return t.input }

// More takes in the messages that arrived since the turn began, in order. Brains
// call it between model requests; what they leave starts the next turn.
func (t *Turn) More() []Event {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	if t.over != nil {
		return nil
	}
	return t.s.consume(t.se)
}

// History returns everything processed in this session so far, in order, the
// events of child threads included.
func (t *Turn) History() []Event {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	all := make([]Event, 0, len(t.se.log.processed))
	for _, e := range t.se.log.processed {
		all = append(all, e.public())
	}
	return all
}

// Pause waits for d on the platform's clock.
func (t *Turn) Pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	select {
	case <-t.s.clock.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// do runs f with the lock unless the turn is over. A session that waits for
// clients becomes running again, since its agent does something.
func (t *Turn) do(f func()) error {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	if t.over != nil {
		return t.over
	}
	t.s.goRunning(t.se)
	f()
	return nil
}

// Emit appends any event, for what has no method of its own. fields must not
// hold id, type and processed_at. It returns the event's id.
func (t *Turn) Emit(thread, typ string, fields map[string]any) (id string, err error) {
	err = t.do(func() { id = t.s.emit(t.se, &event{Type: typ, Thread: thread, Fields: fields}).ID })
	return id, err
}

// Message emits an agent.message. Empty text is skipped: its block would be
// invalid.
func (t *Turn) Message(thread, text string) error {
	if text == "" {
		return nil
	}
	_, err := t.Emit(thread, "agent.message", map[string]any{"content": textContent(text)})
	return err
}

// Thinking emits an agent.thinking.
func (t *Turn) Thinking(thread string) error {
	_, err := t.Emit(thread, "agent.thinking", nil)
	return err
}

// ModelStart emits a span.model_request_start and returns its id for ModelEnd.
func (t *Turn) ModelStart(thread string) (id string, err error) {
	return t.Emit(thread, "span.model_request_start", nil)
}

// ModelEnd emits the span.model_request_end that belongs to a ModelStart, and
// adds the tokens to the session's usage.
func (t *Turn) ModelEnd(thread, start string, used Tokens, isError bool) error {
	return t.do(func() {
		t.se.tokens.add(used)
		t.s.emit(t.se, &event{Type: "span.model_request_end", Thread: thread, Fields: map[string]any{
			"model_request_start_id": start, "is_error": isError, "model_usage": map[string]any{
				"input_tokens": used.Input, "output_tokens": used.Output,
				"cache_creation_input_tokens": used.CacheCreation, "cache_read_input_tokens": used.CacheRead,
			},
		}})
	})
}

// Call emits the calls, all before any result, and returns their ids in order.
// It does not wait.
func (t *Turn) Call(calls ...Call) (ids []string, err error) {
	inputs := make([]any, len(calls))
	for i, c := range calls {
		if inputs[i], err = asObject(c.Input); err != nil {
			return nil, err
		}
	}
	err = t.do(func() {
		for i, c := range calls {
			ids = append(ids, t.s.emitCall(t.se, c, inputs[i]))
		}
		for _, id := range ids {
			t.s.serveCall(t.se, t.se.calls[id])
		}
	})
	return ids, err
}

// Wait waits until the calls are answered or settled, and returns their results
// in the order of ids; without ids it waits for all that are open. While it
// waits, the session is idle with requires_action, listing everything open.
func (t *Turn) Wait(ctx context.Context, ids ...string) ([]Result, error) {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	if len(ids) == 0 {
		ids = t.se.openCalls("")
	}
	for {
		if t.over != nil {
			return nil, t.over
		}
		if t.se.allDone(ids) {
			break
		}
		if t.se.Status == statusRunning {
			t.s.announceWaiting(t.se)
		}
		changed := t.se.changed
		t.s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		t.s.mu.Lock()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	results := make([]Result, len(ids))
	for i, id := range ids {
		results[i] = t.se.calls[id].result
	}
	return results, nil
}

// Tools makes the calls and waits for their results.
func (t *Turn) Tools(ctx context.Context, calls ...Call) ([]Result, error) {
	ids, err := t.Call(calls...)
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	return t.Wait(ctx, ids...)
}

// Stop sets the stop reason of the session.status_idle that ends the turn:
// end_turn, retries_exhausted, budget_reached or refusal. details is its
// stop_details, nil for null.
func (t *Turn) Stop(reason string, details map[string]any) {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	t.reason = map[string]any{"type": reason}
	if details != nil {
		t.details = details
	}
}

// Error emits a session.error of a type of contract §4.4. retry is retrying,
// exhausted or terminal.
func (t *Turn) Error(typ, message, retry string) error {
	return t.do(func() { t.s.emitError(t.se, typ, message, retry) })
}

// Terminate ends the session for good; the turn is over with it.
func (t *Turn) Terminate() error {
	return t.do(func() { t.s.terminate(t.se) })
}

// ArchiveAfter archives the session when the turn has ended.
func (t *Turn) ArchiveAfter() { t.setAfter(archive) }

// DeleteAfter deletes the session when the turn has ended.
func (t *Turn) DeleteAfter() { t.setAfter(remove) }

func (t *Turn) setAfter(a afterTurn) {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	t.after = a
}

// CreateThread starts a child thread of the primary one, running. agent is its
// snapshot; nil takes the session's.
func (t *Turn) CreateThread(name string, agent map[string]any) (id string, err error) {
	err = t.do(func() { id = t.s.createThread(t.se, name, agent).ID })
	return id, err
}

// ThreadMessage emits what one thread tells another: …_message_sent on the
// sender's log and …_message_received on the receiver's. "" is the primary one.
func (t *Turn) ThreadMessage(from, to, text string) error {
	return t.do(func() { t.s.threadMessage(t.se, from, to, text) })
}

// IdleThread ends a thread's turn with a stop reason, by default end_turn.
func (t *Turn) IdleThread(id, reason string) error {
	if reason == "" {
		reason = "end_turn"
	}
	return t.do(func() { t.s.idleThread(t.se, t.se.threads[id], map[string]any{"type": reason}) })
}

// TerminateThread ends a thread for good and settles its calls.
func (t *Turn) TerminateThread(id string) error {
	return t.do(func() { t.s.terminateThread(t.se, t.se.threads[id]) })
}

// asObject turns any value into decoded JSON that is an object.
func asObject(v any) (any, error) {
	if v == nil {
		return map[string]any{}, nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	if m == nil {
		m = map[string]any{}
	}
	return m, nil
}
