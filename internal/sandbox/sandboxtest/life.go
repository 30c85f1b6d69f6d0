package sandboxtest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
)

// lifeCases: how sandboxes come, stay and go.
var lifeCases = []testCase{
	{claim: "create twice makes one", run: func(h *host) {
		s := h.spec()
		first, second := h.create(s), h.create(s)
		if first.Ref() != second.Ref() {
			h.Errorf("refs differ: %v and %v", first.Ref(), second.Ref())
		}
		if a, b := h.guest(first).Instance(), h.guest(second).Instance(); a != b {
			h.Errorf("two guests run: %s and %s", a, b)
		}
	}},
	{claim: "creates at the same time make one", run: func(h *host) {
		s := h.spec()
		var wg sync.WaitGroup
		instances := make([]string, 4)
		for i := range instances {
			wg.Go(func() {
				box, err := h.Create(h.ctx(), s)
				if err != nil {
					h.Errorf("Create: %v", err)
					return
				}
				g, err := box.Guest(h.ctx())
				if err != nil {
					h.Errorf("Guest: %v", err)
					return
				}
				instances[i] = g.Instance()
			})
		}
		wg.Wait()
		for _, i := range instances[1:] {
			if i != instances[0] {
				h.Errorf("different guests: %q", instances)
			}
		}
	}},
	{claim: "an id that is none is refused", run: func(h *host) {
		for _, id := range []string{"", "x", "../../etc", "b0123456789abcdef0123456/", sandbox.ID("x") + "0"} {
			if _, err := h.Create(h.ctx(), sandbox.Spec{ID: id, Session: "s"}); !errors.Is(err, fault.Invalid.Err()) {
				h.Errorf("Create with id %q: %v", id, err)
			}
		}
	}},
	{claim: "a create that is given up leaves nothing", needs: onLinux, run: func(h *host) {
		s := h.spec()
		for _, after := range []time.Duration{0, time.Millisecond, 20 * time.Millisecond, 60 * time.Millisecond} {
			ctx, cancel := context.WithTimeout(h.ctx(), after)
			_, err := h.Create(ctx, s)
			cancel()
			if err == nil { // it was faster
				continue
			}
			if !errors.Is(err, context.DeadlineExceeded) {
				h.Errorf("Create given up after %s: %v", after, err)
			}
			if h.listed(s) {
				h.Errorf("a sandbox is listed after Create was given up after %s", after)
			}
		}
	}},
	{claim: "a restarted server finds the same guest", run: func(h *host) {
		box, g := h.start()
		h.call(g, bash("c1", "echo before"))
		h.restart()
		again, err := h.Attach(h.ctx(), box.Ref())
		if err != nil {
			h.Fatalf("Attach: %v", err)
		}
		g2 := h.guest(again)
		if g.Instance() != g2.Instance() {
			h.Error("it is another guest")
		}
		if r, err := g2.Recall(h.ctx(), "c1"); err != nil {
			h.Errorf("Recall of an earlier call: %v, %v", r, err)
		}
	}},
	{claim: "create after a restart adopts", run: func(h *host) {
		s := h.spec()
		g := h.guest(h.create(s))
		h.restart()
		again, err := h.Create(h.ctx(), s)
		if err != nil {
			h.Fatalf("Create: %v", err)
		}
		if g.Instance() != h.guest(again).Instance() {
			h.Error("it is another guest")
		}
	}},
	{claim: "attach to nothing is gone", run: func(h *host) {
		s := h.spec()
		ref := sandbox.Ref{ID: s.ID, Backend: h.Name(), Session: s.Session}
		if _, err := h.Attach(h.ctx(), ref); !errors.Is(err, sandbox.ErrGone) {
			h.Errorf("Attach: %v", err)
		}
	}},
	{claim: "destroy twice is fine", run: func(h *host) {
		box, _ := h.start()
		h.destroy(box, sandbox.Everything)
		h.destroy(box, sandbox.Everything)
	}},
	{claim: "a destroyed sandbox is gone", run: func(h *host) {
		box, _ := h.start()
		h.destroy(box, sandbox.Everything)
		if _, err := box.Guest(h.ctx()); !errors.Is(err, sandbox.ErrGone) {
			h.Errorf("Guest: %v", err)
		}
		if _, err := h.Attach(h.ctx(), box.Ref()); !errors.Is(err, sandbox.ErrGone) {
			h.Errorf("Attach: %v", err)
		}
		exit, err := box.Wait(h.ctx())
		if err != nil || exit.Reason != "destroyed" {
			h.Errorf("Wait: %+v, %v", exit, err)
		}
	}},
	{claim: "wait sees the end that another backend value made", needs: onLinux, run: func(h *host) {
		box, _ := h.start()
		again, err := h.another().Attach(h.ctx(), box.Ref())
		if err != nil {
			h.Fatalf("Attach: %v", err)
		}
		h.destroy(again, sandbox.Everything)
		if _, err := box.Wait(h.ctx()); err != nil {
			h.Errorf("Wait: %v", err)
		}
	}},
	{claim: "destroy ends a call in progress", needs: onLinux, run: func(h *host) {
		box, g := h.start()
		ended := make(chan error, 1)
		go func() { // received from below
			_, err := g.Call(h.ctx(), bash("c1", "touch /tmp/begun; sleep 600"))
			ended <- err
		}()
		h.until(g, "test -e /tmp/begun")
		h.destroy(box, sandbox.Everything)
		if err := <-ended; !errors.Is(err, sandbox.ErrDisconnected) && !errors.Is(err, sandbox.ErrGone) {
			h.Errorf("the call: %v", err)
		}
	}},
	{claim: "a new sandbox is another instance, and its predecessor cannot destroy it", run: func(h *host) {
		s := h.spec()
		old := h.create(s)
		before := h.guest(old)
		h.call(before, bash("c1", "echo x"))
		h.destroy(old, sandbox.KeepFiles)
		box := h.create(s)
		after := h.guest(box)
		if before.Instance() == after.Instance() {
			h.Error("the instance did not change")
		}
		if _, err := after.Recall(h.ctx(), "c1"); !errors.Is(err, sandbox.ErrUnknownCall) {
			h.Errorf("Recall of a call of the earlier instance: %v", err)
		}
		h.destroy(old, sandbox.Everything)
		h.call(after, bash("c2", "echo x"))
	}},
	{claim: "list names what there is", run: func(h *host) {
		s := h.spec()
		if h.listed(s) {
			h.Error("listed before it was made")
		}
		box := h.create(s)
		refs, err := h.another().List(h.ctx())
		if err != nil {
			h.Fatal(err)
		}
		found := 0
		for _, r := range refs {
			if r == box.Ref() {
				found++
			}
		}
		if found != 1 {
			h.Errorf("listed %d times in %v", found, refs)
		}
		h.destroy(box, sandbox.KeepFiles)
		if !h.listed(s) {
			h.Error("its files are not listed")
		}
		h.destroy(box, sandbox.Everything)
		if h.listed(s) {
			h.Error("listed after everything was removed")
		}
	}},
	{claim: "files without a sandbox can be removed", run: func(h *host) {
		s := h.spec()
		box := h.create(s)
		h.destroy(box, sandbox.KeepFiles)
		for range 2 {
			if err := h.Remove(h.ctx(), box.Ref(), sandbox.Everything); err != nil {
				h.Errorf("Remove: %v", err)
			}
		}
		if h.listed(s) {
			h.Error("still listed")
		}
	}},
	{claim: "wait ends with its context", run: func(h *host) {
		box, _ := h.start()
		cause := errors.New("enough")
		ctx, cancel := context.WithCancelCause(h.ctx())
		cancel(cause)
		if _, err := box.Wait(ctx); !errors.Is(err, cause) {
			h.Errorf("Wait: %v", err)
		}
	}},
	{claim: "closing a backend leaves its sandboxes running", run: func(h *host) {
		box, g := h.start()
		h.restart()
		if _, err := g.Call(h.ctx(), bash("c1", "echo x")); !errors.Is(err, sandbox.ErrDisconnected) {
			h.Errorf("a call over the closed backend: %v", err)
		}
		again, err := h.Attach(h.ctx(), box.Ref())
		if err != nil {
			h.Fatalf("Attach: %v", err)
		}
		if h.guest(again).Instance() != g.Instance() {
			h.Error("it is another guest")
		}
	}},
	{claim: "kept files are there again, and removed files are not", needs: onLinux, run: func(h *host) {
		s := h.spec()
		for i, how := range []sandbox.Removal{sandbox.KeepFiles, sandbox.Everything} {
			box := h.create(s)
			g := h.guest(box)
			h.sh(g, fmt.Sprintf("echo %d > /workspace/kept; echo x > /tmp/lost", i))
			h.destroy(box, how)
		}
		g := h.guest(h.create(s))
		h.says(g, "cat /workspace/kept 2>/dev/null || echo none", "none")
		h.sh(g, "echo again > /workspace/kept")
		box := h.create(s)
		h.destroy(box, sandbox.KeepFiles)
		h.says(h.guest(h.create(s)), "cat /workspace/kept; ls /tmp", "again")
	}},
}
