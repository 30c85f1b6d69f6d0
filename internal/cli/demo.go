package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berth-dev/berth/internal/app"
	"github.com/berth-dev/berth/internal/claude"
	"github.com/berth-dev/berth/internal/claude/local"
	"github.com/berth-dev/berth/internal/config"
	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/telemetry"
)

type demoCmd struct {
	Model string `help:"Let this model work instead of the script; needs ANTHROPIC_API_KEY." placeholder:"MODEL"`
	Task  string `help:"What to ask the agent for (with --model it is asked for when missing)." placeholder:"TEXT"`
	Exit  bool   `help:"End after the task instead of staying up."`
	Debug bool   `help:"Show the server's log."`
}

const (
	demoEnvironment = "env_demo"
	demoTask        = "Write a small program with a test, make the test pass, and report."
	demoSystem      = "You work in a Linux sandbox without a network. Your working directory is /workspace. Be brief."
)

// Run starts the local platform and the control plane in this process, gives a
// session a task, and shows what happens.
func (cmd *demoCmd) Run(ctx context.Context, d *deps) (err error) {
	if cmd.Model != "" {
		c, err := d.config()
		if err != nil {
			return err
		}
		if _, err := modelBrain(c, cmd.Model); err != nil {
			return err // before a person types a task
		}
	}
	task, err := cmd.task(d)
	if err != nil {
		return err
	}
	demo, err := cmd.start(ctx, d)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, demo.stop()) }()

	session, err := demo.session(ctx, task)
	if err != nil {
		return err
	}
	say := func(format string, args ...any) {
		if !d.out.json { // then the events are all there is
			d.out.line(format, args...)
		}
	}
	say("")
	ended, err := cmd.watch(ctx, d, demo, session)
	if err != nil || ctx.Err() != nil {
		return err
	}
	if demo.outcome != "end_turn" && !ended {
		return fault.New(fault.Unavailable, "the agent did not do its task: its turn ended with %q", demo.outcome).
			WithNext("the error above says why; run it again with --debug to see more")
	}
	report := demo.platform.server.Scenario(session)
	if len(report.Failures) > 0 {
		return fault.New(fault.Internal, "the demo did not go as written: %s", strings.Join(report.Failures, "; ")).
			WithNext("run it again with --debug, and see: berth doctor")
	}
	if cmd.Exit || ended {
		say("")
		say("%s", d.out.paint(green, "The session did its task."))
		return nil
	}
	if d.out.json {
		<-ctx.Done()
		return nil
	}
	return cmd.stay(ctx, d, demo, session)
}

// task is what the agent is asked for.
func (cmd *demoCmd) task(d *deps) (string, error) {
	switch {
	case cmd.Task != "":
		return cmd.Task, nil
	case cmd.Model == "":
		return demoTask, nil
	}
	fmt.Fprint(d.out.err, d.out.paint(bold, "What should the agent do? "))
	line, err := bufio.NewReader(d.stdin).ReadString('\n')
	if line = strings.TrimSpace(line); line == "" {
		return "", fault.New(fault.Invalid, "there is no task").WithField("--task").WithNext("say what the agent should do")
	}
	if err != nil && line == "" {
		return "", err
	}
	return line, nil
}

// watch prints the session's timeline until its turn is over. ended says that
// the session itself is.
func (cmd *demoCmd) watch(ctx context.Context, d *deps, demo *demo, session string) (ended bool, err error) {
	view := newTimeline(d.out)
	c := newClient("http://"+demo.app.Addr(), demo.app.Token)
	if err := demo.known(ctx, session); err != nil {
		return false, err
	}
	turnOver := false
	err = c.follow(ctx, session, demo.seen, func(e event.Event) (bool, error) {
		demo.seen = e.Seq
		if !d.out.json {
			view.show(e)
		} else if err := json.NewEncoder(d.out.out).Encode(e); err != nil {
			return false, fmt.Errorf("write an event: %w", err)
		}
		switch {
		case e.Type == event.SessionEnded:
			ended = true
			return false, nil
		case e.Type == event.ClaudePrefix+"session.status_idle":
			var p platformEvent
			if err := json.Unmarshal(e.Data, &p); err != nil {
				return false, fmt.Errorf("read an event: %w", err)
			}
			demo.outcome = p.StopReason.Type
			turnOver = demo.outcome != "requires_action"
		case e.Type == event.ClaudePrefix+"session.status_running":
			turnOver = false
		}
		// With --exit the release of the work item is part of the story.
		if cmd.Exit {
			return e.Type != event.WorkStopped && e.Type != event.WorkLost, nil
		}
		return !turnOver, nil
	})
	return ended, err
}

