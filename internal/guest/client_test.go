package guest_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/guest"
	"github.com/berth-dev/berth/internal/guest/wire"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/tool"
)

// fake is a guest that says what it is told to.
type fake struct {
	answer  string
	trailer wire.Trailer
	silent  bool // never answers, and lets waiters hang
	wg      sync.WaitGroup
}

func (f *fake) Hello(wire.Hello) wire.Welcome { return wire.Welcome{Instance: "fake"} }

func (f *fake) Accept(st *wire.Stream, _ wire.Request) {
	f.wg.Go(func() {
		_, _ = io.Copy(io.Discard, st)
		if f.silent {
			<-st.Done()
			return
		}
		_, _ = st.Write([]byte(f.answer))
		st.End(f.trailer)
	})
}

// attach connects to a fake guest. cut breaks the connection.
func attach(t *testing.T, f *fake) (g *guest.Client, cut func()) {
	t.Helper()
	host, far := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { _ = wire.Serve(far, far, f); f.wg.Wait() })
	g, err := guest.Attach(t.Context(), host, host, host, guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close(); wg.Wait() })
	return g, func() { _ = far.Close() }
}

func TestTrailersBecomeTheErrorsOfTheContract(t *testing.T) {
	for code, want := range map[wire.Code]error{
		wire.Unknown: sandbox.ErrUnknownCall, wire.Acknowledged: sandbox.ErrAcknowledged,
	} {
		g, _ := attach(t, &fake{trailer: wire.Trailer{Code: code}})
		if _, err := g.Recall(t.Context(), "a"); !errors.Is(err, want) {
			t.Errorf("%s: got %v", code, err)
		}
	}
}

func TestTextOfAnErrorIsFitForALog(t *testing.T) {
	g, _ := attach(t, &fake{trailer: wire.Trailer{Code: "\x1b[2J", Message: "a\nb\x00" + strings.Repeat("x", 9000)}})
	err := g.Cancel(t.Context(), "a")
	if err == nil || strings.ContainsAny(err.Error(), "\n\x00\x1b") || len(err.Error()) > 2000 {
		t.Errorf("got %q", err)
	}
}

func TestResultsAreCheckedOnThisSideToo(t *testing.T) {
	long, err := json.Marshal(tool.Text(strings.Repeat("x", 2*tool.MaxTextBytes)))
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		answer string
		ok     func(tool.Result, error) bool
	}{
		"nonsense": {"nonsense", func(_ tool.Result, err error) bool { return errors.Is(err, sandbox.ErrProtocol) }},
		"nothing":  {"", func(_ tool.Result, err error) bool { return errors.Is(err, sandbox.ErrProtocol) }},
		"empty":    {"{}", func(r tool.Result, err error) bool { return err == nil && cmp.Equal(r, tool.Text(tool.EmptyText)) }},
		"long": {string(long), func(r tool.Result, err error) bool {
			return err == nil && len(r.Content[0].Text) <= tool.MaxTextBytes
		}},
		"endless": {strings.Repeat(" ", wire.MaxMessage+1), func(_ tool.Result, err error) bool { return errors.Is(err, sandbox.ErrProtocol) }},
	} {
		t.Run(name, func(t *testing.T) {
			g, _ := attach(t, &fake{answer: test.answer})
			if got, err := g.Call(t.Context(), tool.Call{ID: "a", Name: "x"}); !test.ok(got, err) {
				t.Errorf("got %.200v, %v", got, err)
			}
		})
	}
}

func TestExecAnswerBeyondTheBoundIsRefused(t *testing.T) {
	answer, err := json.Marshal(sandbox.ExecResult{Stdout: make([]byte, wire.MaxOutput+1)})
	if err != nil {
		t.Fatal(err)
	}
	g, _ := attach(t, &fake{answer: string(answer)})
	if _, err := g.Exec(t.Context(), sandbox.Exec{Argv: []string{"x"}}); !errors.Is(err, sandbox.ErrProtocol) {
		t.Errorf("got %v", err)
	}
}

func TestBrokenConnectionFailsEveryWaiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, cut := attach(t, &fake{silent: true})
		var wg sync.WaitGroup
		for _, wait := range []func() error{
			func() error { _, err := g.Call(t.Context(), tool.Call{ID: "a"}); return err },
			func() error { _, err := g.Recall(t.Context(), "b"); return err },
			func() error { return g.Acknowledge(t.Context(), "c") },
			func() error { _, err := g.Terminal(t.Context(), sandbox.Size{}); return err },
		} {
			wg.Go(func() {
				if err := wait(); !errors.Is(err, sandbox.ErrDisconnected) {
					t.Errorf("got %v", err)
				}
			})
		}
		synctest.Wait() // all of them wait
		cut()
		wg.Wait()
		if err := g.Ping(t.Context()); !errors.Is(err, sandbox.ErrDisconnected) {
			t.Errorf("a later call: %v", err)
		}
		<-g.Done()
	})
}

func TestEndOfTheContextOnlyStopsWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := attach(t, &fake{silent: true})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := g.Call(ctx, tool.Call{ID: "a"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if g.Err() != nil {
			t.Errorf("the connection is over: %v", g.Err())
		}
	})
}

func TestGuestThatDoesNotAnswerIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, far := net.Pipe()
		defer far.Close()
		begin := time.Now()
		_, err := guest.Attach(t.Context(), host, host, host, guest.Options{Handshake: 3 * time.Second})
		if took := time.Since(begin); !errors.Is(err, sandbox.ErrDisconnected) || took != 3*time.Second {
			t.Errorf("got %v after %s", err, took)
		}
	})
}
