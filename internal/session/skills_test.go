package session_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/session/sessiontest"
	"github.com/berth-dev/berth/internal/tool"
)

// shelf is a cache of skills without a disk: it remembers what each folder shows.
type shelf struct {
	mu    sync.Mutex
	shows map[string][]string // names by folder, in order
}

func (s *shelf) Show(ctx context.Context, src session.SkillSource, environment string, wanted []session.Skill, dir string) []session.ShownSkill {
	out := make([]session.ShownSkill, len(wanted))
	var names []string
	for i, w := range wanted {
		v, err := src.SkillVersion(ctx, w)
		out[i] = session.ShownSkill{Skill: w, Name: v.Name, Version: v.ID, Err: err}
		if err == nil {
			names = append(names, v.Name)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range out {
		out[i].Fresh = out[i].Err == nil && !slices.Contains(s.shows[dir], out[i].Name)
	}
	s.shows[dir] = names
	return out
}

// shown is what the session's sandbox shows.
func (s *shelf) shown() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shows["/fake/"+sandbox.ID(sesn)+"/workspace/skills"]
}

// inSkilledHouse is inHouse with a cache of skills.
func inSkilledHouse(t *testing.T, turns turns, f func(h *house, s *shelf)) {
	t.Helper()
	inHouse(t, turns, func(h *house) {
		s := &shelf{shows: map[string][]string{}}
		h.keeper.Close()
		h.cfg.Skills = s
		h.cfg.Visit = func(_, id string) session.Visitor { return h.claude.Door(session.Item{Session: id}) }
		h.open()
		f(h, s)
	})
}

func has(ids ...string) func(*session.Info) {
	return func(i *session.Info) {
		i.Skills = nil
		for _, id := range ids {
			i.Skills = append(i.Skills, session.Skill{ID: id})
		}
	}
}

func (h *house) noted(typ event.Type) int {
	n := 0
	for _, e := range h.records.Events(sesn) {
		if e == typ {
			n++
		}
	}
	return n
}

func TestSkillsAreShownOnceAndFailuresAreTold(t *testing.T) {
	inSkilledHouse(t, turns{bash("a"), bash("b")}, func(h *house, s *shelf) {
		h.claude.SetInfo(has("pdf", "bad", "xlsx"))
		h.claude.Decide(func(r sessiontest.Request) (sessiontest.Fate, error) {
			if r.Kind == "skill" && r.Call == "bad" || r.Kind == "info" && r.N < 5 {
				return sessiontest.Refused, &session.Refusal{Status: 503}
			}
			return sessiontest.Arrives, nil
		})
		h.until("the turns are over", h.claude.Done)
		if got := s.shown(); !slices.Equal(got, []string{"pdf", "xlsx"}) {
			// The session could not be read at first: they are asked for with the sandbox.
			t.Errorf("skills = %v, want pdf and xlsx", got)
		}
		if n := h.noted(event.SkillInstalled); n != 2 || h.noted(event.SkillFailed) == 0 {
			t.Errorf("the log has %d skills, and %d failures", n, h.noted(event.SkillFailed))
		}
	})
}

func TestSandboxWithoutSkillsHasNoPlaceForThem(t *testing.T) {
	inSkilledHouse(t, turns{bash("a")}, func(h *house, s *shelf) {
		h.until("the turn is over", h.claude.Done)
		if spec := h.fake.Creates()[0]; len(spec.Shares) != 0 {
			t.Errorf("shares = %+v", spec.Shares)
		}
	})
}

func TestSkillsThatChangeReachTheSandboxThatRuns(t *testing.T) {
	inSkilledHouse(t, turns{bash("a")}, func(h *house, s *shelf) {
		h.claude.SetInfo(has("pdf"))
		h.until("the item is given back", func() bool { return h.phase() == session.Warm })
		h.claude.SetInfo(has("pdf", "docx"))
		h.claude.Do(func(l *sessiontest.Log) { bash("b")(l); l.Idle() })
		h.until("the call is answered", h.claude.Done)
		h.answered()
		if got := s.shown(); !slices.Equal(got, []string{"pdf", "docx"}) {
			t.Errorf("skills = %v", got)
		}
		if n := len(h.fake.Creates()); n != 1 {
			t.Errorf("%d sandboxes were made for it, want the one that ran", n)
		}
	})
}

func TestSandboxMadeBeforeTheSkillsIsReplacedBeforeACallRuns(t *testing.T) {
	inSkilledHouse(t, turns{bash("a")}, func(h *house, s *shelf) {
		h.until("the item is given back", func() bool { return h.phase() == session.Warm })
		h.claude.SetInfo(has("pdf"))
		seen := make(chan []string, 1)
		h.fake.Tool(func(context.Context, tool.Call) tool.Result {
			seen <- s.shown()
			return tool.Text("done")
		})
		h.claude.Do(func(l *sessiontest.Log) { bash("b")(l); l.Idle() })
		h.until("the call is answered", h.claude.Done)
		if got := <-seen; !slices.Equal(got, []string{"pdf"}) {
			t.Errorf("the call ran with %v", got)
		}
		if n := len(h.fake.Creates()); n != 2 {
			t.Errorf("%d sandboxes were made, want a second one", n)
		}
		h.answered()
	})
}

func TestSkillsDoNotEndACallThatRuns(t *testing.T) {
	inSkilledHouse(t, turns{bash("a")}, func(h *house, s *shelf) {
		h.fake.CallDelay(5 * time.Minute)
		h.until("the call runs", func() bool { return len(h.fake.Records()) > 0 })
		h.reopen(func() { h.claude.SetInfo(has("pdf")) })
		h.until("the call is answered", h.claude.Done)
		h.answered()
		if n := h.noted(event.Warning); n == 0 {
			t.Error("nobody is told that the call's sandbox shows no skills")
		}
		if n := len(h.fake.Creates()); n != 1 {
			t.Errorf("%d sandboxes were made", n)
		}
	})
}

func TestPersonsSandboxHasTheSkills(t *testing.T) {
	inSkilledHouse(t, turns{bash("a")}, func(h *house, s *shelf) {
		h.until("the sandbox sleeps", func() bool { return h.phase() == session.Parked })
		h.claude.SetInfo(has("pdf"))
		if _, err := h.keeper.Open(h.t.Context(), sesn); err != nil {
			t.Fatal(err)
		}
		if got := s.shown(); !slices.Equal(got, []string{"pdf"}) {
			t.Errorf("skills = %v", got)
		}
		h.claude.Do(func(l *sessiontest.Log) { bash("b")(l); l.Idle() })
		h.until("the call is answered", h.claude.Done)
		if n := len(h.fake.Creates()); n != 2 {
			t.Errorf("%d sandboxes were made: the person's was not kept", n)
		}
	})
}

func TestPersonsSandboxThatSkillsAreMissingInIsReplaced(t *testing.T) {
	inSkilledHouse(t, turns{bash("a")}, func(h *house, s *shelf) {
		h.until("the sandbox sleeps", func() bool { return h.phase() == session.Parked })
		h.claude.SetInfo(has("pdf"))
		h.claude.Decide(func(r sessiontest.Request) (sessiontest.Fate, error) {
			if r.Kind == "info" {
				return sessiontest.Refused, &session.Refusal{Status: 503}
			}
			return sessiontest.Arrives, nil
		})
		release := h.fake.BlockStart()
		opened := make(chan error, 1)
		go func() { _, err := h.keeper.Open(h.t.Context(), sesn); opened <- err }()
		h.pass(time.Second)
		// The work item comes while the person's sandbox is being started.
		h.claude.Decide(nil)
		h.claude.Do(func(l *sessiontest.Log) { bash("b")(l); l.Idle() })
		h.poll()
		h.pass(time.Second)
		release()
		if err := <-opened; err != nil {
			t.Error(err)
		}
		h.until("the call is answered", h.claude.Done)
		h.answered()
		if got := s.shown(); !slices.Equal(got, []string{"pdf"}) {
			t.Errorf("skills = %v", got)
		}
	})
}

func TestBackendThatShowsNothingIsTold(t *testing.T) {
	inSkilledHouse(t, turns{bash("a")}, func(h *house, s *shelf) {
		h.keeper.Close()
		h.backend = blind{h.fake}
		h.open()
		h.claude.SetInfo(has("pdf"))
		h.until("the turn is over", h.claude.Done)
		h.answered()
		if n := h.noted(event.SkillFailed); n == 0 || s.shown() != nil {
			t.Errorf("%d failures are told, %v is shown", n, s.shown())
		}
	})
}

// blind is a backend without shares.
type blind struct{ sandbox.Backend }

func (b blind) Features() sandbox.Features { return sandbox.Features{} }

func (b blind) Create(ctx context.Context, s sandbox.Spec) (sandbox.Sandbox, error) {
	if len(s.Shares) > 0 {
		return nil, errors.New("it was asked for shares")
	}
	return b.Backend.Create(ctx, s)
}
