package session

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/memory"
	"github.com/berth-dev/berth/internal/memory/folder"
	"github.com/berth-dev/berth/internal/sandbox"
)

// This file is about the memory stores of a session: shares of its sandbox that
// are filled before the first call runs, kept in step with the platform while a
// work item is held, and once more before it is given back. The token that they
// need is the work item's; it never comes near the sandbox.

// Bounds of what is done with memory stores.
const (
	maxStores    = 8                // of one session (contract §6.2)
	openWithin   = time.Minute      // to download or catch up before calls run
	catchUp      = 20 * time.Second // the same where an older state is there already
	syncWithin   = time.Minute      // one pass
	finishWithin = 30 * time.Second // the last synchronization, and as long again to send what is left
	syncEvery    = 15 * time.Second // unless configured
	maxWarnings  = 20               // of one pass
)

// Where stores are inside (contract §6.2).
const (
	storesAt = "/mnt/memory/"
	unnamed  = "/workspace/memory/" // without a mount path
)

// storeShares are the shares that show memory stores, in their order.
func storeShares(stores []Memory) ([]sandbox.Share, error) {
	if len(stores) > maxStores {
		return nil, fault.New(fault.TooLarge, "the session has %d memory stores, more than %d", len(stores), maxStores)
	}
	var shares []sandbox.Share
	for _, m := range stores {
		at, err := storePath(m)
		if err != nil {
			return nil, err
		}
		for _, s := range shares {
			if s.Path == at || strings.HasPrefix(s.Path, at+"/") || strings.HasPrefix(at, s.Path+"/") {
				return nil, fault.New(fault.Invalid, "the memory stores at %s and %s lie in each other", s.Path, at).WithField("mount_path")
			}
		}
		shares = append(shares, sandbox.Share{Path: at, ReadOnly: m.ReadOnly})
	}
	return shares, nil
}

func storePath(m Memory) (string, error) {
	if m.MountPath != "" {
		if m.MountPath != path.Clean(m.MountPath) || !strings.HasPrefix(m.MountPath, storesAt) || strings.ContainsFunc(m.MountPath, unicode.IsControl) {
			return "", fault.New(fault.Invalid, "the mount path %q of memory store %s is not a clean path below %s", m.MountPath, m.Store, storesAt).
				WithField("mount_path")
		}
		return m.MountPath, nil
	}
	for _, name := range []string{m.Name, m.Store} {
		if name != "" && name != "." && name != ".." && len(name) <= 200 && !strings.Contains(name, "/") && !strings.ContainsFunc(name, unicode.IsControl) {
			return unnamed + name, nil
		}
	}
	return "", fault.New(fault.Invalid, "the memory store %q has no name that a folder can have", m.Store)
}

// memoryRun is the memory stores of a session for the time of one work item.
// Safe for concurrent use; a nil one has no stores.
type memoryRun struct {
	keeper   *Keeper
	session  string
	log      *slog.Logger
	platform Platform
	note     func(context.Context, event.Type, any)
	asked    chan struct{} // receives when there may be something to synchronize

	mu     sync.Mutex
	known  bool // stores is what the session has
	stores []Memory
	open   []*openStore
	box    sandbox.Sandbox // whose stores could not be opened yet
	said   map[string]bool // failures that were reported
}

// openStore is a store with its folder.
type openStore struct {
	Memory
	sync *memory.Store
	dir  string
}

func (a *actor) newMemoryRun(cl *claim) *memoryRun {
	m := &memoryRun{
		keeper: a.keeper, session: a.id, log: a.log, platform: cl.platform, note: a.note,
		asked: make(chan struct{}, 1), said: map[string]bool{},
	}
	return m
}

// learned notes what the session has. Stores are attached when it is created and
// stay, so an earlier answer is as good as a new one.
func (m *memoryRun) learned(info Info) {
	if info.ID != "" {
		m.mu.Lock()
		m.known, m.stores = true, info.Memories
		m.mu.Unlock()
	}
}

// list returns the session's stores; it asks if nobody has told it.
func (m *memoryRun) list(ctx context.Context) ([]Memory, error) {
	m.mu.Lock()
	known, stores := m.known, m.stores
	m.mu.Unlock()
	if known {
		return stores, nil
	}
	ask, cancel := context.WithTimeout(ctx, infoWithin)
	defer cancel()
	info, err := m.platform.Info(ask)
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, "the session could not be read, so its memory stores are not known")
	}
	m.learned(info)
	return info.Memories, nil
}

// shares returns the shares that a new sandbox needs, or why it cannot have them.
func (m *memoryRun) shares(ctx context.Context) ([]sandbox.Share, error) {
	stores, err := m.list(ctx)
	if err != nil || len(stores) == 0 {
		return nil, err
	}
	if b := m.keeper.backend; !b.Features().Shares {
		return nil, fault.New(fault.Unsupported, "the session has %s, and sandboxes of the kind %q cannot show any",
			count(len(stores), "memory store"), b.Name()).WithNext("use a backend that can, or a session without memory stores")
	}
	return storeShares(stores)
}

