package api

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/session"
)

// Session is a session as the API shows it.
type Session struct {
	ID           string          `json:"id"`
	Environment  string          `json:"environment"`
	Agent        string          `json:"agent,omitempty"`
	AgentName    string          `json:"agent_name,omitempty"`
	AgentVersion int64           `json:"agent_version,omitempty"`
	Model        string          `json:"model,omitempty"`
	Title        string          `json:"title,omitempty"`
	Phase        session.Phase   `json:"phase" enum:"active,warm,parked,over" doc:"where it stands here"`
	Status       string          `json:"status,omitempty" doc:"its status at the platform"`
	StopReason   string          `json:"stop_reason,omitempty"`
	Waiting      session.Waiting `json:"waiting" doc:"what it waits for, and since when"`
	Sandbox      *Sandbox        `json:"sandbox,omitempty"`
	Work         []Work          `json:"work,omitempty" doc:"its work items, oldest first; only when one session is asked for"`
	CreatedAt    time.Time       `json:"created_at"`
	UpdatedAt    time.Time       `json:"updated_at"`
	EndedAt      *time.Time      `json:"ended_at,omitempty"`
	EndReason    string          `json:"end_reason,omitempty"`
}

// Sandbox is the sandbox that a session has now.
type Sandbox struct {
	ID      string    `json:"id"`
	Backend string    `json:"backend"`
	Since   time.Time `json:"since"`
	// Settings are nil for one that an older version of Berth made.
	Settings *session.Profile `json:"settings,omitempty" doc:"what it was made with"`
	Revision int64            `json:"settings_revision,omitempty" doc:"of what was set for its agent when it was made"`
}

// Work is a claimed work item. Secrets are never shown.
type Work struct {
	ID        string            `json:"id"`
	State     session.WorkState `json:"state" enum:"claimed,held,stopped,lost"`
	ClaimedAt time.Time         `json:"claimed_at"`
	BeatAt    *time.Time        `json:"beat_at,omitempty"`
	EndedAt   *time.Time        `json:"ended_at,omitempty"`
	Why       string            `json:"why,omitempty"`
}

// Call is a row of the ledger.
type Call struct {
	ID         string            `json:"id"`
	Seq        int64             `json:"seq"`
	Thread     string            `json:"thread,omitempty"`
	Name       string            `json:"name"`
	Custom     bool              `json:"custom,omitempty"`
	Input      json.RawMessage   `json:"input,omitempty"`
	Permission string            `json:"permission,omitempty"`
	State      session.CallState `json:"state" enum:"seen,held,ready,started,finished,posted,settled,foreign"`
	Result     json.RawMessage   `json:"result,omitempty" doc:"content blocks"`
	IsError    bool              `json:"is_error,omitempty"`
	Reason     string            `json:"reason,omitempty"`
	SeenAt     time.Time         `json:"seen_at"`
	StartedAt  *time.Time        `json:"started_at,omitempty"`
	FinishedAt *time.Time        `json:"finished_at,omitempty"`
	DoneAt     *time.Time        `json:"done_at,omitempty"`
}

// Page is one page of a list. Next is the cursor of the next page, empty at the
// end.
type Page[T any] struct {
	Data []T    `json:"data"`
	Next string `json:"next,omitempty"`
}

type answer[T any] struct{ Body T }

// SessionPath names a session in a path. Exported because huma looks at exported
// fields only.
type SessionPath struct {
	ID string `path:"id" maxLength:"128" doc:"session id"`
}

// PageQuery asks for a page of a list.
type PageQuery struct {
	Limit int    `query:"limit" minimum:"1" maximum:"200" default:"50"`
	After string `query:"after" maxLength:"64" doc:"cursor of the page before"`
}

