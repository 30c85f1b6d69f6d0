package session

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
)

// This file is about the sandbox of a session: made or found when the first call
// needs it, watched while it runs, removed when it is not needed any more.

// Bounds of what is done to a sandbox.
const (
	startWithin   = 5 * time.Minute
	destroyWithin = time.Minute
	pullingEvery  = 5 * time.Second // how often the progress of a pull is recorded
)

// movePlan is what startSandbox needs to know, taken on the actor's goroutine.
type movePlan struct {
	ref       *sandbox.Ref // of a sandbox that may still run
	known     bool         // it is on record, so it was set up
	adoptOnly bool         // attach, or leave it
	claim     *claim       // nil when a person asked between two work items
	visitor   Visitor      // who knows the skills; nil when nobody does
	home      string       // the environment that they belong to
	skills    []Skill
	informed  bool // skills are known
	agent     agentRef
	outfit    *outfit // what a new sandbox was made with
	memories  *memoryRun
	shares    []sandbox.Share // known without a work item
	busy      bool            // a call may be running in it
}

func (a *actor) planMove() movePlan {
	plan := movePlan{
		ref: a.record.Sandbox, known: a.record.Sandbox != nil, home: a.record.Environment, busy: a.busyInside(),
		memories: a.memories, agent: agentRef{a.record.Agent, a.record.AgentName},
	}
	if a.claim != nil {
		plan.claim, plan.visitor, plan.skills, plan.informed = a.claim, a.claim.platform, a.info.Skills, a.informed
	} else {
		plan.adoptOnly = a.adoptOnly
		plan.shares, _ = storeShares(a.info.Memories) // a work item says what is wrong with them
	}
	if a.claim == nil && !plan.adoptOnly && a.keeper.cfg.Visit != nil {
		plan.visitor = a.keeper.cfg.Visit(a.record.Environment, a.id)
	}
	a.adoptOnly = false
	return plan
}

// startSandbox runs beside the actor and reports SandboxUp or SandboxDown. It
// ends early with runCtx, whose end means that nobody waits for it any more.
func (a *actor) startSandbox(ctx, runCtx context.Context, plan movePlan) {
	sb, instance, adopted, err := a.bringUp(runCtx, &plan)
	if err == nil {
		a.tell(ctx, message{apply: func() {
			a.wear(plan.outfit)
			a.settleIn(ctx, sb, instance, adopted, plan.claim)
		}})
		return
	}
	why := "the run ended while the sandbox was starting"
	switch {
	case runCtx.Err() != nil:
	case plan.adoptOnly:
		why = "there is no sandbox to adopt"
	default:
		a.log.Error("sandbox not started", "err", err)
		a.note(ctx, event.SandboxFailed, map[string]string{"why": err.Error()})
		why = "the sandbox could not be started: " + fault.Public(err).Error()
	}
	gaveUp := runCtx.Err() == nil && !plan.adoptOnly
	a.tell(ctx, message{in: SandboxDown{Starting: true, Final: errors.Is(err, errSetup), Why: why}, apply: func() {
		if gaveUp {
			a.answerOpens(nil, err) // else they ask again: see main
		}
		if plan.adoptOnly {
			a.park(ctx, plan.known, why)
		}
	}})
}