// errNotOpen means that a sandbox was made without its session's stores, or that
// they were never filled: calls must not run in it.
var errNotOpen = errors.New("the sandbox has no memory stores")

// fill opens all stores in a sandbox and fills their folders. When it returns nil
// each folder has everything that its store has.
func (m *memoryRun) fill(ctx context.Context, sb sandbox.Sandbox, within time.Duration) error {
	stores, err := m.list(ctx)
	if err != nil || len(stores) == 0 {
		return err
	}
	open, err := m.bind(sb, stores)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	errs := make([]error, len(open))
	each(open, func(i int, s *openStore) {
		began := m.keeper.now()
		switch err := s.sync.Open(ctx); {
		case err == nil:
			m.log.Info("memory store ready", "store", s.Store, "dur", m.keeper.now().Sub(began))
		case errors.Is(err, memory.ErrFolder):
			// The agent did that in an earlier sandbox, and only it can undo it.
			m.failed(ctx, s.Store, "the memory store "+quoted(s.Memory)+" is not synchronized", err)
		default:
			errs[i] = err
		}
	})
	for i, err := range errs {
		if err != nil {
			return fault.Wrap(err, fault.Unavailable, "the memory store %q could not be brought up to date: %v", cmp.Or(open[i].Name, open[i].Store), err)
		}
	}
	return nil
}

