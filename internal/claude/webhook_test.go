package claude

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/fault"
)

var webhookNow = time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)

const webhookBody = `{"type":"event","id":"whe_1","created_at":"2026-11-23T09:59:58Z",
 "data":{"type":"session.status_run_started","id":"sesn_1","organization_id":"o","workspace_id":"wrkspc_1"}}`

// sign is written from the contract's words, not with the library under test.
func sign(key []byte, id string, at time.Time, body string) string {
	m := hmac.New(sha256.New, key)
	fmt.Fprintf(m, "%s.%d.%s", id, at.Unix(), body)
	return "v1," + base64.StdEncoding.EncodeToString(m.Sum(nil))
}

func delivery(at time.Time, signature string) http.Header {
	return http.Header{
		"Webhook-Id": {"whe_1"}, "Webhook-Timestamp": {fmt.Sprint(at.Unix())}, "Webhook-Signature": {signature},
	}
}

func TestVerifyWebhookAcceptsEveryFormOfSecret(t *testing.T) {
	key := []byte("0123456789abcdef\xfb\xff")
	std := base64.StdEncoding.EncodeToString(key)
	for name, c := range map[string]struct {
		secret string
		key    []byte
	}{
		"whsec":              {"whsec_" + std, key},
		"whsec, no padding":  {"whsec_" + base64.RawStdEncoding.EncodeToString(key), key},
		"whsec, URL safe":    {"whsec_" + base64.URLEncoding.EncodeToString(key), key},
		"bare base64":        {std, key},
		"with a newline":     {"whsec_" + std + "\n", key},
		"text":               {"my own secret!", []byte("my own secret!")},
		"text like base64":   {"abcdefgh", []byte("abcdefgh")},
		"text behind prefix": {"whsec_not base64", []byte("whsec_not base64")},
	} {
		h := delivery(webhookNow, sign(c.key, "whe_1", webhookNow, webhookBody))
		got, err := VerifyWebhook([]string{c.secret}, h, []byte(webhookBody), webhookNow)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := Webhook{
			ID: "whe_1", Type: "session.status_run_started", SessionID: "sesn_1", CreatedAt: webhookNow.Add(-2 * time.Second),
			Data: []byte(`{"type":"session.status_run_started","id":"sesn_1","organization_id":"o","workspace_id":"wrkspc_1"}`),
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestVerifyWebhookDuringARotation(t *testing.T) {
	oldKey, newKey := []byte("the old key, long enough"), []byte("the new key, long enough")
	secrets := []string{"", string(oldKey), string(newKey)}
	mine := sign(newKey, "whe_1", webhookNow, webhookBody)
	for name, h := range map[string]http.Header{
		"second secret":      delivery(webhookNow, mine),
		"second signature":   delivery(webhookNow, sign([]byte("x"), "whe_1", webhookNow, webhookBody)+" "+mine),
		"unknown versions":   delivery(webhookNow, "v2,abc v1a,def v1 , "+mine),
		"two header lines":   {"Webhook-Id": {"whe_1"}, "Webhook-Timestamp": {fmt.Sprint(webhookNow.Unix())}, "Webhook-Signature": {"v1,AAAA", mine}},
		"the oldest allowed": delivery(webhookNow.Add(-webhookTolerance), sign(oldKey, "whe_1", webhookNow.Add(-webhookTolerance), webhookBody)),
		"the newest allowed": delivery(webhookNow.Add(webhookTolerance), sign(oldKey, "whe_1", webhookNow.Add(webhookTolerance), webhookBody)),
	} {
		if _, err := VerifyWebhook(secrets, h, []byte(webhookBody), webhookNow); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVerifyWebhookRefusesWhatIsNotProven(t *testing.T) {
	key := []byte("the key, which is secret")
	good := sign(key, "whe_1", webhookNow, webhookBody)
	without := func(name string) http.Header {
		h := delivery(webhookNow, good)
		h.Del(name)
		return h
	}
	late := webhookNow.Add(-webhookTolerance - time.Second)
	early := webhookNow.Add(webhookTolerance + time.Second)
	other := delivery(webhookNow, good)
	other.Set("Webhook-Id", "whe_2")
	text := delivery(webhookNow, good)
	text.Set("Webhook-Timestamp", "now")
	many := ""
	for range maxSignatures {
		many += "v1,AAAA "
	}
	for name, c := range map[string]struct {
		secrets []string
		header  http.Header
		body    string
	}{
		"no id":                {[]string{string(key)}, without("Webhook-Id"), webhookBody},
		"no timestamp":         {[]string{string(key)}, without("Webhook-Timestamp"), webhookBody},
		"no signature":         {[]string{string(key)}, without("Webhook-Signature"), webhookBody},
		"no secrets":           {nil, delivery(webhookNow, good), webhookBody},
		"another secret":       {[]string{"another"}, delivery(webhookNow, good), webhookBody},
		"another body":         {[]string{string(key)}, delivery(webhookNow, good), webhookBody + " "},
		"another id":           {[]string{string(key)}, other, webhookBody},
		"a timestamp of words": {[]string{string(key)}, text, webhookBody},
		"too old":              {[]string{string(key)}, delivery(late, sign(key, "whe_1", late, webhookBody)), webhookBody},
		"too new":              {[]string{string(key)}, delivery(early, sign(key, "whe_1", early, webhookBody)), webhookBody},
		"too many signatures":  {[]string{string(key)}, delivery(webhookNow, many+good), webhookBody},
		"empty secret":         {[]string{"", " ", "whsec_", "whsec_=="}, delivery(webhookNow, sign(nil, "whe_1", webhookNow, webhookBody)), webhookBody},
		"prefix as the key":    {[]string{"whsec_"}, delivery(webhookNow, sign([]byte("whsec_"), "whe_1", webhookNow, webhookBody)), webhookBody},
	} {
		_, err := VerifyWebhook(c.secrets, c.header, []byte(c.body), webhookNow)
		if fault.CodeOf(err) != fault.Unsigned {
			t.Errorf("%s: VerifyWebhook = %v, want an Unsigned fault", name, err)
		}
	}
}

func TestVerifiedWebhooksAreReadTolerantly(t *testing.T) {
	key := []byte("the key, which is secret")
	for body, want := range map[string]Webhook{
		`{"data":{"type":"agent.created","id":"agent_1"}}`:                          {ID: "whe_1", Type: "agent.created", Data: []byte(`{"type":"agent.created","id":"agent_1"}`)},
		`{"created_at":7,"data":{"type":"session.novel","id":"sesn_2","x":[null]}}`: {ID: "whe_1", Type: "session.novel", SessionID: "sesn_2", Data: []byte(`{"type":"session.novel","id":"sesn_2","x":[null]}`)},
	} {
		h := delivery(webhookNow, sign(key, "whe_1", webhookNow, body))
		got, err := VerifyWebhook([]string{string(key)}, h, []byte(body), webhookNow)
		if err != nil {
			t.Errorf("%s: %v", body, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", body, d)
		}
	}
	for _, body := range []string{``, `null`, `[]`, `{"data":`, `{}`, `{"data":null}`, `{"data":{"id":"sesn_1"}}`} {
		h := delivery(webhookNow, sign(key, "whe_1", webhookNow, body))
		if _, err := VerifyWebhook([]string{string(key)}, h, []byte(body), webhookNow); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%q: VerifyWebhook = %v, want an Invalid fault", body, err)
		}
	}
}

func FuzzVerifyWebhook(f *testing.F) {
	f.Add("whe_1", "1700000000", "v1,AAAA", []byte(webhookBody))
	f.Add("", "-9223372036854775808", "v1,", []byte(nil))
	f.Fuzz(func(t *testing.T, id, stamp, signature string, body []byte) {
		h := http.Header{"Webhook-Id": {id}, "Webhook-Timestamp": {stamp}, "Webhook-Signature": {signature}}
		if w, err := VerifyWebhook([]string{"whsec_c2VjcmV0IHNlY3JldA==", ""}, h, body, webhookNow); err == nil {
			t.Fatalf("accepted a forged delivery: %+v", w)
		}
	})
}
