package claude

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"
	"github.com/anthropics/anthropic-sdk-go/v2/packages/param"

	"github.com/berth-dev/berth/internal/session"
)

// AdminOptions say how to reach a workspace with its API key.
type AdminOptions struct {
	BaseURL       string // "" means DefaultBaseURL
	APIKey        string // required
	HTTPClient    *http.Client
	Logger        *slog.Logger
	StreamSilence time.Duration // as in Options
}

// Admin does what takes a workspace's API key. Serving sessions never needs it.
// Safe for concurrent use. Errors are *session.Refusal when the platform
// answered. What creates something is sent once: a lost answer may leave it
// created.
type Admin struct{ conn *conn }

// NewAdmin makes no request.
func NewAdmin(o AdminOptions) (*Admin, error) {
	key := apiKey(o.APIKey)
	if !key.usable() {
		return nil, errors.New("open workspace: the API key is empty or has characters that no key has")
	}
	d, err := newDoor(o.BaseURL, o.HTTPClient, o.Logger, o.StreamSilence)
	if err != nil {
		return nil, fmt.Errorf("open workspace: %w", err)
	}
	return &Admin{conn: d.connect(key)}, nil
}

// Environment is one environment of the workspace.
type Environment struct {
	ID       string
	Name     string
	Type     string // self_hosted or cloud
	Archived bool
}

// CreateEnvironment creates a self-hosted environment. Its key is made in the
// platform's console.
func (a *Admin) CreateEnvironment(ctx context.Context, name string) (Environment, error) {
	params := anthropic.BetaEnvironmentNewParams{
		Name:   name,
		Config: anthropic.BetaEnvironmentNewParamsConfigUnion{OfSelfHosted: &anthropic.BetaSelfHostedConfigParams{}},
	}
	answer, err := a.conn.do(ctx, "create environment", once(a.conn.time.try), func(ctx context.Context, opts ...option.RequestOption) error {
		_, err := a.conn.api.Beta.Environments.New(ctx, params, opts...)
		return err
	})
	return environment(answer, err)
}

// Environment reads one environment.
func (a *Admin) Environment(ctx context.Context, id string) (Environment, error) {
	answer, err := a.conn.do(ctx, "read environment "+id, a.conn.again(), func(ctx context.Context, opts ...option.RequestOption) error {
		_, err := a.conn.api.Beta.Environments.Get(ctx, id, anthropic.BetaEnvironmentGetParams{}, opts...)
		return err
	})
	return environment(answer, err)
}

func environment(answer []byte, err error) (Environment, error) {
	var e anthropic.BetaEnvironment
	if err = decode(answer, err, "environment", &e, &e.ID); err != nil {
		return Environment{}, err
	}
	return Environment{
		ID: e.ID, Name: e.Name, Type: e.Config.Type, Archived: object(answer).has("archived_at"),
	}, nil
}

// Agent describes an agent to be created.
type Agent struct {
	Name   string
	Model  string
	System string
	// Tools are tool configurations in the platform's own JSON form; none means
	// the built-in toolset.
	Tools []json.RawMessage
	// Skills are the ids of the workspace's own skills, in their newest version.
	Skills []string
}

// CreateAgent creates an agent and returns its id.
func (a *Admin) CreateAgent(ctx context.Context, agent Agent) (string, error) {
	params := anthropic.BetaAgentNewParams{
		Name:  agent.Name,
		Model: anthropic.BetaManagedAgentsModelConfigParams{ID: agent.Model},
	}
	if agent.System != "" {
		params.System = param.NewOpt(agent.System)
	}
	tools := agent.Tools
	if len(tools) == 0 {
		tools = []json.RawMessage{json.RawMessage(`{"type":"agent_toolset_20260401"}`)}
	}
	for _, t := range tools {
		params.Tools = append(params.Tools, param.Override[anthropic.BetaAgentNewParamsToolUnion](t))
	}
	for _, id := range agent.Skills {
		params.Skills = append(params.Skills, anthropic.BetaManagedAgentsSkillParamsUnion{
			OfCustom: &anthropic.BetaManagedAgentsCustomSkillParams{SkillID: id},
		})
	}
	answer, err := a.conn.do(ctx, "create agent", once(a.conn.time.try), func(ctx context.Context, opts ...option.RequestOption) error {
		_, err := a.conn.api.Beta.Agents.New(ctx, params, opts...)
		return err
	})
	var made anthropic.BetaManagedAgentsAgent
	err = decode(answer, err, "agent", &made, &made.ID)
	return made.ID, err
}

