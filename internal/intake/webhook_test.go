package intake_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/intake"
)

// desk is a receiver and what it brought about.
type desk struct {
	*intake.Receiver
	known map[string]bool
	fail  error
	rings int
	ended []string
	ctx   context.Context
}

// newDesk takes deliveries whose signature is "good"; a body is "id type session".
func newDesk() *desk {
	d := &desk{known: map[string]bool{}}
	d.Receiver = &intake.Receiver{
		Verify: func(h http.Header, body []byte, _ time.Time) (intake.Delivery, error) {
			f := append(strings.Fields(string(body)), "", "", "")
			if h.Get("Webhook-Signature") != "good" {
				return intake.Delivery{}, errors.New("the signature does not match")
			}
			return intake.Delivery{ID: f[0], Type: f[1], Session: f[2], Body: body}, nil
		},
		Store: func(ctx context.Context, in intake.Delivery, _ time.Time) (bool, error) {
			d.ctx = ctx
			if d.fail != nil {
				return false, d.fail
			}
			fresh := !d.known[in.ID]
			d.known[in.ID] = true
			return fresh, ctx.Err()
		},
		Ring:  func() { d.rings++ },
		Ended: func(session, how string) { d.ended = append(d.ended, session+" "+how) },
		Log:   slog.New(slog.DiscardHandler), Now: time.Now,
	}
	return d
}

func delivery(method, body string) *http.Request {
	r := httptest.NewRequest(method, "/webhooks", strings.NewReader(body))
	r.Header.Set("webhook-id", "whe_1")
	r.Header.Set("webhook-timestamp", "1793534400")
	r.Header.Set("webhook-signature", "good")
	return r
}

func (d *desk) deliver(r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	d.ServeHTTP(w, r)
	return w
}

func TestDeliveryIsAnswered(t *testing.T) {
	without := func(header string) *http.Request {
		r := delivery("POST", "whe_1 session.status_run_started sesn_1")
		r.Header.Del(header)
		return r
	}
	forged := delivery("POST", "whe_1 session.deleted sesn_1")
	forged.Header.Set("webhook-signature", "v1,Zm9yZ2Vk")
	for name, test := range map[string]struct {
		request *http.Request
		change  func(*desk)
		status  int
		rings   int
	}{
		"fresh":                {delivery("POST", "whe_1 session.status_run_started sesn_1"), nil, 204, 1},
		"not about a session":  {delivery("POST", "whe_1 agent.created"), nil, 204, 0},
		"repeated":             {delivery("POST", "whe_1 session.status_run_started sesn_1"), func(d *desk) { d.known["whe_1"] = true }, 200, 0},
		"not posted":           {delivery("GET", ""), nil, 405, 0},
		"without an id":        {without("webhook-id"), nil, 401, 0},
		"without a time":       {without("webhook-timestamp"), nil, 401, 0},
		"without a signature":  {without("webhook-signature"), nil, 401, 0},
		"forged":               {forged, nil, 401, 0},
		"without a key":        {delivery("POST", "whe_1 session.deleted sesn_1"), func(d *desk) { d.Verify = nil }, 401, 0},
		"too large":            {delivery("POST", strings.Repeat("x", 1<<20+1)), nil, 413, 0},
		"as large as possible": {delivery("POST", "whe_1 session.created sesn_1"+strings.Repeat(" ", 1<<20-28)), nil, 204, 1},
		"not storable":         {delivery("POST", "whe_1 session.deleted sesn_1"), func(d *desk) { d.fail = errors.New("disk full") }, 503, 0},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk()
			if test.change != nil {
				test.change(d)
			}
			w := d.deliver(test.request)
			if w.Code != test.status || d.rings != test.rings {
				t.Errorf("status %d with %d rings, want %d with %d: %s", w.Code, d.rings, test.status, test.rings, w.Body)
			}
			if w.Code >= 300 && len(d.ended) > 0 {
				t.Errorf("a delivery that was not taken ended %v", d.ended)
			}
			if w.Code == 401 && strings.Contains(w.Body.String(), "does not match") {
				t.Errorf("the answer tells a forger why: %s", w.Body)
			}
			if w.Code == 405 && w.Header().Get("Allow") != "POST" {
				t.Errorf("Allow = %q", w.Header().Get("Allow"))
			}
		})
	}
}