// stay keeps everything up, and passes on what a person types.
func (cmd *demoCmd) stay(ctx context.Context, d *deps, demo *demo, session string) error {
	self := invocation()
	env := "BERTH_DATA_DIR=" + demo.dir + " "
	if demo.app.Addr() != "127.0.0.1:7070" {
		env += "BERTH_SERVER=http://" + demo.app.Addr() + " "
	}
	d.out.line("")
	d.out.line("%s It stays up until you press ^C. In another terminal, try:", d.out.paint(green, "The session did its task."))
	d.out.line("")
	for _, c := range []string{
		"sessions list", "sessions show " + session, "sessions calls " + session, "sessions events " + session,
		"exec " + session + " -- cat /workspace/report.md", "attach " + session,
	} {
		d.out.line("  %s%s %s", d.out.paint(dim, env), self, c)
	}
	d.out.line("")
	if !isTerminal(d.stdin) {
		<-ctx.Done()
		return nil
	}
	d.out.line("Or type a message to the agent here.")
	lines := make(chan string)
	go func() { // ends with the process: a read of standard input cannot be cancelled
		defer close(lines)
		for in := bufio.NewScanner(d.stdin); in.Scan(); {
			select {
			case lines <- strings.TrimSpace(in.Text()):
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case line, more := <-lines:
			if !more {
				return nil
			}
			if line == "" {
				continue
			}
			if err := demo.admin.Send(ctx, session, line); err != nil {
				return fmt.Errorf("send the message: %w", err)
			}
			if ended, err := cmd.watch(ctx, d, demo, session); err != nil || ended {
				return err
			}
		}
	}
}

// invocation is how this program is called by hand.
func invocation() string {
	self := os.Args[0]
	if strings.Contains(self, "go-build") {
		return "go run ./cmd/berth"
	}
	return self
}

// demo is a local platform and a control plane in one process.
type demo struct {
	dir      string
	platform *runningPlatform
	app      *app.App
	admin    *claude.Admin
	ran      chan error
	cancel   context.CancelFunc
	seen     int64  // the last event that was shown
	outcome  string // how the last turn ended
}

// start brings both up on loopback, in a data directory of their own.
func (cmd *demoCmd) start(ctx context.Context, d *deps) (_ *demo, err error) {
	dm := &demo{ran: make(chan error, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, dm.stop())
		}
	}()
	if dm.dir, err = demoDir(ctx); err != nil {
		return dm, err
	}
	log := slog.New(slog.DiscardHandler)
	if cmd.Debug {
		log = telemetry.NewLogger(d.out.err, "text", slog.LevelDebug)
	}
	front, back, err := demoListeners(ctx)
	if err != nil {
		return dm, err
	}
	address := front.Addr().String()
	apiKey, envKey, hook := randomKey("sk-ant-api-local-"), randomKey("sk-ant-oat01-local-"), randomSigningKey()
	o := local.Options{
		APIKeys:         []string{apiKey},
		EnvironmentKeys: map[string]string{demoEnvironment: envKey},
		Scenario:        "demo",
		AckIdempotent:   true,
		StopRequeues:    true,
		Logger:          log,
		Webhooks:        local.WebhookOptions{Endpoints: []local.Endpoint{{URL: "http://" + address + "/webhooks", Secret: hook}}},
	}
	if cmd.Model != "" {
		c, err := d.config()
		if err != nil {
			return dm, errors.Join(err, front.Close(), back.Close())
		}
		if o.Brain, err = modelBrain(c, cmd.Model); err != nil {
			return dm, errors.Join(err, front.Close(), back.Close())
		}
	}
	dm.platform = servePlatform(back, o)

	c, err := demoConfig(dm.dir, address, dm.platform.url, envKey, hook)
	if err != nil {
		return dm, errors.Join(err, front.Close())
	}
	d.out.progress("starting the local platform and the control plane …")
	if dm.app, err = app.New(ctx, app.Options{Config: c, Version: d.program.Version, Log: log, Listener: front}); err != nil {
		return dm, err
	}
	if dm.admin, err = claude.NewAdmin(claude.AdminOptions{BaseURL: dm.platform.url, APIKey: apiKey, Logger: log}); err != nil {
		return dm, err
	}
	var runCtx context.Context
	runCtx, dm.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() { dm.ran <- dm.app.Run(runCtx) }() // awaited by stop
	return dm, nil
}