// bind finds the folders of all stores.
func (m *memoryRun) bind(sb sandbox.Sandbox, stores []Memory) ([]*openStore, error) {
	shares, err := storeShares(stores)
	if err != nil {
		return nil, err
	}
	sharer, ok := sb.(sandbox.Sharer)
	if !ok {
		return nil, errNotOpen
	}
	open := make([]*openStore, len(stores))
	for i, s := range stores {
		dir, err := sharer.Shared(shares[i].Path)
		if errors.Is(err, sandbox.ErrUnknownShare) {
			return nil, fmt.Errorf("%w: %w", errNotOpen, err)
		}
		if err == nil {
			open[i], err = m.openStore(s, dir)
		}
		if err != nil {
			return nil, fault.Wrap(err, fault.Unavailable, "the memory store %q cannot be opened: %v", cmp.Or(s.Name, s.Store), err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open, m.box = open, nil
	return open, nil
}

// openStore returns the store of a folder: the same one as long as that is the
// same, so that no two work on it.
func (m *memoryRun) openStore(s Memory, dir sandbox.SharedDir) (*openStore, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, o := range m.open {
		if o.Store == s.Store && o.dir == dir.Dir {
			return o, nil
		}
	}
	remote, err := m.platform.Memories(s.Store)
	if err != nil {
		return nil, err
	}
	f, err := folder.Open(dir, s.ReadOnly)
	if err != nil {
		return nil, err
	}
	o := &openStore{Memory: s, dir: dir.Dir}
	o.sync = memory.New(memory.Options{
		ID: s.Store, ReadOnly: s.ReadOnly, Remote: remote, Folder: f, Now: m.keeper.now,
		Ledger: memoryLedger{m.keeper, m.session, s.Store},
		Report: func(r memory.Report) { m.report(s, r) },
	})
	return o, nil
}

// catchUp brings the stores of a sandbox up to date that was there before. Its
// folders were filled when it was made, so it may go on with what they hold while
// the platform cannot be reached; follow tries again. errNotOpen says that it must
// not: it was made without them.
func (m *memoryRun) catchUp(ctx context.Context, sb sandbox.Sandbox) error {
	if m == nil {
		return nil
	}
	err := m.fill(ctx, sb, catchUp)
	if err == nil || ctx.Err() != nil || errors.Is(err, errNotOpen) {
		return err
	}
	m.mu.Lock()
	open := m.open
	known := m.known
	if len(open) == 0 {
		m.box = sb // follow tries again
	}
	m.mu.Unlock()
	if known && len(open) == 0 {
		return fmt.Errorf("%w: %w", errNotOpen, err)
	}
	for _, s := range open {
		if !s.sync.Ready(ctx) {
			return fmt.Errorf("%w: %w", errNotOpen, err)
		}
	}
	m.failed(ctx, "", "the sandbox goes on with its memory stores as they are", err)
	m.ask()
	return nil
}

// ask wants a synchronization soon.
func (m *memoryRun) ask() {
	if m != nil {
		offer(m.asked, struct{}{})
	}
}

// follow synchronizes after it was asked to, but not more often than configured.
// It ends with ctx.
func (m *memoryRun) follow(ctx context.Context) {
	every := cmp.Or(m.keeper.cfg.MemorySync, syncEvery)
	for last := m.keeper.now(); ; last = m.keeper.now() {
		select {
		case <-ctx.Done():
			return
		case <-m.asked:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(every - m.keeper.now().Sub(last)):
		}
		if !m.synchronize(ctx) {
			m.ask()
		}
	}
}

// synchronize makes one pass over all stores; false asks for another one.
func (m *memoryRun) synchronize(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, syncWithin)
	defer cancel()
	m.mu.Lock()
	box := m.box
	m.mu.Unlock()
	if box != nil {
		return m.fill(ctx, box, syncWithin) == nil
	}
	return m.forEach(func(s *openStore) error {
		err := s.sync.Sync(ctx)
		if err != nil {
			m.failed(ctx, s.Store, "the memory store "+quoted(s.Memory)+" is not synchronized", err)
		}
		return err
	})
}

// finish synchronizes for the last time in a work item, and sends what was
// written in any case. What it cannot send stays in the folder and on record, and
// is sent under the next work item.
func (m *memoryRun) finish(ctx context.Context, clean, last bool) {
	if clean {
		within, cancel := context.WithTimeout(ctx, finishWithin)
		m.forEach(func(s *openStore) error {
			err := s.sync.Finish(within)
			if err != nil {
				m.log.Warn("last memory synchronization not done", "store", s.Store, "err", err)
			}
			return err
		})
		cancel()
	}
	within, cancel := context.WithTimeout(ctx, finishWithin)
	defer cancel()
	m.forEach(func(s *openStore) error {
		err := s.sync.Flush(within)
		if ctx.Err() != nil { // without a lease nothing more is sent
			err = nil
		}
		if err == nil {
			return nil
		}
		if errors.Is(err, memory.ErrFolder) {
			m.failed(ctx, s.Store, "the memory store "+quoted(s.Memory)+" is not synchronized", err)
			return err
		}
		what := "not all changes of the memory store " + quoted(s.Memory) + " were sent; the next work item sends them"
		if last {
			what = "not all changes of the memory store " + quoted(s.Memory) + " were sent, and the session is over"
		}
		if n := len(s.sync.Pending(ctx)); n > 0 || last {
			m.failed(ctx, s.Store, what, err)
		}
		return err
	})
}

// forEach does something with every open store, at once; true when all went well.
func (m *memoryRun) forEach(f func(*openStore) error) bool {
	m.mu.Lock()
	open := m.open
	m.mu.Unlock()
	errs := make([]error, len(open))
	each(open, func(i int, s *openStore) { errs[i] = f(s) })
	return errors.Join(errs...) == nil
}

func each[T any](all []T, f func(int, T)) {
	var wg sync.WaitGroup
	for i, v := range all {
		wg.Go(func() { f(i, v) })
	}
	wg.Wait()
}

func quoted(s Memory) string { return fmt.Sprintf("%q", cmp.Or(s.Name, s.Store)) }

// failed reports a failure, the same one once in a work item.
func (m *memoryRun) failed(ctx context.Context, store, what string, err error) {
	m.log.Warn("memory not synchronized", "store", store, "err", err)
	m.mu.Lock()
	again := m.said[store+what]
	m.said[store+what] = true
	m.mu.Unlock()
	if !again && ctx.Err() == nil {
		m.note(ctx, event.MemoryFailed, map[string]string{"store": store, "why": what + ": " + err.Error()})
	}
}

// report puts what a pass came to into the session's log.
func (m *memoryRun) report(s Memory, r memory.Report) {
	ctx, cancel := context.WithTimeout(m.keeper.ctx, storeBeatWithin)
	defer cancel()
	if r.Sent+r.Deleted+r.Fetched+r.Removed > 0 {
		m.note(ctx, event.MemorySynced, map[string]any{
			"store": s.Store, "name": s.Name, "sent": r.Sent, "deleted": r.Deleted, "fetched": r.Fetched, "removed": r.Removed,
		})
	}
	for i, w := range r.Warnings {
		if i == maxWarnings {
			m.note(ctx, event.Warning, map[string]string{"text": fmt.Sprintf("memory store %s: %d more warnings", quoted(s), len(r.Warnings)-i)})
			break
		}
		typ, text := event.Warning, fmt.Sprintf("memory store %s: %s", quoted(s), w.Text)
		if w.Path != "" {
			text = fmt.Sprintf("memory store %s: %s: %s", quoted(s), w.Path, w.Text)
		}
		if w.Lost {
			typ = event.MemoryConflict
		}
		m.note(ctx, typ, map[string]string{"text": text, "store": s.Store, "path": w.Path})
	}
}

// memoryLedger is the record of one store of one session.
type memoryLedger struct {
	keeper         *Keeper
	session, store string
}

func (l memoryLedger) Load(ctx context.Context) (map[string]memory.Known, bool, error) {
	return l.keeper.records.LoadMemory(ctx, l.session, l.store)
}

func (l memoryLedger) Save(ctx context.Context, rows map[string]memory.Known, ready bool) error {
	return l.keeper.commit(ctx, Change{At: l.keeper.now(), Memory: &MemoryChange{Session: l.session, Store: l.store, Rows: rows, Ready: ready}})
}
