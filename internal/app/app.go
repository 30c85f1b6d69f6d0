// Package app wires Berth together, by hand and in one place: it is the only
// package that knows every room.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/berth-dev/berth/internal/access"
	"github.com/berth-dev/berth/internal/api"
	"github.com/berth-dev/berth/internal/claude"
	"github.com/berth-dev/berth/internal/config"
	"github.com/berth-dev/berth/internal/crash"
	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/intake"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/skill"
	"github.com/berth-dev/berth/internal/store"
	"github.com/berth-dev/berth/internal/telemetry"
	"github.com/berth-dev/berth/internal/vault"
)

// Options are what an App needs beside its configuration.
type Options struct {
	Config  config.Config
	Version string
	Log     *slog.Logger
	// Listener is served instead of the configured address when it is not nil;
	// the App closes it.
	Listener net.Listener
	// Backend replaces the configured sandbox backend, for tests.
	Backend sandbox.Backend
}

// App is a control plane: made by New, run once by Run, ended by Close.
type App struct {
	cfg      config.Config
	log      *slog.Logger
	store    *store.Store
	backend  sandbox.Backend
	crash    *crash.Driver // nil but in tests
	bus      *event.Bus
	keeper   *session.Keeper
	skills   *skill.Cache
	queues   map[string]*claude.Queue // by environment
	pollers  []*intake.Poller
	metrics  *telemetry.Metrics
	listener net.Listener
	server   *http.Server
	closing  chan struct{} // closed when long answers have to end
	Token    string        // of the API
}

// New opens the data directory, the listener and the sandbox backend. On error
// nothing stays open.
func New(ctx context.Context, o Options) (*App, error) {
	a := &App{cfg: o.Config, log: o.Log, listener: o.Listener, bus: &event.Bus{}, queues: map[string]*claude.Queue{}, closing: make(chan struct{})}
	if err := a.open(ctx, o); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

// open opens everything in order; what it has opened when it fails is closed by
// Close.
func (a *App) open(ctx context.Context, o Options) (err error) {
	if a.crash, err = crash.Parse(o.Config.CrashAt, o.Log); err != nil {
		return err
	}
	if a.store, err = store.Open(ctx, o.Config.DataDir); err != nil {
		return err
	}
	seal, err := vault.Open(o.Config.DataDir)
	if err != nil {
		return err
	}
	if a.Token = o.Config.Access.Token.Reveal(); a.Token == "" {
		if a.Token, err = access.LoadToken(o.Config.DataDir); err != nil {
			return err
		}
	}
	if a.listener == nil {
		if a.listener, err = listen(ctx, o.Config.Listen); err != nil {
			return err
		}
	}
	if a.backend = o.Backend; a.backend == nil {
		if a.backend, err = newBackend(o.Config, o.Log); err != nil {
			return err
		}
	}
	a.skills, err = skill.Open(skill.Config{
		Dir: filepath.Join(o.Config.DataDir, "skills"), Keep: o.Config.Skills.Keep, Size: int64(o.Config.Skills.Size), Logger: o.Log,
	})
	if err != nil {
		return err
	}
	settings := keeperConfig(o.Config, a.Token)
	settings.Skills, settings.Visit = a.skills, a.visit
	a.keeper = session.NewKeeper(settings, a.crash.Backend(a.backend), a.crash.Records(a.store), seal, a.bus, o.Log)
	if err := a.openQueues(); err != nil {
		return err
	}
	workspace, err := openWorkspace(o.Config, o.Log)
	if err != nil {
		return err
	}
	a.metrics = telemetry.NewMetrics(o.Version, a.gauges()...)
	a.metrics.Add(a.waits()...)
	a.server = &http.Server{
		Handler: api.New(api.Deps{
			Records: a.store, Rooms: a.keeper, Agents: a.keeper, Platform: workspace, Bus: a.bus, Guard: access.NewGuard(a.Token), Pollers: a.pollerStatus,
			Images: imagesOf(a.backend), Webhooks: a.receiver(), Metrics: a.metrics.Handler(), Version: o.Version, Capacity: o.Config.Sessions.Capacity, Log: o.Log,
		}, a.closing),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       2 * time.Minute,
		WriteTimeout:      2 * time.Hour, // exec may run for an hour; streams lift it
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
	}
	return nil
}

// Addr is the address that the server listens on.
func (a *App) Addr() string { return a.listener.Addr().String() }

// Keeper gives access to the sessions of this process.
func (a *App) Keeper() *session.Keeper { return a.keeper }

// Store gives access to the records.
func (a *App) Store() *store.Store { return a.store }

func listen(ctx context.Context, address string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fault.Wrap(err, fault.Conflict, "another program listens on %s", address).WithField("listen").
			WithNext("stop it, or set BERTH_LISTEN to another address such as 127.0.0.1:7071")
	}
	return nil, fault.Wrap(err, fault.Invalid, "cannot listen on %s", address).WithField("listen").
		WithNext("set BERTH_LISTEN to an address of this host, for example 127.0.0.1:7070")
}

