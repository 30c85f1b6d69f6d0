package session_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/session/sessiontest"
	"github.com/berth-dev/berth/internal/tool"
)

func TestSilentGuestIsReplacedLongBeforeTheCallsOwnLimit(t *testing.T) {
	inHouse(t, turns{bash("a"), bash("b")}, func(h *house) {
		h.cfg.ToolTimeout = time.Hour
		h.reopen(func() {})
		hang := true
		h.fake.Tool(func(ctx context.Context, c tool.Call) tool.Result {
			if hang {
				<-ctx.Done()
			}
			return tool.Text("ok")
		})
		h.until("the call runs", func() bool { return len(h.fake.Records()) == 1 })
		h.fake.Mute(sandbox.ID(sesn))
		hang = false
		begun := time.Now()
		h.until("the turns are over", h.claude.Done)
		h.answered()
		if took := time.Since(begun); took > 3*time.Minute {
			t.Errorf("it took %v", took)
		}
		if !h.use(1).IsError || !strings.Contains(h.text(1), "sign of life") || !strings.Contains(h.text(1), "/workspace were kept") {
			t.Errorf("result = %s", h.text(1))
		}
		if h.use(2).IsError {
			t.Errorf("the call in the new sandbox: %s", h.text(2))
		}
	})
}

func TestGuestThatRunsALongCallIsLeftAlone(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		h.cfg.ToolTimeout = time.Hour
		h.reopen(func() {})
		h.fake.CallDelay(50 * time.Minute)
		h.until("the turn is over", h.claude.Done)
		if h.answered(); h.use(1).IsError {
			t.Errorf("result = %s", h.text(1))
		}
	})
}

func TestResultThatThePlatformLostIsSentAgain(t *testing.T) {
	inHouse(t, turns{bash("a"), bash("b")}, func(h *house) {
		h.claude.Decide(func(r sessiontest.Request) (sessiontest.Fate, error) {
			if r.Kind == "answer" && r.N <= 2 {
				return sessiontest.Forgotten, nil
			}
			return sessiontest.Arrives, nil
		})
		var begun time.Time
		h.until("the result is posted", func() bool {
			begun = time.Now()
			return h.claude.Count("answer") == 1
		})
		h.until("it is posted again", func() bool { return h.claude.Count("answer") == 2 })
		if took := time.Since(begun); took > time.Minute {
			t.Errorf("it took %v to find that the platform waits", took)
		}
		h.until("the turns are over", h.claude.Done)
		if h.answered(); h.use(1).IsError || !strings.Contains(h.text(1), "command") {
			t.Errorf("result = %s", h.text(1))
		}
	})
}

func TestPlatformThatLosesEveryResultIsGivenUpAndExplained(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		h.claude.Decide(func(r sessiontest.Request) (sessiontest.Fate, error) {
			if r.Kind == "answer" {
				return sessiontest.Forgotten, nil
			}
			return sessiontest.Arrives, nil
		})
		h.until("the item is given back", func() bool { return h.claude.Count("stop") > 0 })
		if n := h.claude.Count("answer"); n != 4 {
			t.Errorf("it was sent %d times", n)
		}
		if n := h.fake.Runs(h.use(1).ID); n != 1 {
			t.Errorf("the tool ran %d times", n)
		}
	})
}

func TestWaitingForAToolSaysSinceWhenAndUntilWhen(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		g := newGate()
		h.fake.Tool(g.tool)
		h.until("the call runs", func() bool { return len(h.fake.Records()) == 1 })
		h.pass(30 * time.Second)
		rec, _, err := h.records.LoadSession(t.Context(), sesn)
		if err != nil {
			t.Fatal(err)
		}
		w, c := rec.Waiting, h.call(h.use(1).ID)
		if w.For != session.ForTool || !w.Since.Equal(c.StartedAt) || !w.Until.Equal(c.StartedAt.Add(h.cfg.ToolTimeout)) {
			t.Errorf("it waits for %+v; the call began at %s", w, c.StartedAt)
		}
		g.Open()
		h.until("the turn is over", h.claude.Done)
	})
}
