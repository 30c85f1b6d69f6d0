package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/berth-dev/berth/internal/api"
	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/session"
)

// sessionsCmd groups what can be seen of sessions.
type sessionsCmd struct {
	List   sessionsList   `cmd:"" help:"List sessions, the one that changed last first."`
	Show   sessionsShow   `cmd:"" help:"Show one session: what it waits for, its sandbox, its work items."`
	Calls  sessionsCalls  `cmd:"" help:"Show the ledger of a session's tool calls."`
	Events sessionsEvents `cmd:"" help:"Show a session's event log, or follow it."`
}

type sessionsList struct {
	Limit int `help:"At most this many." default:"50"`
}

func (cmd *sessionsList) Run(ctx context.Context, d *deps) error {
	c, err := d.client()
	if err != nil {
		return err
	}
	sessions, err := all[api.Session](ctx, c, "/api/v1/sessions", cmd.Limit)
	if err != nil {
		return err
	}
	if d.out.json {
		return d.out.value(api.Page[api.Session]{Data: orEmpty(sessions)})
	}
	if len(sessions) == 0 {
		d.out.line("No sessions yet. Start one with: berth demo")
		return nil
	}
	rows := make([][]cell, 0, len(sessions))
	for _, s := range sessions {
		rows = append(rows, []cell{
			{s.ID, cyan},
			{string(s.Phase), phaseStyle(s.Phase)},
			{orDash(s.Status), ""},
			{waiting(s.Waiting), ""},
			{orDash(plain(s.AgentName, 24)), ""},
			{d.out.ago(s.UpdatedAt), dim},
		})
	}
	d.out.table([]string{"session", "phase", "status", "waits for", "agent", "changed"}, rows)
	return nil
}

func phaseStyle(p session.Phase) style {
	switch p {
	case session.Active:
		return green
	case session.Warm:
		return yellow
	}
	return dim
}

func waiting(w session.Waiting) string {
	s := string(w.For)
	if d := plain(w.Detail, 48); d != "" {
		s += " (" + d + ")"
	}
	return orDash(s)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

type sessionsShow struct {
	Session string `arg:"" help:"Session id."`
}

func (cmd *sessionsShow) Run(ctx context.Context, d *deps) error {
	c, err := d.client()
	if err != nil {
		return err
	}
	s, err := c.session(ctx, cmd.Session)
	if err != nil {
		return err
	}
	if d.out.json {
		return d.out.value(s)
	}
	field := func(name, value string) {
		if value != "" {
			d.out.line("%s  %s", d.out.paint(dim, name+strings.Repeat(" ", max(12-len(name), 0))), value)
		}
	}
	field("session", d.out.paint(cyan, s.ID))
	field("title", plain(s.Title, 200))
	field("agent", strings.TrimSpace(plain(s.AgentName, 100)+" "+s.Agent))
	field("model", plain(s.Model, 100))
	field("environment", s.Environment)
	field("phase", d.out.paint(phaseStyle(s.Phase), string(s.Phase)))
	field("status", strings.TrimSpace(s.Status+" "+s.StopReason))
	if s.Waiting.For != "" {
		text := waiting(s.Waiting) + ", since " + d.out.ago(s.Waiting.Since)
		if !s.Waiting.Until.IsZero() {
			text += "; berth acts at " + s.Waiting.Until.Local().Format(time.TimeOnly) + " if nothing happens before"
		}
		field("waits for", text)
	}
	if s.Sandbox != nil {
		field("sandbox", s.Sandbox.ID+" ("+s.Sandbox.Backend+", since "+d.out.ago(s.Sandbox.Since)+")")
		if p := s.Sandbox.Settings; p != nil {
			field("made with", fmt.Sprintf("%s, %g cpus, %s memory, revision %d of the agent's settings", plain(p.Image, 60), p.CPUs, p.Memory, s.Sandbox.Revision))
		}
	}
	field("created", s.CreatedAt.Local().Format(time.DateTime))
	if s.EndedAt != nil {
		field("ended", s.EndedAt.Local().Format(time.DateTime)+" ("+s.EndReason+")")
	}
	if len(s.Work) == 0 {
		return nil
	}
	d.out.line("")
	rows := make([][]cell, 0, len(s.Work))
	for _, w := range s.Work {
		beat := "-"
		if w.BeatAt != nil {
			beat = d.out.ago(*w.BeatAt)
		}
		rows = append(rows, []cell{{w.ID, cyan}, {string(w.State), ""}, {d.out.ago(w.ClaimedAt), dim}, {beat, dim}, {plain(w.Why, 60), ""}})
	}
	d.out.table([]string{"work item", "state", "claimed", "last beat", "why"}, rows)
	return nil
}

type sessionsCalls struct {
	Session string `arg:"" help:"Session id."`
	Limit   int    `help:"At most this many." default:"1000"`
}

func (cmd *sessionsCalls) Run(ctx context.Context, d *deps) error {
	c, err := d.client()
	if err != nil {
		return err
	}
	calls, err := all[api.Call](ctx, c, "/api/v1/sessions/"+url.PathEscape(cmd.Session)+"/calls", cmd.Limit)
	if err != nil {
		return err
	}
	if d.out.json {
		return d.out.value(api.Page[api.Call]{Data: orEmpty(calls)})
	}
	rows := make([][]cell, 0, len(calls))
	for _, call := range calls {
		st := style("")
		switch {
		case call.IsError:
			st = red
		case call.State == session.Posted:
			st = green
		case call.State == session.Held:
			st = yellow
		}
		ran := "-"
		if call.StartedAt != nil && call.FinishedAt != nil {
			ran = took(call.FinishedAt.Sub(*call.StartedAt))
		}
		state := string(call.State)
		if call.IsError {
			state += ", error"
		}
		rows = append(rows, []cell{{call.ID, cyan}, {call.Name, ""}, {state, st}, {ran, dim}, {plain(summary(call.Name, call.Input), 60), ""}})
	}
	d.out.table([]string{"call", "tool", "state", "ran", "input"}, rows)
	return nil
}

// summary is the telling part of a tool's input.
func summary(name string, input json.RawMessage) string {
	var in map[string]any
	if json.Unmarshal(input, &in) != nil {
		return ""
	}
	for _, key := range []string{"command", "file_path", "pattern"} {
		if s, ok := in[key].(string); ok {
			return s
		}
	}
	if name == "bash" && in["restart"] == true {
		return "restart"
	}
	return string(input)
}

type sessionsEvents struct {
	Session string `arg:"" help:"Session id."`
	Follow  bool   `short:"f" help:"Wait for more."`
	After   int64  `help:"Only events after this sequence number."`
}

func (cmd *sessionsEvents) Run(ctx context.Context, d *deps) error {
	c, err := d.client()
	if err != nil {
		return err
	}
	view := newTimeline(d.out)
	show := func(e event.Event) (bool, error) {
		if d.out.json {
			return true, json.NewEncoder(d.out.out).Encode(e)
		}
		view.show(e)
		return true, nil
	}
	if cmd.Follow {
		return c.follow(ctx, cmd.Session, cmd.After, show)
	}
	for after := cmd.After; ; {
		var page api.Page[event.Event]
		path := "/api/v1/sessions/" + url.PathEscape(cmd.Session) + "/events?limit=200&after=" + itoa(after)
		if err := c.call(ctx, http.MethodGet, path, nil, &page); err != nil {
			return err
		}
		for _, e := range page.Data {
			if _, err := show(e); err != nil {
				return err
			}
			after = e.Seq
		}
		if page.Next == "" {
			return nil
		}
	}
}
