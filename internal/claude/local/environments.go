package local

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Environments (contract §2.1): where tools run. A self_hosted one has no
// settings at all; everything about its sandboxes is the control plane's
// business. An archived environment takes no new sessions and no updates.

type environment struct {
	ID          string
	Name        string
	Description *string
	Config      map[string]any
	Metadata    map[string]string
	Created     time.Time
	Updated     time.Time
	Archived    time.Time
}

func (e *environment) selfHosted() bool { return e.Config["type"] == "self_hosted" }

func (e *environment) reply() map[string]any {
	return map[string]any{
		"id": e.ID, "type": "environment", "name": e.Name, "description": e.Description,
		"config": e.Config, "metadata": orEmpty(e.Metadata), "scope": "organization",
		"created_at": stamp(e.Created), "updated_at": stamp(e.Updated), "archived_at": stampOrNil(e.Archived),
	}
}

// seedEnvironment makes a self_hosted environment under a chosen id, unless it
// exists. Called before the server serves, or with s.mu.
func (s *Server) seedEnvironment(id string) {
	if _, ok := s.environments[id]; ok {
		return
	}
	now := s.now()
	s.addEnvironment(&environment{ID: id, Name: id, Config: map[string]any{"type": "self_hosted"}, Created: now, Updated: now})
}

func (s *Server) addEnvironment(e *environment) {
	s.environments[e.ID] = e
	s.envOrder = append(s.envOrder, e.ID)
}

// environmentByID returns the 404 of every route below an environment. Called
// with s.mu.
func (s *Server) environmentByID(id string) (*environment, *apiError) {
	if e, ok := s.environments[id]; ok {
		return e, nil
	}
	return nil, fail(404, "environment %q not found", id)
}

func (s *Server) environmentRoutes() {
	s.handle("POST /v1/environments", credAPIKey, s.createEnvironment)
	s.handle("GET /v1/environments", credAPIKey, s.listEnvironments)
	s.handle("GET /v1/environments/{environment}", credAPIKey, s.getEnvironment)
	s.handle("POST /v1/environments/{environment}", credAPIKey, s.updateEnvironment)
	s.handle("POST /v1/environments/{environment}/archive", credAPIKey, s.archiveEnvironment)
	s.handle("DELETE /v1/environments/{environment}", credAPIKey, s.deleteEnvironment)
}

// environmentBody is the body of create and update.
type environmentBody struct {
	Name        maybe[string]             `json:"name"`
	Description maybe[string]             `json:"description"`
	Config      maybe[json.RawMessage]    `json:"config"`
	Scope       maybe[string]             `json:"scope"`
	Metadata    maybe[map[string]*string] `json:"metadata"`
}

// apply validates the body and changes e. e is not shared yet, or a copy.
func (b environmentBody) apply(e *environment) *apiError {
	if b.Name.given() {
		if err := bounded("name", b.Name.Value, 1, 256); err != nil {
			return err
		}
		e.Name = b.Name.Value
	}
	if b.Description.Sent {
		if err := bounded("description", b.Description.Value, 0, 1024); err != nil {
			return err
		}
		e.Description = nil
		if b.Description.given() {
			e.Description = &b.Description.Value
		}
	}
	if b.Scope.given() && b.Scope.Value != "organization" {
		return fail(400, "scope: only \"organization\" is available to API organizations")
	}
	if b.Config.given() {
		config, err := environmentConfig(b.Config.Value)
		if err != nil {
			return err
		}
		if e.Config != nil && e.Config["type"] != config["type"] {
			return failCode(400, "invalid_config_type_change", "config.type: an environment cannot change from %v to %v", e.Config["type"], config["type"])
		}
		e.Config = config
	}
	if b.Metadata.given() {
		patch := b.Metadata.Value
		for k, v := range patch {
			if v != nil && *v == "" { // deletes, as null does
				patch[k] = nil
			}
		}
		merged, err := mergedMetadata(e.Metadata, patch)
		if err != nil {
			err.Details = map[string]any{"error_code": "invalid_metadata"}
			return err
		}
		e.Metadata = merged
	}
	return nil
}

// environmentConfig validates a config and fills in its defaults.
func environmentConfig(raw json.RawMessage) (map[string]any, *apiError) {
	switch typeOf(raw) {
	case "self_hosted":
		var c struct {
			Type string `json:"type"`
		}
		if err := strict(raw, &c, "config"); err != nil {
			return nil, err
		}
		return map[string]any{"type": "self_hosted"}, nil
	case "cloud":
		return cloudConfig(raw)
	}
	return nil, fail(400, "config.type: must be \"self_hosted\" or \"cloud\"")
}

