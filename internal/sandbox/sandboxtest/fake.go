// Package sandboxtest holds the conformance suite that every sandbox backend
// passes, and Fake, a backend in memory for tests of what stands above one.
package sandboxtest

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/tool"
)

// FakeName is the name of the fake backend.
const FakeName = "fake"

var idPattern = regexp.MustCompile(`^b[0-9a-f]{24}$`)

// Fake is a sandbox.Backend in memory: deterministic, without processes, with
// the whole contract's idempotency and with knobs for what goes wrong. It
// stands for the host: a test that restarts its server goes on with the same
// Fake after Restart. It uses no clock but time.NewTimer, so that it runs inside
// a testing/synctest bubble. Safe for concurrent use.
type Fake struct {
	mu         sync.Mutex
	boxes      map[string]*box // running
	workspaces map[string]bool // by sandbox id; outlives a sandbox
	started    int             // counts instances
	creates    []sandbox.Spec
	records    []Record
	script     Script
	command    func(context.Context, sandbox.Exec) sandbox.ExecResult
	execs      []sandbox.Exec
	delay      time.Duration
	startError error
	startGate  chan struct{} // closed means open
	mute       string        // the instance that gives no sign of life
	shareRoot  string        // "": the folders of shares are only names
	shareless  bool
}

var _ sandbox.Backend = (*Fake)(nil)

// Script answers a call in place of a real tool. It runs in a goroutine of its
// own and must return soon after ctx ended (cancelled, or the sandbox died).
type Script func(ctx context.Context, c tool.Call) tool.Result

// Record is one call that reached a guest.
type Record struct {
	Sandbox  string
	Instance string
	Call     tool.Call
	Attached bool // false: this is the one that ran the tool
}

// NewFake returns a fake whose calls are answered by Echo.
func NewFake() *Fake {
	open := make(chan struct{})
	close(open)
	return &Fake{
		boxes: map[string]*box{}, workspaces: map[string]bool{},
		script: Echo, startGate: open,
	}
}

// Echo answers every call with its name and its input.
func Echo(_ context.Context, c tool.Call) tool.Result {
	return tool.Text(c.Name + " " + string(c.Input))
}

// Knobs. Each takes effect for what begins after it returns.

// StartError makes every Create of a new sandbox fail with err; nil ends it.
func (f *Fake) StartError(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.startError = err
}

// BlockStart makes Create of new sandboxes wait until release is called or
// their context ends. Release may be called more than once.
func (f *Fake) BlockStart() (release func()) {
	gate := make(chan struct{})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.startGate = gate
	return sync.OnceFunc(func() { close(gate) })
}

// CallDelay makes every call take at least d before its script runs.
func (f *Fake) CallDelay(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delay = d
}

// Tool sets what answers calls; nil means Echo.
func (f *Fake) Tool(s Script) {
	if s == nil {
		s = Echo
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.script = s
}

// Mute makes the guest that runs in a sandbox now give no sign of life any more;
// its calls go on.
func (f *Fake) Mute(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b := f.boxes[id]; b != nil {
		f.mute = b.instance
	}
}

func (f *Fake) silent(b *box) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mute == b.instance
}

// Command sets what answers Exec; nil means a guest that knows echo alone. It
// has to return soon after ctx ended.
func (f *Fake) Command(answer func(context.Context, sandbox.Exec) sandbox.ExecResult) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.command = answer
}

// Execs returns every command that was run outside the ledger, in order.
func (f *Fake) Execs() []sandbox.Exec {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.execs)
}

// LoseSandbox ends a sandbox as the host's OOM killer would: its calls are lost
// and its Wait returns exit. It does nothing when the sandbox does not run.
func (f *Fake) LoseSandbox(id string, exit sandbox.Exit) {
	f.mu.Lock()
	b := f.boxes[id]
	delete(f.boxes, id)
	f.mu.Unlock()
	if b != nil {
		b.end(exit)
	}
}

// DropConnection breaks the connection to a guest. Its calls go on.
func (f *Fake) DropConnection(id string) {
	f.mu.Lock()
	b := f.boxes[id]
	f.mu.Unlock()
	if b != nil {
		b.drop()
	}
}

