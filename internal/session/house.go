package session

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
)

// This file is about the sandbox of a session: made or found when the first call
// needs it, watched while it runs, removed when it is not needed any more.

// movePlan is what startSandbox needs to know, taken on the actor's goroutine.
type movePlan struct {
	ref      *sandbox.Ref // of a sandbox that may still run
	platform Platform     // nil when a person asked between two work items
	skills   []Skill
}

// startSandbox runs beside the actor and reports SandboxUp or SandboxDown. It
// ends early with runCtx, whose end means that nobody waits for it any more.
func (a *actor) startSandbox(ctx, runCtx context.Context, plan movePlan) {
	sb, instance, adopted, err := a.bringUp(runCtx, plan)
	if err == nil {
		a.tell(ctx, message{in: SandboxUp{Instance: instance}, apply: func() { a.settleIn(ctx, sb, adopted, plan) }})
		return
	}
	why := "the run ended while the sandbox was starting"
	if runCtx.Err() == nil {
		a.log.Error("sandbox not started", "err", err)
		a.note(ctx, event.SandboxFailed, map[string]string{"why": err.Error()})
		why = "the sandbox could not be started: " + fault.Public(err).Error()
	}
	a.tell(ctx, message{in: SandboxDown{Starting: true, Why: why}, apply: func() { a.answerOpens(nil, err) }})
}

// bringUp attaches to the sandbox on record or makes a new one, and installs the
// skills into a new one before anything can run in it.
func (a *actor) bringUp(ctx context.Context, plan movePlan) (sb sandbox.Sandbox, instance string, adopted bool, err error) {
	if plan.ref != nil {
		sb, instance, err = a.reattach(ctx, *plan.ref)
		if err == nil {
			return sb, instance, true, nil
		}
		if !errors.Is(err, sandbox.ErrGone) {
			a.log.Warn("a running sandbox could not be adopted; it is replaced", "err", err)
		}
	}
	began := a.keeper.now()
	a.note(ctx, event.SandboxStarting, nil)
	sb, err = a.keeper.backend.Create(ctx, sandbox.Spec{
		ID: sandbox.ID(a.id), Session: a.id, Image: a.keeper.cfg.Image, Limits: a.keeper.cfg.Limits,
	})
	if err != nil {
		return nil, "", false, err
	}
	g, err := sb.Guest(ctx)
	if err != nil {
		_ = sb.Destroy(context.WithoutCancel(ctx), sandbox.KeepFiles) // the error that counts is the guest's
		return nil, "", false, fmt.Errorf("connect to the guest: %w", err)
	}
	if plan.platform != nil {
		a.installSkills(ctx, plan.platform, g, plan.skills)
	}
	a.log.Info("sandbox ready", "sandbox", sb.Ref().ID, "dur", a.keeper.now().Sub(began))
	return sb, g.Instance(), false, nil
}

// reattach connects to a sandbox that an earlier process left. One that runs but
// does not answer is ended, so that a new one can take its place.
func (a *actor) reattach(ctx context.Context, ref sandbox.Ref) (sandbox.Sandbox, string, error) {
	sb, err := a.keeper.backend.Attach(ctx, ref)
	if err != nil {
		return nil, "", err
	}
	connect, cancel := context.WithTimeout(ctx, guestWithin)
	defer cancel()
	g, err := sb.Guest(connect)
	if err != nil {
		return nil, "", errors.Join(fmt.Errorf("connect to the guest: %w", err), sb.Destroy(ctx, sandbox.KeepFiles))
	}
	return sb, g.Instance(), nil
}

// settleIn runs on the actor once a sandbox is up.
func (a *actor) settleIn(ctx context.Context, sb sandbox.Sandbox, adopted bool, plan movePlan) {
	now := a.keeper.now()
	ref := sb.Ref()
	a.skilled = adopted || plan.platform != nil
	if a.claim == nil && a.record.Phase == Parked {
		a.record.Phase = Warm
	}
	a.sandbox, a.record.Sandbox, a.record.Backend = sb, &ref, ref.Backend
	typ := event.SandboxReady
	if adopted {
		typ = event.SandboxAdopted
	} else {
		a.record.SandboxSince = now
	}
	a.store(ctx, Change{At: now, Session: &a.record, Events: []event.Event{event.New(now, a.id, typ, map[string]string{"sandbox": ref.ID})}})
	a.watch.Go(func() {
		exit, err := sb.Wait(ctx)
		if err != nil {
			return // leaving
		}
		a.tell(ctx, message{apply: func() { a.moveOut(ctx, sb, exit) }})
	})
	a.answerOpens(sb, nil)
}