func (s *server) sessions(api huma.API) {
	huma.Register(api, operation("list-sessions", http.MethodGet, "/api/v1/sessions", "Sessions, the one that changed last first"),
		func(ctx context.Context, in *PageQuery) (*answer[Page[Session]], error) {
			before, err := timeCursor(in.After)
			if err != nil {
				return nil, problem(err)
			}
			records, err := s.Records.Sessions(ctx, before, in.Limit)
			if err != nil {
				return nil, s.failed(err)
			}
			page := Page[Session]{Data: make([]Session, 0, len(records))}
			for i := range records {
				page.Data = append(page.Data, s.showSession(&records[i]))
			}
			if len(records) == in.Limit {
				page.Next = base64.RawURLEncoding.EncodeToString([]byte(records[len(records)-1].UpdatedAt.Format(time.RFC3339Nano)))
			}
			return &answer[Page[Session]]{page}, nil
		})

	huma.Register(api, operation("get-session", http.MethodGet, "/api/v1/sessions/{id}", "One session"),
		func(ctx context.Context, in *SessionPath) (*answer[Session], error) {
			r, err := s.Records.Session(ctx, in.ID)
			if err != nil {
				return nil, s.failed(err)
			}
			work, err := s.Records.Work(ctx, in.ID)
			if err != nil {
				return nil, s.failed(err)
			}
			out := s.showSession(&r)
			for _, w := range work {
				out.Work = append(out.Work, Work{
					ID: w.ID, State: w.State, ClaimedAt: w.ClaimedAt, BeatAt: orNil(w.BeatAt), EndedAt: orNil(w.EndedAt), Why: w.Why,
				})
			}
			return &answer[Session]{out}, nil
		})

	huma.Register(api, operation("list-calls", http.MethodGet, "/api/v1/sessions/{id}/calls", "The ledger of a session, in order of arrival"),
		func(ctx context.Context, in *struct {
			SessionPath
			PageQuery
		},
		) (*answer[Page[Call]], error) {
			after, err := seqCursor(in.After)
			if err != nil {
				return nil, problem(err)
			}
			if _, err := s.Records.Session(ctx, in.ID); err != nil {
				return nil, s.failed(err)
			}
			calls, err := s.Records.Calls(ctx, in.ID, after, in.Limit)
			if err != nil {
				return nil, s.failed(err)
			}
			page := Page[Call]{Data: make([]Call, 0, len(calls))}
			for i := range calls {
				page.Data = append(page.Data, showCall(&calls[i]))
			}
			if len(calls) == in.Limit {
				page.Next = strconv.FormatInt(calls[len(calls)-1].Seq, 10)
			}
			return &answer[Page[Call]]{page}, nil
		})

	huma.Register(api, operation("list-events", http.MethodGet, "/api/v1/sessions/{id}/events", "The event log of a session, oldest first"),
		func(ctx context.Context, in *struct {
			SessionPath
			PageQuery
		},
		) (*answer[Page[event.Event]], error) {
			after, err := seqCursor(in.After)
			if err != nil {
				return nil, problem(err)
			}
			if _, err := s.Records.Session(ctx, in.ID); err != nil {
				return nil, s.failed(err)
			}
			events, err := s.Records.Events(ctx, in.ID, after, in.Limit)
			if err != nil {
				return nil, s.failed(err)
			}
			page := Page[event.Event]{Data: events}
			if page.Data == nil {
				page.Data = []event.Event{}
			}
			if len(events) == in.Limit {
				page.Next = strconv.FormatInt(events[len(events)-1].Seq, 10)
			}
			return &answer[Page[event.Event]]{page}, nil
		})
}

func operation(id, method, path, summary string) huma.Operation {
	return huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary}
}

// failed logs what a client may not see and returns what it may.
func (s *server) failed(err error) error {
	if fault.CodeOf(err) == fault.Internal {
		s.Log.Error("a request failed", "err", err)
	}
	return problem(err)
}

func (s *server) showSession(r *session.Record) Session {
	out := Session{
		ID: r.ID, Environment: r.Environment, Agent: r.Agent, AgentName: r.AgentName, AgentVersion: r.AgentVersion, Model: r.Model,
		Title: r.Title, Phase: r.Phase, Status: r.Memo.Status, StopReason: r.Memo.StopReason, Waiting: r.Waiting,
		CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt, EndedAt: orNil(r.EndedAt), EndReason: r.EndReason,
	}
	if since := s.Rooms.Stalled(r.ID); !since.IsZero() {
		// The record is older than that: it could not be written.
		out.Waiting = session.Waiting{For: session.ForStorage, Since: since, Detail: s.stalledWhy()}
	}
	if r.Sandbox != nil {
		out.Sandbox = &Sandbox{ID: r.Sandbox.ID, Backend: r.Sandbox.Backend, Since: r.SandboxSince, Settings: r.Profile, Revision: r.Revision}
	}
	return out
}

// stalledWhy says why changes cannot be recorded.
func (s *server) stalledWhy() string {
	return cmp.Or(s.Rooms.StalledWhy(), "its changes cannot be recorded; the server's log says why")
}

func showCall(c *session.Call) Call {
	return Call{
		ID: c.ID, Seq: c.Seq, Thread: c.Thread, Name: c.Name, Custom: c.Custom, Input: c.Input, Permission: c.Permission,
		State: c.State, Result: c.Content, IsError: c.IsError, Reason: c.Reason, SeenAt: c.SeenAt,
		StartedAt: orNil(c.StartedAt), FinishedAt: orNil(c.FinishedAt), DoneAt: orNil(c.DoneAt),
	}
}

func orNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

var errCursor = fault.New(fault.Invalid, "this is not a cursor of this list").WithField("after").WithNext("pass the next value of the page before")

func timeCursor(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return time.Time{}, errCursor
	}
	t, err := time.Parse(time.RFC3339Nano, string(b))
	if err != nil {
		return time.Time{}, errCursor
	}
	return t, nil
}

func seqCursor(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, errCursor
	}
	return n, nil
}