// bringUp attaches to the sandbox on record or makes a new one, and shows it the
// skills before anything can run in it. When it ends because ctx
// did, what it found or made is left as it is, for whoever comes next.
func (a *actor) bringUp(runCtx context.Context, plan *movePlan) (sb sandbox.Sandbox, instance string, adopted bool, err error) {
	ctx, more, cancel := patient(runCtx, startWithin)
	defer cancel()
	if plan.ref != nil {
		sb, instance, err = a.reattach(ctx, *plan.ref)
		if err == nil {
			err = a.refit(runCtx, plan, sb)
		}
		if err == nil {
			err = a.reopen(ctx, plan, sb)
		}
		if err == nil {
			return sb, instance, true, nil
		}
		if runCtx.Err() != nil || plan.adoptOnly {
			return nil, "", false, err
		}
		if !errors.Is(err, sandbox.ErrGone) {
			a.log.Warn("a running sandbox could not be adopted; it is replaced", "err", err)
		}
	}
	if err = a.discard(ctx); err != nil {
		return nil, "", false, err
	}
	if plan.adoptOnly {
		return nil, "", false, sandbox.ErrGone
	}
	fit, err := a.dress(ctx, plan)
	if err != nil {
		return nil, "", false, err
	}
	began := a.keeper.now()
	a.note(ctx, event.SandboxStarting, nil)
	a.learnSkills(ctx, plan)
	sb, err = a.create(ctx, plan, sandbox.Spec{
		ID: sandbox.ID(a.id), Session: a.id, Image: fit.profile.Image, Env: fit.profile.Env, Limits: fit.profile.Limits(),
		Shares: a.skillShares(plan), Pulling: a.pulling(runCtx, more),
	})
	if err != nil {
		return nil, "", false, err
	}
	g, err := sb.Guest(ctx)
	if err != nil {
		err = fmt.Errorf("connect to the guest: %w", err)
		if runCtx.Err() == nil {
			err = errors.Join(err, destroy(runCtx, sb, sandbox.KeepFiles))
		}
		return nil, "", false, err
	}
	a.showSkills(runCtx, plan, sb)
	if err = a.setUp(runCtx, g, &fit.profile); err != nil {
		if runCtx.Err() == nil {
			err = errors.Join(err, destroy(runCtx, sb, sandbox.KeepFiles))
		}
		return nil, "", false, err
	}
	a.log.Info("sandbox ready", "sandbox", sb.Ref().ID, "dur", a.keeper.now().Sub(began))
	return sb, g.Instance(), false, nil
}

// patient returns a context that ends within some time after more was called
// last, or after now.
func patient(parent context.Context, within time.Duration) (ctx context.Context, more, cancel func()) {
	ctx, end := context.WithCancelCause(parent)
	timer := time.AfterFunc(within, func() { end(context.DeadlineExceeded) })
	return ctx, func() { timer.Reset(within) }, func() {
		timer.Stop()
		end(context.Canceled)
	}
}

// pulling returns what hears of the progress of an image that a start has to wait
// for: as long as there is progress the start may go on. How long it may take
// altogether is the backend's to bound.
func (a *actor) pulling(ctx context.Context, more func()) func(sandbox.ImageProgress) {
	var told time.Time
	return func(p sandbox.ImageProgress) {
		more()
		now := a.keeper.now()
		if told.IsZero() {
			a.note(ctx, event.ImagePulling, map[string]string{"image": p.Reference})
		} else if now.Sub(told) < pullingEvery {
			return
		}
		told = now
		a.tell(ctx, message{in: SandboxDelayed{Why: "pulling the image " + p.Reference + ": " + p.String()}})
	}
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
		err = fmt.Errorf("connect to the guest: %w", err)
		if ctx.Err() == nil {
			err = errors.Join(err, destroy(ctx, sb, sandbox.KeepFiles))
		}
		return nil, "", err
	}
	return sb, g.Instance(), nil
}

// destroy ends a sandbox within its bound, whatever happens to ctx.
func destroy(ctx context.Context, sb sandbox.Sandbox, how sandbox.Removal) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyWithin)
	defer cancel()
	return sb.Destroy(ctx, how)
}

