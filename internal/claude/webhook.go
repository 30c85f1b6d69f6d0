package claude

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/berth-dev/berth/internal/fault"
)

// webhookTolerance is how far a delivery's clock may be from ours, either way
// (contract §7).
const webhookTolerance = 5 * time.Minute

// maxSignatures bounds the work that one delivery can ask for.
const maxSignatures = 16

// Webhook is one verified delivery.
type Webhook struct {
	// ID is the webhook-id header, the same on every attempt to deliver one
	// event: deduplicate by it. It is covered by the signature.
	ID        string
	Type      string    // data.type, such as session.status_run_started
	SessionID string    // "" when the event is not about a session
	CreatedAt time.Time // zero when absent
	Data      json.RawMessage
}

// VerifyWebhook checks a delivery against every secret and then reads it. It
// accepts any signature of the header that any secret made, for the rotation of
// either. A secret is whsec_ and base64, bare base64, or plain text. now is the
// time of receipt.
//
// The errors are faults: Unsigned when the delivery is not proven to come from
// the platform (401), Invalid when it is but cannot be read (400). rawBody must
// be the body as received.
func VerifyWebhook(secrets []string, header http.Header, rawBody []byte, now time.Time) (Webhook, error) {
	id := header.Get(standardwebhooks.HeaderWebhookID)
	stamp := header.Get(standardwebhooks.HeaderWebhookTimestamp)
	signatures := strings.Fields(strings.Join(header.Values(standardwebhooks.HeaderWebhookSignature), " "))
	if id == "" || stamp == "" || len(signatures) == 0 {
		return Webhook{}, fault.New(fault.Unsigned, "missing signature")
	}
	if len(signatures) > maxSignatures || !signedByAny(secrets, id, stamp, signatures, rawBody) {
		return Webhook{}, fault.New(fault.Unsigned, "invalid signature")
	}
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if at := time.Unix(seconds, 0); err != nil || at.Sub(now).Abs() > webhookTolerance {
		return Webhook{}, fault.New(fault.Unsigned, "the timestamp is too far from this server's clock").
			WithNext("check the clock of this host")
	}
	return readWebhook(id, rawBody)
}

func signedByAny(secrets []string, id, stamp string, signatures []string, body []byte) bool {
	h := http.Header{}
	h.Set(standardwebhooks.HeaderWebhookID, id)
	h.Set(standardwebhooks.HeaderWebhookTimestamp, stamp)
	h.Set(standardwebhooks.HeaderWebhookSignature, strings.Join(signatures, " "))
	ok := false
	for _, secret := range secrets {
		for _, key := range webhookKeys(secret) {
			// The library compares in constant time; its clock is not used.
			w, err := standardwebhooks.NewWebhookRaw(key)
			if err == nil && w.VerifyIgnoringTimestamp(body, h) == nil {
				ok = true
			}
		}
	}
	return ok
}

// webhookKeys returns the keys that a secret may stand for. Text that happens
// to be base64 is tried both ways. An empty key, which anyone could sign with,
// is never among them.
func webhookKeys(secret string) [][]byte {
	secret = strings.TrimSpace(secret)
	encoded := strings.TrimPrefix(secret, "whsec_")
	var keys [][]byte
	plain := strings.TrimRight(encoded, "=")
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		if key, err := enc.DecodeString(plain); err == nil && len(key) > 0 {
			keys = append(keys, key)
			break
		}
	}
	if encoded != "" {
		keys = append(keys, []byte(secret))
	}
	return keys
}

// readWebhook reads a verified body. Only its outer form must be right.
func readWebhook(id string, raw []byte) (Webhook, error) {
	top := object(raw)
	if top == nil {
		return Webhook{}, fault.New(fault.Invalid, "the webhook's body is not a JSON object")
	}
	data := top.object("data")
	w := Webhook{ID: id, Type: data.text("type"), Data: top["data"]}
	if w.Type == "" {
		return Webhook{}, fault.New(fault.Invalid, "the webhook has no data.type").WithField("data.type")
	}
	if strings.HasPrefix(w.Type, "session.") {
		w.SessionID = data.text("id")
	}
	if at, err := time.Parse(time.RFC3339Nano, top.text("created_at")); err == nil {
		w.CreatedAt = at.UTC()
	}
	return w, nil
}
