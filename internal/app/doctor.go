package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/berth-dev/berth/internal/claude"
	"github.com/berth-dev/berth/internal/config"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/store"
)

// Doctor checks what a server with this configuration needs: the settings, the
// data directory, the sandbox backend and, unless told not to, the platform. It
// changes nothing but for a probe file.
func Doctor(ctx context.Context, c config.Config, online bool) []sandbox.Info {
	var out []sandbox.Info
	report := func(name string, err error, ok, fix string) {
		i := sandbox.Info{Name: name, OK: err == nil, Text: ok}
		if err != nil {
			i.Text, i.Fix = err.Error(), fix
		}
		out = append(out, i)
	}
	report("configuration", c.Validate(), "usable", "see docs/configuration.md, or: berth config example")
	report("data directory", errors.Join(fits(c.DataDir), writable(c.DataDir)), c.DataDir, "set BERTH_DATA_DIR to a folder that you may write to")
	whole, err := store.Check(ctx, c.DataDir)
	report("database", err, whole, "docs/recovery.md says what can be done")
	out = append(out, checkBackend(ctx, c)...)
	if len(c.WebhookSecrets()) == 0 {
		out = append(out, sandbox.Info{Name: "webhooks", OK: true, Text: "no signing key: work is found by polling alone, which is enough"})
	} else {
		out = append(out, sandbox.Info{Name: "webhooks", OK: true, Text: "a signing key is configured; deliveries go to /webhooks"})
	}
	if online {
		for _, env := range c.Environments {
			report("environment "+env.ID, reach(ctx, env), "the platform answers and accepts the key",
				"check the id, the key and base_url; the key is made in the Claude console, on the environment's page")
		}
	}
	return out
}

func checkBackend(ctx context.Context, c config.Config) []sandbox.Info {
	// The real data directory may be in use by a running server: the check gets
	// one of its own, on the same disk.
	dir, err := os.MkdirTemp(existing(c.DataDir), ".berth-doctor-")
	if err != nil {
		dir, err = os.MkdirTemp("", "berth-doctor-")
	}
	if err != nil {
		return []sandbox.Info{{Name: "sandbox", Text: err.Error(), Fix: "make the temporary directory writable"}}
	}
	defer os.RemoveAll(dir)
	c.DataDir = dir
	b, err := newBackend(c, slog.New(slog.DiscardHandler))
	if err != nil {
		info := sandbox.Info{Name: "sandbox", Text: err.Error()}
		if f, ok := errors.AsType[*fault.Error](err); ok {
			info.Fix = f.Next
		}
		return []sandbox.Info{info}
	}
	defer b.Close()
	if d, ok := b.(sandbox.Doctor); ok {
		return d.Check(ctx)
	}
	return nil
}

// existing returns dir, or the nearest folder above it that exists.
func existing(dir string) string {
	for {
		if info, err := os.Stat(dir); err == nil && info.IsDir() || filepath.Dir(dir) == dir {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// writable reports whether files can be made in dir, or in the folder above it
// that it would be made in.
func writable(dir string) error {
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		return fmt.Errorf("%s is not a folder", dir)
	}
	f, err := os.CreateTemp(existing(dir), ".berth-doctor-*")
	if err != nil {
		return err
	}
	f.Close()
	return os.Remove(f.Name())
}

func reach(ctx context.Context, env config.Environment) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	q, err := claude.NewQueue(claude.Options{BaseURL: env.BaseURL, EnvironmentID: env.ID, EnvironmentKey: env.Key.Reveal()})
	if err != nil {
		return err
	}
	_, err = q.Stats(ctx)
	return err
}
