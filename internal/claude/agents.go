package claude

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"
	"github.com/anthropics/anthropic-sdk-go/v2/packages/param"

	"github.com/berth-dev/berth/internal/session"
)

// A list of agents is read in pages of this size (contract §2.3), and no further
// than so many pages.
const (
	agentsPerPage = 100
	agentPages    = 20
)

// Agents returns the agents of the workspace that are not archived: the first
// two thousand.
func (a *Admin) Agents(ctx context.Context) ([]session.AgentInfo, error) {
	params := anthropic.BetaAgentListParams{Limit: param.NewOpt[int64](agentsPerPage)}
	var all []session.AgentInfo
	for range agentPages {
		answer, err := a.conn.do(ctx, "list agents", a.conn.again(), func(ctx context.Context, opts ...option.RequestOption) error {
			_, err := a.conn.api.Beta.Agents.List(ctx, params, opts...)
			return err
		})
		if err != nil {
			return nil, err
		}
		var page struct {
			Data     []json.RawMessage `json:"data"`
			NextPage string            `json:"next_page"`
		}
		if err := json.Unmarshal(answer, &page); err != nil {
			return nil, fmt.Errorf("list agents: decode: %w", err)
		}
		for _, raw := range page.Data {
			one, err := agentInfo(raw, nil)
			if err != nil {
				return nil, err
			}
			all = append(all, one)
		}
		if page.NextPage == "" {
			break
		}
		params.Page = param.NewOpt(page.NextPage)
	}
	return all, nil
}

// Agent reads one agent in its newest version.
func (a *Admin) Agent(ctx context.Context, id string) (session.AgentInfo, error) {
	answer, err := a.conn.do(ctx, "read agent "+id, a.conn.again(), func(ctx context.Context, opts ...option.RequestOption) error {
		_, err := a.conn.api.Beta.Agents.Get(ctx, id, anthropic.BetaAgentGetParams{}, opts...)
		return err
	})
	return agentInfo(answer, err)
}

func agentInfo(answer []byte, err error) (session.AgentInfo, error) {
	var v anthropic.BetaManagedAgentsAgent
	if err = decode(answer, err, "agent", &v, &v.ID); err != nil {
		return session.AgentInfo{}, err
	}
	return session.AgentInfo{
		ID: v.ID, Name: v.Name, Version: v.Version, Model: v.Model.ID, Archived: object(answer).has("archived_at"),
	}, nil
}
