package api

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/session"
)

// Agent is what is known here of an agent. It lives at the platform; here are
// only its sessions and the settings of its sandboxes.
type Agent struct {
	ID       string     `json:"id"`
	Name     string     `json:"name,omitempty"`
	Version  int64      `json:"version,omitempty"`
	Model    string     `json:"model,omitempty"`
	Archived bool       `json:"archived,omitempty" doc:"at the platform"`
	Sessions int        `json:"sessions" doc:"sessions of it that were served here"`
	Live     int        `json:"live" doc:"those of them that are not over"`
	LastAt   *time.Time `json:"last_at,omitempty" doc:"when one of them changed last"`
	Set      []string   `json:"set,omitempty" doc:"names of the settings that were set through the API"`
	Revision int64      `json:"revision" doc:"of what was set; 0: nothing ever was"`
}

// AgentList is a page of agents.
type AgentList struct {
	Page[Agent]
	Warning string `json:"warning,omitempty" doc:"why agents or names may be missing"`
}

// AgentDetail is one agent with its settings and those who use them.
type AgentDetail struct {
	Agent
	Known   bool           `json:"known" doc:"false: no session, no setting and, if it was asked, not the platform knows this id"`
	Sandbox AgentSandbox   `json:"sandbox"`
	Users   []AgentSession `json:"users" doc:"its sessions that are not over, the one that changed last first; at most 200"`
	Warning string         `json:"warning,omitempty" doc:"why names may be missing"`
}

// AgentSandbox is what an agent's next sandbox is made with. Sandboxes that run
// keep what they were made with.
type AgentSandbox struct {
	Agent     string                    `json:"agent"`
	Revision  int64                     `json:"revision" doc:"also in the ETag; grows with each change of what is set"`
	ChangedAt *time.Time                `json:"changed_at,omitempty"`
	Set       session.Settings          `json:"set" doc:"through the API; wins over file"`
	File      session.Settings          `json:"file" doc:"in the server's configuration; wins over its defaults"`
	Effective session.Profile           `json:"effective" doc:"what they and the server's defaults come to"`
	Sources   map[string]session.Source `json:"sources" doc:"where each effective value comes from: server, file or set"`
}

// AgentSession is a session that uses an agent's settings.
type AgentSession struct {
	ID       string        `json:"id"`
	Phase    session.Phase `json:"phase" enum:"active,warm,parked,over"`
	Since    *time.Time    `json:"sandbox_since,omitempty" doc:"absent: no sandbox runs"`
	Revision int64         `json:"settings_revision,omitempty" doc:"that its sandbox was made with"`
	Differs  []string      `json:"differs,omitempty" doc:"settings in which its next sandbox will differ from the one that runs"`
}

// AgentPatch changes single settings.
type AgentPatch struct {
	Set   session.Settings `json:"set,omitzero" doc:"what is left out stays; variables are added to those that there are"`
	Unset []string         `json:"unset,omitempty" maxItems:"512" doc:"names of settings, env.NAME for one variable, env for all"`
}

// AgentPath names an agent in a path.
type AgentPath struct {
	ID string `path:"id" maxLength:"128" doc:"agent id (agent_…); an agent need not be known here"`
}

// tagged is an answer whose revision stands in the ETag.
type tagged[T any] struct {
	ETag string `header:"ETag"`
	Body T
}

const (
	platformWithin = 10 * time.Second
	maxUsers       = 200
)

