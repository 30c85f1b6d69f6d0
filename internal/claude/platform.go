package claude

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"

	"github.com/berth-dev/berth/internal/session"
)

// platform is Claude as one work item sees it. Safe for concurrent use.
type platform struct {
	conn        *conn
	session     string
	environment string
	work        string
	hasToken    bool // conn carries the work item's own
}

var _ session.Platform = (*platform)(nil)

// Info reads the session with its agent.
func (p *platform) Info(ctx context.Context) (session.Info, error) {
	answer, err := p.conn.do(ctx, "read session "+p.session, p.conn.again(), func(ctx context.Context, opts ...option.RequestOption) error {
		_, err := p.conn.api.Beta.Sessions.Get(ctx, p.session, anthropic.BetaSessionGetParams{}, opts...)
		return err
	})
	if err != nil {
		return session.Info{}, err
	}
	var s anthropic.BetaManagedAgentsSession
	if err := json.Unmarshal(answer, &s); err != nil {
		return session.Info{}, fmt.Errorf("decode session %s: %w", p.session, err)
	}
	if s.ID == "" {
		return session.Info{}, fmt.Errorf("decode session %s: it has no id", p.session)
	}
	return info(s), nil
}

// info takes what Berth uses. Skills and custom tools are those of the agent
// and of the agents that it may delegate to: they all work in one sandbox
// (contract §4.9).
func info(s anthropic.BetaManagedAgentsSession) session.Info {
	i := session.Info{
		ID:           s.ID,
		Status:       string(s.Status),
		Archived:     !s.ArchivedAt.IsZero(),
		Title:        s.Title,
		Environment:  s.EnvironmentID,
		AgentID:      s.Agent.ID,
		AgentName:    s.Agent.Name,
		AgentVersion: s.Agent.Version,
		Model:        s.Agent.Model.ID,
		Metadata:     s.Metadata,
	}
	for _, k := range s.Agent.Skills {
		addSkill(&i, k.SkillID, k.Type, k.Version)
	}
	for _, t := range s.Agent.Tools {
		addTool(&i, t.Type, t.Name)
	}
	for _, a := range s.Agent.Multiagent.Agents {
		addThreadAgent(&i, a.Skills, a.Tools)
	}
	for _, a := range s.Agent.Multiagent.Subagents.PredefinedAgents {
		addThreadAgent(&i, a.Skills, a.Tools)
	}
	for _, r := range s.Resources {
		if r.Type == "memory_store" {
			i.Memories = append(i.Memories, session.Memory{
				Store:     r.MemoryStoreID,
				Name:      r.Name,
				MountPath: r.MountPath,
				ReadOnly:  r.Access == anthropic.BetaManagedAgentsMemoryStoreResourceAccessReadOnly,
			})
		}
	}
	return i
}

func addThreadAgent(
	i *session.Info,
	skills []anthropic.BetaManagedAgentsSessionThreadAgentSkillUnion,
	tools []anthropic.BetaManagedAgentsSessionThreadAgentToolUnion,
) {
	for _, k := range skills {
		addSkill(i, k.SkillID, k.Type, k.Version)
	}
	for _, t := range tools {
		addTool(i, t.Type, t.Name)
	}
}

// maxSkills is the platform's own limit for one session (contract §4.9).
const maxSkills = 500

// addSkill keeps the first mention of a skill: two versions of one skill would
// unpack to the same folder.
func addSkill(i *session.Info, id, kind, version string) {
	known := slices.ContainsFunc(i.Skills, func(k session.Skill) bool { return k.ID == id })
	if id != "" && !known && len(i.Skills) < maxSkills {
		i.Skills = append(i.Skills, session.Skill{ID: id, Type: kind, Version: version})
	}
}

func addTool(i *session.Info, kind, name string) {
	if kind == "custom" && name != "" && !slices.Contains(i.CustomTools, name) {
		i.CustomTools = append(i.CustomTools, name)
	}
}
