// Package linux makes sandboxes that are a full Linux: a runtime runs an OCI
// bundle whose first process is our guest. It is gVisor (linked into our own
// binary, see cmd/berth) or any other that has runc's command line (engine.go).
//
// A sandbox is a folder and a set of processes, nothing else. The folder
//
//	<data>/sandboxes/<id>/
//	    spec.json        our record: what was asked for
//	    bundle/          config.json, as the runtime reads it
//	    in, out          FIFOs: the guest's standard input and output
//	    runtime.log      what the runtime said about failures
//	    overlay/         the root's writable layer (for gVisor one unlinked file)
//	    overlay-work/    of the kernel, for that layer
//	    root/            where the layer is mounted, for other runtimes than gVisor
//	    pid              the first process, as those runtimes wrote it down
//	    workspace/       /workspace; outlives the sandbox with KeepFiles
//	    mnt/             /mnt, when shares are mounted below it
//	    shares/          folders that host and sandbox see both; stay with it
//	    disk.img         with a limit of disk: a file system that holds the
//	                     workspace and the writable layer in place of the above
//	    disk/            where it is mounted, for the sandbox alone
//
// says what exists; /proc says what runs (process.go): the processes carry the
// id in their arguments or have the FIFO as standard input, so that nothing has
// to be written down before it may be found again, and a server that dies at any
// point leaves nothing behind that the next one cannot adopt or remove. What is
// mounted is mounted in namespaces of their own (stage.go) and goes with them.
// Sandboxes run on without a server: the FIFOs are held open by the sandbox
// itself.
//
// Nothing of the host is visible inside but its programs (image.go), or an
// image instead of them (images.go), and there is no network but loopback.
package linux

import (
	"log/slog"
	"time"

	"github.com/berth-dev/berth/internal/sandbox"
)

// Name is the constant that configuration, API and store know this backend by.
const Name = "linux"

// ImageHost is the image made of the host's own programs.
const ImageHost = "host"

// The runtimes that are known by name. Gvisor is linked into our own binary.
const (
	Gvisor = "gvisor"
	Runc   = "runc"
	Crun   = "crun"
	Kata   = "kata"
)

// Config is what New needs. The zero value of each field but DataDir is usable.
type Config struct {
	// DataDir holds sandboxes, images, staged binaries and the runtime's state.
	// One server at a time may use it. Its path may be at most MaxDataDir bytes
	// long, because a Unix socket lives below it.
	DataDir string
	// Binary is our own program, used as runtime and as guest; default
	// /proc/self/exe. It is staged by content, so that an upgrade does not pull
	// it from under running sandboxes.
	Binary string
	// Runtime is Gvisor, which is also the default, Runc, Crun, Kata, or the
	// absolute path of an OCI runtime. Sandboxes that were started with another
	// one are adopted and removed all the same.
	Runtime string
	// Defaults are the limits of a Spec that says nothing; zero fields take
	// DefaultLimits.
	Defaults sandbox.Limits
	// StartTimeout bounds Create from start to the guest's first answer;
	// default 30 s.
	StartTimeout time.Duration
	// Pool is how many sandboxes Fill keeps ready; at most MaxPool.
	Pool   int
	Images Images
	Logger *slog.Logger // default: discards
}

// Images says how images other than the host's are had (package image). The zero
// value is usable.
type Images struct {
	// Default is the image of most Specs. It is allowed wherever it lies, and
	// doctor looks for it.
	Default      string
	Platform     string        // such as linux/arm64; default: the host's
	DockerConfig string        // folder of a Docker config.json with credentials
	Insecure     []string      // registries without TLS, as host:port
	Folders      []string      // below which images on this host may lie
	Refresh      time.Duration // after which a tag is looked up again; 0: when somebody pulls it
	Keep         time.Duration // of images that nobody uses; default 7 days
	MaxBytes     int64         // of an unpacked image; default 20 GiB
	PullTimeout  time.Duration // default 30 minutes
}

const defaultKeepImages = 7 * 24 * time.Hour

// MaxDataDir is the longest DataDir, in bytes: what a Unix socket's path leaves.
const MaxDataDir = 60

// DefaultLimits bound a sandbox when neither its Spec nor Config.Defaults say
// otherwise. Memory is a ceiling, not a reservation.
var DefaultLimits = sandbox.Limits{MemoryBytes: 2 << 30, CPUs: 2, Processes: 512, OpenFiles: 8192}

const defaultStartTimeout = 30 * time.Second
