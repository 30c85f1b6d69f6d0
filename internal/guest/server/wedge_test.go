//go:build linux

package server_test

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/guest"
	"github.com/berth-dev/berth/internal/guest/server"
	"github.com/berth-dev/berth/internal/guest/wire"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/tool"
)

// odd is a worker that behaves as it is told: nothing about a worker may be
// relied on, because the agent runs as the same user.
type odd struct {
	answer func(st *wire.Stream, r wire.Request) // nil: never

	mu       sync.Mutex
	launched int
}

func (o *odd) Hello(wire.Hello) wire.Welcome { return wire.Welcome{Instance: "odd"} }

func (o *odd) Accept(st *wire.Stream, r wire.Request) {
	if r.Op == wire.OpCall && o.answer != nil {
		go o.answer(st, r) // ends with the connection
	}
}

func (o *odd) launch() (server.Worker, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.launched++
	near, far := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { _ = wire.Serve(far, far, o) })
	return server.Worker{R: near, W: near, Kill: func() { _ = near.Close(); wg.Wait() }}, nil
}

// withWorker runs f in a bubble of virtual time against a guest with an odd
// worker.
func withWorker(t *testing.T, o *odd, f func(t *testing.T, g *guest.Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := server.New(server.Config{Workdir: "/nowhere", UID: -1, GID: -1, Launch: o.launch, Log: slog.New(slog.DiscardHandler)})
		host, far := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() { _ = s.Serve(far, far) })
		g, err := guest.Attach(t.Context(), host, host, host, guest.Options{})
		if err != nil {
			t.Fatal(err)
		}
		f(t, g)
		_ = g.Close()
		wg.Wait()
		s.Close()
	})
}

func call(t *testing.T, g sandbox.Guest, c tool.Call) tool.Result {
	t.Helper()
	res, err := g.Call(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func TestToolThatIgnoresItsTimeoutIsAnsweredForAndItsWorkerReplaced(t *testing.T) {
	o := &odd{}
	withWorker(t, o, func(t *testing.T, g *guest.Client) {
		begin := time.Now()
		got := call(t, g, tool.Call{ID: "a", Name: tool.Read, Input: []byte(`{}`)})
		if diff := cmp.Diff(tool.Error(`tool "read" timed out after 2m0s`), got); diff != "" {
			t.Error(diff)
		}
		if took := time.Since(begin); took < 2*time.Minute || took > 2*time.Minute+time.Second {
			t.Errorf("it took %s", took)
		}
		<-time.After(11 * time.Second) // virtual: the worker's last chance is over
		synctest.Wait()
		call(t, g, tool.Call{ID: "b", Name: tool.Read, Input: []byte(`{}`), Timeout: time.Second})
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.launched != 2 {
			t.Errorf("%d workers were started", o.launched)
		}
	})
}

func TestCancelAnswersWithinASecondWhateverTheToolDoes(t *testing.T) {
	withWorker(t, &odd{}, func(t *testing.T, g *guest.Client) {
		var wg sync.WaitGroup
		defer wg.Wait()
		begin := time.Now()
		const queued = "queued behind it"
		for _, id := range []string{"first", queued} {
			wg.Go(func() {
				says := `tool "bash" was stopped before it was done. It may have had some of its effects.`
				if id == queued {
					says = `tool "bash" was not run: it was stopped before it began.`
				}
				got := call(t, g, tool.Call{ID: id, Name: tool.Bash, Input: []byte(`{"command":"x"}`)})
				if diff := cmp.Diff(tool.Error(says), got); diff != "" {
					t.Error(diff)
				}
				if took := time.Since(begin); took > time.Second {
					t.Errorf("%s: it took %s", id, took)
				}
			})
			synctest.Wait()
		}
		for _, id := range []string{"first", "queued behind it", "never heard of"} {
			if err := g.Cancel(t.Context(), id); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestAnswersOfAHostileWorkerBecomeBoundedResults(t *testing.T) {
	say := func(b string) func(*wire.Stream, wire.Request) {
		return func(st *wire.Stream, _ wire.Request) {
			_, _ = io.Copy(io.Discard, st)
			_, _ = st.Write([]byte(b))
			st.End(wire.Trailer{})
		}
	}
	long, err := json.Marshal(tool.Text(string(make([]byte, 3*tool.MaxTextBytes))))
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		answer func(*wire.Stream, wire.Request)
		want   func(tool.Result) bool
	}{
		"nonsense":     {say("nonsense"), isError},
		"nothing":      {say(""), isError},
		"unknown kind": {say(`{"content":[{"type":"exec"}]}`), isError},
		"empty text":   {say(`{"content":[{"type":"text","text":""}]}`), func(r tool.Result) bool { return cmp.Equal(r, tool.Text(tool.EmptyText)) }},
		"no content":   {say(`{}`), func(r tool.Result) bool { return cmp.Equal(r, tool.Text(tool.EmptyText)) }},
		"too long": {say(string(long)), func(r tool.Result) bool {
			return len(r.Content) == 1 && len(r.Content[0].Text) <= tool.MaxTextBytes
		}},
		"endless": {func(st *wire.Stream, _ wire.Request) {
			for {
				if _, err := st.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		}, isError},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			withWorker(t, &odd{answer: test.answer}, func(t *testing.T, g *guest.Client) {
				if got := call(t, g, tool.Call{ID: "a", Name: tool.Read, Input: []byte(`{}`)}); !test.want(got) {
					t.Errorf("got %.200v", got)
				}
			})
		})
	}
}

func isError(r tool.Result) bool { return r.IsError && text(r) != "" }

func TestWorkerThatCannotStartIsAnErrorResult(t *testing.T) {
	s := server.New(server.Config{
		UID: -1, GID: -1, Log: slog.New(slog.DiscardHandler),
		Launch: func() (server.Worker, error) { return server.Worker{}, errors.New("no memory") },
	})
	host, far := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(far, far) })
	defer func() { wg.Wait(); s.Close() }()
	g, err := guest.Attach(t.Context(), host, host, host, guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	want := tool.Error("the tool process could not be started: start worker: no memory")
	if diff := cmp.Diff(want, call(t, g, tool.Call{ID: "a", Name: tool.Read})); diff != "" {
		t.Error(diff)
	}
}
