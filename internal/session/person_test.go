package session_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/session/sessiontest"
)

func TestPersonMayOpenASandboxThatSleeps(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		h.until("the sandbox sleeps", func() bool { return h.phase() == session.Parked })
		release := h.fake.BlockStart()
		opened := make(chan error, 2)
		for range 2 {
			go func() {
				sb, err := h.keeper.Open(h.t.Context(), sesn)
				if err == nil && sb.Ref().ID != sandbox.ID(sesn) {
					err = errors.New("another sandbox")
				}
				opened <- err
			}()
		}
		h.pass(time.Minute)
		release()
		for range 2 {
			if err := <-opened; err != nil {
				t.Errorf("Open: %v", err)
			}
		}
		h.pass(time.Second)
		if h.phase() != session.Warm {
			t.Errorf("phase = %s, want warm", h.phase())
		}
		h.until("it sleeps again", func() bool { return h.phase() == session.Parked })
	})
}

func TestPersonHearsThatASandboxCannotStart(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		h.until("the sandbox sleeps", func() bool { return h.phase() == session.Parked })
		h.fake.StartError(errors.New("no"))
		if _, err := h.keeper.Open(h.t.Context(), sesn); err == nil {
			t.Error("Open succeeded")
		}
		h.fake.StartError(nil)
		if _, err := h.keeper.Open(h.t.Context(), sesn); err != nil {
			t.Errorf("Open: %v", err)
		}
	})
}

func TestSandboxThatStartsAfterTheEndIsRemoved(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		h.until("the sandbox sleeps", func() bool { return h.phase() == session.Parked })
		release := h.fake.BlockStart()
		opened := make(chan error, 1)
		go func() { _, err := h.keeper.Open(h.t.Context(), sesn); opened <- err }()
		h.pass(time.Second)
		if err := h.keeper.End(h.t.Context(), sesn, "deleted"); err != nil {
			t.Fatal(err)
		}
		h.pass(time.Second)
		release()
		h.pass(time.Second)
		if err := <-opened; fault.CodeOf(err) != fault.Gone {
			t.Errorf("Open = %v, want gone", err)
		}
		if refs, _ := h.fake.List(h.t.Context()); len(refs) > 0 || h.phase() != session.Over {
			t.Errorf("left over: %v, phase %s", refs, h.phase())
		}
	})
}

// A sandbox that is not on record was made by a process that died before it
// could note it, perhaps in the middle of its set-up: it is never used.
func TestSandboxThatItsSessionDoesNotKnowIsFoundAndEnded(t *testing.T) {
	inHouse(t, turns{bash("a"), bash("b")}, func(h *house) {
		h.until("the sandbox sleeps", func() bool { return h.phase() == session.Parked })
		for name, find := range map[string]func() error{
			"by the sweep": func() error { return h.keeper.Sweep(h.t.Context()) },
			"by the next call": func() error {
				h.claude.Do(func(l *sessiontest.Log) { bash("again")(l); l.Idle() })
				return nil
			},
		} {
			sb, err := h.fake.Create(h.t.Context(), sandbox.Spec{ID: sandbox.ID(sesn), Session: sesn})
			if err == nil {
				err = find()
			}
			if err != nil {
				t.Fatal(err)
			}
			h.until("it is ended "+name, func() bool {
				ended, cancel := context.WithCancel(h.t.Context())
				cancel()
				_, err := sb.Wait(ended)
				return err == nil
			})
			h.until("the session sleeps", func() bool { return h.phase() == session.Parked })
		}
		h.answered()
	})
}
