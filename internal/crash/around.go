package crash

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/berth-dev/berth/internal/intake"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/tool"
)

// This file stands around what a session asks. What is not decorated passes.

// Queue returns q with its steps, and with those of the platforms that it opens.
func (d *Driver) Queue(q intake.Queue) intake.Queue {
	if d == nil {
		return q
	}
	return queue{q, d}
}

type queue struct {
	intake.Queue
	d *Driver
}

// errNothing is a poll that found nothing: it is not a step that was taken.
var errNothing = errors.New("nothing found")

func (q queue) Poll(ctx context.Context, block time.Duration) (item *session.Item, err error) {
	_ = q.d.pass(func() error {
		if item, err = q.Queue.Poll(ctx, block); err == nil && item == nil {
			return errNothing
		}
		return err
	}, "queue.Poll")
	return item, err
}

func (q queue) Ack(ctx context.Context, work string) error {
	return q.d.pass(func() error { return q.Queue.Ack(ctx, work) }, "queue.Ack")
}

func (q queue) ForceStop(ctx context.Context, work string) error {
	return q.d.pass(func() error { return q.Queue.ForceStop(ctx, work) }, "queue.ForceStop")
}

func (q queue) Platform(item session.Item) session.Platform {
	return q.d.Platform(q.Queue.Platform(item))
}

// Platform returns p with its steps.
func (d *Driver) Platform(p session.Platform) session.Platform {
	if d == nil {
		return p
	}
	return platform{p, d}
}

type platform struct {
	session.Platform
	d *Driver
}

func (p platform) Info(ctx context.Context) (info session.Info, err error) {
	err = p.d.pass(func() (err error) { info, err = p.Platform.Info(ctx); return err }, "platform.Info")
	return info, err
}

func (p platform) Stream(ctx context.Context) (s session.Stream, err error) {
	err = p.d.pass(func() (err error) { s, err = p.Platform.Stream(ctx); return err }, "platform.Stream")
	return s, err
}

func (p platform) History(ctx context.Context, since time.Time, yield func([]session.Event) error) error {
	return p.d.pass(func() error { return p.Platform.History(ctx, since, yield) }, "platform.History")
}

func (p platform) Answer(ctx context.Context, answers ...session.Answer) error {
	return p.d.pass(func() error { return p.Platform.Answer(ctx, answers...) }, "platform.Answer")
}

func (p platform) Heartbeat(ctx context.Context, expected string, timeout time.Duration) (b session.Beat, err error) {
	err = p.d.pass(func() (err error) { b, err = p.Platform.Heartbeat(ctx, expected, timeout); return err }, "platform.Heartbeat")
	return b, err
}

func (p platform) Stop(ctx context.Context, force bool) error {
	return p.d.pass(func() error { return p.Platform.Stop(ctx, force) }, "platform.Stop")
}

func (p platform) SkillVersion(ctx context.Context, s session.Skill) (v session.SkillVersion, err error) {
	err = p.d.pass(func() (err error) { v, err = p.Platform.SkillVersion(ctx, s); return err }, "platform.SkillVersion")
	return v, err
}

func (p platform) SkillArchive(ctx context.Context, skill, version string) (archive io.ReadCloser, err error) {
	err = p.d.pass(func() (err error) { archive, err = p.Platform.SkillArchive(ctx, skill, version); return err }, "platform.SkillArchive")
	return archive, err
}

// Records returns r with its steps.
func (d *Driver) Records(r session.Records) session.Records {
	if d == nil {
		return r
	}
	return records{r, d}
}

type records struct {
	session.Records
	d *Driver
}

func (r records) Commit(ctx context.Context, c session.Change) error {
	return r.d.pass(func() error { return r.Records.Commit(ctx, c) }, carried(c)...)
}

// carried names a commit by what it carries.
func carried(c session.Change) []string {
	names := []string{commit}
	if c.Work != nil && c.Work.State == session.WorkHeld {
		names = append(names, commit+".beat")
	}
	for i := range c.Events {
		names = append(names, commit+"."+string(c.Events[i].Type))
	}
	return names
}

