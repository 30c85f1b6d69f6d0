package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
)

// This file is about the skills of an agent (contract §6.1). Their archives are
// unpacked outside, once for all sessions; a sandbox sees those of its own
// agent, and cannot change them.

// MaxSkillArchive bounds the packed size of one skill, in bytes.
const MaxSkillArchive = 64 << 20

// SkillSource is where skills come from. Safe for concurrent use.
type SkillSource interface {
	// SkillVersion finds the version that a skill means now: one request.
	SkillVersion(ctx context.Context, s Skill) (SkillVersion, error)
	// SkillArchive opens the archive of one concrete version. The caller closes
	// it. Reading more than MaxSkillArchive bytes fails.
	SkillArchive(ctx context.Context, skill, version string) (io.ReadCloser, error)
}

// SkillVersion is one version of a skill; it never changes.
type SkillVersion struct {
	ID   string // skver_…
	Name string // a single path element
}

// SkillCache keeps skills unpacked on this host. Safe for concurrent use, but
// for one folder at a time.
type SkillCache interface {
	// Show makes dir hold the wanted skills, each in a folder of its name, and
	// nothing else. Versions that are not cached come from src; those of one
	// environment are shared by its sessions. Of two skills with one name the
	// later is shown. It returns one answer for each of wanted, in their order.
	Show(ctx context.Context, src SkillSource, environment string, wanted []Skill, dir string) []ShownSkill
}

// ShownSkill is what became of one wanted skill.
type ShownSkill struct {
	Skill   Skill
	Name    string // of its folder
	Version string
	Fresh   bool  // it was not in the folder before
	Err     error // it could not be shown
}

// Visitor is a session at the platform as one sees it who holds no work item.
type Visitor interface {
	Info(ctx context.Context) (Info, error)
	SkillSource
}

const (
	skillsPath   = "/workspace/skills"
	skillsWithin = 4 * time.Minute // for all skills of a session
)

// skillShares are the shares that skills need; they are filled when the sandbox
// is there, and again with each work item.
func (a *actor) skillShares(plan *movePlan) []sandbox.Share {
	if len(plan.skills) == 0 || a.keeper.cfg.Skills == nil || !a.keeper.backend.Features().Shares {
		return nil
	}
	return []sandbox.Share{{Path: skillsPath, ReadOnly: true}}
}

// learnSkills asks which skills the session's agents have, unless that is known.
// Without an answer a sandbox is made without them, and the session is told.
func (a *actor) learnSkills(ctx context.Context, plan *movePlan) {
	if plan.informed || plan.visitor == nil {
		return
	}
	within, cancel := context.WithTimeout(ctx, infoWithin)
	defer cancel()
	info, err := plan.visitor.Info(within)
	if err != nil {
		a.log.Warn("skills not known", "err", err)
		a.note(ctx, event.SkillFailed, map[string]string{"why": "the session could not be read: " + err.Error()})
		return
	}
	plan.skills, plan.informed = info.Skills, true
}

// showSkills brings the skills into a sandbox before anything runs there. One
// that fails is told and the session continues without it (contract §6.1); the
// next work item tries it again. It reports false when the sandbox was made
// without a place for them.
func (a *actor) showSkills(ctx context.Context, plan *movePlan, sb sandbox.Sandbox) bool {
	if !plan.informed || plan.visitor == nil {
		return true // nothing is known that could be done
	}
	dir, err := a.skillsDir(sb)
	switch {
	case errors.Is(err, sandbox.ErrUnknownShare):
		return len(plan.skills) == 0
	case err != nil && len(plan.skills) > 0:
		a.log.Warn("skills not shown", "err", err)
		for _, s := range plan.skills {
			a.note(ctx, event.SkillFailed, map[string]string{"skill": s.ID, "why": err.Error()})
		}
		return true
	case err != nil:
		return true
	}
	within, cancel := context.WithTimeoutCause(ctx, skillsWithin, fmt.Errorf("the skills were not there within %s", skillsWithin))
	defer cancel()
	for _, s := range a.keeper.cfg.Skills.Show(within, plan.visitor, plan.home, plan.skills, dir) {
		switch {
		case s.Err != nil:
			a.log.Warn("skill not shown", "skill", s.Skill.ID, "err", s.Err)
			a.note(ctx, event.SkillFailed, map[string]string{"skill": s.Skill.ID, "why": s.Err.Error()})
		case s.Fresh:
			a.note(ctx, event.SkillInstalled, map[string]string{"skill": s.Skill.ID, "name": s.Name, "version": s.Version})
		}
	}
	return true
}

// skillsDir is the host's side of a sandbox's skills.
func (a *actor) skillsDir(sb sandbox.Sandbox) (string, error) {
	sharer, ok := sb.(sandbox.Sharer)
	if !ok || a.keeper.cfg.Skills == nil || !a.keeper.backend.Features().Shares {
		return "", fault.New(fault.Unsupported, "this kind of sandbox shows no skills")
	}
	dir, err := sharer.Shared(skillsPath)
	return dir.Dir, err
}

// errNoPlace is why a sandbox is replaced that was made when the session had no
// skills, or before it was known that it has.
var errNoPlace = errors.New("it was made before the session had skills")

const noPlaceBusy = "calls run in a sandbox that was made before the session had skills: it shows none until it is started again"

// refit shows the skills to a sandbox that an earlier process started. One that
// has no place for them is ended, so that another one is made on the same files,
// unless calls run in it.
func (a *actor) refit(ctx context.Context, plan *movePlan, sb sandbox.Sandbox) error {
	a.learnSkills(ctx, plan)
	if a.showSkills(ctx, plan, sb) {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if plan.busy {
		a.note(ctx, event.Warning, map[string]string{"text": noPlaceBusy})
		return nil
	}
	return errors.Join(errNoPlace, destroy(ctx, sb, sandbox.KeepFiles))
}

// equip runs on the actor and shows the skills of the run's agents to a sandbox
// that was not started for this run. It reports false when it had to end it.
func (a *actor) equip(ctx context.Context) bool {
	if a.sandbox == nil || a.claim == nil || !a.informed {
		return true
	}
	plan := a.planMove()
	if a.showSkills(a.runCtx, &plan, a.sandbox) || a.runCtx.Err() != nil {
		return true
	}
	if plan.busy {
		a.warn(ctx, noPlaceBusy)
		return true
	}
	a.remove(ctx, sandbox.KeepFiles, errNoPlace.Error())
	a.step(ctx, SandboxDown{Why: errNoPlace.Error()})
	if len(a.waiters) > 0 {
		a.step(ctx, SandboxWanted{})
	}
	return false
}

// busyInside reports whether a call may be running in the sandbox on record.
func (a *actor) busyInside() bool {
	for _, c := range a.state.Calls {
		if c.State == Started {
			return true
		}
	}
	return false
}
