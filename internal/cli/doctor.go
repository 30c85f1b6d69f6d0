package cli

import (
	"context"

	"github.com/berth-dev/berth/internal/app"
	"github.com/berth-dev/berth/internal/fault"
)

type doctorCmd struct {
	Offline bool `help:"Do not ask the platform."`
}

// Run checks what a server needs and prints the fix of what is missing. It fails
// when something is.
func (cmd *doctorCmd) Run(ctx context.Context, d *deps) error {
	c, err := d.config()
	if err != nil {
		return err
	}
	d.out.progress("checking this host …")
	findings := app.Doctor(ctx, *c, !cmd.Offline)
	bad := 0
	for _, f := range findings {
		if !f.OK {
			bad++
		}
	}
	if d.out.json {
		if err := d.out.value(map[string]any{"ok": bad == 0, "findings": findings}); err != nil {
			return err
		}
	} else {
		for _, f := range findings {
			mark := d.out.paint(green, "ok  ")
			switch {
			case !f.OK:
				mark = d.out.paint(red, "FAIL")
			case f.Warn:
				mark = d.out.paint(yellow, "warn")
			}
			d.out.line("%s  %s: %s", mark, f.Name, f.Text)
			if f.Fix != "" {
				d.out.line("      %s", d.out.paint(yellow, f.Fix))
			}
		}
	}
	if bad > 0 {
		if d.out.json {
			return exitStatus(fault.ExitFailed)
		}
		return fault.New(fault.Unavailable, "%s not right", map[bool]string{true: "one thing is", false: itoa(int64(bad)) + " things are"}[bad == 1])
	}
	return nil
}
