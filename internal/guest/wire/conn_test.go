package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/sandbox"
)

// echo answers every stream with its own body and remembers who came.
type echo struct {
	wg sync.WaitGroup

	mu     sync.Mutex
	hellos int
	opened []string
}

func (e *echo) Hello(Hello) Welcome {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.hellos++
	return Welcome{Instance: "echo"}
}

func (e *echo) Accept(st *Stream, r Request) {
	e.mu.Lock()
	e.opened = append(e.opened, r.ID)
	e.mu.Unlock()
	e.wg.Go(func() {
		n, _ := io.Copy(struct{ io.Writer }{st}, st)
		st.End(Trailer{Exit: int(n)})
	})
}

// wires are two byte streams that, like FIFOs, survive their users.
type wires struct {
	up, down *pipe
	echo     *echo
}

func serve(t *testing.T) *wires {
	w := &wires{up: newPipe(), down: newPipe(), echo: &echo{}}
	done := make(chan error, 1)
	go func() { done <- Serve(w.up, w.down, w.echo) }()
	t.Cleanup(func() {
		_ = w.up.Close()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		w.echo.wg.Wait()
	})
	return w
}

func (w *wires) dial(t *testing.T) *Conn {
	t.Helper()
	r := w.down.reader()
	c, err := Dial(t.Context(), r, w.up, r, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// kill ends a client as SIGKILL does: without a word.
func kill(c *Conn) {
	c.broke(errors.New("killed"))
	c.wg.Wait()
}

func roundTrip(t *testing.T, s *Session, id string, body []byte) []byte {
	t.Helper()
	st, err := s.Open(t.Context(), Request{Op: OpPing, ID: id})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if _, err := st.Write(body); err != nil {
			t.Errorf("write: %v", err)
		}
		st.CloseBody()
	})
	got, err := st.ReadAll(t.Context(), 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	if tr, err := st.Trailer(); err != nil || tr.Exit != len(body) {
		t.Errorf("trailer %+v, %v", tr, err)
	}
	return got
}

func TestManyStreamsShareAConnection(t *testing.T) {
	c := serve(t).dial(t)
	var wg sync.WaitGroup
	for i := range 20 {
		body := bytes.Repeat([]byte{byte('a' + i)}, 1+i*i*i*300)
		wg.Go(func() {
			if got := roundTrip(t, c.Session, "x", body); !bytes.Equal(got, body) {
				t.Errorf("stream %d: %d bytes came back of %d", i, len(got), len(body))
			}
		})
	}
	wg.Wait()
}

func TestStreamThatNobodyReadsHoldsUpNoOther(t *testing.T) {
	c := serve(t).dial(t)
	stuck, err := c.Open(t.Context(), Request{Op: OpPing})
	if err != nil {
		t.Fatal(err)
	}
	full, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = stuck.WriteContext(full, make([]byte, 8<<20)) })
	if got := roundTrip(t, c.Session, "x", make([]byte, 4<<20)); len(got) != 4<<20 {
		t.Errorf("got %d bytes", len(got))
	}
	cancel()
	wg.Wait()
	stuck.mu.Lock()
	held := stuck.in.Len()
	stuck.mu.Unlock()
	if held > Window {
		t.Errorf("%d bytes are held for one stream", held)
	}
}

func TestGarbageBeforeTheHelloIsSkipped(t *testing.T) {
	w := serve(t)
	_, _ = w.up.Write([]byte("left over \xf8Brt by somebody"))
	_, _ = w.down.Write(bytes.Repeat([]byte("stale output \xf8"), 1000))
	if got := roundTrip(t, w.dial(t).Session, "x", []byte("hi")); string(got) != "hi" {
		t.Errorf("got %q", got)
	}
}

func TestNewClientFindsItsWayAfterOneDiedInTheMiddleOfAFrame(t *testing.T) {
	w := serve(t)
	first := w.dial(t)
	open, err := encode(Request{Op: OpPing, ID: "torn"})
	if err != nil {
		t.Fatal(err)
	}
	torn := Append(nil, Frame{Header: Header{Kind: KindOpen, Epoch: first.epoch, Stream: 1}, Payload: open})
	for _, cut := range []int{5, HeaderSize, len(torn) - 1} {
		kill(first)
		_, _ = w.up.Write(torn[:cut])
		// The reader of a dead process stops in the middle, too.
		w.down.skip(3)
		first = w.dial(t)
		torn = Append(nil, Frame{Header: Header{Kind: KindOpen, Epoch: first.epoch, Stream: 2}, Payload: open})
		if got := roundTrip(t, first.Session, "whole", []byte("hi")); string(got) != "hi" {
			t.Errorf("cut at %d: got %q", cut, got)
		}
	}
	w.echo.mu.Lock()
	defer w.echo.mu.Unlock()
	if diff := cmp.Diff([]string{"whole", "whole", "whole"}, w.echo.opened); diff != "" {
		t.Error(diff)
	}
}

