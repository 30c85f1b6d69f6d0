package claude

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/session"
)

// sse answers with these frames and then ends the stream in order.
func sse(frames ...string) http.HandlerFunc {
	return reply(200, "text/event-stream; charset=utf-8", strings.Join(frames, ""), "request-id", "req_stream")
}

// held answers with these frames and keeps the stream open.
func held(frames ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, strings.Join(frames, ""))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}
}

func openStream(t *testing.T, u *upstream) session.Stream {
	t.Helper()
	s, err := newTestPlatform(t, u).Stream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestStreamDeliversEvents(t *testing.T) {
	u := newUpstream(t, sse(
		": keep-alive\n\n",
		"event: ping\ndata: {\"type\":\"ping\"}\n\n",
		"event: agent.tool_use\ndata: {\"id\":\"sevt_1\",\"type\":\"agent.tool_use\",\"name\":\"bash\",\"input\":{}}\n\n",
		"data: {\"id\":\"sevt_2\",\"type\":\"session.status_running\"}\r\n\r\n",
		"event: session.dreaming\nid: 7\nretry: 1\ndata: {\"id\":\"sevt_3\",\ndata: \"type\":\"session.dreaming\",\"new\":[1]}\n\n",
		"event: nothing\n\n",
		"event: agent.message\ndata:{\"id\":\"sevt_4\",\"type\":\"agent.message\"}\n\n",
	))
	s := openStream(t, u)
	var got []string
	for {
		e, err := s.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.ID+" "+e.Type)
	}
	want := []string{"sevt_1 agent.tool_use", "sevt_2 session.status_running", "sevt_3 session.dreaming", "sevt_4 agent.message"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if r := u.only(t); r.Method != "GET" || r.Path != "/v1/sessions/sesn_1/events/stream" || r.Query != "" {
		t.Errorf("sent %s %s?%s", r.Method, r.Path, r.Query)
	}
}

func TestStreamIsOpenWhenItReturns(t *testing.T) {
	u := newUpstream(t, held())
	openStream(t, u)
	u.only(t)
}

func TestStreamThatIsRefused(t *testing.T) {
	u := newUpstream(t, refuse(404, "not_found_error", "no such session"))
	_, err := newTestPlatform(t, u).Stream(t.Context())
	if session.StatusOf(err) != 404 {
		t.Errorf("Stream = %v, want a 404", err)
	}
	u.only(t)
}

func TestStreamEndsWithTheErrorThatArrivesOnIt(t *testing.T) {
	u := newUpstream(t, sse(
		"event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"busy\"}}\n\n"))
	_, err := openStream(t, u).Next()
	var got *session.Refusal
	if !errors.As(err, &got) {
		t.Fatalf("Next = %v, want a refusal", err)
	}
	want := &session.Refusal{Status: 529, Type: "overloaded_error", Message: "busy", RequestID: "req_stream"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if !session.Retryable(err) {
		t.Error("an overloaded platform counts as final")
	}
}

func TestEveryErrorTypeOnAStreamHasItsStatus(t *testing.T) {
	for kind, want := range map[string]int{
		"invalid_request_error": 400, "authentication_error": 401, "billing_error": 402, "permission_error": 403,
		"not_found_error": 404, "conflict_error": 409, "request_too_large": 413, "rate_limit_error": 429,
		"api_error": 500, "timeout_error": 504, "overloaded_error": 529, "novel_error": 500, "": 500,
	} {
		if got := statusOf(kind); got != want {
			t.Errorf("%s: status %d, want %d", kind, got, want)
		}
	}
}

func TestStreamDoesNotSwallowABrokenEvent(t *testing.T) {
	for _, data := range []string{`{"id":`, `null`, `[]`, `text`} {
		u := newUpstream(t, sse("event: agent.tool_use\ndata: "+data+"\n\n"))
		if e, err := openStream(t, u).Next(); err == nil || err == io.EOF {
			t.Errorf("%s: Next = %+v, %v; want an error, so that the history is read", data, e, err)
		}
	}
}

func TestStreamCutInTheMiddleOfAnEvent(t *testing.T) {
	for _, half := range []string{"event: agent.tool_use\n", "data: {\"id\":\"sevt_1\"}", "data: {}\n"} {
		u := newUpstream(t, sse(half))
		if _, err := openStream(t, u).Next(); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q: Next = %v, want an unexpected end", half, err)
		}
	}
}

func TestCloseUnblocksNextAtOnce(t *testing.T) {
	u := newUpstream(t, held(": hello\n\n"))
	s := openStream(t, u)
	done := make(chan error, 1)
	go func() { _, err := s.Next(); done <- err }()
	s.Close()
	s.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Next = %v, want net.ErrClosed", err)
	}
}