func (s *server) agents(api huma.API) {
	huma.Register(api, operation("list-agents", http.MethodGet, "/api/v1/agents", "Agents that are known here or at the platform, by id"),
		func(ctx context.Context, in *PageQuery) (*answer[AgentList], error) {
			all, warning, err := s.allAgents(ctx)
			if err != nil {
				return nil, s.failed(err)
			}
			begin, _ := slices.BinarySearchFunc(all, in.After, func(a Agent, after string) int {
				if a.ID <= after {
					return -1
				}
				return 1
			})
			all = all[begin:]
			page := AgentList{Page: Page[Agent]{Data: all}, Warning: warning}
			if len(all) > in.Limit {
				page.Data, page.Next = all[:in.Limit], all[in.Limit-1].ID
			}
			return &answer[AgentList]{page}, nil
		})

	huma.Register(api, operation("get-agent", http.MethodGet, "/api/v1/agents/{id}", "One agent: its sandbox settings, and the sessions that use them"),
		func(ctx context.Context, in *AgentPath) (*answer[AgentDetail], error) {
			detail, err := s.agent(ctx, in.ID)
			if err != nil {
				return nil, s.failed(err)
			}
			return &answer[AgentDetail]{detail}, nil
		})

	huma.Register(api, operation("get-agent-sandbox", http.MethodGet, "/api/v1/agents/{id}/sandbox", "What an agent's next sandbox is made with"),
		func(ctx context.Context, in *AgentPath) (*tagged[AgentSandbox], error) {
			return s.agentSandbox(ctx, in.ID)
		})

	put := operation("put-agent-sandbox", http.MethodPut, "/api/v1/agents/{id}/sandbox", "Replace what is set for an agent's sandboxes")
	put.Description = "Needs If-Match with the ETag of what was read, or * for whatever is there. Holds for sandboxes that are made from now on."
	huma.Register(api, put, func(ctx context.Context, in *struct {
		AgentPath
		IfMatch string `header:"If-Match"`
		Body    session.Settings
	},
	) (*tagged[AgentSandbox], error) {
		revision, err := ifMatch(in.IfMatch)
		if err == nil && in.IfMatch == "" {
			err = with(http.StatusPreconditionRequired, fault.New(fault.Invalid, "it is not said what is to be replaced").WithField("If-Match").
				WithNext("send the ETag of what you have read, or * to replace whatever is there"))
		}
		if err != nil {
			return nil, err
		}
		_, err = s.Agents.SetAgent(ctx, in.ID, in.Body, revision)
		return s.changed(ctx, in.ID, in.IfMatch, err)
	})

	patch := operation("patch-agent-sandbox", http.MethodPatch, "/api/v1/agents/{id}/sandbox", "Change single settings of an agent's sandboxes")
	patch.Description = "With If-Match only if nothing was changed since; else on whatever there is. Holds for sandboxes that are made from now on."
	huma.Register(api, patch, func(ctx context.Context, in *struct {
		AgentPath
		IfMatch string `header:"If-Match"`
		Body    AgentPatch
	},
	) (*tagged[AgentSandbox], error) {
		revision, err := ifMatch(in.IfMatch)
		if err != nil {
			return nil, err
		}
		_, err = s.Agents.PatchAgent(ctx, in.ID, in.Body.Set, in.Body.Unset, revision)
		return s.changed(ctx, in.ID, in.IfMatch, err)
	})
}

// ifMatch returns the revision that a change was made from.
func ifMatch(header string) (int64, error) {
	if header == "" || header == "*" {
		return session.AnyRevision, nil
	}
	text, begins := strings.CutPrefix(header, `"`)
	text, ends := strings.CutSuffix(text, `"`)
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || !begins || !ends || n < 0 {
		return 0, problem(fault.New(fault.Invalid, "this is no ETag of an agent's settings").WithField("If-Match").
			WithNext("send the ETag as it was received, with its quotes"))
	}
	return n, nil
}

// with is a problem with an HTTP status that its code does not stand for.
func with(status int, err error) *Problem {
	p := problem(err)
	p.Status, p.Title = status, http.StatusText(status)
	return p
}

// changed answers a change: with what is there now, or why not.
func (s *server) changed(ctx context.Context, id, header string, err error) (*tagged[AgentSandbox], error) {
	switch {
	case err == nil:
		return s.agentSandbox(ctx, id)
	case fault.CodeOf(err) == fault.Conflict && header != "":
		return nil, with(http.StatusPreconditionFailed, err)
	}
	return nil, s.failed(err)
}

func (s *server) agentSandbox(ctx context.Context, id string) (*tagged[AgentSandbox], error) {
	who, err := s.meet(ctx, id)
	if err != nil {
		return nil, s.failed(err)
	}
	v, err := s.Agents.Agent(ctx, id, who.Name)
	if err != nil {
		return nil, s.failed(err)
	}
	return &tagged[AgentSandbox]{ETag: `"` + strconv.FormatInt(v.Set.Revision, 10) + `"`, Body: showSandbox(id, &v)}, nil
}

