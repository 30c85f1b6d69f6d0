package sandbox

import (
	"context"
	"fmt"
	"time"
)

// Images is an optional power of a Backend: it holds images that sandboxes are
// made from, and can load and remove them. Safe for concurrent use.
type Images interface {
	// Images lists those that are here, the one that was used last first.
	Images(ctx context.Context) ([]Image, error)
	// PullImage looks a reference up anew, loads what it stands for and makes it
	// ready. It reports at most a few times a second, on the caller's goroutine.
	// When ctx ends the pull goes on; who pulls the same meanwhile joins it.
	PullImage(ctx context.Context, reference string, report func(ImageProgress)) (Image, error)
	// RemoveImage removes one by id or reference: fault.Conflict while a sandbox
	// uses it, fault.NotFound when there is none.
	RemoveImage(ctx context.Context, idOrReference string) error
	// CollectImages removes those that no sandbox uses and none has used for
	// that long; zero means the configured time, a negative one all of them.
	CollectImages(ctx context.Context, unused time.Duration) (Collected, error)
}

// Image is one image that sandboxes can be made from.
type Image struct {
	ID         string    // of this host
	References []string  // what it is known by; may be empty
	Digest     string    // sha256:… of its content
	Platform   string    // linux/amd64; "" when it does not say
	Bytes      int64     // unpacked
	Files      int       // files, folders and links
	Layers     int       // that are kept packed, too
	Made       time.Time // here
	Used       time.Time // last, by a sandbox that was started
	Sandboxes  int       // that use it now
	Lacks      string    // one line on what sandboxes from it lack, "" when nothing
}

// ImageStep is what a pull does.
type ImageStep string

// The steps of a pull, in order.
const (
	ImageResolving ImageStep = "resolving"
	ImageLoading   ImageStep = "loading"
	ImageUnpacking ImageStep = "unpacking"
)

// ImageProgress is how far a pull has got. A comparable value.
type ImageProgress struct {
	Reference string    `json:"reference"`
	Step      ImageStep `json:"step"`
	Layer     int       `json:"layer"`  // that is being unpacked, from 1
	Layers    int       `json:"layers"` // 0 when not known
	Done      int64     `json:"done"`   // bytes of this step
	Total     int64     `json:"total"`  // 0 when not known
}

// String is for people: loading 12 of 40 MiB.
func (p ImageProgress) String() string {
	s := string(p.Step)
	switch {
	case p.Total > 0:
		s += fmt.Sprintf(" %d of %d MiB", p.Done>>20, (p.Total+1<<20-1)>>20)
	case p.Done > 0:
		s += fmt.Sprintf(" %d MiB", p.Done>>20)
	}
	if p.Step == ImageUnpacking && p.Layers > 1 {
		s += fmt.Sprintf(", layer %d of %d", p.Layer, p.Layers)
	}
	return s
}

// Collected is what CollectImages removed.
type Collected struct {
	Images int   `json:"images"`
	Layers int   `json:"layers"`
	Bytes  int64 `json:"bytes"`
}
