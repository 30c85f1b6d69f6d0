//go:build linux

package linux

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	goruntime "runtime"
	"sync"
	"time"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/sandbox/linux/image"
)

// Backend makes and finds sandboxes. It implements sandbox.Backend and
// sandbox.Doctor.
type Backend struct {
	cfg       Config
	sandboxes string // folders below DataDir
	images    string
	store     *image.Store // of images other than the host's
	binaries  string
	runtime   runtime
	limits    *cgroups // nil: not enforced, for the reason in unlimited
	unlimited error
	disks     *disks // nil: not limited, for the reason in undisked
	undisked  error
	log       *slog.Logger
	closing   chan struct{} // closed by Close
	watchers  sync.WaitGroup
	preparing chan struct{} // holds a token while nobody prepares
	starts    chan struct{} // holds a token for each start under way
	pool      *pool

	mu       sync.Mutex
	slots    map[string]*slot
	closed   bool
	prepared *prepared
}

var (
	_ sandbox.Backend      = (*Backend)(nil)
	_ sandbox.Doctor       = (*Backend)(nil)
	_ sandbox.ImageChecker = (*Backend)(nil)
)

// startsPerCore bounds the sandboxes that start at the same time: half of a start
// is computing.
const startsPerCore = 2

// turn waits until one more sandbox may start; done must be called then.
func (b *Backend) turn(ctx context.Context) (done func(), err error) {
	select {
	case b.starts <- struct{}{}:
		return func() { <-b.starts }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait to start a sandbox: %w", context.Cause(ctx))
	}
}

// prepared is what all sandboxes share.
type prepared struct {
	binary string // name in binaries
	root   string // name in images
	binds  []string
}

// New opens the data folder and finds out what this host allows. It starts
// nothing and stops nothing.
func New(cfg Config) (*Backend, error) {
	dir, err := filepath.Abs(cfg.DataDir)
	if err != nil || cfg.DataDir == "" {
		return nil, fault.Wrap(err, fault.Invalid, "the data folder %q cannot be used", cfg.DataDir).WithField("data_dir")
	}
	if len(dir) > MaxDataDir {
		return nil, fault.New(fault.Invalid, "the path %s has more than %d bytes", dir, MaxDataDir).
			WithField("data_dir").WithNext("choose a shorter one, because a socket lives below it")
	}
	cfg.DataDir = dir
	if cfg.Binary == "" {
		cfg.Binary = "/proc/self/exe"
	}
	if cfg.StartTimeout <= 0 {
		cfg.StartTimeout = defaultStartTimeout
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Defaults = withDefaults(cfg.Defaults, DefaultLimits)
	if cfg.Runtime == "" {
		cfg.Runtime = Gvisor
	}
	ids, err := readIdentity()
	if err != nil {
		return nil, err
	}
	if cfg.Runtime == Kata { // users in a virtual machine are its own
		ids.base = 0
	}
	b := &Backend{
		cfg:       cfg,
		sandboxes: filepath.Join(dir, "sandboxes"),
		images:    filepath.Join(dir, "images"),
		binaries:  filepath.Join(dir, "bin"),
		runtime:   runtime{runs: filepath.Join(dir, "run"), ids: ids},
		log:       cfg.Logger,
		closing:   make(chan struct{}),
		preparing: make(chan struct{}, 1),
		starts:    make(chan struct{}, startsPerCore*goruntime.NumCPU()),
		slots:     map[string]*slot{},
	}
	b.pool = newPool(filepath.Join(dir, "pool"), cfg.Pool)
	b.preparing <- struct{}{}
	if ids.rootless {
		b.unlimited = errors.New("cgroups need root")
	} else {
		b.limits, b.unlimited = openCgroups(cgroupMount, dir)
	}
	if b.runtime.engine, err = b.chooseEngine(); err != nil {
		return nil, err
	}
	templates := filepath.Join(dir, "disks")
	b.disks, b.undisked = openDisks(templates, ids)
	for _, d := range []string{b.sandboxes, b.pool.dir, b.images, templates, b.binaries, b.stateOf(cfg.Runtime)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make data folder: %w", err)
		}
	}
	// The runtime's children are nobody, and reach this one through their
	// stage; the folder above it is closed.
	if err := os.Chmod(b.binaries, 0o755); err != nil {
		return nil, fmt.Errorf("make data folder: %w", err)
	}
	if b.store, err = b.openImages(); err != nil {
		return nil, err
	}
	b.watchers.Go(b.trimLogs)
	return b, nil
}

