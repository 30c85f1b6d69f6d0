package app

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"github.com/berth-dev/berth/internal/config"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/store"
)

// Purge removes every sandbox of the data directory with its files. Call it
// after Run has returned and before Close.
func (a *App) Purge(ctx context.Context) error { return purge(ctx, a.backend) }

func purge(ctx context.Context, backend sandbox.Backend) error {
	refs, err := backend.List(ctx)
	if err != nil {
		return err
	}
	if pool, ok := backend.(sandbox.Pool); ok {
		ended, cancel := context.WithCancel(ctx)
		cancel()
		pool.Fill(ended) // only removes what is there
	}
	var errs []error
	for _, ref := range refs {
		errs = append(errs, backend.Remove(ctx, ref, sandbox.Everything))
	}
	return errors.Join(errs...)
}

// Reclaim removes a data directory, its sandboxes included, that a process left
// when it was killed. It leaves alone what somebody uses or what is not ours; a
// failure is for the next to try again.
func Reclaim(ctx context.Context, dir string) {
	lock, err := store.Lock(dir)
	if err != nil {
		return
	}
	defer lock.Close()
	backend, err := newBackend(config.Config{DataDir: dir}, slog.New(slog.DiscardHandler))
	if err != nil {
		return
	}
	defer backend.Close()
	if purge(ctx, backend) == nil {
		_ = os.RemoveAll(dir)
	}
}
