package local

import "encoding/json"

// A session keeps a copy of its agent as it was when the session was created
// (contract §2.4): later updates do not reach it. agent_with_overrides replaces
// parts of that copy only.

// threadAgent is the copy that a thread runs.
type threadAgent struct {
	Type        string            `json:"type"`
	ID          string            `json:"id"`
	Version     int               `json:"version"`
	Name        string            `json:"name"`
	Description *string           `json:"description"`
	Model       agentModel        `json:"model"`
	System      *string           `json:"system"`
	Tools       []agentTool       `json:"tools"`
	MCPServers  []mcpServer       `json:"mcp_servers"`
	Skills      []agentSkill      `json:"skills"`
	Identity    executionIdentity `json:"execution_identity"`
}

// agentSnapshot is the "agent" of a session: the primary thread's copy and its
// team, whose members are copies too.
type agentSnapshot struct {
	threadAgent
	Multiagent *agentTeam `json:"multiagent"`
}

// agentOverrides are the parts that agent_with_overrides may replace.
type agentOverrides struct {
	Model      json.RawMessage          `json:"model"`
	System     maybe[string]            `json:"system"`
	Tools      maybe[[]json.RawMessage] `json:"tools"`
	MCPServers maybe[[]mcpServer]       `json:"mcp_servers"`
	Skills     maybe[[]skillParam]      `json:"skills"`
}

// Agent implements agentSource. An archived agent starts no sessions.
func (a *agents) Agent(id string, version int, overrides map[string]json.RawMessage) (map[string]any, *apiError) {
	var over agentOverrides
	if overrides != nil {
		raw, err := json.Marshal(overrides)
		if err != nil {
			return nil, fail(400, "agent: %v", err)
		}
		if err := strict(raw, &over, "agent"); err != nil {
			return nil, err
		}
	}
	s, err := a.snapshot(id, version, over)
	if err != nil {
		return nil, err
	}
	return asMap(s)
}

func (a *agents) snapshot(id string, version int, over agentOverrides) (agentSnapshot, *apiError) {
	a.mu.Lock()
	defer a.mu.Unlock()
	base, err := a.find(id, version)
	if err != nil {
		return agentSnapshot{}, err
	}
	if base.ArchivedAt != nil {
		return agentSnapshot{}, fail(400, "agent %s is archived", id)
	}
	base.agentConfig, err = a.resolve(base.agentConfig, agentUpdate{
		Model: over.Model, System: over.System, Tools: over.Tools, MCPServers: over.MCPServers, Skills: over.Skills,
	}, id)
	if err != nil {
		return agentSnapshot{}, err
	}
	team := base.Multiagent.replacing(func(m agentRef) any {
		member, err := a.find(m.ID, m.Version)
		if err != nil {
			return m // agents are never deleted: every stored reference can be found
		}
		return member.thread()
	})
	return agentSnapshot{base.thread(), team}, nil
}

// thread returns the part of an agent that a thread runs.
func (g agent) thread() threadAgent {
	return threadAgent{
		Type: g.Type, ID: g.ID, Version: g.Version, Name: g.Name, Description: g.Description, Model: g.Model,
		System: g.System, Tools: g.Tools, MCPServers: g.MCPServers, Skills: g.Skills, Identity: g.Identity,
	}
}

// asMap turns a reply into the map that its JSON stands for.
func asMap(v any) (map[string]any, *apiError) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, fail(500, "encoding: %v", err)
	}
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fail(500, "encoding: %v", err)
	}
	return m, nil
}