func TestTheEndOfTheContextEndsTheStream(t *testing.T) {
	lost := errors.New("lease lost")
	u := newUpstream(t, held(": hello\n\n"))
	ctx, cancel := contextWithCause(t)
	s, err := newTestPlatform(t, u).Stream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	done := make(chan error, 1)
	go func() { _, err := s.Next(); done <- err }()
	cancel(lost)
	if err := <-done; !errors.Is(err, lost) {
		t.Errorf("Next = %v, want %v", err, lost)
	}
}

func TestASilentStreamIsGivenUp(t *testing.T) {
	u := newUpstream(t, held("event: a\ndata: {\"id\":\"sevt_1\",\"type\":\"a\"}\n\n"))
	p := newTestPlatform(t, u)
	p.conn.time.silent = 30 * time.Millisecond
	s, err := p.Stream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Next(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Next(); !errors.Is(err, errSilent) || !session.Retryable(err) {
		t.Errorf("Next = %v, want errSilent", err)
	}
}

func TestKeepAliveCommentsKeepAStreamAlive(t *testing.T) {
	const beats = 8
	silent := 200 * time.Millisecond
	u := newUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		tick := time.NewTicker(silent / 4)
		defer tick.Stop()
		for range beats {
			io.WriteString(w, ": still here\n")
			w.(http.Flusher).Flush()
			<-tick.C
		}
		io.WriteString(w, "\nevent: a\ndata: {\"id\":\"sevt_1\",\"type\":\"a\"}\n\n")
	})
	p := newTestPlatform(t, u)
	p.conn.time.silent = silent
	s, err := p.Stream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if e, err := s.Next(); err != nil || e.ID != "sevt_1" {
		t.Errorf("Next = %+v, %v after %v of comments", e, err, beats*silent/4)
	}
}

func TestAStreamThatNeverAnswersIsGivenUp(t *testing.T) {
	u := newUpstream(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	p := newTestPlatform(t, u)
	p.conn.time.open = 20 * time.Millisecond
	if _, err := p.Stream(t.Context()); err == nil || !strings.Contains(err.Error(), "no answer within") {
		t.Errorf("Stream = %v, want a timeout", err)
	}
}

func TestFramesAreBounded(t *testing.T) {
	for name, text := range map[string]string{
		"one line":        "data: " + strings.Repeat("x", 200<<10) + "\n\n",
		"many lines":      strings.Repeat("data: "+strings.Repeat("x", 1000)+"\n", 200),
		"an endless name": "event: " + strings.Repeat("x", 200<<10),
		"a comment":       ": " + strings.Repeat("x", 200<<10) + "\n",
	} {
		f := newFrames(strings.NewReader(text), 100<<10)
		if _, _, err := f.next(); !errors.Is(err, errFrame) {
			t.Errorf("%s: next = %v, want errFrame", name, err)
		}
	}
	// Comments between are not counted, however many.
	f := newFrames(strings.NewReader(strings.Repeat(": "+strings.Repeat("x", 1000)+"\n", 200)+"data: y\n\n"), 100<<10)
	if _, data, err := f.next(); err != nil || string(data) != "y" {
		t.Errorf("next = %q, %v", data, err)
	}
}

func TestFramesDoNotDependOnHowTheyArrive(t *testing.T) {
	text := "event: a\r\ndata: 1\r\n\r\n: c\n\nevent: b\ndata: 2\ndata: 3\n\n"
	var want, got []string
	for i, r := range []io.Reader{strings.NewReader(text), iotest.OneByteReader(strings.NewReader(text))} {
		f := newFrames(r, 1<<10)
		for {
			name, data, err := f.next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			entry := fmt.Sprintf("%s %q", name, data)
			if i == 0 {
				want = append(want, entry)
			} else {
				got = append(got, entry)
			}
		}
	}
	if d := cmp.Diff([]string{`a "1"`, `b "2\n3"`}, want); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte("event: a\ndata: {}\n\n"))
	f.Add([]byte(": c\r\n\r\ndata:\ndata\n\nevent:x"))
	f.Fuzz(func(t *testing.T, text []byte) {
		const limit = 64
		r := newFrames(strings.NewReader(string(text)), limit)
		for {
			name, data, err := r.next()
			if err != nil {
				return
			}
			if len(data) > limit || len(name) > limit {
				t.Fatalf("a frame of %d+%d bytes passed a limit of %d", len(name), len(data), limit)
			}
		}
	})
}
