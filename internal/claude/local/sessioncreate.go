package local

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
)

// POST /v1/sessions (contract §8.2).

type sessionBody struct {
	Agent         json.RawMessage   `json:"agent"`
	EnvironmentID string            `json:"environment_id"`
	Title         maybe[string]     `json:"title"`
	Metadata      map[string]string `json:"metadata"`
	Resources     []json.RawMessage `json:"resources"`
	VaultIDs      []string          `json:"vault_ids"`
	Budget        json.RawMessage   `json:"budget"`
	InitialEvents []json.RawMessage `json:"initial_events"`
}

func (s *Server) createSession(w http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
	var b sessionBody
	if err := decode(w, r, &b, false); err != nil {
		return nil, err
	}
	if err := bounded("environment_id", b.EnvironmentID, 1, 128); err != nil {
		return nil, err
	}
	if err := boundedMetadata(b.Metadata); err != nil {
		return nil, err
	}
	title, err := sessionTitle(b.Title)
	if err != nil {
		return nil, err
	}
	budget, err := readBudget(b.Budget)
	if err != nil {
		return nil, err
	}
	inputs, err := readInitial(b.InitialEvents)
	if err != nil {
		return nil, err
	}
	agent, err := s.agentFor(b.Agent)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	env, err := s.environmentByID(b.EnvironmentID)
	selfHosted, archived := err == nil && env.selfHosted(), err == nil && !env.Archived.IsZero()
	s.mu.Unlock()
	switch {
	case err != nil:
		return nil, err
	case archived:
		return nil, failCode(400, "environment_archived", "environment %s is archived", b.EnvironmentID)
	}
	resources, err := s.readResources(b.Resources, b.EnvironmentID, selfHosted)
	if err != nil {
		return nil, err
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	se := &session{
		ID: newID("sesn_"), Environment: b.EnvironmentID, SelfHosted: selfHosted, Title: title,
		Agent: agent, Metadata: b.Metadata, Resources: resources, VaultIDs: b.VaultIDs, Budget: budget,
		Status: statusIdle, Created: now, Updated: now,
		calls: map[string]*call{}, threads: map[string]*thread{}, streams: map[*stream]struct{}{},
		changed: make(chan struct{}),
	}
	name, _ := agent["name"].(string)
	se.addThread(&thread{ID: newID("sthr_"), Name: name, Agent: threadAgentOf(agent), Created: now, Updated: now})
	s.sessions[se.ID] = se
	s.sessionOrder = append(s.sessionOrder, se.ID)
	s.hooks.notify("session.created", se.ID, nil)
	for _, in := range inputs {
		s.apply(se, in, new(bool))
	}
	s.wakeSession(se)
	return se.reply(s.clock.Now()), nil
}

// agentFor reads the agent of a session: an id, a reference, or a reference with
// overrides.
func (s *Server) agentFor(raw json.RawMessage) (map[string]any, *apiError) {
	var ref struct {
		Type    string `json:"type"`
		ID      string `json:"id"`
		Version *int   `json:"version"`
	}
	var overrides map[string]json.RawMessage
	switch {
	case isNull(raw):
		return nil, fail(400, "agent: required")
	case raw[0] == '"':
		if err := json.Unmarshal(raw, &ref.ID); err != nil {
			return nil, fail(400, "agent: %v", err)
		}
	case typeOf(raw) == "agent":
		if err := strict(raw, &ref, "agent"); err != nil {
			return nil, err
		}
	case typeOf(raw) == "agent_with_overrides":
		if err := json.Unmarshal(raw, &ref); err != nil {
			return nil, fail(400, "agent: %v", err)
		}
		if err := json.Unmarshal(raw, &overrides); err != nil {
			return nil, fail(400, "agent: %v", err)
		}
		for _, k := range []string{"type", "id", "version"} {
			delete(overrides, k)
		}
	default:
		return nil, fail(400, "agent: must be an id, or an object of the type \"agent\" or \"agent_with_overrides\"")
	}
	if err := bounded("agent id", ref.ID, 1, 128); err != nil {
		return nil, err
	}
	version := 0
	if ref.Version != nil {
		if version = *ref.Version; version < 1 {
			return nil, fail(400, "agent.version: must be at least 1")
		}
	}
	return s.agentSnapshot(ref.ID, version, overrides)
}

// agentSnapshot asks the agents for a snapshot and makes it plain decoded JSON,
// which is what brains and policies read.
func (s *Server) agentSnapshot(id string, version int, overrides map[string]json.RawMessage) (map[string]any, *apiError) {
	if s.agents == nil {
		return nil, fail(404, "agent %q not found", id)
	}
	agent, err := s.agents.Agent(id, version, overrides)
	if err != nil {
		return nil, err
	}
	b, merr := json.Marshal(agent)
	var plain map[string]any
	if merr == nil {
		merr = json.Unmarshal(b, &plain)
	}
	if merr != nil {
		return nil, fail(500, "agent %s: %v", id, merr)
	}
	return plain, nil
}

func sessionTitle(m maybe[string]) (*string, *apiError) {
	if !m.given() {
		return nil, nil
	}
	return &m.Value, bounded("title", m.Value, 0, 500)
}

var decimalCents = regexp.MustCompile(`^[0-9]{1,15}(\.[0-9]{1,6})?$`)

// readBudget validates a budget (contract §4.10); nil when there is none.
func readBudget(raw json.RawMessage) (any, *apiError) {
	if isNull(raw) {
		return nil, nil
	}
	var b struct {
		Type string `json:"type"`
		Max  struct {
			Amount   string `json:"amount"`
			Currency string `json:"currency"`
		} `json:"max_list_cost"`
	}
	if err := strict(raw, &b, "budget"); err != nil {
		return nil, err
	}
	if b.Type != "limit" || b.Max.Currency != "USD" || !decimalCents.MatchString(b.Max.Amount) {
		return nil, fail(400, "budget: must be {\"type\":\"limit\",\"max_list_cost\":{\"amount\":\"<cents>\",\"currency\":\"USD\"}}")
	}
	return map[string]any{"type": "limit", "max_list_cost": map[string]any{"amount": b.Max.Amount, "currency": b.Max.Currency}}, nil
}

const (
	maxStores       = 8
	maxInstructions = 4096
)

// readResources validates the resources of a new session and completes them as
// the session shows them (contract §6.2, §6.3).
func (s *Server) readResources(raw []json.RawMessage, environment string, selfHosted bool) ([]map[string]any, *apiError) {
	var all []map[string]any
	seen := map[string]bool{}
	for i, r := range raw {
		switch typ := typeOf(r); {
		case typ == "memory_store":
		case typ != "file" && typ != "github_repository":
			return nil, fail(400, "resources.%d.type: %q is not a kind of resource", i, typ)
		case selfHosted:
			return nil, selfHostedResources(environment)
		default:
			return nil, fail(400, "resources.%d: the local platform has no %s resources", i, typ)
		}
		m, err := s.readStore(r)
		if err != nil {
			return nil, err
		}
		id, _ := m["memory_store_id"].(string)
		path, _ := m["mount_path"].(string)
		if seen[id] || seen[path] {
			return nil, fail(400, "resources.%d: the memory store, or its name, is attached twice", i)
		}
		seen[id], seen[path] = true, true
		all = append(all, m)
	}
	if len(all) > maxStores {
		return nil, fail(400, "resources: at most %d memory stores per session, got %d", maxStores, len(all))
	}
	return all, nil
}

func selfHostedResources(environment string) *apiError {
	return fail(400, "Environment %s is a self-hosted environment. `resources` are not supported with self-hosted environments.", environment)
}

func (s *Server) readStore(raw json.RawMessage) (map[string]any, *apiError) {
	var b struct {
		Type         string        `json:"type"`
		ID           string        `json:"memory_store_id"`
		Access       maybe[string] `json:"access"`
		Instructions maybe[string] `json:"instructions"`
	}
	if err := strict(raw, &b, "resources"); err != nil {
		return nil, err
	}
	access := "read_write"
	if b.Access.given() {
		access = b.Access.Value
	}
	if access != "read_write" && access != "read_only" {
		return nil, fail(400, "resources.access: must be \"read_write\" or \"read_only\"")
	}
	if err := bounded("resources.instructions", b.Instructions.Value, 0, maxInstructions); err != nil {
		return nil, err
	}
	if s.stores == nil {
		return nil, fail(404, "memory store %q not found", b.ID)
	}
	info, err := s.stores.Store(b.ID)
	if err != nil {
		return nil, err
	}
	var instructions any
	if b.Instructions.given() {
		instructions = b.Instructions.Value
	}
	return map[string]any{
		"type": "memory_store", "memory_store_id": b.ID, "access": access, "instructions": instructions,
		"name": info.Name, "description": info.Description, "mount_path": s.opt.MemoryRoot + "/" + slug(info.Name, b.ID),
	}, nil
}

var notSlug = regexp.MustCompile(`[^a-z0-9]+`)

// slug is the folder name of a memory store: its name in lower case with runs of
// anything else than letters and digits as "-"; its id when nothing remains.
func slug(name, id string) string {
	if s := strings.Trim(notSlug.ReplaceAllString(strings.ToLower(name), "-"), "-"); s != "" {
		return s
	}
	return strings.Trim(notSlug.ReplaceAllString(strings.ToLower(id), "-"), "-")
}
