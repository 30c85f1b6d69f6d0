package session

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
)

// This file is what the settings of an agent mean for a session's sandbox: what
// it is made with, how it is set up, how long it lives.

// agentRef is what a session knows of its agent; empty when the platform has not
// told yet.
type agentRef struct{ id, name string }

// outfit is what a sandbox is made with.
type outfit struct {
	agent    agentRef
	profile  Profile
	revision int64
}

const (
	defaultSetupTimeout = 5 * time.Minute
	settingsTries       = 4
)

// defaults are the settings of agents about which nobody has said anything.
func (c *Config) defaults() Profile {
	p := Profile{
		Image: c.Image, CPUs: c.Limits.CPUs, Memory: sandbox.Bytes(c.Limits.MemoryBytes), Disk: sandbox.Bytes(c.Limits.DiskBytes),
		Processes: c.Limits.Processes, OpenFiles: int64(min(c.Limits.OpenFiles, 1<<62)), Warm: sandbox.Span(c.WarmFor), Lifetime: sandbox.Span(c.Lifetime),
		ToolTimeout: sandbox.Span(c.ToolTimeout), SetupTimeout: sandbox.Span(c.SetupTimeout),
	}
	if p.SetupTimeout <= 0 {
		p.SetupTimeout = sandbox.Span(defaultSetupTimeout)
	}
	return p
}

// discard ends a sandbox that may run although it is not on record: a process
// that died made it, or could not remove it. Nothing of the session has run
// there, and nobody knows what it was made with and whether it was set up.
func (a *actor) discard(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, destroyWithin)
	defer cancel()
	ref := sandbox.Ref{ID: sandbox.ID(a.id), Backend: a.keeper.backend.Name(), Session: a.id}
	if err := a.keeper.backend.Remove(ctx, ref, sandbox.KeepFiles); err != nil {
		return fmt.Errorf("end what is left of an earlier sandbox: %w", err)
	}
	return nil
}

// dress finds out what a new sandbox is to be made with. It fails rather than
// guess: without the agent, or without its settings, no sandbox is made.
func (a *actor) dress(ctx context.Context, plan *movePlan) (*outfit, error) {
	for failures := 1; ; failures++ {
		err := a.meetAgent(ctx, plan)
		if err == nil {
			var v AgentView
			if v, err = a.keeper.Agent(ctx, plan.agent.id, plan.agent.name); err == nil {
				plan.outfit = &outfit{agent: plan.agent, profile: v.Profile, revision: v.Set.Revision}
				return plan.outfit, nil
			}
		}
		if failures >= settingsTries || fault.CodeOf(err) != fault.Internal || !Retryable(err) {
			return nil, err
		}
		a.log.Warn("settings of the agent not read", "agent", plan.agent.id, "failures", failures, "err", err)
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(Backoff{}.Wait(failures, err)):
		}
	}
}

// meetAgent asks which agent the session belongs to, unless that is known.
func (a *actor) meetAgent(ctx context.Context, plan *movePlan) error {
	if plan.agent.id != "" || plan.informed {
		return nil
	}
	if plan.visitor == nil {
		return fault.New(fault.Unavailable, "the platform has not told yet which agent session %s belongs to", a.id).
			WithNext("send the session a message, and try again")
	}
	within, cancel := context.WithTimeout(ctx, infoWithin)
	defer cancel()
	info, err := plan.visitor.Info(within)
	if err != nil {
		return fmt.Errorf("read the session's agent: %w", err)
	}
	plan.agent, plan.skills, plan.informed = agentRef{info.AgentID, info.AgentName}, info.Skills, true
	return nil
}

// wear notes what a new sandbox was made with; nil leaves that of one that runs
// since before. It is stored with the sandbox itself.
func (a *actor) wear(o *outfit) {
	if o == nil {
		return
	}
	if a.record.Agent == "" {
		a.record.Agent, a.record.AgentName = o.agent.id, o.agent.name
	}
	a.record.Profile, a.record.Revision = &o.profile, o.revision
}

// profile is what the present sandbox was made with; the server's defaults for
// one that an older version made.
func (a *actor) profile() Profile {
	if a.record.Profile != nil {
		return *a.record.Profile
	}
	return a.keeper.cfg.defaults()
}

