// Package image makes the root folders of sandboxes from images: from a
// registry, an OCI layout, a tarball or a folder, without a container engine.
//
// Everything lies below one folder:
//
//	<dir>/
//	    root-<id>/                a root folder, complete or not there
//	    cache/
//	        roots/root-<id>.json  what is known of it, written last: without it the folder counts for nothing
//	        refs/<hash>.json      what a reference stood for when it was last looked up
//	        blobs/sha256-<hex>    layers as a registry delivers them, shared by images
//	        tmp/                  work in progress; swept at the first use after a start
//
// What exists follows from these files alone, so that a process which dies at
// any point leaves nothing that is taken for complete.
//
// An image is hostile input: its names, links, sizes and numbers are bounded,
// and nothing of it is written or followed outside its own root (tree.go).
package image

import (
	"context"
	"log/slog"
	"time"

	"github.com/berth-dev/berth/internal/sandbox"
)

// Options are what Open needs. The zero value of each field but Dir is usable.
type Options struct {
	Dir    string // the folder of the package comment; one process at a time may use it
	Owners Owners
	// Platform is what is chosen from images for several, as in linux/arm64;
	// default: this host's.
	Platform string
	// DockerConfig is a folder with a Docker config.json, which says what to
	// sign in to registries with; "" means without credentials.
	DockerConfig string
	// Insecure are registries that may be spoken to without TLS, beside those on
	// this host: host or host:port.
	Insecure []string
	// Trusted are references of the oci, tar and dir kinds that may be used,
	// and Folders those below which all of them may. Other paths of the host are
	// refused: whoever chooses an image may not be allowed to read them.
	Trusted []string
	Folders []string
	// Refresh is how long a tag counts as known; 0: until somebody pulls it.
	Refresh time.Duration
	// MaxBytes bounds the size of an unpacked image; default 20 GiB.
	MaxBytes int64
	// PullTimeout bounds one pull; default 30 minutes.
	PullTimeout time.Duration
	// InUse returns the names of the roots that sandboxes use.
	InUse  func(ctx context.Context) (map[string]int, error)
	Logger *slog.Logger // default: discards

	retry retry
	now   func() time.Time
}

// Bounds of an image.
const (
	MaxLayers        = 256
	MaxEntries       = 2_000_000 // of all layers together
	defaultMaxBytes  = 20 << 30
	defaultPull      = 30 * time.Minute
	maxPath          = 4096
	maxComponent     = 255
	maxManifest      = 4 << 20
	maxEnvironment   = 16 << 10
	maxArchiveBlobs  = 4 * MaxLayers
	refreshWithin    = 10 * time.Second
	progressInterval = 250 * time.Millisecond
	logInterval      = 10 * time.Second
)

// retry says how transient faults of a registry are met.
type retry struct {
	attempts int           // of one request or layer; default 4
	first    time.Duration // wait before the second one, doubled each time; default 1 s
	stall    time.Duration // without a byte; default 1 minute
}

// Owners says how the users of an image are users of the host.
type Owners struct {
	// Single: every file belongs to the user of this process, who may be
	// nobody else.
	Single bool
	// Base is the host's id of root inside, and Count how many follow it. Ids
	// beyond belong to nobody. With a Count of 0 ids are the host's own.
	Base, Count int
	// Agent is the id inside of whom commands run as.
	Agent int
}

// nobody is who owns what nobody inside can own.
const nobody = 65534

// host returns the host's id of an id inside.
func (o Owners) host(id int) int {
	if o.Count == 0 {
		return o.Base + id
	}
	if id < 0 || id >= o.Count {
		id = nobody
	}
	return o.Base + id
}

// Root is an image that is ready for sandboxes.
type Root struct {
	Name string            // of its folder in Options.Dir
	Env  map[string]string // what the image sets for commands
	// Lacks is one line on what a sandbox from it lacks, "" when nothing.
	Lacks string
}

// Report hears of the progress of a pull, at most a few times a second, on the
// goroutine that waits for it. It may be nil.
type Report func(sandbox.ImageProgress)
