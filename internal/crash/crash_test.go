package crash

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/intake"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/sandbox/sandboxtest"
	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/tool"
)

// watched returns a driver that notes what it would do.
func watched(t *testing.T, text string) (d *Driver, did func() []string) {
	t.Helper()
	d, err := Parse(text, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var acts []string
	d.act = func(p plan) {
		mu.Lock()
		defer mu.Unlock()
		acts = append(acts, fmt.Sprint(p.action, " ", p.when, ":", p.step))
	}
	return d, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(acts)
	}
}

func TestPlansThatCannotBeUnderstoodAreRefused(t *testing.T) {
	for _, text := range []string{
		"platform.Answer", "before:platform.Answr", "soon:platform.Answer", "before:platform.Answer#0", "before:platform.Answer#x",
		"before:platform.Answer=die", "before:platform.Answer=hang:long", "before:", "before:queue.Ack,nonsense",
	} {
		if _, err := Parse(text, nil); fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), "write one such as") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestWithoutAPlanNothingIsDecorated(t *testing.T) {
	d, err := Parse(" , ", nil)
	if d != nil || err != nil {
		t.Fatalf("%v, %v", d, err)
	}
	fake := sandboxtest.NewFake()
	if d.Backend(fake) != sandbox.Backend(fake) || d.Records(nil) != nil || d.Queue(nil) != nil || d.Platform(nil) != nil {
		t.Error("something was decorated")
	}
}

// none is a Records that takes everything until it is told to fail.
type none struct {
	session.Records
	err error
}

func (n *none) Commit(context.Context, session.Change) error { return n.err }

func TestCommitsAreKnownByWhatTheyCarry(t *testing.T) {
	d, did := watched(t, "before:records.Commit.call.started#2,after:records.Commit.call.started#2=stop,after:records.Commit.beat,before:records.Commit#4")
	n := &none{}
	r := d.Records(n)
	started := session.Change{Events: []event.Event{event.New(time.Time{}, "s", event.Warning, nil), event.New(time.Time{}, "s", event.CallStarted, nil)}}
	n.err = errors.New("disk full")
	_ = r.Commit(t.Context(), started) // counts before, and was not stored
	n.err = nil
	for range 2 {
		_ = r.Commit(t.Context(), started)
	}
	_ = r.Commit(t.Context(), session.Change{Work: &session.Work{State: session.WorkHeld}})
	want := []string{
		"kill before:records.Commit.call.started", "stop after:records.Commit.call.started", "kill before:records.Commit", "kill after:records.Commit.beat",
	}
	if diff := cmp.Diff(want, did()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// once is a queue that hands out one item.
type once struct {
	intake.Queue
	n int
}

func (o *once) Poll(context.Context, time.Duration) (*session.Item, error) {
	if o.n++; o.n == 2 {
		return &session.Item{ID: "work_1"}, nil
	}
	return nil, nil
}

func TestPollThatFindsNothingIsNoStepTaken(t *testing.T) {
	d, did := watched(t, "after:queue.Poll")
	q := d.Queue(&once{})
	for i := range 3 {
		item, err := q.Poll(t.Context(), 0)
		if err != nil || (item != nil) != (i == 1) {
			t.Errorf("poll %d: %v, %v", i, item, err)
		}
		if (len(did()) > 0) != (i > 0) {
			t.Errorf("poll %d: %v", i, did())
		}
	}
}

func TestCallIsStoppedBeforeDuringAndAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, did := watched(t, "before:guest.Call,during:guest.Call,after:guest.Call,during:guest.Recall,after:sandbox.Destroy")
		fake := sandboxtest.NewFake()
		fake.CallDelay(time.Second)
		b := d.Backend(fake)
		sb, err := b.Create(t.Context(), sandbox.Spec{ID: sandbox.ID("s")})
		if err != nil {
			t.Fatal(err)
		}
		if again, err := b.Attach(t.Context(), sb.Ref()); err != nil || again != sb {
			t.Errorf("the same sandbox is another one: %v", err)
		}
		g, err := sb.Guest(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { // received from below
			_, err := g.Call(t.Context(), tool.Call{ID: "c", Name: tool.Bash})
			done <- err
		}()
		<-time.After(time.Second / 2)
		want := []string{"kill before:guest.Call", "kill during:guest.Call"}
		if diff := cmp.Diff(want, did()); diff != "" {
			t.Errorf("while it runs (-want +got):\n%s", diff)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := g.Recall(t.Context(), "c"); err != nil { // answers at once: there is no during
			t.Error(err)
		}
		if err := sb.Destroy(t.Context(), sandbox.Everything); err != nil {
			t.Error(err)
		}
		want = append(want, "kill after:guest.Call", "kill after:sandbox.Destroy")
		if diff := cmp.Diff(want, did()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestHangComesEachTimeAndThenGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, err := Parse("before:records.Commit#2=hang:3s", slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		r, began := d.Records(&none{}), time.Now()
		for range 3 {
			if err := r.Commit(t.Context(), session.Change{}); err != nil {
				t.Error(err)
			}
		}
		if took := time.Since(began); took != 6*time.Second {
			t.Errorf("it took %v, want 6s for the second and the third", took)
		}
	})
}
