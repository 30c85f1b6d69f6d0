package local

import (
	"net/http"
	"strings"
	"testing"
)

func TestEachRouteTakesItsCredentialsAndNoOthers(t *testing.T) {
	w := newWorld(t, Options{})
	id := w.session("hello")
	c := w.claim()
	const none = 403
	for _, tt := range []struct {
		method, path, body string
		api, env, sessions int // status by kind of credential
	}{
		{"GET", "/v1/environments/" + w.env, "", 200, none, none},
		{"GET", "/v1/sessions", "", 200, none, none},
		{"GET", w.work("/poll"), "", none, 200, none},
		{"POST", w.work("/" + c.id + "/ack"), "", none, 409, none},
		{"POST", w.work("/" + c.id + "/heartbeat"), "", none, 200, 200},
		{"GET", w.work("/stats"), "", 200, 200, none},
		{"GET", w.work(""), "", none, 200, none},
		{"GET", w.work("/" + c.id), "", 200, none, none},
		{"POST", w.work("/" + c.id), `{"metadata":{}}`, 200, none, none},
		{"GET", "/v1/sessions/" + id, "", 200, 200, 200},
		{"GET", "/v1/sessions/" + id + "/events", "", 200, 200, 200},
		{"GET", "/v1/sessions/" + id + "/threads", "", 200, 200, 200},
		{"POST", "/v1/sessions/" + id + "/events", `{"events":[` + message("x") + `]}`, 200, 200, 200},
		{"POST", "/v1/sessions/" + id, `{"title":"t"}`, 200, none, none},
		{"DELETE", "/v1/environments/" + w.env, "", 400, none, none},
	} {
		w.want(tt.api, tt.method, tt.path, tt.body)
		w.want(tt.env, tt.method, tt.path, tt.body, w.envKey)
		w.want(tt.sessions, tt.method, tt.path, tt.body, c.token)
	}
}

func TestATokenIsGoodForItsOwnSessionAndItemOnly(t *testing.T) {
	w := newWorld(t, Options{})
	mine, other := w.session("mine"), w.session("other")
	c, d := w.claim(), w.claim()
	if c.session != mine {
		c, d = d, c
	}
	w.want(403, "GET", "/v1/sessions/"+other, "", c.token)
	w.want(403, "POST", w.work("/"+d.id+"/heartbeat"), "", c.token)
	w.want(403, "POST", w.work("/"+d.id+"/stop"), "{}", c.token)
}

func TestAnEnvironmentKeyStaysInItsEnvironment(t *testing.T) {
	w := newWorld(t, Options{})
	id := w.session("hello")
	elsewhere := w.want(200, "POST", "/v1/environments", `{"name":"other","config":{"type":"self_hosted"}}`).id()
	key := w.srv.MintEnvironmentKey(elsewhere)
	w.want(403, "GET", w.work("/poll"), "", key)
	w.want(403, "GET", "/v1/sessions/"+id, "", key)
	second := w.srv.MintEnvironmentKey(w.env)
	w.want(200, "GET", "/v1/sessions/"+id, "", second)
	w.srv.RevokeKey(second)
	w.want(401, "GET", "/v1/sessions/"+id, "", second)
	if w.srv.MintEnvironmentKey("env_nope") != "" {
		t.Error("a key was minted for no environment")
	}
}

func TestMissingDoubleAndUnknownCredentialsAreRefused(t *testing.T) {
	w := newWorld(t, Options{})
	for _, tt := range []struct {
		name, key, auth string
		want            int
	}{
		{"none", "", "", 401},
		{"both", w.key, "Bearer " + w.envKey, 400},
		{"unknown key", "sk-ant-api03-x", "", 401},
		{"unknown bearer", "", "Bearer sk-ant-oat01-x", 401},
		{"no scheme", "", w.envKey, 401},
		{"an environment key as api key", w.envKey, "", 401},
	} {
		got := w.raw(t, "GET", "/v1/sessions", func(h http.Header) {
			h.Set("X-Api-Key", tt.key)
			h.Set("Authorization", tt.auth)
		})
		if got.Status != tt.want || got.errType() == "" || got.Header.Get("request-id") == "" {
			t.Errorf("%s: status %d %s, want %d", tt.name, got.Status, got.Raw, tt.want)
		}
	}
}

func TestAPIKeyIsTakenAsBearerToo(t *testing.T) {
	w := newWorld(t, Options{})
	got := w.raw(t, "GET", "/v1/sessions", func(h http.Header) { h.Set("Authorization", "Bearer "+w.key) })
	if got.Status != 200 {
		t.Errorf("status %d %s, want 200: the official Go client sends it this way", got.Status, got.Raw)
	}
}

// raw sends a request around the checker of the API's description, with the
// headers that set leaves non-empty.
func (w *world) raw(t *testing.T, method, path string, set func(http.Header)) reply {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, w.url+path, strings.NewReader(""))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("anthropic-version", "2026-10-21")
	r.Header.Set("anthropic-beta", betaAgents)
	set(r.Header)
	for k, v := range r.Header {
		if v[0] == "" {
			r.Header.Del(k)
		}
	}
	return w.send(r)
}

func TestHeaderRules(t *testing.T) {
	w := newWorld(t, Options{})
	for _, tt := range []struct {
		name, path, version, beta string
		want                      int
	}{
		{"both versions are known", "/v1/sessions", "2023-06-01", betaAgents, 200},
		{"the newer one too", "/v1/sessions?beta=true", "2026-10-21", betaAgents, 200},
		{"another version", "/v1/sessions", "2020-01-01", betaAgents, 400},
		{"no beta", "/v1/sessions", "2026-10-21", "", 404},
		{"a list of betas", "/v1/sessions", "2026-10-21", "x-2026-01-01, " + betaAgents, 200},
		{"memory with its beta", "/v1/memory_stores", "2026-10-21", betaMemory, 200},
		{"memory with both", "/v1/memory_stores", "2026-10-21", betaMemory + "," + betaAgents, 400},
		{"skills need none", "/v1/skills", "2026-10-21", "", 200},
		{"unknown route", "/v1/nothing", "2026-10-21", betaAgents, 404},
	} {
		got := w.raw(t, "GET", tt.path, func(h http.Header) {
			h.Set("X-Api-Key", w.key)
			h.Set("anthropic-version", tt.version)
			h.Set("anthropic-beta", tt.beta)
		})
		if got.Status != tt.want {
			t.Errorf("%s: status %d %s, want %d", tt.name, got.Status, got.Raw, tt.want)
		}
		if got.Status == 404 && got.errType() != "not_found_error" {
			t.Errorf("%s: the 404 is %s", tt.name, got.Raw)
		}
	}
}