// demoListeners returns the listeners of the control plane, at its usual address
// if nobody has it, and of the platform.
func demoListeners(ctx context.Context) (front, back net.Listener, err error) {
	var lc net.ListenConfig
	if front, err = lc.Listen(ctx, "tcp", "127.0.0.1:7070"); err != nil {
		front, err = lc.Listen(ctx, "tcp", "127.0.0.1:0")
	}
	if err == nil {
		if back, err = lc.Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
			err = errors.Join(err, front.Close())
		}
	}
	if err != nil {
		return nil, nil, fault.Wrap(err, fault.Unavailable, "cannot listen on this host's loopback address")
	}
	return front, back, nil
}

const demoPrefix = "berth-demo-"

// demoDir makes a data directory, after removing those of demos that were killed.
func demoDir(ctx context.Context) (string, error) {
	base := os.TempDir()
	if len(base) > maxDemoBase {
		base = "/tmp" // sockets live below it, and their names are short
	}
	old, err := filepath.Glob(filepath.Join(base, demoPrefix+"*"))
	if err != nil {
		return "", fmt.Errorf("look for earlier demos: %w", err)
	}
	for _, dir := range old {
		app.Reclaim(ctx, dir)
	}
	dir, err := os.MkdirTemp(base, demoPrefix)
	if err != nil {
		return "", fault.Wrap(err, fault.Invalid, "no data directory can be made in %s", base).WithNext("set TMPDIR to a folder that you may write to")
	}
	return dir, nil
}

// maxDemoBase is the longest folder that a demo's data directory may be in.
const maxDemoBase = 32

// demoConfig is the configuration of the demo's control plane: defaults, and
// nothing from this host's files or environment.
func demoConfig(dir, address, platform, envKey, hook string) (config.Config, error) {
	src := config.OS()
	src.Getenv = func(name string) string {
		return map[string]string{
			"BERTH_LISTEN": address, "BERTH_DATA_DIR": dir, "ANTHROPIC_BASE_URL": platform,
			"ANTHROPIC_ENVIRONMENT_ID": demoEnvironment, "ANTHROPIC_ENVIRONMENT_KEY": envKey, "ANTHROPIC_WEBHOOK_SIGNING_KEY": hook,
		}[name]
	}
	read := src.ReadFile
	src.ReadFile = func(path string) ([]byte, error) {
		if filepath.Base(path) == "berth.yaml" {
			return nil, os.ErrNotExist
		}
		return read(path)
	}
	c, err := config.Load(src)
	if err != nil {
		return c, err
	}
	c.Sessions.ReleaseAfter = 3 * time.Second
	return c, c.Validate()
}

// session creates an agent and a session with the task.
func (dm *demo) session(ctx context.Context, task string) (string, error) {
	model := "claude-opus-5-5"
	agent, err := dm.admin.CreateAgent(ctx, claude.Agent{Name: "demo", Model: model, System: demoSystem})
	if err != nil {
		return "", fmt.Errorf("create an agent: %w", err)
	}
	id, err := dm.admin.CreateSession(ctx, claude.NewSession{Agent: agent, Environment: demoEnvironment, Title: "Demo", Message: task})
	if err != nil {
		return "", fmt.Errorf("create a session: %w", err)
	}
	return id, nil
}

// known waits until the control plane has heard of the session.
func (dm *demo) known(ctx context.Context, session string) error {
	for deadline := time.Now().Add(30 * time.Second); ; {
		_, err := dm.app.Store().Session(ctx, session)
		if err == nil || !errors.Is(err, fault.NotFound.Err()) {
			return err
		}
		if time.Now().After(deadline) {
			return fault.New(fault.Timeout, "the session was not picked up within 30 s").WithNext("run the demo with --debug to see why")
		}
		select {
		case err := <-dm.ran:
			dm.ran <- err
			return fmt.Errorf("the control plane ended: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stop ends everything and removes what the demo made.
func (dm *demo) stop() error {
	var errs []error
	if dm.cancel != nil {
		dm.cancel()
		errs = append(errs, <-dm.ran)
	}
	if dm.app != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		errs = append(errs, dm.app.Purge(ctx), dm.app.Close())
	}
	if dm.platform != nil {
		errs = append(errs, dm.platform.close())
	}
	if dm.dir != "" {
		errs = append(errs, os.RemoveAll(dm.dir))
	}
	return errors.Join(errs...)
}
