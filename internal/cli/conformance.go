package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/berth-dev/berth/conformance"
	"github.com/berth-dev/berth/internal/fault"
)

type conformanceCmd struct {
	Worker    []string      `help:"Command of a worker, run by a shell, as NAME=COMMAND or COMMAND; may be repeated (default: this program)." sep:"none" placeholder:"COMMAND"`
	Can       []string      `help:"What these workers claim: skills, memory, webhooks, restart." enum:"skills,memory,webhooks,restart" placeholder:"WHAT,…"`
	Processes int           `help:"How many processes of each worker run side by side." default:"4"`
	Slots     int           `help:"How many sessions one process serves at once." default:"1"`
	Release   time.Duration `help:"How long after a turn these workers may keep their work item." default:"1m"`
	Memory    string        `help:"Folder where these workers mount memory stores." default:"/mnt/memory"`
	Cases     string        `help:"Play only the cases whose names match." placeholder:"REGEXP"`
	Slow      bool          `help:"Play the slow cases, too."`
	Seeds     int           `help:"Random mixtures of faults to play besides." default:"0"`
	Seed      uint64        `help:"Seed of the first mixture (default: a new one)." default:"0"`
	Patience  int           `help:"How many times longer a case may take, for busy machines." default:"1"`
	List      bool          `help:"List the cases and play none."`
	Markdown  bool          `help:"Write the matrix as Markdown."`
}

// Run judges workers and fails when one of them breaks the contract.
func (cmd *conformanceCmd) Run(ctx context.Context, d *deps) error {
	o, err := cmd.options(d)
	if err != nil {
		return err
	}
	if cmd.List {
		return cmd.list(d, o)
	}
	d.out.progress("%d cases and %d subjects …", len(o.Cases), len(o.Subjects))
	o.Progress = func(r conformance.Result) {
		d.out.progress("%-7s %5.1fs  %s: %s %s", r.Verdict, r.Took.Seconds(), r.Subject, r.Case, r.Why)
	}
	report, err := conformance.Run(ctx, o)
	if err != nil {
		return err
	}
	switch {
	case d.out.json:
		err = d.out.value(report.Results)
	case cmd.Markdown:
		err = report.Markdown(d.out.out)
	default:
		err = report.Text(d.out.out)
	}
	if n := report.Failed(); err == nil && n > 0 {
		return fault.New(fault.Conflict, "%d cases failed", n).WithNext("play one alone with --cases, and see docs/conformance.md")
	}
	return err
}

// options turns the command line into what is run.
func (cmd *conformanceCmd) options(d *deps) (o conformance.Options, err error) {
	o = conformance.Options{Slow: cmd.Slow, Patience: cmd.Patience}
	if o.Match, err = regexp.Compile(cmd.Cases); err != nil {
		return o, fault.Wrap(err, fault.Invalid, "not a regular expression").WithField("--cases").WithNext("see berth conformance --list for the names")
	}
	if o.Cases, err = conformance.Table(); err != nil {
		return o, err
	}
	mixtures, err := conformance.Mixtures(cmd.Seed, cmd.Seeds)
	if err != nil {
		return o, err
	}
	o.Cases = append(o.Cases, mixtures...)
	for _, w := range cmd.Worker {
		name, command, named := strings.Cut(w, "=")
		if !named || strings.ContainsAny(name, " /\t") {
			name, command = w, w
		}
		if strings.TrimSpace(command) == "" {
			return o, fault.New(fault.Invalid, "the command of the worker is empty").WithField("--worker").WithNext("give a shell command, such as: --worker 'node worker.mjs'")
		}
		o.Subjects = append(o.Subjects, conformance.Subject{
			Name: name, Version: command, Command: []string{"/bin/sh", "-c", command}, Can: cmd.Can,
			Slots: cmd.Slots, Processes: cmd.Processes, Release: cmd.Release, Memory: cmd.Memory,
		})
	}
	if len(o.Subjects) == 0 {
		self, err := os.Executable()
		if err != nil {
			return o, fmt.Errorf("find this program: %w", err)
		}
		o.Subjects = append(o.Subjects, conformance.Berth(self, d.program.Version))
	}
	return o, nil
}

func (cmd *conformanceCmd) list(d *deps, o conformance.Options) error {
	if d.out.json {
		return d.out.value(o.Cases)
	}
	var errs []error
	for _, c := range o.Cases {
		if o.Match.MatchString(c.Name) {
			_, err := fmt.Fprintf(d.out.out, "%s\n    %s (%s)\n", d.out.paint(bold, c.Name), c.Says, c.Cites)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