func showSandbox(id string, v *session.AgentView) AgentSandbox {
	return AgentSandbox{
		Agent: id, Revision: v.Set.Revision, ChangedAt: orNil(v.Set.ChangedAt),
		Set: v.Set.Settings, File: v.File, Effective: v.Profile, Sources: v.Sources,
	}
}

// meet finds out who an agent is, from its sessions here and from the platform.
func (s *server) meet(ctx context.Context, id string) (AgentDetail, error) {
	if err := session.CheckAgent(id); err != nil {
		return AgentDetail{}, err
	}
	out := AgentDetail{Agent: Agent{ID: id}, Users: []AgentSession{}}
	seen, err := s.Records.AgentsSeen(ctx, id)
	if err != nil {
		return AgentDetail{}, err
	}
	for i := range seen {
		out.see(&seen[i])
		out.Known = true
	}
	if s.Platform == nil {
		return out, nil
	}
	ask, cancel := context.WithTimeout(ctx, platformWithin)
	defer cancel()
	info, err := s.Platform.Agent(ask, id)
	switch {
	case err == nil:
		out.inform(&info)
		out.Known = true
	case !session.Gone(err):
		out.Warning = s.unheard(err)
	}
	return out, nil
}

// agent gathers what is known of one agent.
func (s *server) agent(ctx context.Context, id string) (AgentDetail, error) {
	out, err := s.meet(ctx, id)
	if err != nil {
		return AgentDetail{}, err
	}
	v, err := s.Agents.Agent(ctx, id, out.Name)
	if err != nil {
		return AgentDetail{}, err
	}
	out.set(&v.Set)
	out.Sandbox = showSandbox(id, &v)
	out.Known = out.Known || v.Set.Revision > 0 || slices.Contains(s.Agents.ConfiguredAgents(), id)
	users, err := s.Records.SessionsOf(ctx, id, maxUsers)
	if err != nil {
		return AgentDetail{}, err
	}
	for i := range users {
		u := AgentSession{ID: users[i].ID, Phase: users[i].Phase, Since: orNil(users[i].SandboxSince), Revision: users[i].Revision}
		if users[i].Profile != nil {
			u.Differs = users[i].Profile.Diff(&v.Profile)
		}
		out.Users = append(out.Users, u)
	}
	return out, nil
}

// allAgents gathers the agents of the sessions here, those with settings, and
// those of the platform if it can be asked.
func (s *server) allAgents(ctx context.Context) (all []Agent, warning string, err error) {
	seen, err := s.Records.AgentsSeen(ctx, "")
	if err != nil {
		return nil, "", err
	}
	set, err := s.Records.AllAgentSettings(ctx)
	if err != nil {
		return nil, "", err
	}
	known := map[string]*Agent{}
	at := func(id string) *Agent {
		if known[id] == nil {
			known[id] = &Agent{ID: id}
		}
		return known[id]
	}
	for i := range seen {
		at(seen[i].ID).see(&seen[i])
	}
	for i := range set {
		at(set[i].Agent).set(&set[i])
	}
	for _, id := range s.Agents.ConfiguredAgents() {
		at(id)
	}
	if s.Platform != nil {
		ask, cancel := context.WithTimeout(ctx, platformWithin)
		defer cancel()
		infos, err := s.Platform.Agents(ask)
		if err != nil {
			warning = s.unheard(err)
		}
		for i := range infos {
			at(infos[i].ID).inform(&infos[i])
		}
	}
	all = make([]Agent, 0, len(known))
	for _, a := range known {
		all = append(all, *a)
	}
	slices.SortFunc(all, func(a, b Agent) int { return cmp.Compare(a.ID, b.ID) })
	return all, warning, nil
}

func (s *server) unheard(err error) string {
	s.Log.Warn("agents not read from the platform", "err", err)
	return "the platform was asked for its agents and did not answer as it should; see the server's log"
}

func (a *Agent) see(seen *session.AgentSeen) {
	a.Name, a.Version, a.Model = seen.Name, seen.Version, seen.Model
	a.Sessions, a.Live, a.LastAt = seen.Sessions, seen.Live, orNil(seen.LastAt)
}

func (a *Agent) inform(info *session.AgentInfo) {
	a.Name, a.Version, a.Model, a.Archived = info.Name, info.Version, info.Model, info.Archived
}

func (a *Agent) set(set *session.AgentSettings) {
	a.Revision, a.Set = set.Revision, set.Settings.Names()
}