func TestEndsAreToldAgainWithEveryDelivery(t *testing.T) {
	d := newDesk()
	for _, typ := range []string{"session.status_terminated", "session.archived", "session.deleted", "session.deleted", "session.updated"} {
		d.deliver(delivery("POST", "whe_1 "+typ+" sesn_1"))
	}
	want := []string{"sesn_1 terminated", "sesn_1 archived", "sesn_1 deleted", "sesn_1 deleted"}
	if diff := cmp.Diff(want, d.ended); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSenderThatHangsUpDoesNotUndoItsDelivery(t *testing.T) {
	d := newDesk()
	r := delivery("POST", "whe_1 session.status_run_started sesn_1")
	ctx, cancel := context.WithCancel(r.Context())
	cancel()
	d.deliver(r.WithContext(ctx))
	if !d.known["whe_1"] || d.rings != 1 {
		t.Errorf("stored %v, rings %d", d.known, d.rings)
	}
	if _, bounded := d.ctx.Deadline(); !bounded {
		t.Error("storing has no bound")
	}
}

func TestAnswerDoesNotWaitForWhatFollows(t *testing.T) {
	d := newDesk()
	release := make(chan struct{})
	d.Receiver.Ended = func(string, string) { <-release }
	server := httptest.NewServer(d)
	defer server.Close()
	defer close(release)
	r, err := http.NewRequestWithContext(t.Context(), "POST", server.URL, strings.NewReader("whe_1 session.deleted sesn_1"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header = delivery("POST", "").Header
	res, err := server.Client().Do(r) // hangs if the answer waits
	if err != nil || res.StatusCode != 204 {
		t.Fatalf("%v, %v", res, err)
	}
	res.Body.Close()
}

func TestBodyThatDripsIsGivenUp(t *testing.T) {
	d := newDesk()
	early := time.Now().Add(-bodyWithin + 50*time.Millisecond) // as if it had begun long ago
	d.Receiver.Now = func() time.Time { return early }
	server := httptest.NewServer(d)
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /webhooks HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nWebhook-Id: a\r\nWebhook-Timestamp: 1\r\nWebhook-Signature: good\r\n\r\nhalf")
	answer, err := io.ReadAll(conn)
	if err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 400")) {
		t.Errorf("answer = %.100s, %v", answer, err)
	}
	if len(d.known) > 0 {
		t.Errorf("stored %v", d.known)
	}
}

// bodyWithin is the receiver's own bound.
const bodyWithin = 10 * time.Second

// FuzzReceiver: whatever arrives gets one of the answers, and only what was
// verified is stored.
func FuzzReceiver(f *testing.F) {
	f.Add("POST", "whe_1", "1", "good", []byte("whe_1 session.deleted sesn_1"))
	f.Add("GET", "", "", "", []byte{})
	f.Add("POST", "\x00", "-1", "v1,", []byte("{"))
	f.Fuzz(func(t *testing.T, method, id, stamp, signature string, body []byte) {
		d := newDesk()
		r := &http.Request{Method: method, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body))}
		r.Header["Webhook-Id"], r.Header["Webhook-Timestamp"], r.Header["Webhook-Signature"] = []string{id}, []string{stamp}, []string{signature}
		w := d.deliver(r)
		switch w.Code {
		case 204:
			if signature != "good" || len(d.known) != 1 {
				t.Fatalf("stored %v of signature %q", d.known, signature)
			}
		case 401, 405, 413:
			if len(d.known) > 0 || d.rings > 0 || len(d.ended) > 0 {
				t.Fatalf("refused, and yet: %v", d)
			}
		default:
			t.Fatalf("status %d", w.Code)
		}
	})
}