func keeperConfig(c config.Config, token string) session.Config {
	return session.Config{
		Capacity:     c.Sessions.Capacity,
		ReleaseAfter: c.Sessions.ReleaseAfter,
		WarmFor:      c.Sandbox.Warm,
		ToolTimeout:  c.Sessions.ToolTimeout,
		ReadEvery:    c.Sessions.ReadEvery,
		MemorySync:   c.Sessions.MemorySync,
		Image:        c.Sandbox.Image,
		Limits:       c.Sandbox.Limits.Sandbox(),
		Lifetime:     c.Sandbox.Lifetime,
		SetupTimeout: c.Sandbox.SetupTimeout,
		Agents:       c.AgentFiles(),
		Secret:       func(text string) bool { return strings.Contains(text, token) || c.Secret(text) },
	}
}

func (a *App) openQueues() error {
	for _, env := range a.cfg.Environments {
		q, err := claude.NewQueue(claude.Options{
			BaseURL: env.BaseURL, EnvironmentID: env.ID, EnvironmentKey: env.Key.Reveal(), Logger: a.log,
		})
		if err != nil {
			return fault.Wrap(err, fault.Invalid, "environment %s cannot be used", env.ID).WithField("environments")
		}
		a.queues[env.ID] = q
		a.pollers = append(a.pollers, intake.NewPoller(a.crash.Queue(q), a.keeper, a.log))
	}
	return nil
}

// openWorkspace returns the door for which an API key is needed, nil without one.
func openWorkspace(c config.Config, log *slog.Logger) (api.Workspace, error) {
	key := c.APIKey.Reveal()
	if key == "" {
		return nil, nil
	}
	admin, err := claude.NewAdmin(claude.AdminOptions{BaseURL: c.BaseURL, APIKey: key, Logger: log})
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "the API key cannot be used").WithField("api_key")
	}
	return admin, nil
}

