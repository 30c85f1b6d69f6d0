package sandboxtest_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/sandbox/sandboxtest"
	"github.com/berth-dev/berth/internal/tool"
)

var spec = sandbox.Spec{ID: sandbox.ID("sesn_1"), Session: "sesn_1"}

func start(t *testing.T, f *sandboxtest.Fake) (sandbox.Sandbox, sandbox.Guest) {
	t.Helper()
	box, err := f.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	g, err := box.Guest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return box, g
}

func call(id string) tool.Call {
	return tool.Call{ID: id, Name: tool.Bash, Input: json.RawMessage(`{"command":"x"}`)}
}

func TestFakeRunsACallOnceAcrossADroppedConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := sandboxtest.NewFake()
		f.CallDelay(time.Minute)
		box, g := start(t, f)
		broke := make(chan error)
		go func() { // received from below
			_, err := g.Call(t.Context(), call("c1"))
			broke <- err
		}()
		synctest.Wait()
		f.DropConnection(spec.ID)
		if err := <-broke; !errors.Is(err, sandbox.ErrDisconnected) {
			t.Fatalf("the call ended with %v, want a broken connection", err)
		}
		again, err := box.Guest(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if again.Instance() != g.Instance() {
			t.Error("a new connection to the same guest has another instance")
		}
		got, err := again.Call(t.Context(), call("c1"))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tool.Text(`bash {"command":"x"}`), got); diff != "" {
			t.Error(diff)
		}
		if n := f.Runs("c1"); n != 1 {
			t.Errorf("the call ran %d times", n)
		}
	})
}

func TestFakeForgetsCallsWithItsSandbox(t *testing.T) {
	f := sandboxtest.NewFake()
	box, g := start(t, f)
	if _, err := g.Call(t.Context(), call("c1")); err != nil {
		t.Fatal(err)
	}
	f.LoseSandbox(spec.ID, sandbox.Exit{Code: -1, Reason: "out of memory"})
	exit, err := box.Wait(t.Context())
	if err != nil || exit.Reason != "out of memory" {
		t.Errorf("Wait = %v, %v", exit, err)
	}
	if _, err := box.Guest(t.Context()); !errors.Is(err, sandbox.ErrGone) {
		t.Errorf("Guest of a lost sandbox: %v", err)
	}
	_, next := start(t, f)
	if next.Instance() == g.Instance() {
		t.Error("a new sandbox has the instance of the lost one")
	}
	if _, err := next.Recall(t.Context(), "c1"); !errors.Is(err, sandbox.ErrUnknownCall) {
		t.Errorf("Recall on the new instance: %v", err)
	}
}

func TestFakeCancelEndsACallWithAnErrorResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := sandboxtest.NewFake()
		f.Tool(func(ctx context.Context, _ tool.Call) tool.Result {
			<-ctx.Done()
			return tool.Text("too late")
		})
		_, g := start(t, f)
		results := make(chan tool.Result)
		go func() { // received from below
			r, err := g.Call(t.Context(), call("c1"))
			if err != nil {
				t.Error(err)
			}
			results <- r
		}()
		synctest.Wait()
		if err := g.Cancel(t.Context(), "c1"); err != nil {
			t.Fatal(err)
		}
		if r := <-results; !r.IsError {
			t.Errorf("a cancelled call succeeded: %v", r)
		}
	})
}

func TestFakeStartErrorLeavesNothing(t *testing.T) {
	f := sandboxtest.NewFake()
	broken := errors.New("no room")
	f.StartError(broken)
	if _, err := f.Create(t.Context(), spec); !errors.Is(err, broken) {
		t.Errorf("Create = %v", err)
	}
	refs, err := f.List(t.Context())
	if err != nil || len(refs) != 0 {
		t.Errorf("List = %v, %v", refs, err)
	}
}

func TestFakeBlockedStartEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := sandboxtest.NewFake()
		release := f.BlockStart()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := f.Create(ctx, spec); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Create = %v", err)
		}
		release()
		start(t, f)
	})
}

func TestFakeConforms(t *testing.T) {
	f := sandboxtest.NewFake()
	sandboxtest.Run(t, func(*testing.T) sandbox.Backend { return f })
}
