package claude

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"
	"github.com/anthropics/anthropic-sdk-go/v2/packages/param"

	"github.com/berth-dev/berth/internal/session"
)

// ErrNoToken means that a work item's secret has no sessions token: memory stores
// take no other credential that Berth has (contract §1.2, §3.8).
var ErrNoToken = errors.New("the work item carried no sessions token")

// Memory is one entry of a memory store (contract §2.6).
type Memory struct {
	ID      string
	Path    string // absolute within the store, such as /notes/todo.md
	Content string // "" unless it was asked for
	SHA256  string // of the content, lower-case hex: the precondition of a change
}

// MemoryStore is one store that is attached to a session, spoken to with the
// session's own token. Safe for concurrent use. Errors are *session.Refusal when
// the platform answered; 409 means that the entry is not as expected. Changes
// are sent once: after a lost answer the caller lists and compares hashes
// (contract §12.27).
type MemoryStore struct {
	conn  *conn
	store string
}

// Memories opens a store for the session of a work item.
func (q *Queue) Memories(item session.Item, store string) (*MemoryStore, error) {
	token := sessionsToken(item.Secret)
	if token == "" {
		return nil, fmt.Errorf("open memory store %s: %w", store, ErrNoToken)
	}
	return &MemoryStore{conn: q.door.connect(bearer(token)), store: store}, nil
}

// Pages of a list hold at most so many entries (contract §2.6), and a list has at
// most so many pages: a store holds 10,000 entries (contract §9.1).
const (
	memoriesFull  = 20
	memoriesBasic = 100
	memoryPages   = 1000
)

// List yields the entries page by page, with their contents when full is set. It
// stops at yield's first error; nil means that the list was read to its end.
func (m *MemoryStore) List(ctx context.Context, full bool, yield func([]Memory) error) error {
	what := "list memory store " + m.store
	params := anthropic.BetaMemoryStoreMemoryListParams{
		Limit: param.NewOpt[int64](memoriesBasic), View: anthropic.BetaManagedAgentsMemoryViewBasic,
	}
	if full {
		params.Limit, params.View = param.NewOpt[int64](memoriesFull), anthropic.BetaManagedAgentsMemoryViewFull
	}
	for range memoryPages {
		answer, err := m.conn.do(ctx, what, m.conn.again(), func(ctx context.Context, opts ...option.RequestOption) error {
			_, err := m.conn.api.Beta.MemoryStores.Memories.List(ctx, m.store, params, opts...)
			return err
		})
		if err != nil {
			return err
		}
		var page struct {
			Data     []wireMemory `json:"data"`
			NextPage string       `json:"next_page"`
		}
		if err := json.Unmarshal(answer, &page); err != nil {
			return fmt.Errorf("%s: decode: %w", what, err)
		}
		var entries []Memory
		for _, w := range page.Data {
			if w.Type == "memory" {
				entries = append(entries, w.memory())
			}
		}
		if err := yield(entries); err != nil {
			return err
		}
		if page.NextPage == "" {
			return nil
		}
		params.Page = param.NewOpt(page.NextPage)
	}
	return fmt.Errorf("%s: it has no end after %d pages", what, memoryPages)
}

// Create adds an entry. It never replaces one: a path in use is a 409.
func (m *MemoryStore) Create(ctx context.Context, path, content string) (Memory, error) {
	params := anthropic.BetaMemoryStoreMemoryNewParams{Path: path, Content: param.NewOpt(content)}
	return m.change(ctx, "create memory "+path, func(ctx context.Context, opts ...option.RequestOption) error {
		_, err := m.conn.api.Beta.MemoryStores.Memories.New(ctx, m.store, params, opts...)
		return err
	})
}

// Update replaces an entry's content if its present content has the hash.
func (m *MemoryStore) Update(ctx context.Context, id, content, expectedSHA256 string) (Memory, error) {
	params := anthropic.BetaMemoryStoreMemoryUpdateParams{
		MemoryStoreID: m.store, Content: param.NewOpt(content),
		Precondition: anthropic.BetaManagedAgentsPreconditionParam{
			Type: "content_sha256", ContentSha256: param.NewOpt(expectedSHA256),
		},
	}
	return m.change(ctx, "update memory "+id, func(ctx context.Context, opts ...option.RequestOption) error {
		_, err := m.conn.api.Beta.MemoryStores.Memories.Update(ctx, id, params, opts...)
		return err
	})
}

// Delete removes an entry if its present content has the hash.
func (m *MemoryStore) Delete(ctx context.Context, id, expectedSHA256 string) error {
	params := anthropic.BetaMemoryStoreMemoryDeleteParams{MemoryStoreID: m.store, ExpectedContentSha256: param.NewOpt(expectedSHA256)}
	_, err := m.conn.do(ctx, "delete memory "+id, once(m.conn.time.try), func(ctx context.Context, opts ...option.RequestOption) error {
		_, err := m.conn.api.Beta.MemoryStores.Memories.Delete(ctx, id, params, opts...)
		return err
	})
	return err
}

func (m *MemoryStore) change(ctx context.Context, what string, send request) (Memory, error) {
	answer, err := m.conn.do(ctx, what, once(m.conn.time.try), send)
	var w wireMemory
	if err = decode(answer, err, "memory", &w, &w.ID); err != nil {
		return Memory{}, err
	}
	return w.memory(), nil
}

// wireMemory is a list item or an entry as the platform writes it.
type wireMemory struct {
	Type    string  `json:"type"`
	ID      string  `json:"id"`
	Path    string  `json:"path"`
	Content *string `json:"content"`
	SHA256  string  `json:"content_sha256"`
}

func (w wireMemory) memory() Memory {
	m := Memory{ID: w.ID, Path: w.Path, SHA256: w.SHA256}
	if w.Content != nil {
		m.Content = *w.Content
	}
	return m
}