// moveOut runs on the actor when a sandbox has ended by itself.
func (a *actor) moveOut(ctx context.Context, sb sandbox.Sandbox, exit sandbox.Exit) {
	if a.sandbox != sb {
		return // removed by us
	}
	a.log.Warn("sandbox ended by itself", "reason", exit.Reason, "code", exit.Code)
	if err := sb.Destroy(ctx, sandbox.KeepFiles); err != nil {
		a.log.Error("remains of a sandbox not removed", "err", err)
	}
	a.forgetSandbox(ctx, event.SandboxLost, exit.Reason)
	a.step(ctx, SandboxDown{Why: cmp.Or(exit.Reason, "the reason is not known")})
}

// remove ends the sandbox on purpose. It does nothing when none is on record
// and nothing was ever made.
func (a *actor) remove(ctx context.Context, how sandbox.Removal, why string) {
	sb := a.sandbox
	if sb == nil {
		if how != sandbox.Everything {
			return
		}
		if err := a.keeper.sweepOne(ctx, a.id, how); err != nil {
			a.log.Error("sandbox not removed; the sweeper tries again", "err", err)
		}
		a.forgetSandbox(ctx, event.SandboxRemoved, why)
		return
	}
	a.sandbox = nil
	if err := sb.Destroy(ctx, how); err != nil {
		a.log.Error("sandbox not removed; the sweeper tries again", "err", err)
	}
	a.forgetSandbox(ctx, event.SandboxRemoved, why)
}

func (a *actor) forgetSandbox(ctx context.Context, typ event.Type, why string) {
	now := a.keeper.now()
	a.sandbox, a.record.Sandbox, a.record.SandboxSince = nil, nil, time.Time{}
	a.state.Sandbox, a.state.Instance = SandboxNone, ""
	if a.record.Phase == Warm {
		a.record.Phase = Parked
	}
	a.store(ctx, Change{At: now, Session: &a.record, Events: []event.Event{event.New(now, a.id, typ, map[string]string{"why": why})}})
}

// open answers a person who wants into the sandbox: at once when it runs, else
// when it has been started.
func (a *actor) open(ctx context.Context, req openRequest) {
	switch {
	case a.sandbox != nil:
		req.reply <- openReply{sandbox: a.sandbox}
	case a.record.Phase == Over:
		req.reply <- openReply{err: fault.New(fault.Gone, "session %s has ended; its sandbox is gone", a.id)}
	default:
		a.waiters = append(a.waiters, req)
		a.step(ctx, SandboxWanted{})
	}
}

func (a *actor) answerOpens(sb sandbox.Sandbox, err error) {
	for _, req := range a.waiters {
		req.reply <- openReply{sandbox: sb, err: err}
	}
	a.waiters = nil
}

// equip installs skills into a sandbox that was started before a work item told
// which ones.
func (a *actor) equip(ctx context.Context) {
	if a.sandbox == nil || a.skilled || len(a.info.Skills) == 0 {
		return
	}
	a.skilled = true
	connect, cancel := context.WithTimeout(ctx, guestWithin)
	defer cancel()
	g, err := a.sandbox.Guest(connect)
	if err != nil {
		a.log.Warn("skills not installed", "err", err)
		return
	}
	a.installSkills(ctx, a.claim.platform, g, a.info.Skills)
}

// installSkills unpacks the agent's skills. One that fails is reported and the
// session continues without it (contract §6.1).
func (a *actor) installSkills(ctx context.Context, p Platform, g sandbox.Guest, skills []Skill) {
	for _, s := range skills {
		name, err := installSkill(ctx, p, g, s)
		if err != nil {
			a.log.Warn("skill not installed", "skill", s.ID, "err", err)
			a.note(ctx, event.SkillFailed, map[string]string{"skill": s.ID, "why": err.Error()})
			continue
		}
		a.note(ctx, event.SkillInstalled, map[string]string{"skill": s.ID, "name": name})
	}
}

func installSkill(ctx context.Context, p Platform, g sandbox.Guest, s Skill) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	name, archive, err := p.Skill(ctx, s)
	if err != nil {
		return "", err
	}
	defer archive.Close()
	return name, g.InstallSkill(ctx, name, io.LimitReader(archive, sandbox.MaxSkillArchive+1))
}

// note puts an event into the session's log from a helper goroutine. It is a
// report, not a state change: when it cannot be written it is dropped.
func (a *actor) note(ctx context.Context, typ event.Type, data any) {
	now := a.keeper.now()
	if err := a.keeper.records.Commit(ctx, Change{At: now, Events: []event.Event{event.New(now, a.id, typ, data)}}); err != nil {
		a.log.Warn("event not written", "type", typ, "err", err)
		return
	}
	a.keeper.bus.Publish(a.id)
}
