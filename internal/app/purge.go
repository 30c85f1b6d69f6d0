package app

import (
	"context"
	"errors"

	"github.com/berth-dev/berth/internal/sandbox"
)

// Purge removes every sandbox of the data directory with its files. Call it
// after Run has returned and before Close.
func (a *App) Purge(ctx context.Context) error {
	refs, err := a.backend.List(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, ref := range refs {
		errs = append(errs, a.backend.Remove(ctx, ref, sandbox.Everything))
	}
	return errors.Join(errs...)
}
