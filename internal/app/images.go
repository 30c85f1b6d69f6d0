package app

import (
	"context"
	"time"

	"github.com/berth-dev/berth/internal/sandbox"
)

// imagesOf returns the power over images that a backend may have, or nil.
func imagesOf(b sandbox.Backend) sandbox.Images {
	images, _ := b.(sandbox.Images)
	return images
}

// collectEvery is how often images that nobody uses are looked for.
const collectEvery = time.Hour

// collectImages removes images that nobody has used for long.
func (a *App) collectImages(ctx context.Context) {
	images := imagesOf(a.backend)
	if images == nil {
		return
	}
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	for {
		if _, err := images.CollectImages(ctx, 0); err != nil && ctx.Err() == nil {
			a.log.Warn("unused images not removed", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
