package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
)

// Exec is a one-shot command in a session's sandbox.
type Exec struct {
	Argv      []string          `json:"argv" minItems:"1" maxItems:"1024" doc:"program and arguments; no shell is involved"`
	Dir       string            `json:"dir,omitempty" maxLength:"4096" doc:"default: /workspace"`
	Env       map[string]string `json:"env,omitempty"`
	Stdin     []byte            `json:"stdin,omitempty" maxLength:"1400000" doc:"base64, at most 1 MiB"`
	TimeoutMS int64             `json:"timeout_ms,omitempty" minimum:"0" maximum:"3600000" doc:"default: 60000"`
}

// ExecResult is its outcome.
type ExecResult struct {
	Code      int    `json:"code" doc:"exit status, -1 when killed"`
	Stdout    []byte `json:"stdout" doc:"base64"`
	Stderr    []byte `json:"stderr" doc:"base64"`
	TimedOut  bool   `json:"timed_out,omitempty"`
	Truncated bool   `json:"truncated,omitempty" doc:"output was cut from the front"`
}

func (s *server) exec(api huma.API) {
	op := operation("exec", http.MethodPost, "/api/v1/sessions/{id}/exec", "Run a command in the session's sandbox")
	op.Description = "Starts the sandbox if it sleeps. The command runs beside the agent's own, as the same user."
	huma.Register(api, op, func(ctx context.Context, in *struct {
		SessionPath
		Body Exec
	},
	) (*answer[ExecResult], error) {
		timeout := time.Duration(in.Body.TimeoutMS) * time.Millisecond
		if timeout == 0 {
			timeout = time.Minute
		}
		g, err := s.guest(ctx, in.ID)
		if err != nil {
			return nil, s.failed(err)
		}
		res, err := g.Exec(ctx, sandbox.Exec{Argv: in.Body.Argv, Dir: in.Body.Dir, Env: in.Body.Env, Stdin: in.Body.Stdin, Timeout: timeout})
		if err != nil {
			return nil, s.failed(refusal(err, "the command could not be run in the sandbox"))
		}
		return &answer[ExecResult]{ExecResult{
			Code: res.Code, Stdout: res.Stdout, Stderr: res.Stderr, TimedOut: res.TimedOut, Truncated: res.Truncated,
		}}, nil
	})
}

// refusal is what a person hears when a guest does not do as asked.
func refusal(err error, what string) error {
	if errors.Is(err, sandbox.ErrBusy) {
		return fault.Wrap(err, fault.Busy, "%s: too much runs there already", what).WithNext("end something, or try again in a moment")
	}
	return fault.Wrap(err, fault.Unavailable, "%s", what)
}

// guest connects to a session's sandbox, starting it if need be.
func (s *server) guest(ctx context.Context, id string) (sandbox.Guest, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	sb, err := s.Rooms.Open(ctx, id)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fault.Wrap(err, fault.Timeout, "the sandbox of session %s was not ready within a minute", id).
			WithNext("it goes on starting, and its set-up may take longer: try again in a moment")
	}
	if err != nil {
		return nil, fmt.Errorf("open the sandbox of %s: %w", id, err)
	}
	g, err := sb.Guest(ctx)
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, "the sandbox of session %s does not answer", id).WithNext("try again in a moment")
	}
	return g, nil
}
