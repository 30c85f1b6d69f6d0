package session_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/sandbox/sandboxtest"
	"github.com/berth-dev/berth/internal/session"
)

// pullBackend is a fake that has to pull an image first. It takes long and
// reports every second, the last time a while before it ends.
type pullBackend struct {
	*sandboxtest.Fake
	reports, silence time.Duration
}

func (b pullBackend) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	p := sandbox.ImageProgress{Reference: "img", Step: sandbox.ImageLoading, Total: 100 << 20}
	for begun := time.Now(); time.Since(begun) < b.reports; p.Done++ {
		spec.Pulling(p)
		<-time.After(time.Second)
	}
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-time.After(b.silence):
		return b.Fake.Create(ctx, spec)
	}
}

// waits returns what the session waits for, as it is on record.
func (h *house) waits() session.Waiting {
	rec, _, _ := h.records.LoadSession(context.Background(), sesn)
	return rec.Waiting
}

func TestStartGoesOnAsLongAsItsImageComes(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		h.reopen(func() { h.backend = pullBackend{h.fake, 25 * time.Minute, 4 * time.Minute} })
		h.until("the image is said to be pulled", func() bool {
			return slices.Contains(h.records.Events(sesn), event.ImagePulling)
		})
		for range 20 {
			h.pass(time.Minute)
			w := h.waits()
			if w.For != session.ForSandbox || !strings.HasPrefix(w.Detail, "pulling the image img: loading") {
				t.Fatalf("it waits for %+v", w)
			}
		}
		h.until("the turn is over", h.claude.Done)
		h.answered()
		if n := len(h.fake.Creates()); n != 1 || h.use(1).IsError {
			t.Errorf("%d sandboxes were made, and the result is %s", n, h.text(1))
		}
	})
}

func TestStartEndsWhenItsImageComesNoMore(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		h.reopen(func() { h.backend = pullBackend{h.fake, time.Minute, time.Hour} })
		h.until("the turn is over", h.claude.Done)
		h.answered()
		if !h.use(1).IsError || len(h.fake.Creates()) != 0 {
			t.Errorf("result %s", h.text(1))
		}
	})
}

func TestSetUpMayTakeLongerThanAStart(t *testing.T) {
	inHouse(t, turns{bash("a")}, func(h *house) {
		h.set(`{"setup":"sleep","setup_timeout":"40m"}`)
		finish := make(chan struct{})
		h.fake.Command(func(context.Context, sandbox.Exec) sandbox.ExecResult {
			<-finish
			return sandbox.ExecResult{}
		})
		h.until("the set-up runs", func() bool { return len(h.fake.Execs()) == 1 })
		h.pass(30 * time.Minute)
		w := h.waits()
		if w.For != session.ForSandbox || !strings.Contains(w.Detail, "set-up command") {
			t.Errorf("it waits for %+v", w)
		}
		close(finish)
		h.until("the turn is over", h.claude.Done)
		h.answered()
		if h.use(1).IsError {
			t.Errorf("result %s", h.text(1))
		}
	})
}
