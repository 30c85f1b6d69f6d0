package cli

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/berth-dev/berth/internal/api"
	"github.com/berth-dev/berth/internal/fault"
)

type execCmd struct {
	Session string        `arg:"" help:"Session id."`
	Argv    []string      `arg:"" passthrough:"" help:"Program and arguments, after --. No shell is involved."`
	Timeout time.Duration `help:"How long it may run." default:"1m"`
	Stdin   bool          `help:"Send standard input, at most 1 MiB."`
}

// Run runs a command in the session's sandbox and exits with its status.
func (cmd *execCmd) Run(ctx context.Context, d *deps) error {
	c, err := d.client()
	if err != nil {
		return err
	}
	argv := cmd.Argv
	if len(argv) > 0 && argv[0] == "--" {
		argv = argv[1:]
	}
	if len(argv) == 0 {
		return fault.New(fault.Invalid, "no command is given").WithNext("for example: berth exec %s -- ls -l", cmd.Session)
	}
	in := api.Exec{Argv: argv, TimeoutMS: cmd.Timeout.Milliseconds()}
	if cmd.Stdin {
		const limit = 1 << 20
		if in.Stdin, err = io.ReadAll(io.LimitReader(d.stdin, limit+1)); err != nil {
			return err
		}
		if len(in.Stdin) > limit {
			return fault.New(fault.TooLarge, "standard input is larger than 1 MiB")
		}
	}
	var res api.ExecResult
	if err := c.call(ctx, http.MethodPost, "/api/v1/sessions/"+url.PathEscape(cmd.Session)+"/exec", in, &res); err != nil {
		return err
	}
	if d.out.json {
		return d.out.value(res)
	}
	if _, err := d.out.out.Write(res.Stdout); err != nil {
		return err
	}
	if _, err := d.out.err.Write(res.Stderr); err != nil {
		return err
	}
	if res.TimedOut {
		return fault.New(fault.Timeout, "the command ran longer than %s and was killed", cmd.Timeout).WithNext("give it more time with --timeout")
	}
	if res.Code != 0 {
		return exitStatus(res.Code)
	}
	return nil
}

// exitStatus ends the process with a command's own status, without a message.
type exitStatus int

func (e exitStatus) Error() string { return "the command failed" }
