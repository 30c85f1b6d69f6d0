package intake

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"
)

// Bounds of a delivery.
const (
	maxWebhook   = 1 << 20          // bytes
	bodyWithin   = 10 * time.Second // for the body to arrive
	storedWithin = 5 * time.Second  // for it to be stored; the platform takes a slow answer for none
)

// Delivery is a webhook whose signature was verified.
type Delivery struct {
	ID      string // of the event, the same on every retry
	Type    string // e.g. session.status_run_started
	Session string // the session it is about, "" when about something else
	Body    []byte
}

// Receiver answers POST /webhooks (contract §7). It verifies the signature on the
// raw bytes, stores the delivery once by its id, answers, and only then lets
// anything slow happen.
type Receiver struct {
	// Verify checks and parses a delivery; an error means that it is not the
	// platform's, or too old.
	Verify func(header http.Header, body []byte, now time.Time) (Delivery, error)
	// Store keeps a delivery; false when it was received before.
	Store func(ctx context.Context, d Delivery, at time.Time) (fresh bool, err error)
	// Ring wakes the pollers.
	Ring func()
	// Ended hears of sessions that are over, of each at least once: also when the
	// process died after it had stored the delivery. It is called after the
	// answer.
	Ended func(session, how string)
	Log   *slog.Logger
	Now   func() time.Time
}

// ServeHTTP answers 204 to fresh deliveries, 200 to repeated ones, 401 to
// unsigned or forged ones, 413 to large ones, and 503 when the delivery could
// not be stored, so that the platform sends it again.
func (rc *Receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		answer(w, http.StatusMethodNotAllowed, "send deliveries with POST")
		return
	}
	if rc.Verify == nil {
		answer(w, http.StatusUnauthorized, "no webhook signing key is configured; set ANTHROPIC_WEBHOOK_SIGNING_KEY")
		return
	}
	for _, name := range []string{"Webhook-Id", "Webhook-Timestamp", "Webhook-Signature"} {
		if r.Header.Get(name) == "" {
			answer(w, http.StatusUnauthorized, "missing signature: the header "+strings.ToLower(name)+" is required")
			return
		}
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(rc.Now().Add(bodyWithin)) // where the server cannot, its own bound holds
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxWebhook))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			answer(w, http.StatusRequestEntityTooLarge, "the delivery is larger than 1 MiB")
			return
		}
		answer(w, http.StatusBadRequest, "the body could not be read")
		return
	}
	now := rc.Now()
	d, err := rc.Verify(r.Header, body, now)
	if err != nil {
		rc.Log.Warn("webhook refused", "err", err)
		answer(w, http.StatusUnauthorized, "invalid signature")
		return
	}
	// A sender that hangs up does not undo what it has sent.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), storedWithin)
	defer cancel()
	fresh, err := rc.Store(ctx, d, now)
	if err != nil {
		rc.Log.Error("webhook not stored", "webhook", d.ID, "err", err)
		answer(w, http.StatusServiceUnavailable, "the delivery could not be stored; send it again")
		return
	}
	if fresh {
		w.WriteHeader(http.StatusNoContent)
	} else {
		answer(w, http.StatusOK, "received before")
	}
	_ = control.Flush() // answered; the rest may take its time
	rc.Log.Debug("webhook received", "webhook", d.ID, "type", d.Type, "session", d.Session, "fresh", fresh)
	switch d.Type {
	case "session.status_terminated", "session.archived", "session.deleted":
		rc.Ended(d.Session, strings.TrimPrefix(strings.TrimPrefix(d.Type, "session."), "status_"))
	}
	if fresh && strings.HasPrefix(d.Type, "session.") {
		rc.Ring()
	}
}

func answer(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": text}) // the client may be gone
}
