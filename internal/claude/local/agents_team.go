package local

import (
	"encoding/json"
	"slices"
)

// A team is an agent's multiagent setting: either a coordinator with a roster or
// the newer form with workflows, subagents and an advisor (contract §4.9). A
// member is another agent at a fixed version, the agent itself, or an advisor
// model. Members have no team of their own: delegation is one level deep.

const maxRoster = 20

// agentTeam is a resolved team of either form.
type agentTeam struct {
	Type      string      `json:"type"`
	Agents    []any       `json:"agents,omitempty"` // coordinator: agentRef or advisor
	Workflows *delegation `json:"workflows,omitempty"`
	Subagents *delegation `json:"subagents,omitempty"`
	Advisor   *advisor    `json:"advisor,omitempty"`
}

// agentRef names an agent at a version. The agent itself has no id until a reply
// is made for one of its versions: see naming.
type agentRef struct {
	Type    string `json:"type"`
	ID      string `json:"id"`
	Version int    `json:"version"`
}

// advisor is a model that the primary thread may consult. In a roster its type
// is "advisor", in the newer form "enabled" or "disabled".
type advisor struct {
	Type  string `json:"type"`
	Model string `json:"model,omitempty"`
}

// delegation is the workflows or subagents part of the newer form.
type delegation struct {
	Enabled    bool
	Inline     string // enabled or disabled
	Predefined []any  // agentRef; after expansion, thread agents
}

// MarshalJSON writes only the type of a disabled part.
func (d delegation) MarshalJSON() ([]byte, error) {
	if !d.Enabled {
		return []byte(`{"type":"disabled"}`), nil
	}
	return json.Marshal(map[string]any{
		"type": "enabled", "inline_agents": map[string]string{"type": d.Inline}, "predefined_agents": d.Predefined,
	})
}

// naming returns the team with the agent's own entries filled in.
func (t *agentTeam) naming(id string, version int) *agentTeam {
	return t.replacing(func(ref agentRef) any {
		if ref.ID == "" {
			ref.ID, ref.Version = id, version
		}
		return ref
	})
}

// replacing returns a copy in which every agent reference became what f says.
func (t *agentTeam) replacing(f func(agentRef) any) *agentTeam {
	if t == nil {
		return nil
	}
	each := func(members []any) []any {
		out := slices.Clone(members)
		for i, m := range out {
			if ref, ok := m.(agentRef); ok {
				out[i] = f(ref)
			}
		}
		return out
	}
	c := *t
	c.Agents = each(t.Agents)
	for _, part := range []**delegation{&c.Workflows, &c.Subagents} {
		if *part != nil {
			d := **part
			d.Predefined = each(d.Predefined)
			*part = &d
		}
	}
	return &c
}

// teamFrom resolves a team for the agent self. The caller holds the lock.
func (a *agents) teamFrom(raw json.RawMessage, self string) (*agentTeam, *apiError) {
	switch kind := typeOf(raw); kind {
	case "coordinator":
		var in struct {
			Type   string            `json:"type"`
			Agents []json.RawMessage `json:"agents"`
		}
		if err := strict(raw, &in, "multiagent"); err != nil {
			return nil, err
		}
		if len(in.Agents) == 0 {
			return nil, fail(400, "multiagent.agents: must have 1 to %d entries", maxRoster)
		}
		roster, err := a.roster(in.Agents, self, true)
		return &agentTeam{Type: kind, Agents: roster}, err
	case "multiagent_20261001":
		var in struct {
			Type      string                  `json:"type"`
			Workflows maybe[delegationParams] `json:"workflows"`
			Subagents maybe[delegationParams] `json:"subagents"`
			Advisor   maybe[advisor]          `json:"advisor"`
		}
		if err := strict(raw, &in, "multiagent"); err != nil {
			return nil, err
		}
		team := &agentTeam{Type: kind, Advisor: &advisor{Type: "disabled"}}
		var err *apiError
		if team.Workflows, err = a.delegation(in.Workflows, self, "workflows"); err != nil {
			return nil, err
		}
		if team.Subagents, err = a.delegation(in.Subagents, self, "subagents"); err != nil {
			return nil, err
		}
		if in.Advisor.given() {
			team.Advisor = &in.Advisor.Value
			switch adv := in.Advisor.Value; {
			case adv.Type == "enabled":
				return team, bounded("multiagent.advisor.model", adv.Model, 1, maxAgentName)
			case adv.Type != "disabled" || adv.Model != "":
				return nil, fail(400, "multiagent.advisor: must be enabled with a model, or disabled")
			}
		}
		return team, nil
	default:
		return nil, fail(400, "multiagent.type: %q is neither coordinator nor multiagent_20261001", kind)
	}
}

