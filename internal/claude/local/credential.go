package local

import (
	"net/http"
	"strings"
)

// Who may call what (contract §1.1, §1.2). A route names the kinds of credential
// that it takes; ids in its path named {environment}, {session} and {work} are
// checked against the credential's own before the handler runs.

// credKind is a set of kinds of credential.
type credKind int

const (
	credAPIKey  credKind = 1 << iota // X-Api-Key: the workspace
	credEnvKey                       // Bearer: one environment
	credSession                      // Bearer: one claim of one session's work item
	credAdmin                        // the stand-in's own door, /_local/…
)

func (k credKind) String() string {
	switch k {
	case credAPIKey:
		return "api key"
	case credEnvKey:
		return "environment key"
	case credSession:
		return "sessions token"
	case credAdmin:
		return "admin key"
	}
	return "none"
}

// credential is what the platform knows behind a secret.
type credential struct {
	kind        credKind
	id          string // of an API key: apikey_…
	environment string
	session     string
	work        string
	claim       int // which hand-out of the work item minted the token
}

// caller is the authenticated sender of a request. It never holds the secret.
type caller struct {
	Kind        credKind
	KeyID       string // apikey_…, for API keys
	Environment string // for environment keys and sessions tokens
	Session     string // for sessions tokens
	Work        string // for sessions tokens
	claim       int
}

// authenticate finds the caller of r. Two credentials on one request are a 400,
// as the platform refuses them (contract §1.1).
func (s *Server) authenticate(r *http.Request) (caller, *apiError) {
	key := r.Header.Get("X-Api-Key")
	auth := r.Header.Get("Authorization")
	switch {
	case key != "" && auth != "":
		return caller{}, fail(400, "send either x-api-key or authorization, not both")
	case key == "" && auth == "":
		return caller{}, fail(401, "no credential: send x-api-key or authorization: Bearer")
	}
	secret := key
	if auth != "" {
		scheme, token, ok := strings.Cut(auth, " ")
		if !ok || !strings.EqualFold(scheme, "Bearer") {
			return caller{}, fail(401, "authorization: want a Bearer credential")
		}
		secret = strings.TrimSpace(token)
	}
	if s.opt.AdminKey != "" && secret == s.opt.AdminKey {
		return caller{Kind: credAdmin}, nil
	}
	s.mu.Lock()
	c, ok := s.credentials[secret]
	s.mu.Unlock()
	// An API key may come either way: the official Go client sends it as a Bearer.
	if !ok || key != "" && c.kind != credAPIKey {
		return caller{}, fail(401, "invalid credential")
	}
	return caller{Kind: c.kind, KeyID: c.id, Environment: c.environment, Session: c.session, Work: c.work, claim: c.claim}, nil
}

// authorize checks that c may use a route that takes the kinds in allow, for the
// objects that the path names.
func (s *Server) authorize(r *http.Request, c caller, allow credKind) *apiError {
	if c.Kind&allow == 0 {
		return fail(403, "this route does not accept a credential of the kind %s", c.Kind)
	}
	if c.Kind == credAPIKey || c.Kind == credAdmin {
		return nil
	}
	if env := r.PathValue("environment"); env != "" && env != c.Environment {
		return fail(403, "the credential belongs to another environment")
	}
	session := r.PathValue("session")
	if c.Kind == credSession {
		if work := r.PathValue("work"); work != "" && work != c.Work {
			return fail(403, "the sessions token belongs to another work item")
		}
		if session != "" && session != c.Session {
			return fail(403, "the sessions token belongs to another session")
		}
		return nil
	}
	if session == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if se, ok := s.sessions[session]; ok && se.Environment != c.Environment {
		return fail(403, "the session belongs to another environment")
	}
	return nil
}

// storeAccess says how c may use a memory store: "read_write" for an API key,
// the attachment's access for a sessions token of a session that the store is
// attached to, "" for everything else.
func (s *Server) storeAccess(c caller, store string) string {
	switch c.Kind {
	case credAPIKey:
		return "read_write"
	case credSession:
		s.mu.Lock()
		defer s.mu.Unlock()
		if se, ok := s.sessions[c.Session]; ok {
			return se.storeAccess(store)
		}
	}
	return ""
}

// MintAPIKey makes a key for the whole workspace.
func (s *Server) MintAPIKey() string {
	key := newID("sk-ant-api03-")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.credentials[key] = credential{kind: credAPIKey, id: newID("apikey_")}
	return key
}

// MintEnvironmentKey makes a key for one environment; several may be valid at a
// time. It returns "" when there is no such environment.
func (s *Server) MintEnvironmentKey(environment string) string {
	key := newID("sk-ant-oat01-")
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.environments[environment]; !ok {
		return ""
	}
	s.credentials[key] = credential{kind: credEnvKey, environment: environment}
	return key
}

// RevokeKey makes a key or token unknown: the next request with it is a 401.
func (s *Server) RevokeKey(secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.credentials, secret)
}