// Run serves until ctx ends or something essential breaks. Sandboxes and leases
// are left to the next process.
func (a *App) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := a.keeper.Adopt(ctx, a.door); err != nil {
		return err
	}
	var work sync.WaitGroup
	work.Go(func() { a.count(ctx) })
	work.Go(func() { a.housekeeping(ctx) })
	work.Go(func() { a.collectImages(ctx) })
	if pool, ok := a.backend.(sandbox.Pool); ok {
		work.Go(func() { pool.Fill(ctx) })
	}
	for _, p := range a.pollers {
		work.Go(func() { p.Run(ctx) })
	}
	work.Go(func() {
		if err := a.server.Serve(a.listener); !errors.Is(err, http.ErrServerClosed) {
			cancel(fmt.Errorf("serve: %w", err))
		}
	})
	a.log.Info("serving", "listen", a.Addr(), "environments", len(a.pollers), "backend", a.backend.Name(), "capacity", a.cfg.Sessions.Capacity)
	select {
	case <-ctx.Done():
	case <-a.keeper.Done():
		cancel(a.keeper.Err())
	}
	a.log.Info("leaving; sandboxes stay for the next start")
	close(a.closing)
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer done()
	if a.server.Shutdown(stop) != nil {
		a.server.Close()
	}
	cancel(nil)
	err := a.keeper.Close()
	work.Wait()
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// Close gives back everything that New opened. It may be called at any time, and
// more than once.
func (a *App) Close() error {
	var errs []error
	if a.keeper != nil {
		errs = append(errs, a.keeper.Close())
	}
	if a.listener != nil {
		if err := a.listener.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if a.skills != nil {
		errs = append(errs, a.skills.Close())
		a.skills = nil
	}
	if a.backend != nil {
		errs = append(errs, a.backend.Close())
		a.backend = nil
	}
	if a.store != nil {
		errs = append(errs, a.store.Close())
		a.store = nil
	}
	return errors.Join(errs...)
}

// door opens the platform for an item of a configured environment.
func (a *App) door(item session.Item) session.Platform {
	q := a.queues[item.Environment]
	if q == nil {
		return nil
	}
	return a.crash.Platform(q.Platform(item))
}

// visit opens a session of a configured environment that nobody works on.
func (a *App) visit(environment, id string) session.Visitor {
	q := a.queues[environment]
	if q == nil {
		return nil
	}
	return q.Session(id)
}

func (a *App) pollerStatus() []intake.Status {
	out := make([]intake.Status, 0, len(a.pollers))
	for _, p := range a.pollers {
		out = append(out, p.Status())
	}
	return out
}

// receiver is the webhook endpoint; any environment's signing key is accepted.
func (a *App) receiver() *intake.Receiver {
	keys := a.cfg.WebhookSecrets()
	rc := &intake.Receiver{
		Log: a.log, Now: time.Now,
		Store: func(ctx context.Context, d intake.Delivery, at time.Time) (bool, error) {
			return a.store.AddWebhook(ctx, store.Webhook{ID: d.ID, Type: d.Type, Session: d.Session, ReceivedAt: at, Body: d.Body})
		},
		Ring: func() {
			for _, p := range a.pollers {
				p.Ring()
			}
		},
		Ended: func(id, how string) {
			if _, err := a.store.Session(context.Background(), id); err != nil {
				return // not ours
			}
			if err := a.keeper.End(context.Background(), id, how); err != nil {
				a.log.Warn("end of a session not noted; the sweep will find it", "session", id, "err", err)
			}
		},
	}
	if len(keys) > 0 {
		rc.Verify = func(h http.Header, body []byte, now time.Time) (intake.Delivery, error) {
			w, err := claude.VerifyWebhook(keys, h, body, now)
			return intake.Delivery{ID: w.ID, Type: w.Type, Session: w.SessionID, Body: body}, err
		}
	}
	return rc
}

func (a *App) gauges() []telemetry.Gauge {
	return []telemetry.Gauge{
		{Name: "capacity", Help: "Work items that may be held at once.", Read: func() float64 { return float64(a.cfg.Sessions.Capacity) }},
		{Name: "capacity_free", Help: "Work items that may still be claimed.", Read: func() float64 { return float64(a.keeper.Free()) }},
		{Name: "sessions_stalled", Help: "Sessions whose changes cannot be recorded.", Read: func() float64 { return float64(a.keeper.StalledCount()) }},
		{Name: "sessions_overdue", Help: "Sessions that should have got further by themselves by now. Stays 0.", Read: func() float64 {
			_, overdue := a.keeper.Waits()
			return float64(overdue)
		}},
		{Name: "pollers_failing", Help: "Environments whose last poll failed.", Read: func() float64 {
			n := 0.0
			for _, p := range a.pollers {
				if p.Status().Failures > 0 {
					n++
				}
			}
			return n
		}},
	}
}

// waits are the gauges of what sessions wait for.
func (a *App) waits() []telemetry.GaugeSet {
	read := func(value func(session.Wait) float64) func() map[string]float64 {
		return func() map[string]float64 {
			out := map[string]float64{}
			waits, _ := a.keeper.Waits()
			for what, w := range waits {
				out[string(what)] = value(w)
			}
			return out
		}
	}
	return []telemetry.GaugeSet{
		{
			Name: "sessions_waiting", Label: "for", Help: "Sessions of this process, by what they wait for.",
			Read: read(func(w session.Wait) float64 { return float64(w.Sessions) }),
		},
		{
			Name: "sessions_waiting_seconds", Label: "for", Help: "How long the session that has waited longest has waited, by what for.",
			Read: read(func(w session.Wait) float64 { return time.Since(w.Oldest).Seconds() }),
		},
	}
}

// count feeds the metrics from the event log.
func (a *App) count(ctx context.Context) {
	wake, cancel := a.bus.Subscribe("")
	defer cancel()
	seq, err := a.store.LastEvent(ctx)
	if err != nil {
		a.log.Error("metrics not counted", "err", err)
		return
	}
	for {
		events, err := a.store.Events(ctx, "", seq, 500)
		if err != nil && ctx.Err() == nil {
			a.log.Warn("events not read", "err", err)
		}
		for _, e := range events {
			a.metrics.Observe(e)
			seq = e.Seq
		}
		if len(events) == 500 {
			continue
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return
		}
	}
}

const copyEvery = time.Hour // of the database

const keepWebhooks = 14 * 24 * time.Hour // of received deliveries

// housekeeping finds sessions that ended while nobody worked on them, forgets
// old deliveries, and keeps a copy of the database.
func (a *App) housekeeping(ctx context.Context) {
	tick := time.NewTicker(a.cfg.Sessions.SweepEvery)
	defer tick.Stop()
	for {
		a.lookAtParked(ctx)
		if err := a.keeper.Sweep(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("left-over sandboxes not removed", "err", err)
		}
		if err := a.skills.Sweep(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("old skills not removed", "err", err)
		}
		if err := a.store.PruneWebhooks(ctx, time.Now().Add(-keepWebhooks)); err != nil && ctx.Err() == nil {
			a.log.Warn("old webhooks not removed", "err", err)
		}
		if err := a.store.Copy(ctx, copyEvery); err != nil && ctx.Err() == nil {
			a.log.Warn("no copy of the database", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// lookAtParked asks the platform about sessions without a work item: those that
// are over there are ended here.
func (a *App) lookAtParked(ctx context.Context) {
	live, err := a.store.LiveSessions(ctx)
	if err != nil {
		return // housekeeping comes again
	}
	for _, rec := range live {
		q := a.queues[rec.Environment]
		if rec.Phase == session.Active || q == nil || ctx.Err() != nil {
			continue
		}
		ask, cancel := context.WithTimeout(ctx, 15*time.Second)
		info, err := q.Session(rec.ID).Info(ask)
		cancel()
		var how string
		switch {
		case session.Gone(err):
			how = "deleted"
		case err != nil:
			continue
		case info.Archived:
			how = "archived"
		case info.Status == "terminated":
			how = "terminated"
		default:
			continue
		}
		if err := a.keeper.End(ctx, rec.ID, how); err != nil {
			a.log.Warn("session not ended", "session", rec.ID, "err", err)
		}
	}
}
