package local

import (
	"encoding/json"
	"reflect"
	"slices"
	"sync"
	"time"
)

// An agent is a line of immutable versions (contract §8.1). Three rules carry
// this file:
//
//   - an update makes a new version, unless nothing would change;
//   - an update that names a version fails unless it is the newest (409);
//   - an archived agent is read-only for ever, and old sessions keep their copy.
//
// agents_tools.go holds the union of tools, agents_team.go the multiagent
// roster, agents_snapshot.go the copy that a session keeps.

// agentConfig is what a version fixes. Everything in it is resolved: defaults
// are filled in, and skills name the version that they were saved with.
type agentConfig struct {
	Name        string            `json:"name"`
	Description *string           `json:"description"`
	Model       agentModel        `json:"model"`
	System      *string           `json:"system"`
	Tools       []agentTool       `json:"tools"`
	MCPServers  []mcpServer       `json:"mcp_servers"`
	Skills      []agentSkill      `json:"skills"`
	Multiagent  *agentTeam        `json:"multiagent"`
	Metadata    map[string]string `json:"metadata"`
	Identity    executionIdentity `json:"execution_identity"`
}

// agent is one version as replied.
type agent struct {
	Type    string `json:"type"`
	ID      string `json:"id"`
	Version int    `json:"version"`
	agentConfig
	CreatedAt  string `json:"created_at"`
	UpdatedAt  string `json:"updated_at"`
	ArchivedAt any    `json:"archived_at"`
}

type executionIdentity struct {
	Type    string `json:"type"`
	RoleARN string `json:"role_arn,omitempty"`
}

type mcpServer struct {
	Type string `json:"type"`
	Name string `json:"name"`
	URL  string `json:"url"`
}

// agentSkill is a reference to a skill. In a stored agent, Version is always a
// concrete skill version.
type agentSkill struct {
	Type    string `json:"type"`
	SkillID string `json:"skill_id"`
	Version string `json:"version"`
}

// skillResolver turns "latest" or a version into the id of an existing version.
type skillResolver interface {
	resolve(kind, id, version string) (string, *apiError)
}

// agents is the collection. Safe for concurrent use.
type agents struct {
	now    func() time.Time
	skills skillResolver

	mu    sync.Mutex
	lines map[string]*agentLine
	order []string // ids, oldest first
}

// agentLine is all versions of one agent; versions[n-1] is version n.
type agentLine struct {
	id       string
	created  time.Time
	archived time.Time
	versions []agentVersion
}

type agentVersion struct {
	config agentConfig
	saved  time.Time
}

func newAgents(now func() time.Time, skills skillResolver) *agents {
	return &agents{now: now, skills: skills, lines: map[string]*agentLine{}}
}

// agentCreate is the body of POST /v1/agents.
type agentCreate struct {
	Name        string                   `json:"name"`
	Description maybe[string]            `json:"description"`
	Model       json.RawMessage          `json:"model"`
	System      maybe[string]            `json:"system"`
	Tools       []json.RawMessage        `json:"tools"`
	MCPServers  []mcpServer              `json:"mcp_servers"`
	Skills      []skillParam             `json:"skills"`
	Multiagent  json.RawMessage          `json:"multiagent"`
	Metadata    map[string]string        `json:"metadata"`
	Identity    maybe[executionIdentity] `json:"execution_identity"`
}

// agentUpdate is the body of POST /v1/agents/{id}: what is omitted stays.
type agentUpdate struct {
	Version     maybe[int]                `json:"version"`
	Name        maybe[string]             `json:"name"`
	Description maybe[string]             `json:"description"`
	Model       json.RawMessage           `json:"model"`
	System      maybe[string]             `json:"system"`
	Tools       maybe[[]json.RawMessage]  `json:"tools"`
	MCPServers  maybe[[]mcpServer]        `json:"mcp_servers"`
	Skills      maybe[[]skillParam]       `json:"skills"`
	Multiagent  maybe[json.RawMessage]    `json:"multiagent"`
	Metadata    maybe[map[string]*string] `json:"metadata"`
	Identity    maybe[executionIdentity]  `json:"execution_identity"`
}

// create saves version 1 of a new agent.
func (a *agents) create(in agentCreate) (agent, *apiError) {
	a.mu.Lock()
	defer a.mu.Unlock()
	patch := agentUpdate{
		Name:        maybe[string]{Sent: true, Value: in.Name},
		Description: in.Description,
		Model:       in.Model,
		System:      in.System,
		Tools:       maybe[[]json.RawMessage]{Sent: true, Value: in.Tools},
		MCPServers:  maybe[[]mcpServer]{Sent: true, Value: in.MCPServers},
		Skills:      maybe[[]skillParam]{Sent: true, Value: in.Skills},
		Multiagent:  maybe[json.RawMessage]{Sent: true, Null: isNull(in.Multiagent), Value: in.Multiagent},
		Identity:    in.Identity,
	}
	if isNull(in.Model) {
		return agent{}, fail(400, "model: required")
	}
	config, err := a.resolve(agentConfig{Identity: executionIdentity{Type: "service_account"}}, patch, "")
	if err != nil {
		return agent{}, err
	}
	config.Metadata = orEmpty(in.Metadata)
	if err := boundedMetadata(config.Metadata); err != nil {
		return agent{}, err
	}
	now := a.now()
	line := &agentLine{id: newID("agent_"), created: now, versions: []agentVersion{{config, now}}}
	a.lines[line.id] = line
	a.order = append(a.order, line.id)
	return line.reply(1), nil
}