// NewSession describes a session to be created.
type NewSession struct {
	Agent       string // agent id
	Environment string // environment id
	Title       string
	Metadata    map[string]string
	Message     string // the first message; "" leaves the session idle
}

// CreateSession creates a session and returns its id.
func (a *Admin) CreateSession(ctx context.Context, s NewSession) (string, error) {
	params := anthropic.BetaSessionNewParams{
		Agent:         anthropic.BetaSessionNewParamsAgentUnion{OfString: param.NewOpt(s.Agent)},
		EnvironmentID: s.Environment,
		Metadata:      s.Metadata,
	}
	if s.Title != "" {
		params.Title = param.NewOpt(s.Title)
	}
	if s.Message != "" {
		params.InitialEvents = []anthropic.BetaSessionNewParamsInitialEventUnion{
			param.Override[anthropic.BetaSessionNewParamsInitialEventUnion](userMessage(s.Message)),
		}
	}
	answer, err := a.conn.do(ctx, "create session", once(a.conn.time.try), func(ctx context.Context, opts ...option.RequestOption) error {
		_, err := a.conn.api.Beta.Sessions.New(ctx, params, opts...)
		return err
	})
	var made anthropic.BetaManagedAgentsSession
	err = decode(answer, err, "session", &made, &made.ID)
	return made.ID, err
}

// Send sends a message of the user to a session, once.
func (a *Admin) Send(ctx context.Context, sessionID, text string) error {
	return a.post(ctx, "send message to "+sessionID, sessionID, userMessage(text))
}

// Confirm gives the verdict on a call that asks for permission.
func (a *Admin) Confirm(ctx context.Context, sessionID, call string, allow bool) error {
	verdict := "deny"
	if allow {
		verdict = "allow"
	}
	return a.post(ctx, "confirm call "+call, sessionID, map[string]string{
		"type": "user.tool_confirmation", "tool_use_id": call, "result": verdict,
	})
}

// Interrupt ends the session's turn and settles its open calls.
func (a *Admin) Interrupt(ctx context.Context, sessionID string) error {
	return a.post(ctx, "interrupt "+sessionID, sessionID, map[string]string{"type": "user.interrupt"})
}

func (a *Admin) post(ctx context.Context, what, sessionID string, event any) error {
	raw, err := json.Marshal(map[string]any{"events": []any{event}})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return a.conn.post(ctx, what, sessionID, once(a.conn.time.send), raw)
}

// Session opens one session for reading.
func (a *Admin) Session(id string) Reader { return &platform{conn: a.conn, session: id} }

// Reader is the part of session.Platform that only reads.
type Reader interface {
	Info(ctx context.Context) (session.Info, error)
	Stream(ctx context.Context) (session.Stream, error)
	History(ctx context.Context, since time.Time, yield func([]session.Event) error) error
}

func userMessage(text string) any {
	return map[string]any{
		"type":    "user.message",
		"content": []any{map[string]string{"type": "text", "text": text}},
	}
}

// decode reads an answer into v, whose id must not be empty afterwards.
func decode(answer []byte, err error, what string, v any, id *string) error {
	if err != nil {
		return err
	}
	if err := json.Unmarshal(answer, v); err != nil {
		return fmt.Errorf("decode %s: %w", what, err)
	}
	if *id == "" {
		return fmt.Errorf("decode %s: it has no id", what)
	}
	return nil
}