func TestFramesOfAnOlderEpochAreDropped(t *testing.T) {
	w := serve(t)
	old := w.dial(t)
	kill(old)
	now := w.dial(t)
	open, err := encode(Request{Op: OpPing, ID: "late"})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.up.Write(Append(nil, Frame{Header: Header{Kind: KindOpen, Epoch: old.epoch, Stream: 1}, Payload: open}))
	roundTrip(t, now.Session, "ours", nil)
	w.echo.mu.Lock()
	defer w.echo.mu.Unlock()
	if diff := cmp.Diff([]string{"ours"}, w.echo.opened); diff != "" {
		t.Error(diff)
	}
}

func TestAcceptorSurvivesAClientThatBreaksTheProtocol(t *testing.T) {
	w := serve(t)
	bad := w.dial(t)
	kill(bad)
	_, _ = w.up.Write(Append(nil, Frame{Header: Header{Kind: KindData, Epoch: bad.epoch, Stream: 99}}))
	if got := roundTrip(t, w.dial(t).Session, "x", []byte("hi")); string(got) != "hi" {
		t.Errorf("got %q", got)
	}
}

// A guest is hostile: whatever it sends ends the connection in a bounded way.
func TestClientRefusesAGuestThatBreaksTheProtocol(t *testing.T) {
	end := func(h Header, payload string) func(uint64) []byte {
		return func(epoch uint64) []byte {
			h.Epoch = epoch
			return Append(nil, Frame{Header: h, Payload: []byte(payload)})
		}
	}
	tests := map[string]func(epoch uint64) []byte{
		"garbage":             func(uint64) []byte { return bytes.Repeat([]byte("x"), 1000) },
		"another epoch":       func(e uint64) []byte { return Append(nil, frame(e+1, "x")) },
		"a stream not opened": end(Header{Kind: KindData, Stream: 5}, "x"),
		"an end of nothing":   end(Header{Kind: KindEnd, Stream: 5}, "{}"),
		"an open":             end(Header{Kind: KindOpen, Stream: 2}, "{}"),
		"a reset":             end(Header{Kind: KindReset, Stream: 1}, ""),
		"a second welcome":    end(Header{Kind: KindWelcome, Stream: 1}, "{}"),
		"endless credit":      end(Header{Kind: KindCredit, Stream: 1}, "\xff\xff\xff\xff"),
		"more than credit":    end(Header{Kind: KindCredit, Stream: 1}, "\x00\x00\x00\x01"),
		"a short credit":      end(Header{Kind: KindCredit, Stream: 1}, "\x00"),
		"more than a window": func(e uint64) (b []byte) {
			for range Window/MaxPayload + 1 {
				b = Append(b, Frame{Header: Header{Kind: KindData, Epoch: e, Stream: 1}, Payload: make([]byte, MaxPayload)})
			}
			return b
		},
		"data without a trailer": end(Header{Kind: KindData, Stream: 1, Last: true}, "x"),
	}
	for name, attack := range tests {
		t.Run(name, func(t *testing.T) {
			host, guest := net.Pipe()
			var wg sync.WaitGroup
			defer wg.Wait()
			opened := make(chan struct{})
			wg.Go(func() {
				defer guest.Close()
				s := NewScanner(guest)
				hello, err := s.Next()
				if err != nil {
					return
				}
				welcome := Frame{Header: Header{Kind: KindWelcome, Epoch: hello.Epoch}, Payload: []byte(`{"version":1,"instance":"i"}`)}
				_, _ = guest.Write(Append(nil, welcome))
				_, _ = s.Next() // the open
				close(opened)
				_, _ = guest.Write(attack(hello.Epoch))
				_, _ = io.Copy(io.Discard, guest)
			})
			c, err := Dial(t.Context(), host, host, host, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			st, err := c.Open(t.Context(), Request{Op: OpPing})
			if err != nil {
				t.Fatal(err)
			}
			<-opened
			<-c.Done()
			if !errors.Is(c.Err(), sandbox.ErrProtocol) {
				t.Errorf("got %v", c.Err())
			}
			if _, err := st.ReadAll(t.Context(), 1<<20); !errors.Is(err, sandbox.ErrProtocol) {
				t.Errorf("the stream ended with %v", err)
			}
		})
	}
}

func TestDialGivesUp(t *testing.T) {
	tests := map[string]struct {
		answer func(epoch uint64) []byte
		want   error
	}{
		"when nobody answers": {nil, sandbox.ErrDisconnected},
		"on another version": {func(e uint64) []byte {
			return Append(nil, Frame{Header: Header{Kind: KindWelcome, Epoch: e}, Payload: []byte(`{"version":9,"instance":"i"}`)})
		}, sandbox.ErrProtocol},
		"on a refusal": {func(e uint64) []byte {
			return Append(nil, Frame{Header: Header{Kind: KindWelcome, Epoch: e}, Payload: []byte(`{"error":"no"}`)})
		}, sandbox.ErrProtocol},
		"on endless noise": {func(uint64) []byte { return make([]byte, MaxGarbage+Padding) }, sandbox.ErrProtocol},
		"on something else than a welcome": {func(e uint64) []byte {
			return Append(nil, frame(e, "x"))
		}, sandbox.ErrProtocol},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			host, guest := net.Pipe()
			var wg sync.WaitGroup
			defer wg.Wait()
			defer guest.Close()
			wg.Go(func() {
				s := NewScanner(guest)
				hello, err := s.Next()
				if err == nil && test.answer != nil {
					_, _ = guest.Write(test.answer(hello.Epoch))
				}
				_, _ = io.Copy(io.Discard, guest)
			})
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if c, err := Dial(ctx, host, host, host, nil); !errors.Is(err, test.want) {
				t.Errorf("got %v, %v; want %v", c, err, test.want)
			}
		})
	}
}