func cloudConfig(raw json.RawMessage) (map[string]any, *apiError) {
	var c struct {
		Type       string `json:"type"`
		Networking *struct {
			Type                 string   `json:"type"`
			AllowedHosts         []string `json:"allowed_hosts"`
			AllowMCPServers      bool     `json:"allow_mcp_servers"`
			AllowPackageManagers bool     `json:"allow_package_managers"`
		} `json:"networking"`
		Packages *cloudPackages `json:"packages"`
	}
	if err := strict(raw, &c, "config"); err != nil {
		return nil, err
	}
	packages := map[string]any{"type": "packages"}
	wanted := 0
	if c.Packages == nil {
		c.Packages = &cloudPackages{}
	}
	for name, l := range c.Packages.byManager() {
		packages[name] = append([]string{}, l...)
		wanted += len(l)
	}
	networking := map[string]any{"type": "unrestricted"}
	if n := c.Networking; n != nil && n.Type == "limited" {
		if wanted > 0 && !n.AllowPackageManagers {
			return nil, fail(400, "config.packages: limited networking needs allow_package_managers for packages")
		}
		for _, h := range n.AllowedHosts {
			if h == "" || strings.ContainsAny(h, "/: ") {
				return nil, fail(400, "config.networking.allowed_hosts: %q is not a host", h)
			}
		}
		networking = map[string]any{
			"type": "limited", "allowed_hosts": append([]string{}, n.AllowedHosts...),
			"allow_mcp_servers": n.AllowMCPServers, "allow_package_managers": n.AllowPackageManagers,
		}
	} else if n != nil && n.Type != "unrestricted" {
		return nil, fail(400, "config.networking.type: must be \"unrestricted\" or \"limited\"")
	}
	return map[string]any{"type": "cloud", "networking": networking, "packages": packages}, nil
}

type cloudPackages struct {
	Type  string   `json:"type"`
	Apt   []string `json:"apt"`
	Cargo []string `json:"cargo"`
	Gem   []string `json:"gem"`
	Go    []string `json:"go"`
	NPM   []string `json:"npm"`
	Pip   []string `json:"pip"`
}

func (p cloudPackages) byManager() map[string][]string {
	return map[string][]string{"apt": p.Apt, "cargo": p.Cargo, "gem": p.Gem, "go": p.Go, "npm": p.NPM, "pip": p.Pip}
}

func (s *Server) createEnvironment(w http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	var b environmentBody
	if err := decode(w, r, &b, false); err != nil {
		return nil, err
	}
	if !b.Name.given() {
		return nil, fail(400, "name: required")
	}
	e := &environment{ID: newID("env_")}
	if err := b.apply(e); err != nil {
		return nil, err
	}
	if e.Config == nil {
		e.Config, _ = cloudConfig(json.RawMessage(`{"type":"cloud"}`))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e.Created = s.now()
	e.Updated = e.Created
	s.addEnvironment(e)
	s.hooks.notify("environment.created", e.ID, nil)
	return e.reply(), nil
}

func (s *Server) listEnvironments(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	archived := r.URL.Query().Get("include_archived") == "true"
	p, err := pageOf(r, 20, 1000, strconv.FormatBool(archived))
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []map[string]any
	for _, id := range slices.Backward(s.envOrder) {
		if e := s.environments[id]; archived || e.Archived.IsZero() {
			all = append(all, e.reply())
		}
	}
	return list(p, all), nil
}

func (s *Server) getEnvironment(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.environmentByID(r.PathValue("environment"))
	if err != nil {
		return nil, err
	}
	return e.reply(), nil
}

func (s *Server) updateEnvironment(w http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	var b environmentBody
	if err := decode(w, r, &b, false); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.environmentByID(r.PathValue("environment"))
	if err != nil {
		return nil, err
	}
	if !e.Archived.IsZero() {
		return nil, failCode(400, "environment_archived", "environment %s is archived", e.ID)
	}
	next := *e
	if err := b.apply(&next); err != nil {
		return nil, err
	}
	next.Updated = s.now()
	*e = next
	s.hooks.notify("environment.updated", e.ID, nil)
	return e.reply(), nil
}

func (s *Server) archiveEnvironment(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.environmentByID(r.PathValue("environment"))
	if err != nil {
		return nil, err
	}
	if e.Archived.IsZero() {
		e.Archived = s.now()
		e.Updated = e.Archived
		s.hooks.notify("environment.archived", e.ID, nil)
	}
	return e.reply(), nil
}

func (s *Server) deleteEnvironment(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.environmentByID(r.PathValue("environment"))
	if err != nil {
		return nil, err
	}
	for _, se := range s.sessions {
		if se.Environment == e.ID {
			return nil, fail(400, "environment %s is referenced by sessions; delete them first", e.ID)
		}
	}
	delete(s.environments, e.ID)
	s.envOrder = slices.DeleteFunc(s.envOrder, func(id string) bool { return id == e.ID })
	for key, c := range s.credentials {
		if c.environment == e.ID {
			delete(s.credentials, key)
		}
	}
	s.hooks.notify("environment.deleted", e.ID, nil)
	return map[string]any{"id": e.ID, "type": "environment_deleted"}, nil
}
