package session

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
)

// AgentInfo is an agent as the platform tells of it.
type AgentInfo struct {
	ID       string
	Name     string
	Version  int64
	Model    string
	Archived bool
}

// AgentSeen is what the sessions here tell of their agent.
type AgentSeen struct {
	ID       string
	Name     string // as of the session that changed last
	Version  int64
	Model    string
	Sessions int
	Live     int // not over
	LastAt   time.Time
}

// AgentView is what an agent's next sandbox would be made with, and why.
type AgentView struct {
	Set     AgentSettings     // through the API
	File    Settings          // in the server's configuration
	Profile Profile           // what the two and the server's defaults come to
	Sources map[string]Source // of each setting and env.NAME
}

// ConfiguredAgents returns the ids that the server's configuration has settings
// for.
func (k *Keeper) ConfiguredAgents() []string {
	var ids []string
	for _, f := range k.cfg.Agents {
		if f.ID != "" {
			ids = append(ids, f.ID)
		}
	}
	return ids
}

// Agent returns what the next sandbox of an agent is made with. The name, if
// known, finds settings that the configuration gives by name. fault.Invalid when
// the settings are not usable, which only a change of the server's own
// configuration can bring about.
func (k *Keeper) Agent(ctx context.Context, id, name string) (AgentView, error) {
	set := AgentSettings{Agent: id}
	if id != "" {
		var err error
		if set, err = k.records.AgentSettings(ctx, id); err != nil {
			return AgentView{}, fmt.Errorf("read the settings of %s: %w", id, err)
		}
	}
	v := AgentView{Set: set, File: FileSettings(k.cfg.Agents, id, name)}
	v.Profile, v.Sources = Resolve(k.cfg.defaults(), v.File, set.Settings)
	for _, layer := range []Settings{v.File, set.Settings} {
		if err := k.check(&layer); err != nil {
			return AgentView{}, fmt.Errorf("settings of %s: %w", id, err)
		}
	}
	return v, nil
}

// check holds settings against their bounds and what the backend takes.
func (k *Keeper) check(s *Settings) error {
	if err := s.Check(k.cfg.Secret); err != nil {
		return err
	}
	if c, ok := k.backend.(sandbox.ImageChecker); ok && s.Image != nil {
		if err := c.CheckImage(*s.Image); err != nil {
			return err
		}
	}
	return nil
}

// AnyRevision stands for whatever revision there is.
const AnyRevision = -1

// SetAgent replaces what is set for an agent's sandboxes, if its revision is
// still the one that the caller has read: else fault.Conflict. It holds for
// sandboxes that are made from now on.
func (k *Keeper) SetAgent(ctx context.Context, id string, s Settings, revision int64) (AgentSettings, error) {
	return k.edit(ctx, id, revision, func(*Settings) (Settings, error) { return s, nil })
}

// PatchAgent changes single settings of an agent and leaves the others: see
// Settings.With, and SetAgent for the rest.
func (k *Keeper) PatchAgent(ctx context.Context, id string, set Settings, unset []string, revision int64) (AgentSettings, error) {
	return k.edit(ctx, id, revision, func(old *Settings) (Settings, error) { return old.With(set, unset) })
}

// editTries bounds how often a change is made anew because somebody else was
// faster.
const editTries = 8

func (k *Keeper) edit(ctx context.Context, id string, revision int64, next func(*Settings) (Settings, error)) (AgentSettings, error) {
	if err := CheckAgent(id); err != nil {
		return AgentSettings{}, err
	}
	for try := 1; ; try++ {
		old, err := k.records.AgentSettings(ctx, id)
		if err != nil {
			return AgentSettings{}, fmt.Errorf("read the settings of %s: %w", id, err)
		}
		if revision != AnyRevision && old.Revision != revision {
			return AgentSettings{}, stale(id)
		}
		s, err := next(&old.Settings)
		if err != nil {
			return AgentSettings{}, err
		}
		done, err := k.change(ctx, old, s)
		if revision != AnyRevision || try == editTries || !errors.Is(err, ErrStale) {
			return done, err
		}
	}
}

func stale(id string) error {
	return fault.Wrap(ErrStale, fault.Conflict, "somebody else has changed the settings of %s meanwhile", id).
		WithNext("read them again, and repeat your change on what they are now")
}

// change checks and stores new settings with their events. Nothing is written
// when nothing changes.
func (k *Keeper) change(ctx context.Context, old AgentSettings, s Settings) (AgentSettings, error) {
	if err := k.check(&s); err != nil {
		return AgentSettings{}, err
	}
	changed := old.Settings.changed(&s)
	if len(changed) == 0 {
		return old, nil
	}
	now := k.now().UTC()
	next := AgentSettings{Agent: old.Agent, Settings: s, Revision: old.Revision + 1, ChangedAt: now}
	live, err := k.records.LiveSessions(ctx)
	if err != nil {
		return AgentSettings{}, fmt.Errorf("load sessions: %w", err)
	}
	// Values of variables and commands stay out of the log: it is read by more
	// people than the settings.
	logged := s
	logged.Env, logged.Setup = nil, nil
	data := map[string]any{"agent": next.Agent, "revision": next.Revision, "changed": changed, "settings": logged}
	c := Change{At: now, Agent: &next, Events: []event.Event{event.New(now, "", event.AgentChanged, data)}}
	var told []string
	for i := range live {
		if live[i].Agent == next.Agent {
			told = append(told, live[i].ID)
			c.Events = append(c.Events, event.New(now, live[i].ID, event.AgentChanged, map[string]any{
				"agent": next.Agent, "revision": next.Revision, "changed": changed, "running": live[i].Sandbox != nil,
			}))
		}
	}
	if err := k.commit(ctx, c); errors.Is(err, ErrStale) {
		return AgentSettings{}, stale(next.Agent)
	} else if err != nil {
		return AgentSettings{}, fmt.Errorf("store the settings of %s: %w", next.Agent, err)
	}
	k.log.Info("settings of an agent changed", "agent", next.Agent, "revision", next.Revision, "changed", changed)
	for _, id := range told {
		k.bus.Publish(id)
	}
	return next, nil
}