func (r records) LoadSession(ctx context.Context, id string) (rec session.Record, calls []session.Call, err error) {
	err = r.d.pass(func() (err error) { rec, calls, err = r.Records.LoadSession(ctx, id); return err }, "records.LoadSession")
	return rec, calls, err
}

func (r records) OpenWork(ctx context.Context) (work []session.Work, err error) {
	err = r.d.pass(func() (err error) { work, err = r.Records.OpenWork(ctx); return err }, "records.OpenWork")
	return work, err
}

func (r records) LiveSessions(ctx context.Context) (live []session.Record, err error) {
	err = r.d.pass(func() (err error) { live, err = r.Records.LiveSessions(ctx); return err }, "records.LiveSessions")
	return live, err
}

// Backend returns b with its steps and those of its sandboxes and guests. It has
// none of the optional powers of b.
func (d *Driver) Backend(b sandbox.Backend) sandbox.Backend {
	if d == nil {
		return b
	}
	return backend{b, d}
}

type backend struct {
	sandbox.Backend
	d *Driver
}

func (b backend) Create(ctx context.Context, s sandbox.Spec) (sb sandbox.Sandbox, err error) {
	err = b.d.pass(func() (err error) { sb, err = b.Backend.Create(ctx, s); return err }, "backend.Create")
	return b.around(sb), err
}

func (b backend) Attach(ctx context.Context, ref sandbox.Ref) (sb sandbox.Sandbox, err error) {
	err = b.d.pass(func() (err error) { sb, err = b.Backend.Attach(ctx, ref); return err }, "backend.Attach")
	return b.around(sb), err
}

func (b backend) List(ctx context.Context) (refs []sandbox.Ref, err error) {
	err = b.d.pass(func() (err error) { refs, err = b.Backend.List(ctx); return err }, "backend.List")
	return refs, err
}

func (b backend) Remove(ctx context.Context, ref sandbox.Ref, how sandbox.Removal) error {
	return b.d.pass(func() error { return b.Backend.Remove(ctx, ref, how) }, "backend.Remove")
}

// around returns a value that is equal for equal sandboxes.
func (b backend) around(sb sandbox.Sandbox) sandbox.Sandbox {
	if sb == nil {
		return nil
	}
	if sharer, ok := sb.(sandbox.Sharer); ok {
		return sharingBox{box{sb, b.d}, sharer}
	}
	return box{sb, b.d}
}

// sharingBox keeps the optional power of a sandbox.
type sharingBox struct {
	box
	sandbox.Sharer
}

type box struct {
	sandbox.Sandbox
	d *Driver
}

func (b box) Guest(ctx context.Context) (sandbox.Guest, error) {
	var g sandbox.Guest
	err := b.d.pass(func() (err error) { g, err = b.Sandbox.Guest(ctx); return err }, "sandbox.Guest")
	if err != nil {
		return nil, err
	}
	return guest{g, b.d}, nil
}

func (b box) Destroy(ctx context.Context, how sandbox.Removal) error {
	return b.d.pass(func() error { return b.Sandbox.Destroy(ctx, how) }, "sandbox.Destroy")
}

type guest struct {
	sandbox.Guest
	d *Driver
}

func (g guest) Call(ctx context.Context, c tool.Call) (r tool.Result, err error) {
	err = g.d.pass(func() (err error) { r, err = g.Guest.Call(ctx, c); return err }, "guest.Call")
	return r, err
}

func (g guest) Recall(ctx context.Context, id string) (r tool.Result, err error) {
	err = g.d.pass(func() (err error) { r, err = g.Guest.Recall(ctx, id); return err }, "guest.Recall")
	return r, err
}

func (g guest) Cancel(ctx context.Context, id string) error {
	return g.d.pass(func() error { return g.Guest.Cancel(ctx, id) }, "guest.Cancel")
}

func (g guest) Acknowledge(ctx context.Context, ids ...string) error {
	return g.d.pass(func() error { return g.Guest.Acknowledge(ctx, ids...) }, "guest.Acknowledge")
}

func (g guest) Exec(ctx context.Context, e sandbox.Exec) (r sandbox.ExecResult, err error) {
	err = g.d.pass(func() (err error) { r, err = g.Guest.Exec(ctx, e); return err }, "guest.Exec")
	return r, err
}