// settleIn runs on the actor once a sandbox is up; it was started for a claim, or
// for none.
func (a *actor) settleIn(ctx context.Context, sb sandbox.Sandbox, instance string, adopted bool, starter *claim) {
	if a.record.Phase == Over { // it ended meanwhile, and nothing may be left
		if err := destroy(ctx, sb, sandbox.Everything); err != nil {
			a.log.Error("sandbox not removed; the sweep tries again", "err", err)
		}
		a.step(ctx, SandboxDown{Starting: true, Why: "the session has ended"})
		return
	}
	now := a.keeper.now()
	ref := sb.Ref()
	if a.claim == nil {
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
	life, over := context.WithCancel(ctx)
	a.watch.Go(func() { a.pulse(life, sb) })
	a.watch.Go(func() {
		defer over()
		exit, err := sb.Wait(ctx)
		if err != nil {
			return // leaving
		}
		a.tell(ctx, message{apply: func() { a.moveOut(ctx, sb, exit) }})
	})
	if starter != a.claim && !a.equip(ctx) {
		return
	}
	a.answerOpens(sb, nil)
	a.step(ctx, SandboxUp{Instance: instance})
}

// moveOut runs on the actor when a sandbox has ended by itself.
func (a *actor) moveOut(ctx context.Context, sb sandbox.Sandbox, exit sandbox.Exit) {
	if a.sandbox != sb {
		return // removed by us
	}
	a.log.Warn("sandbox ended by itself", "reason", exit.Reason, "code", exit.Code)
	if err := destroy(ctx, sb, sandbox.KeepFiles); err != nil {
		a.log.Error("remains of a sandbox not removed", "err", err)
	}
	a.forgetSandbox(ctx, event.SandboxLost, exit.Reason)
	a.step(ctx, SandboxDown{Why: cmp.Or(exit.Reason, "the reason is not known")})
}

// fence ends a sandbox in which something goes on that must not.
func (a *actor) fence(ctx context.Context, sb sandbox.Sandbox, why string) {
	if a.sandbox != sb {
		return
	}
	a.log.Warn("sandbox is replaced", "why", why)
	a.remove(ctx, sandbox.KeepFiles, why)
	a.step(ctx, SandboxDown{Why: why})
}

// remove ends the sandbox on purpose. It does nothing when none is on record
// and nothing was ever made.
func (a *actor) remove(ctx context.Context, how sandbox.Removal, why string) {
	sb := a.sandbox
	a.sandbox = nil
	var err error
	switch {
	case sb != nil:
		err = destroy(ctx, sb, how)
	case how == sandbox.Everything:
		within, cancel := context.WithTimeout(ctx, destroyWithin)
		defer cancel()
		err = a.keeper.backend.Remove(within, sandbox.Ref{ID: sandbox.ID(a.id), Backend: a.keeper.backend.Name(), Session: a.id}, how)
	default:
		return
	}
	if err != nil {
		a.log.Error("sandbox not removed; the sweep tries again", "err", err)
	}
	a.forgetSandbox(ctx, event.SandboxRemoved, why)
}

// forgetSandbox notes that none runs.
func (a *actor) forgetSandbox(ctx context.Context, typ event.Type, why string) {
	now := a.keeper.now()
	a.sandbox, a.record.Sandbox, a.record.SandboxSince = nil, nil, time.Time{}
	a.record.Profile, a.record.Revision = nil, 0
	a.state.Sandbox, a.state.Instance = SandboxNone, ""
	if a.claim == nil && a.record.Phase != Over {
		a.record.Phase = Parked
	}
	a.store(ctx, Change{At: now, Session: &a.record, Events: []event.Event{event.New(now, a.id, typ, map[string]string{"why": why})}})
}

// open answers a person who wants into the sandbox: at once when it runs, else
// when it has been started. A request without a person looks for a sandbox that
// an earlier process left.
func (a *actor) open(ctx context.Context, req openRequest) {
	switch {
	case req.reply == nil:
		a.adopt(ctx)
	case a.sandbox != nil:
		req.reply <- openReply{sandbox: a.sandbox}
	case a.record.Phase == Over || a.state.Ended != "":
		req.reply <- openReply{err: a.gone()}
	default:
		a.waiters = append(a.waiters, req)
		a.step(ctx, SandboxWanted{})
	}
}

// adopt brings the record of a session that nobody works on up to date after a
// start, and attaches to its sandbox if that still runs.
func (a *actor) adopt(ctx context.Context) {
	if a.claim != nil || a.sandbox != nil || a.state.Sandbox != SandboxNone {
		return
	}
	a.adoptOnly = true
	a.step(ctx, SandboxWanted{})
}

// park notes that a session which nobody works on has no sandbox; lost says that
// it had one.
func (a *actor) park(ctx context.Context, lost bool, why string) {
	if lost {
		a.forgetSandbox(ctx, event.SandboxLost, why)
	} else if a.claim == nil && a.record.Phase != Over {
		a.record.Phase = Parked
		a.store(ctx, Change{At: a.keeper.now(), Session: &a.record})
	}
}

func (a *actor) gone() error {
	return fault.New(fault.Gone, "session %s has ended; its sandbox is gone", a.id)
}

func (a *actor) answerOpens(sb sandbox.Sandbox, err error) {
	for _, req := range a.waiters {
		req.reply <- openReply{sandbox: sb, err: err}
	}
	a.waiters = nil
}