// Restart breaks every connection, as the death of the server process does.
// Sandboxes and their calls go on.
func (f *Fake) Restart() {
	f.mu.Lock()
	boxes := make([]*box, 0, len(f.boxes))
	for _, b := range f.boxes {
		boxes = append(boxes, b)
	}
	f.mu.Unlock()
	for _, b := range boxes {
		b.drop()
	}
}

// Creates returns the specs of all sandboxes that were started, in order.
func (f *Fake) Creates() []sandbox.Spec {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.creates)
}

// Records returns every call that reached a guest, in order.
func (f *Fake) Records() []Record {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.records)
}

// Runs counts how often the tool of a call ran, over all sandboxes.
func (f *Fake) Runs(call string) int {
	n := 0
	for _, r := range f.Records() {
		if r.Call.ID == call && !r.Attached {
			n++
		}
	}
	return n
}

// Name implements sandbox.Backend.
func (f *Fake) Name() string { return FakeName }

// Features implements sandbox.Backend.
func (f *Fake) Features() sandbox.Features {
	f.mu.Lock()
	defer f.mu.Unlock()
	return sandbox.Features{Isolation: "none", Shares: !f.shareless, Note: "in memory, for tests"}
}

// Create implements sandbox.Backend.
func (f *Fake) Create(ctx context.Context, s sandbox.Spec) (sandbox.Sandbox, error) {
	if !idPattern.MatchString(s.ID) {
		return nil, fault.New(fault.Invalid, "%q is not a sandbox id", s.ID).WithField("id")
	}
	f.mu.Lock()
	running, gate := f.boxes[s.ID], f.startGate
	f.mu.Unlock()
	if running != nil {
		return running, nil
	}
	select {
	case <-gate:
	case <-ctx.Done():
		return nil, fmt.Errorf("create sandbox %s: %w", s.ID, context.Cause(ctx))
	}

	f.mu.Lock()
	defer f.mu.Unlock()
	if b := f.boxes[s.ID]; b != nil { // another Create was faster
		return b, nil
	}
	if f.startError != nil {
		return nil, fmt.Errorf("create sandbox %s: %w", s.ID, f.startError)
	}
	if err := f.makeShares(s); err != nil {
		return nil, fmt.Errorf("create sandbox %s: %w", s.ID, err)
	}
	f.started++
	made := s
	made.Pulling = nil
	f.creates = append(f.creates, made)
	f.workspaces[s.ID] = true
	b := newBox(f, s, fmt.Sprintf("instance-%d", f.started))
	f.boxes[s.ID] = b
	return b, nil
}

// Attach implements sandbox.Backend.
func (f *Fake) Attach(_ context.Context, ref sandbox.Ref) (sandbox.Sandbox, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b := f.boxes[ref.ID]; b != nil {
		return b, nil
	}
	return nil, fmt.Errorf("attach to sandbox %s: %w", ref.ID, sandbox.ErrGone)
}

// List implements sandbox.Backend, sorted by id. A workspace that outlived its
// sandbox is listed with its id alone.
func (f *Fake) List(context.Context) ([]sandbox.Ref, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var refs []sandbox.Ref
	for id := range f.workspaces {
		ref := sandbox.Ref{ID: id, Backend: FakeName}
		if b := f.boxes[id]; b != nil {
			ref = b.ref
		}
		refs = append(refs, ref)
	}
	slices.SortFunc(refs, func(a, b sandbox.Ref) int { return strings.Compare(a.ID, b.ID) })
	return refs, nil
}

// Remove implements sandbox.Backend.
func (f *Fake) Remove(ctx context.Context, ref sandbox.Ref, how sandbox.Removal) error {
	f.mu.Lock()
	b := f.boxes[ref.ID]
	if b == nil && how == sandbox.Everything {
		f.forget(ref.ID)
	}
	f.mu.Unlock()
	if b == nil {
		return nil
	}
	return b.Destroy(ctx, how)
}

// Close implements sandbox.Backend; sandboxes keep running.
func (f *Fake) Close() error {
	f.Restart()
	return nil
}
