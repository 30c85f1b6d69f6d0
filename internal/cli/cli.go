// Package cli is the command line: one file per command. Commands that look at a
// server speak to its API, so that they work the same from another host.
//
// Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 not found,
// 4 refused; exec and attach pass on the status of what they ran.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/berth-dev/berth/internal/access"
	"github.com/berth-dev/berth/internal/config"
	"github.com/berth-dev/berth/internal/fault"
)

// grammar is the whole command line.
type grammar struct {
	Config string `help:"Configuration file (default: $BERTH_CONFIG, ./berth.yaml, /etc/berth/berth.yaml)." type:"path" placeholder:"FILE"`
	Server string `help:"Server to talk to (default: $BERTH_SERVER, or the configured listen address)." placeholder:"URL"`
	JSON   bool   `help:"Write JSON for programs."`

	Serve       serveCmd       `cmd:"" help:"Run the control plane."`
	Demo        demoCmd        `cmd:"" help:"Watch a session work, without any account."`
	Platform    platformCmd    `cmd:"" help:"Run the local stand-in for the Claude platform."`
	Conformance conformanceCmd `cmd:"" help:"Hold workers to the contract of self-hosted environments."`
	Doctor      doctorCmd      `cmd:"" help:"Check this host and the configuration, with the fix for what is missing."`
	Sessions    sessionsCmd    `cmd:"" help:"Look at sessions."`
	Agents      agentsCmd      `cmd:"" help:"Look at agents and set what their sandboxes are made with."`
	Exec        execCmd        `cmd:"" help:"Run a command in a session's sandbox."`
	Attach      attachCmd      `cmd:"" help:"Open a terminal in a session's sandbox."`
	Images      imagesCmd      `cmd:"" help:"List, pull and remove images of sandboxes."`
	Settings    settingsCmd    `cmd:"" name:"config" help:"Check and explain the configuration."`
	Version     versionCmd     `cmd:"" help:"Show the version."`
}

// Program is what the command line needs of its process.
type Program struct {
	Version string
	Args    []string // without the program's name
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
}

// deps are what commands share.
type deps struct {
	program Program
	flags   *grammar
	out     *output
	stdin   io.Reader
	// loaded caches the configuration: it is read once, by whoever needs it.
	loaded *config.Config
}

// Main runs the command line and returns the exit code.
func Main(p Program) int {
	var g grammar
	exited, code := false, 0
	parser, err := kong.New(&g,
		kong.Name("berth"),
		kong.Description("Runs the sandboxes of Claude Managed Agents on infrastructure you own."),
		kong.Writers(p.Stdout, p.Stderr),
		kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
		kong.Exit(func(c int) { exited, code = true, c }),
	)
	if err != nil {
		panic(err) // the grammar above is wrong
	}
	if len(p.Args) == 0 {
		p.Args = []string{"--help"}
	}
	kctx, err := parser.Parse(p.Args)
	if exited {
		return code
	}
	d := &deps{program: p, flags: &g, stdin: p.Stdin, out: &output{
		out: p.Stdout, err: p.Stderr, json: g.JSON, now: time.Now,
		colour: isTerminal(p.Stdout) && config.OS().Getenv("NO_COLOR") == "",
	}}
	if err != nil {
		fmt.Fprintf(p.Stderr, "berth: %v; see: berth --help\n", err)
		return fault.ExitUsage
	}
	// SIGHUP is a terminal that was closed. A pipe that nobody reads any more ends
	// the command in order, instead of killing the process in the middle.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	signal.Ignore(syscall.SIGPIPE)
	d.out.out = &watched{Writer: p.Stdout, broken: stop}
	kctx.BindTo(ctx, (*context.Context)(nil))
	kctx.Bind(d)
	return d.exit(kctx.Run())
}

// exit prints an error for a person, or for a program, and returns its code.
func (d *deps) exit(err error) int {
	var status exitStatus
	switch {
	case err == nil:
		return fault.ExitOK
	case errors.As(err, &status):
		return int(status)
	case errors.Is(err, context.Canceled):
		return fault.ExitFailed
	}
	var f *fault.Error
	if !errors.As(err, &f) {
		f = fault.Wrap(err, fault.Internal, "the command failed")
	}
	if d.out.json {
		_ = d.out.value(map[string]any{"error": map[string]string{
			"code": string(f.Code), "message": err.Error(), "field": f.Field, "next": f.Next,
		}}) // standard output may be gone
		return fault.Exit(err)
	}
	if problems, ok := errors.AsType[config.Problems](err); ok {
		fmt.Fprintf(d.out.err, "%s the configuration is not usable\n%v\n", d.out.paint(red, "berth:"), problems)
		return fault.Exit(err)
	}
	fmt.Fprintf(d.out.err, "%s %s\n", d.out.paint(red, "berth:"), message(err, f))
	if f.Next != "" {
		fmt.Fprintf(d.out.err, "  %s\n", f.Next)
	}
	return fault.Exit(err)
}

// message is an error's text without the next step, which stands on its own line.
func message(err error, f *fault.Error) string {
	if f.Next == "" {
		return err.Error()
	}
	return strings.TrimSuffix(err.Error(), "; "+f.Next)
}

// config loads the configuration once.
func (d *deps) config() (*config.Config, error) {
	if d.loaded != nil {
		return d.loaded, nil
	}
	src := config.OS()
	src.File = d.flags.Config
	c, err := config.Load(src)
	if err != nil {
		return nil, err
	}
	d.loaded = &c
	return d.loaded, nil
}

// client finds the server and the token: what was said on the command line, in
// the environment, or in the configuration of a server on this host.
func (d *deps) client() (*client, error) {
	c, err := d.config()
	if err != nil {
		return nil, err
	}
	server, token := c.Client.Server, c.Access.Token.Reveal()
	if d.flags.Server != "" {
		server = d.flags.Server
	}
	if token == "" {
		if token, err = access.ReadToken(c.DataDir); err != nil {
			return nil, err
		}
	}
	return newClient(server, token), nil
}
