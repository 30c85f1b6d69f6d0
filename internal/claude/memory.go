package claude

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"
	"github.com/anthropics/anthropic-sdk-go/v2/packages/param"

	"github.com/berth-dev/berth/internal/memory"
	"github.com/berth-dev/berth/internal/session"
)

// ErrNoToken means that a work item's secret has no sessions token: memory stores
// take no other credential that Berth has (contract §1.2, §3.8).
var ErrNoToken = errors.New("the work item carried no sessions token")

// memoryStore is one store that is attached to a session, spoken to with the
// session's own token. Safe for concurrent use. Errors are *session.Refusal when
// the platform answered, and wrap what that means for the synchronization.
// Changes are sent once: after a lost answer the caller lists and compares
// hashes (contract §12.27).
type memoryStore struct {
	conn  *conn
	store string
}

var _ memory.Remote = (*memoryStore)(nil)

// Memories implements session.Platform.
func (p *platform) Memories(store string) (memory.Remote, error) {
	if !p.hasToken {
		return nil, fmt.Errorf("open memory store %s: %w: %w", store, memory.ErrDenied, ErrNoToken)
	}
	return &memoryStore{conn: p.conn, store: store}, nil
}

// inWords says what a refusal means for the synchronization. Everything else may
// have been done or not.
func inWords(err error) error {
	var means error
	switch session.StatusOf(err) {
	case 401, 403:
		means = memory.ErrDenied
	case 404:
		means = memory.ErrMissing
	case 409, 412:
		means = memory.ErrConflict
	case 400, 413, 422:
		means = memory.ErrInvalid
	default:
		return err
	}
	return fmt.Errorf("%w: %w", means, err)
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
func (m *memoryStore) List(ctx context.Context, full bool, yield func([]memory.Entry) error) error {
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
			return inWords(err)
		}
		var page struct {
			Data     []wireMemory `json:"data"`
			NextPage string       `json:"next_page"`
		}
		if err := json.Unmarshal(answer, &page); err != nil {
			return fmt.Errorf("%s: decode: %w", what, err)
		}
		var entries []memory.Entry
		for _, w := range page.Data {
			if w.Type == "memory" {
				entries = append(entries, w.entry())
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

// Fetch reads one entry with its content.
func (m *memoryStore) Fetch(ctx context.Context, id string) (memory.Entry, error) {
	params := anthropic.BetaMemoryStoreMemoryGetParams{MemoryStoreID: m.store, View: anthropic.BetaManagedAgentsMemoryViewFull}
	answer, err := m.conn.do(ctx, "read memory "+id, m.conn.again(), func(ctx context.Context, opts ...option.RequestOption) error {
		_, err := m.conn.api.Beta.MemoryStores.Memories.Get(ctx, id, params, opts...)
		return err
	})
	var w wireMemory
	if err = decode(answer, err, "memory", &w, &w.ID); err != nil {
		return memory.Entry{}, inWords(err)
	}
	return w.entry(), nil
}

// Create adds an entry. It never replaces one: a path in use is a 409.
func (m *memoryStore) Create(ctx context.Context, path, content string) (memory.Entry, error) {
	params := anthropic.BetaMemoryStoreMemoryNewParams{Path: path, Content: param.NewOpt(content)}
	return m.change(ctx, "create memory "+path, func(ctx context.Context, opts ...option.RequestOption) error {
		_, err := m.conn.api.Beta.MemoryStores.Memories.New(ctx, m.store, params, opts...)
		return err
	})
}

// Update replaces an entry's content if its present content has the hash.
func (m *memoryStore) Update(ctx context.Context, id, content, expectedSHA256 string) (memory.Entry, error) {
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
func (m *memoryStore) Delete(ctx context.Context, id, expectedSHA256 string) error {
	params := anthropic.BetaMemoryStoreMemoryDeleteParams{MemoryStoreID: m.store, ExpectedContentSha256: param.NewOpt(expectedSHA256)}
	_, err := m.conn.do(ctx, "delete memory "+id, once(m.conn.time.try), func(ctx context.Context, opts ...option.RequestOption) error {
		_, err := m.conn.api.Beta.MemoryStores.Memories.Delete(ctx, id, params, opts...)
		return err
	})
	return inWords(err)
}

func (m *memoryStore) change(ctx context.Context, what string, send request) (memory.Entry, error) {
	answer, err := m.conn.do(ctx, what, once(m.conn.time.try), send)
	var w wireMemory
	if err = decode(answer, err, "memory", &w, &w.ID); err != nil {
		return memory.Entry{}, inWords(err)
	}
	return w.entry(), nil
}

// wireMemory is a list item or an entry as the platform writes it.
type wireMemory struct {
	Type    string  `json:"type"`
	ID      string  `json:"id"`
	Path    string  `json:"path"`
	Content *string `json:"content"`
	SHA256  string  `json:"content_sha256"`
}

func (w wireMemory) entry() memory.Entry {
	m := memory.Entry{ID: w.ID, Path: w.Path, SHA256: w.SHA256}
	if w.Content != nil {
		m.Content = *w.Content
	}
	return m
}