// Name implements sandbox.Backend.
func (b *Backend) Name() string { return Name }

// Features implements sandbox.Backend.
func (b *Backend) Features() sandbox.Features {
	f := sandbox.Features{
		Isolation: b.runtime.engine.isolation(), Linux: true, Terminal: true, Limits: b.limits != nil, Disk: b.disks != nil, Shares: true,
	}
	switch ids := b.runtime.ids; {
	case ids.rootless:
		f.Note = "run by an ordinary user: guest and agent share one user id, and memory and CPU are not limited"
	case b.unlimited != nil:
		f.Note = "memory and CPU are not limited: " + b.unlimited.Error()
	case !ids.mapped():
		f.Note = "users inside are the same users outside, for lack of ids to map them to"
	}
	return f
}

// List implements sandbox.Backend. Folders whose making was interrupted are
// listed without a session.
func (b *Backend) List(context.Context) ([]sandbox.Ref, error) {
	entries, err := os.ReadDir(b.sandboxes)
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	var refs []sandbox.Ref
	for _, e := range entries {
		if !idPattern.MatchString(e.Name()) {
			continue
		}
		r, err := b.folder(e.Name()).record()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			b.log.Warn("sandbox record unreadable", "sandbox", e.Name(), "err", err)
		}
		refs = append(refs, sandbox.Ref{ID: e.Name(), Backend: Name, Session: r.Session})
	}
	return refs, nil
}

// Close implements sandbox.Backend.
func (b *Backend) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	var running []*Sandbox
	for _, s := range b.slots {
		if s.running != nil {
			running = append(running, s.running)
		}
	}
	b.mu.Unlock()
	close(b.closing)
	for _, s := range running {
		s.abandon()
	}
	b.watchers.Wait()
	return b.store.Close()
}

func (b *Backend) isClosing() bool {
	select {
	case <-b.closing:
		return true
	default:
		return false
	}
}

func (b *Backend) folder(id string) folder { return folder(filepath.Join(b.sandboxes, id)) }

// prepare makes what all sandboxes share, once, and sweeps what earlier
// versions left.
func (b *Backend) prepare(ctx context.Context) (*prepared, error) {
	select {
	case <-b.preparing:
		defer func() { b.preparing <- struct{}{} }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	b.mu.Lock()
	p := b.prepared
	b.mu.Unlock()
	if p != nil {
		return p, nil
	}
	begun := time.Now()
	binary, err := stageBinary(b.cfg.Binary, b.binaries)
	if err != nil {
		return nil, err
	}
	img, err := hostImage(os.DirFS("/"))
	if err != nil {
		return nil, err
	}
	root, err := img.materialise(b.images, b.runtime.ids)
	if err != nil {
		return nil, err
	}
	p = &prepared{binary: binary, root: root, binds: img.binds}
	if err := b.sweepShared(p); err != nil {
		b.log.Warn("old files not removed", "err", err)
	}
	b.mu.Lock()
	b.prepared = p
	b.mu.Unlock()
	b.log.Info("image ready", "backend", Name, "image", root, "binary", binary, "dur", time.Since(begun))
	return p, nil
}

// sweepShared removes binaries and images that no sandbox uses.
func (b *Backend) sweepShared(p *prepared) error {
	used := map[string]bool{p.binary: true, p.root: true}
	all, err := b.records()
	if err != nil {
		return err
	}
	for _, r := range all {
		used[r.Binary], used[r.Root] = true, true
	}
	b.notTheHosts(used)
	return errors.Join(sweep(b.binaries, used), sweep(b.images, used))
}

func withDefaults(l, d sandbox.Limits) sandbox.Limits {
	if l.MemoryBytes <= 0 {
		l.MemoryBytes = d.MemoryBytes
	}
	if l.CPUs <= 0 {
		l.CPUs = d.CPUs
	}
	if l.Processes <= 0 {
		l.Processes = d.Processes
	}
	if l.DiskBytes <= 0 {
		l.DiskBytes = d.DiskBytes
	}
	if l.DiskBytes > 0 {
		l.DiskBytes = max(l.DiskBytes, minDiskLimit) / loopBlock * loopBlock
	}
	if l.OpenFiles == 0 {
		l.OpenFiles = d.OpenFiles
	}
	return l
}
