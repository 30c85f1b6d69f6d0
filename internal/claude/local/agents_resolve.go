package local

import (
	"encoding/json"
	"net/url"
	"regexp"
	"slices"
)

// This file turns what a client sent into a complete configuration: bounds are
// checked, defaults filled in, references followed.

// Bounds of an agent (contract §8.1, §16).
const (
	maxAgentName        = 256
	maxAgentDescription = 2048
	maxAgentSystem      = 100_000
	maxMCPServers       = 20
	maxMCPName          = 255
	maxURL              = 2048
	maxSkillField       = 64
)

var roleARN = regexp.MustCompile(`^arn:aws(-[a-z]+)*:iam::[0-9]{12}:role/[\w+=,.@/-]+$`)

// resolve applies a patch to a configuration. self is the agent's own id, ""
// while it has none. The caller holds the lock.
func (a *agents) resolve(c agentConfig, in agentUpdate, self string) (agentConfig, *apiError) {
	if in.Name.Sent {
		if in.Name.Null {
			return c, fail(400, "name: cannot be cleared")
		}
		if err := bounded("name", in.Name.Value, 1, maxAgentName); err != nil {
			return c, err
		}
		c.Name = in.Name.Value
	}
	var err *apiError
	if c.Description, err = text(c.Description, in.Description, "description", maxAgentDescription); err != nil {
		return c, err
	}
	if c.System, err = text(c.System, in.System, "system", maxAgentSystem); err != nil {
		return c, err
	}
	if len(in.Model) > 0 {
		if c.Model, err = modelFrom(in.Model, c.Model); err != nil {
			return c, err
		}
	}
	if in.Tools.Sent {
		if c.Tools, err = toolsFrom(in.Tools.Value); err != nil {
			return c, err
		}
	}
	if in.MCPServers.Sent {
		if c.MCPServers, err = serversFrom(in.MCPServers.Value); err != nil {
			return c, err
		}
	}
	if err := serversReferenced(c.Tools, c.MCPServers); err != nil {
		return c, err
	}
	if in.Skills.Sent {
		if c.Skills, err = a.skillsFrom(in.Skills.Value); err != nil {
			return c, err
		}
	}
	if in.Multiagent.Sent {
		c.Multiagent = nil
		if !in.Multiagent.Null {
			if c.Multiagent, err = a.teamFrom(in.Multiagent.Value, self); err != nil {
				return c, err
			}
		}
	}
	if in.Identity.Sent {
		if c.Identity, err = identityFrom(in.Identity); err != nil {
			return c, err
		}
	}
	return c, nil
}

// text applies a patch to a text that null and "" clear.
func text(old *string, in maybe[string], where string, most int) (*string, *apiError) {
	if !in.Sent {
		return old, nil
	}
	if in.Null || in.Value == "" {
		return nil, nil
	}
	return &in.Value, bounded(where, in.Value, 1, most)
}

// agentModel is a resolved model: effort and speed are always set.
type agentModel struct {
	ID           string `json:"id"`
	Speed        string `json:"speed"`
	Effort       effort `json:"effort"`
	InferenceGeo string `json:"inference_geo,omitempty"`
}

type effort struct {
	Type string `json:"type"`
}

// modelFrom reads a model name or a model object. An omitted effort keeps the
// old one (the default is high); everything else is replaced as a whole.
func modelFrom(raw json.RawMessage, old agentModel) (agentModel, *apiError) {
	m := agentModel{Speed: "standard", Effort: old.Effort}
	if m.Effort.Type == "" {
		m.Effort.Type = "high"
	}
	if isNull(raw) {
		return m, fail(400, "model: cannot be cleared")
	}
	if json.Unmarshal(raw, &m.ID) == nil {
		return m, bounded("model", m.ID, 1, maxAgentName)
	}
	var in struct {
		ID           string                 `json:"id"`
		Speed        maybe[string]          `json:"speed"`
		Effort       maybe[json.RawMessage] `json:"effort"`
		InferenceGeo maybe[string]          `json:"inference_geo"`
	}
	if err := strict(raw, &in, "model"); err != nil {
		return m, err
	}
	m.ID = in.ID
	if err := bounded("model.id", m.ID, 1, maxAgentName); err != nil {
		return m, err
	}
	if in.Speed.given() {
		m.Speed = in.Speed.Value
	}
	if in.InferenceGeo.given() {
		m.InferenceGeo = in.InferenceGeo.Value
	}
	if in.Effort.given() {
		if json.Unmarshal(in.Effort.Value, &m.Effort.Type) != nil {
			if err := strict(in.Effort.Value, &m.Effort, "model.effort"); err != nil {
				return m, err
			}
		}
	}
	for _, choice := range []struct {
		where, got string
		allowed    []string
	}{
		{"model.speed", m.Speed, []string{"standard", "fast"}},
		{"model.effort", m.Effort.Type, []string{"low", "medium", "high", "xhigh", "max"}},
		{"model.inference_geo", m.InferenceGeo, []string{"", "us", "global"}},
	} {
		if !slices.Contains(choice.allowed, choice.got) {
			return m, fail(400, "%s: %q is not one of %q", choice.where, choice.got, choice.allowed)
		}
	}
	return m, nil
}