// errSetup marks a set-up command that ran and failed: it would again.
var errSetup = errors.New("the set-up command failed")

// maxSetupOutput bounds what is told of a failed command's output, in bytes.
const maxSetupOutput = 2 << 10

// setUp runs the agent's set-up command in a new sandbox, as the agent's user,
// before anything else can run there.
func (a *actor) setUp(ctx context.Context, g sandbox.Guest, p *Profile) error {
	if p.Setup == "" {
		return nil
	}
	timeout, began := time.Duration(p.SetupTimeout), a.keeper.now()
	a.tell(ctx, message{in: SandboxDelayed{Within: timeout + callGrace, Why: "running the agent's set-up command"}})
	within, cancel := context.WithTimeout(ctx, timeout+callGrace)
	defer cancel()
	res, err := g.Exec(within, sandbox.Exec{Argv: []string{"/bin/sh", "-c", p.Setup}, Timeout: timeout})
	if ctx.Err() != nil {
		return context.Cause(ctx) // nobody waits any more; a new sandbox is set up anew
	}
	ms := a.keeper.now().Sub(began).Milliseconds()
	var why string
	switch {
	case err != nil && within.Err() == nil:
		return fmt.Errorf("run the set-up command: %w", err)
	case err != nil || res.TimedOut:
		why = "it did not end within " + p.SetupTimeout.String()
	case res.Code != 0:
		why = fmt.Sprintf("exit status %d", res.Code)
	default:
		a.note(ctx, event.SetupDone, map[string]any{"ms": ms})
		return nil
	}
	if said := lastWords(res); said != "" {
		why += "; its output ends with: " + said
	}
	a.note(ctx, event.SetupFailed, map[string]any{"why": why, "code": res.Code, "ms": ms})
	return fault.Wrap(errSetup, fault.Conflict, "the set-up command of the agent's sandbox settings failed: %s", why).
		WithField("setup").WithNext("a person can change the command with: berth agents set --setup")
}

// lastWords is the end of what a command wrote, the errors if there are any.
func lastWords(res sandbox.ExecResult) string {
	said := strings.TrimSpace(string(res.Stderr))
	if said == "" {
		said = strings.TrimSpace(string(res.Stdout))
	}
	return strings.ToValidUTF8(said[max(len(said)-maxSetupOutput, 0):], "")
}

// expires is when the present sandbox has lived its time; zero: never.
func (a *actor) expires() time.Time {
	if life := time.Duration(a.profile().Lifetime); a.sandbox != nil && life > 0 {
		return a.record.SandboxSince.Add(life)
	}
	return time.Time{}
}

// staysFor is how long the sandbox stays when nothing happens, and why it goes
// then.
func (a *actor) staysFor() (time.Duration, string) {
	warm := time.Duration(a.profile().Warm)
	if at := a.expires(); !at.IsZero() {
		if left := at.Sub(a.keeper.now()); left < warm {
			return max(left, 0), whyOld(a.profile().Lifetime)
		}
	}
	return warm, "idle"
}

func whyOld(life sandbox.Span) string { return "it has lived for " + life.String() }

// outlivesAt is when to look whether the sandbox is to be replaced. Once it has
// lived its time, the end of a call is what brings the next look.
func (a *actor) outlivesAt() time.Time {
	if at := a.expires(); at.After(a.keeper.now()) {
		return at
	}
	return time.Time{}
}

// replaceOld ends a sandbox that has lived its time, in a moment when nothing
// runs there. The next call starts another one on the same files.
func (a *actor) replaceOld(ctx context.Context) {
	at := a.expires()
	if at.IsZero() || a.keeper.now().Before(at) || len(a.calls) > 0 || len(a.waiters) > 0 || a.ending != nil {
		return
	}
	for _, c := range a.state.Calls {
		if c.State == Started {
			return // the next thing that is heard of it is another look
		}
	}
	why := whyOld(a.profile().Lifetime)
	a.remove(ctx, sandbox.KeepFiles, why)
	a.step(ctx, SandboxDown{Why: why})
}

// earlier is the first of two times; zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
