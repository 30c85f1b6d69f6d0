package claude

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/claude/local"
	"github.com/berth-dev/berth/internal/claude/local/openapitest"
	"github.com/berth-dev/berth/internal/memory"
	"github.com/berth-dev/berth/internal/session"
)

// shelf is a local platform, its beta rules on, with a session that has one store
// attached.
type shelf struct {
	srv          *local.Server
	queue        *Queue
	item         session.Item
	store, other string // other is not attached
}

func newShelf(t *testing.T) *shelf {
	t.Helper()
	const key, envKey, env = "sk-ant-api03-test", "sk-ant-oat01-test", "env_1"
	srv := local.New(local.Options{APIKeys: []string{key}, EnvironmentKeys: map[string]string{env: envKey}, StrictBeta: true})
	web := httptest.NewServer(openapitest.Validated(t, srv))
	t.Cleanup(func() {
		_ = srv.Close() // always nil
		web.Close()
	})
	create := func(path, beta string, body any) string {
		t.Helper()
		raw, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, web.URL+path, bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"X-Api-Key": {key}, "Anthropic-Beta": {beta}, "Content-Type": {"application/json"}, "Anthropic-Version": {"2026-10-21"}}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var made struct{ ID string }
		if err := json.NewDecoder(res.Body).Decode(&made); err != nil || made.ID == "" {
			t.Fatalf("POST %s: %s %v", path, res.Status, err)
		}
		return made.ID
	}
	s := &shelf{srv: srv}
	s.store = create("/v1/memory_stores", "agent-memory-2026-07-22", map[string]any{"name": "notes"})
	s.other = create("/v1/memory_stores", "agent-memory-2026-07-22", map[string]any{"name": "other"})
	agent := create("/v1/agents", "managed-agents-2026-04-01", map[string]any{"name": "a", "model": "claude-opus-5-5"})
	create("/v1/sessions", "managed-agents-2026-04-01", map[string]any{
		"agent": agent, "environment_id": env,
		"resources":      []any{map[string]any{"type": "memory_store", "memory_store_id": s.store, "access": "read_write"}},
		"initial_events": []any{map[string]any{"type": "user.message", "content": []any{map[string]any{"type": "text", "text": "go"}}}},
	})
	q, err := NewQueue(Options{BaseURL: web.URL, EnvironmentID: env, EnvironmentKey: envKey})
	if err != nil {
		t.Fatal(err)
	}
	q.door.time.retry = session.Backoff{Base: time.Millisecond, Cap: 2 * time.Millisecond}
	q.conn.time = q.door.time
	item, err := q.Poll(t.Context(), time.Second)
	if err != nil || item == nil {
		t.Fatalf("Poll = %v, %v", item, err)
	}
	s.queue, s.item = q, *item
	return s
}

func (s *shelf) memories(t *testing.T, store string) memory.Remote {
	t.Helper()
	m, err := s.queue.Platform(s.item).Memories(store)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestMemoriesAreKeptWithTheSessionsOwnToken walks a store that is attached to a
// session through the door.
func TestMemoriesAreKeptWithTheSessionsOwnToken(t *testing.T) {
	s := newShelf(t)
	m := s.memories(t, s.store)
	var err error
	made := map[string]memory.Entry{}
	for i := range memoriesFull + 2 { // more than a page
		path := "/notes/" + string(rune('a'+i)) + ".md"
		if made[path], err = m.Create(t.Context(), path, "text of "+path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.Create(t.Context(), "/notes/a.md", "again"); session.StatusOf(err) != http.StatusConflict {
		t.Errorf("Create at a path in use = %v, want a 409", err)
	}
	a := made["/notes/a.md"]
	changed, err := m.Update(t.Context(), a.ID, "new text", a.SHA256)
	if err != nil || changed.SHA256 == a.SHA256 {
		t.Fatalf("Update = %+v, %v", changed, err)
	}
	if _, err := m.Update(t.Context(), a.ID, "stale", a.SHA256); session.StatusOf(err) != http.StatusConflict {
		t.Errorf("Update with an old hash = %v, want a 409", err)
	}
	if err := m.Delete(t.Context(), a.ID, a.SHA256); session.StatusOf(err) != http.StatusConflict {
		t.Errorf("Delete with an old hash = %v, want a 409", err)
	}
	b := made["/notes/b.md"]
	if err := m.Delete(t.Context(), b.ID, b.SHA256); err != nil {
		t.Fatal(err)
	}
	for _, full := range []bool{true, false} {
		got := map[string]string{}
		err := m.List(t.Context(), full, func(page []memory.Entry) error {
			for _, e := range page {
				got[e.Path] = e.Content
			}
			return nil
		})
		want := map[string]string{}
		for path := range made {
			switch {
			case path == b.Path:
			case !full:
				want[path] = ""
			case path == a.Path:
				want[path] = "new text"
			default:
				want[path] = "text of " + path
			}
		}
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("List(full %t) = %v (-want +got):\n%s", full, err, diff)
		}
	}
	if got, err := m.Fetch(t.Context(), a.ID); err != nil || got.Content != "new text" || got.SHA256 != changed.SHA256 {
		t.Errorf("Fetch = %+v, %v", got, err)
	}
	if err := s.memories(t, s.other).List(t.Context(), false, func([]memory.Entry) error { return nil }); session.StatusOf(err) != http.StatusForbidden {
		t.Errorf("List of a store that is not attached = %v, want a 403", err)
	}
	if _, err := s.queue.Platform(session.Item{ID: "work_1"}).Memories(s.store); !errors.Is(err, ErrNoToken) || !errors.Is(err, memory.ErrDenied) {
		t.Errorf("Memories without a token = %v, want ErrNoToken", err)
	}
}
