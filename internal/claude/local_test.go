package claude

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/claude/local"
	"github.com/berth-dev/berth/internal/claude/local/openapitest"
	"github.com/berth-dev/berth/internal/session"
)

// This file runs the door against the local platform, with everything that
// passes held against the API's published description.

const dispatchScenario = `
name: dispatch
steps:
  - calls:
      - {tool: bash, input: {command: "ls"}, expect: {text: "^answer to bash$", error: false}}
      - {tool: deploy, kind: custom, input: {env: prod}, expect: {text: "^answer to deploy$", error: true}}
  - message: "Done."
`

// stage is a local platform with a session that waits to be served.
type stage struct {
	srv     *local.Server
	queue   *Queue
	admin   *Admin
	session string
}

func newStage(t *testing.T, o local.Options, faults ...local.Fault) *stage {
	t.Helper()
	const key = "sk-ant-api03-test"
	scenario, err := local.ParseScenario([]byte(dispatchScenario))
	if err != nil {
		t.Fatal(err)
	}
	o.APIKeys, o.StrictBeta, o.AckIdempotent, o.StrictDuplicates = []string{key}, true, true, true
	o.Scenario, o.Scenarios = scenario.Name, []*local.Scenario{scenario}
	s := &stage{srv: local.New(o)}
	// A huge frame is garbage by design; how much of it the checker sees before
	// the door hangs up is a matter of timing.
	garbage := slices.ContainsFunc(faults, func(f local.Fault) bool { return f.Kind == local.Huge })
	web := httptest.NewServer(openapitest.Validated(t, s.srv, func(r *http.Request) bool {
		return garbage && strings.HasSuffix(r.URL.Path, "/events/stream")
	}))
	t.Cleanup(func() {
		_ = s.srv.Close() // always nil
		web.Close()
	})
	skill, _, err := s.srv.SeedSkill(local.SkillSeed{Name: "greeter", Description: "Greets.", Files: map[string]string{"SKILL.md": "---\nname: greeter\ndescription: Greets.\n---\nHello"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range faults {
		if err := s.srv.Inject(f); err != nil {
			t.Fatal(err)
		}
	}

	if s.admin, err = NewAdmin(AdminOptions{BaseURL: web.URL, APIKey: key}); err != nil {
		t.Fatal(err)
	}
	env, err := s.admin.CreateEnvironment(t.Context(), "lab")
	if err != nil {
		t.Fatal(err)
	}
	agent, err := s.admin.CreateAgent(t.Context(), Agent{
		Name: "builder", Model: "claude-opus-5-5",
		Tools: []json.RawMessage{
			json.RawMessage(`{"type":"agent_toolset_20260401"}`),
			json.RawMessage(`{"type":"custom","name":"deploy","description":"Deploys.","input_schema":{"type":"object"}}`),
		},
		Skills: []string{skill},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.session, err = s.admin.CreateSession(t.Context(), NewSession{
		Agent: agent, Environment: env.ID, Title: "A test", Metadata: map[string]string{"team": "x"}, Message: "Please go.",
	})
	if err != nil {
		t.Fatal(err)
	}
	s.queue, err = NewQueue(Options{BaseURL: web.URL, EnvironmentID: env.ID, EnvironmentKey: s.srv.MintEnvironmentKey(env.ID)})
	if err != nil {
		t.Fatal(err)
	}
	s.queue.door.time.retry = session.Backoff{Base: time.Millisecond, Cap: 2 * time.Millisecond}
	s.queue.conn.time = s.queue.door.time
	return s
}

// claim polls and acknowledges the session's item, a second time when the first
// answer is lost.
func (s *stage) claim(t *testing.T) session.Platform {
	t.Helper()
	item, err := s.queue.Poll(t.Context(), maxBlock)
	if err != nil || item == nil {
		t.Fatalf("Poll = %v, %v", item, err)
	}
	if item.Type != "session" || item.Session != s.session {
		t.Fatalf("polled %s %s", item.Type, item.Session)
	}
	err = s.queue.Ack(t.Context(), item.ID)
	if err != nil && session.StatusOf(err) == 0 {
		err = s.queue.Ack(t.Context(), item.ID)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s.queue.Platform(*item)
}

// serve answers every open call until the turn is over. It reads the stream,
// and the history whenever the stream ends or an answer may be lost.
func serve(t *testing.T, p session.Platform) {
	t.Helper()
	open, answered, over := map[string]session.Event{}, map[string]bool{}, false
	note := func(e session.Event) {
		switch e.Type {
		case "agent.tool_use", "agent.custom_tool_use":
			open[e.ID] = e
		case "user.tool_result", "user.custom_tool_result":
			answered[e.Refers] = true
		case "session.status_idle":
			over = e.StopReason == "end_turn"
		}
	}
	for !over {
		stream, err := p.Stream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		err = p.History(t.Context(), time.Time{}, func(events []session.Event) error {
			for _, e := range events {
				note(e)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for err == nil && !over {
			for id, e := range open {
				if answered[id] {
					continue
				}
				custom := e.Type == "agent.custom_tool_use"
				text, _ := json.Marshal([]map[string]string{{"type": "text", "text": "answer to " + e.Name}})
				if err = p.Answer(t.Context(), session.Answer{Call: id, Custom: custom, IsError: custom, Content: text}); err != nil {
					break
				}
				answered[id] = true
			}
			if err == nil {
				var e session.Event
				if e, err = stream.Next(); err == nil {
					note(e)
				}
			}
		}
		stream.Close()
		if err != nil && !errors.Is(err, io.EOF) && !session.Retryable(err) {
			t.Fatal(err)
		}
	}
}

// played checks that the scenario got the answers that it expects, each once.
func (s *stage) played(t *testing.T) {
	t.Helper()
	if r := s.srv.Scenario(s.session); len(r.Failures) > 0 || !r.Done {
		t.Errorf("scenario: done %v, failures %q", r.Done, r.Failures)
	}
	results := 0
	err := s.admin.Session(s.session).History(t.Context(), time.Time{}, func(events []session.Event) error {
		for _, e := range events {
			if strings.HasSuffix(e.Type, "tool_result") {
				results++
			}
		}
		return nil
	})
	if err != nil || results != 2 {
		t.Errorf("the history has %d results, %v; want 2", results, err)
	}
}

func TestTheDoorServesASessionOfTheLocalPlatform(t *testing.T) {
	for _, style := range []local.StopReply{local.StopJSON, local.StopEmpty} {
		s := newStage(t, local.Options{StopReply: style})
		if stats, err := s.queue.Stats(t.Context()); err != nil || stats.Depth != 1 {
			t.Errorf("Stats = %+v, %v; want a depth of 1", stats, err)
		}
		p := s.claim(t)
		beat, err := p.Heartbeat(t.Context(), session.NoHeartbeat, time.Second)
		if err != nil || !beat.Extended || beat.State != "active" || beat.TTL == 0 {
			t.Fatalf("Heartbeat = %+v, %v", beat, err)
		}
		if _, err := p.Heartbeat(t.Context(), beat.Token, time.Second); err != nil {
			t.Errorf("the second Heartbeat: %v", err)
		}
		if _, err := p.Heartbeat(t.Context(), beat.Token, time.Second); session.StatusOf(err) != 412 {
			t.Errorf("a Heartbeat with an old token: %v, want a 412", err)
		}
		i, err := p.Info(t.Context())
		if err != nil || i.ID != s.session || i.Title != "A test" || i.Metadata["team"] != "x" || i.AgentName != "builder" ||
			!slices.Equal(i.CustomTools, []string{"deploy"}) || len(i.Skills) != 1 {
			t.Fatalf("Info = %+v, %v", i, err)
		}
		v, err := p.SkillVersion(t.Context(), i.Skills[0])
		if err != nil {
			t.Fatal(err)
		}
		archive, err := p.SkillArchive(t.Context(), i.Skills[0].ID, v.ID)
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(archive)
		archive.Close()
		if err != nil || v.Name != "greeter" || !strings.HasPrefix(string(content), "PK") {
			t.Errorf("Skill = %+v, %d bytes, %v", v, len(content), err)
		}
		serve(t, p)
		s.played(t)
		for range 2 {
			if err := p.Stop(t.Context(), true); err != nil {
				t.Errorf("Stop: %v", err)
			}
		}
		if item, err := s.queue.Poll(t.Context(), 0); item != nil || err != nil {
			t.Errorf("Poll of an empty queue = %v, %v", item, err)
		}
	}
}

func TestTheDoorGetsThroughWhatGoesWrong(t *testing.T) {
	for name, faults := range map[string][]local.Fault{
		"lost ack":           {{Kind: local.Drop, On: "ack"}},
		"refused poll":       {{Kind: local.SendCode, On: "poll", Status: 503}},
		"padded secret":      {{Kind: local.SecretPadded}},
		"no secret":          {{Kind: local.SecretAbsent}},
		"garbage secret":     {{Kind: local.SecretGarbage}},
		"empty page":         {{Kind: local.EmptyPage}},
		"lost page":          {{Kind: local.Drop, On: "events.list"}},
		"slow page":          {{Kind: local.SlowBody, On: "events.list", Delay: 50 * time.Millisecond}},
		"lost answer":        {{Kind: local.Drop, On: "events.send"}},
		"refused answer":     {{Kind: local.SendCode, On: "events.send", Status: 529}},
		"cut stream":         {{Kind: local.CutStream, Every: 2, Times: 2}},
		"error on stream":    {{Kind: local.ErrorFrame, Every: 2}},
		"huge frame":         {{Kind: local.Huge, Every: 2}},
		"duplicate frames":   {{Kind: local.Duplicate, Every: 1, Times: -1}},
		"reset stop":         {{Kind: local.Reset, On: "stop"}},
		"refused session":    {{Kind: local.SendCode, On: "session.get", Status: 500}},
		"retry after a bit":  {{Kind: local.SendCode, On: "session.get", Status: 429, RetryAfter: "0.01"}},
		"all of it together": {{Kind: local.Drop, On: "ack"}, {Kind: local.EmptyPage}, {Kind: local.Drop, On: "events.send"}, {Kind: local.CutStream, Every: 2}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, local.Options{StopReply: local.StopEmpty}, faults...)
			p := s.claim(t)
			if _, err := p.Info(t.Context()); err != nil {
				t.Fatal(err)
			}
			serve(t, p)
			s.played(t)
			if err := p.Stop(t.Context(), false); err != nil {
				t.Errorf("Stop: %v", err)
			}
		})
	}
}

func TestALostLeaseIsToldApart(t *testing.T) {
	s := newStage(t, local.Options{}, local.Fault{Kind: local.LeaseLost})
	p := s.claim(t)
	_, err := p.Heartbeat(t.Context(), session.NoHeartbeat, time.Second)
	if session.StatusOf(err) != 412 || session.Retryable(err) {
		t.Errorf("Heartbeat = %v, want a final 412", err)
	}
}

func TestASilentPlatformDoesNotHoldAHeartbeat(t *testing.T) {
	s := newStage(t, local.Options{}, local.Fault{Kind: local.Hang, On: "heartbeat", Delay: 10 * time.Second})
	p := s.claim(t)
	_, err := p.Heartbeat(t.Context(), session.NoHeartbeat, 50*time.Millisecond)
	if !errors.Is(err, context.DeadlineExceeded) || !session.Retryable(err) {
		t.Errorf("Heartbeat = %v, want a timeout", err)
	}
}
