package claude

import (
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/intake"
	"github.com/berth-dev/berth/internal/session"
)

const workJSON = `{"id":"work_1","type":"work","environment_id":"env_1","state":"queued",
 "data":{"type":"session","id":"sesn_1","mode":"x"},"metadata":{},"secret":"SECRET","actor":{"a":1},
 "created_at":"2026-11-23T10:00:00Z","acknowledged_at":null,"started_at":null,"latest_heartbeat_at":null,
 "stop_requested_at":null,"stopped_at":null}`

func TestPollReturnsTheItem(t *testing.T) {
	u := newUpstream(t, ok(workJSON))
	got, err := newTestQueue(t, u, io.Discard).Poll(t.Context(), 999*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	want := &session.Item{ID: "work_1", Environment: "env_1", Type: "session", Session: "sesn_1", Secret: "SECRET"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	r := u.only(t)
	if r.Method != "GET" || r.Path != "/v1/environments/env_1/work/poll" || r.Query != "block_ms=999" {
		t.Errorf("sent %s %s?%s", r.Method, r.Path, r.Query)
	}
	if got := r.Header.Get("anthropic-beta"); got != "managed-agents-2026-04-01" {
		t.Errorf("anthropic-beta = %q", got)
	}
}

func TestPollWithoutWork(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"null":              ok("null"),
		"null and newline":  ok(" null\n"),
		"204":               reply(204, "", ""),
		"empty 200":         reply(200, "", ""),
		"null without type": reply(200, "", "null"),
	} {
		t.Run(name, func(t *testing.T) {
			u := newUpstream(t, answer)
			item, err := newTestQueue(t, u, io.Discard).Poll(t.Context(), 0)
			if item != nil || err != nil {
				t.Errorf("Poll = %v, %v; want nil, nil", item, err)
			}
			if q := u.only(t).Query; q != "" {
				t.Errorf("query = %q, want none: block_ms=0 is a 400", q)
			}
		})
	}
}

func TestPollBlocksNoLongerThanThePlatformAllows(t *testing.T) {
	for block, want := range map[time.Duration]string{
		time.Hour: "block_ms=999", 5 * time.Millisecond: "block_ms=5", time.Microsecond: "", -1: "",
	} {
		u := newUpstream(t, ok("null"))
		if _, err := newTestQueue(t, u, io.Discard).Poll(t.Context(), block); err != nil {
			t.Fatal(err)
		}
		if got := u.only(t).Query; got != want {
			t.Errorf("block %v: query %q, want %q", block, got, want)
		}
	}
}

func TestPollOfAHealthCheckHasNoSession(t *testing.T) {
	u := newUpstream(t, ok(`{"id":"work_2","data":{"type":"healthcheck","id":"hc_1"},"secret":null}`))
	got, err := newTestQueue(t, u, io.Discard).Poll(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&session.Item{ID: "work_2", Environment: "env_1", Type: "healthcheck"}, got); d != "" {
		t.Error(d)
	}
}

func TestPollRefusesWhatIsNoItem(t *testing.T) {
	for _, body := range []string{`{}`, `[]`, `{"id":`, `"work_1"`, `<html>`} {
		u := newUpstream(t, ok(body))
		if item, err := newTestQueue(t, u, io.Discard).Poll(t.Context(), 0); err == nil {
			t.Errorf("%s: Poll = %v, want an error", body, item)
		}
	}
}

// The rules of contract §1.1 and §1.2, whatever the process's environment says.
func TestEveryRequestCarriesItsOwnCredentialAlone(t *testing.T) {
	t.Setenv("ANTHROPIC_API_KEY", "sk-ant-api-leaked")
	t.Setenv("ANTHROPIC_AUTH_TOKEN", "leaked-token")
	t.Setenv("ANTHROPIC_BASE_URL", "http://leaked.invalid")
	t.Setenv("ANTHROPIC_CUSTOM_HEADERS", "X-Leaked: yes\nX-Api-Key: leaked")
	t.Setenv("ANTHROPIC_PROFILE", "leaked")
	t.Setenv("ANTHROPIC_WEBHOOK_SIGNING_KEY", "leaked")

	u := newUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/content"):
			reply(200, "application/zip", "PK")(w, r)
		case strings.HasSuffix(r.URL.Path, "/stream"):
			reply(200, "text/event-stream", "")(w, r)
		case strings.HasSuffix(r.URL.Path, "/poll"):
			ok(workJSON)(w, r)
		default:
			ok(`{"id":"x_1"}`)(w, r)
		}
	})
	q := newTestQueue(t, u, io.Discard)
	item := q.Platform(testItem())
	keyed := q.Platform(session.Item{ID: "work_2", Session: "sesn_2"})
	admin, err := NewAdmin(AdminOptions{BaseURL: u.URL, APIKey: "sk-ant-api-mine"})
	if err != nil {
		t.Fatal(err)
	}

	calls := []struct {
		name, authorization, apiKey string
		call                        func() error
	}{
		{"poll", "Bearer " + envKey, "", func() error { _, err := q.Poll(t.Context(), 0); return err }},
		{"ack", "Bearer " + envKey, "", func() error { return q.Ack(t.Context(), "work_1") }},
		{"stats", "Bearer " + envKey, "", func() error { _, err := q.Stats(t.Context()); return err }},
		{"force stop", "Bearer " + envKey, "", func() error { return q.ForceStop(t.Context(), "work_1") }},
		{"heartbeat", "Bearer " + token, "", func() error { _, err := item.Heartbeat(t.Context(), "hb", 0); return err }},
		{"stop", "Bearer " + token, "", func() error { return item.Stop(t.Context(), true) }},
		{"info", "Bearer " + token, "", func() error { _, err := item.Info(t.Context()); return err }},
		{"history", "Bearer " + token, "", func() error { return item.History(t.Context(), time.Time{}, nil) }},
		{"answer", "Bearer " + token, "", func() error { return item.Answer(t.Context(), session.Answer{Call: "sevt_1"}) }},
		{"stream", "Bearer " + token, "", func() error {
			s, err := item.Stream(t.Context())
			if err == nil {
				s.Close()
			}
			return err
		}},
		{"skill", "Bearer " + token, "", func() error {
			_, err := item.SkillVersion(t.Context(), session.Skill{ID: "skill_1"})
			return err
		}},
		{"skill content", "Bearer " + token, "", func() error {
			archive, err := item.SkillArchive(t.Context(), "skill_1", "skver_1")
			if err == nil {
				archive.Close()
			}
			return err
		}},
		{"info without a token", "Bearer " + envKey, "", func() error { _, err := keyed.Info(t.Context()); return err }},
		{"admin", "", "sk-ant-api-mine", func() error { _, err := admin.Environment(t.Context(), "env_1"); return err }},
		{"admin history", "", "sk-ant-api-mine", func() error {
			return admin.Session("sesn_1").History(t.Context(), time.Time{}, nil)
		}},
	}
	for _, c := range calls {
		before := len(u.requests())
		if err := c.call(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		for _, r := range u.requests()[before:] {
			if got := r.Header.Values("Authorization"); strings.Join(got, "|") != c.authorization {
				t.Errorf("%s: %s has Authorization %q, want %q", c.name, r.Path, got, c.authorization)
			}
			if got := r.Header.Values("X-Api-Key"); strings.Join(got, "|") != c.apiKey {
				t.Errorf("%s: %s has X-Api-Key %q, want %q", c.name, r.Path, got, c.apiKey)
			}
			if got := r.Header.Get("X-Leaked"); got != "" {
				t.Errorf("%s: a header of the process's environment was sent", c.name)
			}
			worker := r.Header.Get("Anthropic-Worker-ID")
			if want := map[bool]string{true: "tester"}[c.name == "poll"]; worker != want {
				t.Errorf("%s: Anthropic-Worker-ID = %q, want %q", c.name, worker, want)
			}
		}
		if len(u.requests()) == before {
			t.Errorf("%s: nothing was sent", c.name)
		}
	}
}

