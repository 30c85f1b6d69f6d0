package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/berth-dev/berth/internal/app"
	"github.com/berth-dev/berth/internal/config"
	"github.com/berth-dev/berth/internal/telemetry"
)

type serveCmd struct {
	Listen   string `help:"Address of the API and of /webhooks." placeholder:"HOST:PORT"`
	LogLevel string `help:"debug, info, warn or error." placeholder:"LEVEL"`
}

// Run serves until it is told to stop. SIGINT and SIGTERM leave sandboxes and
// leases to the next start.
func (cmd *serveCmd) Run(ctx context.Context, d *deps) error {
	src := config.OS()
	src.File = d.flags.Config
	src.Set = map[string]string{}
	if cmd.Listen != "" {
		src.Set["listen"] = cmd.Listen
	}
	if cmd.LogLevel != "" {
		src.Set["log.level"] = cmd.LogLevel
	}
	c, err := config.Load(src)
	if err != nil {
		return err
	}
	if err := c.Validate(); err != nil {
		return err
	}
	log, err := logger(d, c)
	if err != nil {
		return err
	}
	a, err := app.New(ctx, app.Options{Config: c, Version: d.program.Version, Log: log})
	if err != nil {
		return err
	}
	return errors.Join(a.Run(ctx), a.Close())
}

func logger(d *deps, c config.Config) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Log.Level)); err != nil {
		return nil, fmt.Errorf("log.level: %w", err)
	}
	return telemetry.NewLogger(d.out.err, c.Log.Format, level), nil
}