func identityFrom(in maybe[executionIdentity]) (executionIdentity, *apiError) {
	service := executionIdentity{Type: "service_account"}
	if in.Null {
		return service, nil
	}
	switch id := in.Value; id.Type {
	case "service_account":
		return service, nil
	case "aws_role":
		if len(id.RoleARN) > maxURL || !roleARN.MatchString(id.RoleARN) {
			return id, fail(400, "execution_identity.role_arn: not the ARN of an IAM role")
		}
		return id, nil
	default:
		return id, fail(400, "execution_identity.type: %q is neither service_account nor aws_role", id.Type)
	}
}

func serversFrom(in []mcpServer) ([]mcpServer, *apiError) {
	if len(in) > maxMCPServers {
		return nil, fail(400, "mcp_servers: at most %d, got %d", maxMCPServers, len(in))
	}
	seen := map[string]bool{}
	for i, s := range in {
		if s.Type != "url" {
			return nil, fail(400, "mcp_servers[%d].type: must be url", i)
		}
		if err := bounded("mcp_servers.name", s.Name, 1, maxMCPName); err != nil {
			return nil, err
		}
		if seen[s.Name] {
			return nil, fail(400, "mcp_servers: the name %q is used twice", s.Name)
		}
		seen[s.Name] = true
		u, err := url.Parse(s.URL)
		if err != nil || len(s.URL) > maxURL || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" {
			return nil, fail(400, "mcp_servers[%d].url: must be an http(s) URL of at most %d characters", i, maxURL)
		}
	}
	return append([]mcpServer{}, in...), nil
}

// serversReferenced checks that servers and MCP toolsets name each other.
func serversReferenced(tools []agentTool, servers []mcpServer) *apiError {
	used := map[string]bool{}
	for _, t := range tools {
		if set, ok := t.(mcpToolset); ok {
			used[set.ServerName] = true
		}
	}
	for _, s := range servers {
		if !used[s.Name] {
			return fail(400, "mcp_servers: %q is not referenced by any mcp_toolset in tools", s.Name)
		}
		delete(used, s.Name)
	}
	for name := range used {
		return fail(400, "tools: mcp_toolset names the server %q, which mcp_servers does not declare", name)
	}
	return nil
}

// skillParam is a reference to a skill as sent: a version that is omitted, null
// or "latest" means the newest at the time of saving.
type skillParam struct {
	Type    string        `json:"type"`
	SkillID string        `json:"skill_id"`
	Version maybe[string] `json:"version"`
}

func (a *agents) skillsFrom(in []skillParam) ([]agentSkill, *apiError) {
	resolved := []agentSkill{}
	seen := map[string]bool{}
	for i, p := range in {
		if p.Type != "anthropic" && p.Type != "custom" {
			return nil, fail(400, "skills[%d].type: must be anthropic or custom", i)
		}
		if err := bounded("skill_id", p.SkillID, 1, maxSkillField); err != nil {
			return nil, err
		}
		if seen[p.SkillID] {
			return nil, fail(400, "skills: %s is named twice", p.SkillID)
		}
		seen[p.SkillID] = true
		version := "latest"
		if p.Version.given() {
			version = p.Version.Value
			if err := bounded("skills.version", version, 1, maxSkillField); err != nil {
				return nil, err
			}
		}
		id, err := a.skills.resolve(p.Type, p.SkillID, version)
		if err != nil {
			return nil, err
		}
		resolved = append(resolved, agentSkill{p.Type, p.SkillID, id})
	}
	return resolved, nil
}