// update saves a new version, or returns the newest one when nothing would
// change.
func (a *agents) update(id string, in agentUpdate) (agent, *apiError) {
	a.mu.Lock()
	defer a.mu.Unlock()
	line, err := a.line(id)
	if err != nil {
		return agent{}, err
	}
	if !line.archived.IsZero() {
		return agent{}, fail(400, "agent %s is archived and cannot be updated", id)
	}
	newest := len(line.versions)
	if in.Version.given() {
		if in.Version.Value < 1 {
			return agent{}, fail(400, "version: must be at least 1")
		}
		if in.Version.Value != newest {
			return agent{}, fail(409, "agent %s is at version %d, not %d; read it again and repeat the update", id, newest, in.Version.Value)
		}
	}
	old := line.versions[newest-1].config
	config, err := a.resolve(old, in, id)
	if err != nil {
		return agent{}, err
	}
	if in.Metadata.given() {
		if config.Metadata, err = mergedMetadata(old.Metadata, in.Metadata.Value); err != nil {
			return agent{}, err
		}
	}
	if sameConfig(old, config) {
		return line.reply(newest), nil
	}
	line.versions = append(line.versions, agentVersion{config, a.now()})
	return line.reply(newest + 1), nil
}

// version returns one version, the newest for 0.
func (a *agents) version(id string, version int) (agent, *apiError) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.find(id, version)
}

// all returns the newest version of every agent, newest agent first.
func (a *agents) all(keep func(created time.Time, archived bool) bool) []agent {
	a.mu.Lock()
	defer a.mu.Unlock()
	var found []agent
	for _, id := range slices.Backward(a.order) {
		line := a.lines[id]
		if keep(line.created, !line.archived.IsZero()) {
			found = append(found, line.reply(len(line.versions)))
		}
	}
	return found
}

// versions returns every version of one agent, newest first.
func (a *agents) versions(id string) ([]agent, *apiError) {
	a.mu.Lock()
	defer a.mu.Unlock()
	line, err := a.line(id)
	if err != nil {
		return nil, err
	}
	var found []agent
	for n := len(line.versions); n >= 1; n-- {
		found = append(found, line.reply(n))
	}
	return found, nil
}

// archive makes an agent read-only for ever. It is idempotent.
func (a *agents) archive(id string) (agent, *apiError) {
	a.mu.Lock()
	defer a.mu.Unlock()
	line, err := a.line(id)
	if err != nil {
		return agent{}, err
	}
	if line.archived.IsZero() {
		line.archived = a.now()
	}
	return line.reply(len(line.versions)), nil
}

// line finds an agent. The caller holds the lock.
func (a *agents) line(id string) (*agentLine, *apiError) {
	line, ok := a.lines[id]
	if !ok {
		return nil, fail(404, "agent %s was not found", id)
	}
	return line, nil
}

// find is version for callers that hold the lock.
func (a *agents) find(id string, version int) (agent, *apiError) {
	line, err := a.line(id)
	if err != nil {
		return agent{}, err
	}
	if version == 0 {
		version = len(line.versions)
	}
	if version < 1 {
		return agent{}, fail(400, "version: must be at least 1")
	}
	if version > len(line.versions) {
		return agent{}, fail(404, "agent %s has no version %d", id, version)
	}
	return line.reply(version), nil
}

// reply renders version n.
func (l *agentLine) reply(n int) agent {
	v := l.versions[n-1]
	v.config.Multiagent = v.config.Multiagent.naming(l.id, n)
	return agent{
		Type: "agent", ID: l.id, Version: n, agentConfig: v.config,
		CreatedAt: stamp(l.created), UpdatedAt: stamp(v.saved), ArchivedAt: stampOrNil(l.archived),
	}
}

// sameConfig compares two configurations as JSON values, so that the order of
// keys in a tool's schema makes no difference.
func sameConfig(a, b agentConfig) bool {
	var x, y any
	for c, into := range map[*agentConfig]*any{&a: &x, &b: &y} {
		raw, err := json.Marshal(c)
		if err != nil || json.Unmarshal(raw, into) != nil {
			return false
		}
	}
	return reflect.DeepEqual(x, y)
}