func TestASecretWithoutATokenFallsBackToTheKeyAndSaysSoOnce(t *testing.T) {
	enc := base64.RawURLEncoding.EncodeToString
	for name, secret := range map[string]string{
		"none":            "",
		"not base64":      "!!!",
		"not JSON":        enc([]byte("hello")),
		"no token":        enc([]byte(`{"api_base_url":"x"}`)),
		"null token":      enc([]byte(`{"sessions_token":null}`)),
		"number":          enc([]byte(`{"sessions_token":7}`)),
		"array":           enc([]byte(`["sk"]`)),
		"unusable header": enc([]byte(`{"sessions_token":"a\nb"}`)),
	} {
		t.Run(name, func(t *testing.T) {
			u := newUpstream(t, ok(`{"id":"sesn_1"}`))
			var log logs
			item := testItem()
			item.Secret = secret
			p := newTestQueue(t, u, &log).Platform(item)
			for range 3 {
				if _, err := p.Info(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if got := u.requests()[0].Header.Get("Authorization"); got != "Bearer "+envKey {
				t.Errorf("Authorization = %q, want the environment key", got)
			}
			if n := strings.Count(log.String(), "no sessions token"); n != 1 {
				t.Errorf("warned %d times, want once:\n%s", n, &log)
			}
			if secret != "" && strings.Contains(log.String(), secret) {
				t.Error("the log has the secret")
			}
		})
	}
}

func TestSessionsTokenAcceptsEveryPadding(t *testing.T) {
	for _, text := range []string{`{"sessions_token":"t"}`, `{"sessions_token":"t" }`, `{"sessions_token":"t"  }`, `{"sessions_token":"t","x":"??>>~~"}`} {
		for _, enc := range []*base64.Encoding{base64.URLEncoding, base64.RawURLEncoding} {
			if got := sessionsToken(enc.EncodeToString([]byte(text))); got != "t" {
				t.Errorf("%s: token %q, want t", text, got)
			}
		}
	}
}

func TestAckAndStopAcceptAnAnswerWithoutABody(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"204 without type": reply(204, "", ""),
		"200 JSON":         ok(workJSON),
		"200 empty":        reply(200, "", ""),
		"200 text":         reply(200, "text/plain", "fine"),
	} {
		t.Run(name, func(t *testing.T) {
			q := newTestQueue(t, newUpstream(t, answer), io.Discard)
			if err := q.Ack(t.Context(), "work_1"); err != nil {
				t.Errorf("Ack: %v", err)
			}
			if err := q.ForceStop(t.Context(), "work_1"); err != nil {
				t.Errorf("ForceStop: %v", err)
			}
		})
	}
}

func TestALostAckIsReportedAfterOneRequest(t *testing.T) {
	u := newUpstream(t, hangUp, ok(workJSON))
	err := newTestQueue(t, u, io.Discard).Ack(t.Context(), "work_1")
	if err == nil || session.StatusOf(err) != 0 {
		t.Errorf("Ack = %v, want an error without an answer", err)
	}
	if n := len(u.requests()); n != 1 {
		t.Errorf("sent %d requests, want 1: the caller decides what a repetition means", n)
	}
}

func TestStats(t *testing.T) {
	u := newUpstream(t,
		ok(`{"type":"work_queue_stats","depth":3,"pending":1,"oldest_queued_at":"2026-11-23T10:00:00.5Z","workers_polling":2}`),
		ok(`{"type":"work_queue_stats","depth":0,"pending":0,"oldest_queued_at":null,"workers_polling":null}`))
	q := newTestQueue(t, u, io.Discard)
	got, err := q.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := intake.Stats{Depth: 3, Pending: 1, Pollers: 2, OldestQueued: time.Date(2026, 11, 23, 10, 0, 0, 5e8, time.UTC)}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got, err = q.Stats(t.Context()); err != nil || got != (intake.Stats{}) {
		t.Errorf("Stats of an empty queue = %+v, %v", got, err)
	}
}

func TestNewQueueRefusesWhatCannotWork(t *testing.T) {
	good := Options{BaseURL: "https://x.example", EnvironmentID: "env_1", EnvironmentKey: envKey}
	for name, spoil := range map[string]func(*Options){
		"no environment":    func(o *Options) { o.EnvironmentID = "" },
		"no key":            func(o *Options) { o.EnvironmentKey = "" },
		"key with newline":  func(o *Options) { o.EnvironmentKey = envKey + "\n" },
		"no scheme":         func(o *Options) { o.BaseURL = "api.example" },
		"other scheme":      func(o *Options) { o.BaseURL = "ftp://api.example" },
		"password in URL":   func(o *Options) { o.BaseURL = "https://a:b@api.example" },
		"not a URL at all ": func(o *Options) { o.BaseURL = "https://[" },
	} {
		o := good
		spoil(&o)
		if _, err := NewQueue(o); err == nil {
			t.Errorf("%s: NewQueue accepted it", name)
		} else if strings.Contains(err.Error(), envKey) {
			t.Errorf("%s: the error has the key: %v", name, err)
		}
	}
	if q, err := NewQueue(good); err != nil || q.worker == "" || q.Environment() != "env_1" {
		t.Errorf("NewQueue = %+v, %v", q, err)
	}
}

func TestABaseURLWithAPathIsKept(t *testing.T) {
	u := newUpstream(t, ok("null"))
	q, err := NewQueue(Options{BaseURL: u.URL + "/claude", EnvironmentID: "env/1", EnvironmentKey: envKey})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.Poll(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if got := u.only(t).Path; got != "/claude/v1/environments/env%2F1/work/poll" {
		t.Errorf("path = %s", got)
	}
}

func TestCredentialsDoNotTravelWithRedirects(t *testing.T) {
	other := newUpstream(t, ok("null"))
	u := newUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		// Another host name for the same machine.
		to, _ := url.Parse(other.URL)
		to.Host = strings.Replace(to.Host, "127.0.0.1", "localhost", 1)
		http.Redirect(w, r, to.String(), http.StatusTemporaryRedirect)
	})
	q := newTestQueue(t, u, io.Discard)
	if _, err := q.Poll(t.Context(), 0); err != nil {
		t.Errorf("poll through a redirect: %v", err)
	}
	admin, err := NewAdmin(AdminOptions{BaseURL: u.URL, APIKey: "sk-ant-api-mine"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Environment(t.Context(), "env_1"); err == nil {
		t.Error("null passed for an environment")
	}
	if n := len(other.requests()); n != 2 {
		t.Fatalf("the other host received %d requests, want 2", n)
	}
	for _, r := range other.requests() {
		if r.Header.Get("Authorization") != "" || r.Header.Get("X-Api-Key") != "" {
			t.Errorf("a credential reached another host: %v", r.Header)
		}
	}
	before := len(other.requests())
	if err := q.Ack(t.Context(), "work_1"); err == nil {
		t.Error("Ack followed a redirect")
	}
	if len(other.requests()) != before {
		t.Error("a POST followed a redirect")
	}
}

func TestCancellingAPollReturnsItsCause(t *testing.T) {
	leaving := errors.New("leaving")
	u := newUpstream(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := contextWithCause(t)
	q := newTestQueue(t, u, io.Discard)
	done := make(chan error, 1)
	go func() { _, err := q.Poll(ctx, maxBlock); done <- err }()
	<-u.arrived
	cancel(leaving)
	if err := <-done; !errors.Is(err, leaving) {
		t.Errorf("Poll = %v, want %v", err, leaving)
	}
}