type delegationParams struct {
	Type   string `json:"type"`
	Inline maybe[struct {
		Type string `json:"type"`
	}] `json:"inline_agents"`
	Predefined maybe[[]json.RawMessage] `json:"predefined_agents"`
}

func (a *agents) delegation(in maybe[delegationParams], self, where string) (*delegation, *apiError) {
	d := &delegation{Enabled: true, Inline: "enabled", Predefined: []any{}}
	if !in.given() {
		return d, nil
	}
	p := in.Value
	switch {
	case p.Type == "disabled" && !p.Inline.Sent && !p.Predefined.Sent:
		return &delegation{}, nil
	case p.Type != "enabled":
		return nil, fail(400, "multiagent.%s.type: must be enabled, or disabled with nothing beside it", where)
	}
	if p.Inline.given() {
		d.Inline = p.Inline.Value.Type
		if d.Inline != "enabled" && d.Inline != "disabled" {
			return nil, fail(400, "multiagent.%s.inline_agents.type: must be enabled or disabled", where)
		}
	}
	var err *apiError
	d.Predefined, err = a.roster(p.Predefined.Value, self, false)
	return d, err
}

// roster resolves members: an id, {agent}, {self} and, where allowed, {advisor}.
func (a *agents) roster(in []json.RawMessage, self string, advisors bool) ([]any, *apiError) {
	if len(in) > maxRoster {
		return nil, fail(400, "multiagent: at most %d agents, got %d", maxRoster, len(in))
	}
	members := []any{}
	seen := map[string]bool{}
	for _, raw := range in {
		var p struct {
			Type    string     `json:"type"`
			ID      string     `json:"id"`
			Version maybe[int] `json:"version"`
			Model   string     `json:"model"`
		}
		if json.Unmarshal(raw, &p.ID) == nil {
			p.Type = "agent"
		} else if err := strict(raw, &p, "multiagent.agents"); err != nil {
			return nil, err
		}
		switch {
		case p.Type == "advisor" && advisors:
			if err := bounded("multiagent.agents.model", p.Model, 1, maxAgentName); err != nil {
				return nil, err
			}
			members = append(members, advisor{"advisor", p.Model})
			continue
		case p.Type == "self":
			p.ID = self
		case p.Type != "agent" || p.ID == "":
			return nil, fail(400, "multiagent.agents: %s names no agent", raw)
		}
		if seen[p.ID] {
			return nil, fail(400, "multiagent.agents: the same agent is there twice")
		}
		seen[p.ID] = true
		if p.ID == self {
			members = append(members, agentRef{Type: "agent"})
			continue
		}
		other, err := a.find(p.ID, p.Version.Value)
		if err != nil {
			return nil, fail(400, "multiagent.agents: %s", err.Message)
		}
		if other.ArchivedAt != nil {
			return nil, fail(400, "multiagent.agents: %s is archived", p.ID)
		}
		if other.Multiagent != nil {
			return nil, fail(400, "multiagent.agents: %s has a team of its own; delegation is one level deep", p.ID)
		}
		members = append(members, agentRef{"agent", other.ID, other.Version})
	}
	return members, nil
}