func TestAcceptorRefusesVersionsItDoesNotSpeak(t *testing.T) {
	for _, h := range []Hello{{MinVersion: Version + 1, MaxVersion: Version + 2}, {MinVersion: 0, MaxVersion: 0}} {
		if _, err := Agree(h); err == nil {
			t.Errorf("%+v was agreed to", h)
		}
	}
}

func TestNobodyReadingStopsNeitherReadingNorANewSession(t *testing.T) {
	w := serve(t)
	c := w.dial(t)
	w.down.stall() // the process on the host hangs
	st, err := c.Open(t.Context(), Request{Op: OpPing})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, _ = st.WriteContext(ctx, make([]byte, 4*Window)) // the answer has nowhere to go
	kill(c)
	w.down.resume()
	if got := roundTrip(t, w.dial(t).Session, "x", []byte("hi")); string(got) != "hi" {
		t.Errorf("got %q", got)
	}
}

// FuzzReceive throws any sequence of frames at both kinds of session.
func FuzzReceive(f *testing.F) {
	f.Add(true, []byte{3, 0, 1, 2, '{', '}', 4, 0, 1, 1, 'x', 7, 0, 1, 0})
	f.Add(false, []byte{4, 0, 1, 3, 'a', 'b', 'c', 6, 0, 1, 4, 0, 0, 0, 1, 5, 0, 1, 2, '{', '}'})
	f.Fuzz(func(t *testing.T, accepting bool, script []byte) {
		out := newWriter(io.Discard)
		out.begin(1)
		var streams []*Stream
		s := newSession(1, out, nil)
		if accepting {
			s.accept = func(st *Stream, _ Request) { streams = append(streams, st) }
		} else {
			for range 3 {
				st, err := s.Open(t.Context(), Request{Op: OpPing})
				if err != nil {
					t.Fatal(err)
				}
				streams = append(streams, st)
			}
		}
		for len(script) >= 4 {
			n := min(int(script[3]), len(script)-4)
			fr := Frame{Header: Header{Kind: Kind(script[0]), Last: script[1]&1 == 1, Epoch: 1, Stream: uint32(script[2])}, Payload: script[4 : 4+n]}
			script = script[4+n:]
			if s.receive(fr) != nil {
				break
			}
		}
		for _, st := range streams {
			if st.in.Len() > Window || st.credit > Window || st.room < 0 {
				t.Errorf("stream %d: holds %d, credit %d, room %d", st.id, st.in.Len(), st.credit, st.room)
			}
		}
		s.fail(io.EOF)
		for _, st := range streams {
			<-st.done
		}
	})
}
