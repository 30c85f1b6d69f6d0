package sandboxtest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/tool"
)

// box is one running sandbox of a Fake: the far side (calls) and the near side
// (at most one connection) in one value.
type box struct {
	fake     *Fake
	ref      sandbox.Ref
	instance string
	shares   []sandbox.Share
	life     context.Context // ends with the sandbox
	kill     context.CancelFunc
	work     sync.WaitGroup // running scripts
	ended    chan struct{}  // closed when exit is set

	mu    sync.Mutex
	calls map[string]*call
	conn  *conn
	exit  sandbox.Exit
}

// call is the guest's memory of one call.
type call struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when result is set

	result tool.Result // after done
	acked  bool        // under box.mu
}

func newBox(f *Fake, s sandbox.Spec, instance string) *box {
	life, kill := context.WithCancel(context.Background())
	return &box{
		fake: f, ref: sandbox.Ref{ID: s.ID, Backend: FakeName, Session: s.Session}, shares: s.Shares, instance: instance, life: life, kill: kill,
		ended: make(chan struct{}), calls: map[string]*call{},
	}
}

// end stops everything inside without waiting for it, so that a script may lose
// its own sandbox. Only the one who took the box out of Fake.boxes may call it.
func (b *box) end(exit sandbox.Exit) {
	b.mu.Lock()
	b.exit = exit
	b.mu.Unlock()
	close(b.ended)
	b.drop()
	b.kill()
}

// drop breaks the present connection, if there is one.
func (b *box) drop() {
	b.mu.Lock()
	c := b.conn
	b.conn = nil
	b.mu.Unlock()
	if c != nil {
		c.breakOff()
	}
}

func (b *box) Ref() sandbox.Ref { return b.ref }

func (b *box) Guest(context.Context) (sandbox.Guest, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.ended:
		return nil, fmt.Errorf("connect to sandbox %s: %w", b.ref.ID, sandbox.ErrGone)
	default:
	}
	if b.conn == nil {
		broken := make(chan struct{})
		b.conn = &conn{box: b, broken: broken, breakOff: sync.OnceFunc(func() { close(broken) })}
	}
	return b.conn, nil
}

func (b *box) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-b.ended:
		return b.exit, nil
	case <-ctx.Done():
		return sandbox.Exit{}, context.Cause(ctx)
	}
}

func (b *box) Destroy(ctx context.Context, how sandbox.Removal) error {
	f := b.fake
	f.mu.Lock()
	mine := f.boxes[b.ref.ID] == b
	if mine {
		delete(f.boxes, b.ref.ID)
	}
	if how == sandbox.Everything && f.boxes[b.ref.ID] == nil {
		f.forget(b.ref.ID)
	}
	f.mu.Unlock()
	if mine {
		b.end(sandbox.Exit{Code: -1, Reason: "destroyed"})
	}
	quiet := make(chan struct{})
	go func() { // ends with the last script
		defer close(quiet)
		b.work.Wait()
	}()
	select {
	case <-quiet:
		return nil
	case <-ctx.Done(): // a script heeds nothing
		return fmt.Errorf("destroy sandbox %s: %w", b.ref.ID, context.Cause(ctx))
	}
}

// conn is one connection to a box; it implements sandbox.Guest.
type conn struct {
	box      *box
	broken   chan struct{}
	breakOff func()
}

func (c *conn) Instance() string { return c.box.instance }

func (c *conn) Close() error {
	b := c.box
	b.mu.Lock()
	if b.conn == c {
		b.conn = nil
	}
	b.mu.Unlock()
	c.breakOff()
	return nil
}

// alive reports a broken connection before a request is sent.
func (c *conn) alive() error {
	select {
	case <-c.broken:
		return fmt.Errorf("guest of %s: %w", c.box.ref.ID, sandbox.ErrDisconnected)
	default:
		return nil
	}
}

func (c *conn) Ping(ctx context.Context) error {
	if c.box.fake.silent(c.box) {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return c.alive()
}

func (c *conn) Call(ctx context.Context, tc tool.Call) (tool.Result, error) {
	if err := c.alive(); err != nil {
		return tool.Result{}, err
	}
	known, err := c.box.run(tc)
	if err != nil {
		return tool.Result{}, err
	}
	return c.await(ctx, known)
}

func (c *conn) Recall(ctx context.Context, id string) (tool.Result, error) {
	if err := c.alive(); err != nil {
		return tool.Result{}, err
	}
	b := c.box
	b.mu.Lock()
	known := b.calls[id]
	acked := known != nil && known.acked
	b.mu.Unlock()
	switch {
	case known == nil:
		return tool.Result{}, fmt.Errorf("recall %s: %w", id, sandbox.ErrUnknownCall)
	case acked:
		return tool.Result{}, fmt.Errorf("recall %s: %w", id, sandbox.ErrAcknowledged)
	}
	return c.await(ctx, known)
}

// await waits for a result over this connection.
func (c *conn) await(ctx context.Context, known *call) (tool.Result, error) {
	if err := c.alive(); err != nil { // a broken connection brings no result, however ready
		return tool.Result{}, err
	}
	select {
	case <-c.broken:
		return tool.Result{}, c.alive()
	case <-ctx.Done():
		return tool.Result{}, context.Cause(ctx)
	case <-known.done:
		return known.result, nil
	}
}

// run starts a call, or finds the one with that id.
func (b *box) run(tc tool.Call) (*call, error) {
	f := b.fake
	f.mu.Lock()
	defer f.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if f.boxes[b.ref.ID] != b {
		return nil, fmt.Errorf("call %s: %w", tc.ID, sandbox.ErrDisconnected)
	}
	known := b.calls[tc.ID]
	if known != nil && known.acked {
		return nil, fmt.Errorf("call %s: %w", tc.ID, sandbox.ErrAcknowledged)
	}
	f.records = append(f.records, Record{
		Sandbox: b.ref.ID, Instance: b.instance, Call: tc, Attached: known != nil,
	})
	if known != nil {
		return known, nil
	}
	ctx, cancel := context.WithCancel(b.life)
	known = &call{cancel: cancel, done: make(chan struct{})}
	b.calls[tc.ID] = known
	script, delay := f.script, f.delay
	b.work.Go(func() {
		defer close(known.done)
		defer cancel()
		known.result = perform(ctx, script, delay, tc)
	})
	return known, nil
}

// perform runs the script after the delay; a cancelled call never succeeds.
func perform(ctx context.Context, script Script, delay time.Duration, tc tool.Call) tool.Result {
	if delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return tool.Error("cancelled")
		}
	}
	result := script(ctx, tc)
	if ctx.Err() != nil {
		return tool.Error("cancelled")
	}
	return result
}

func (c *conn) Cancel(_ context.Context, id string) error {
	if err := c.alive(); err != nil {
		return err
	}
	b := c.box
	b.mu.Lock()
	known := b.calls[id]
	b.mu.Unlock()
	if known != nil {
		known.cancel()
	}
	return nil
}

// Acknowledge ignores calls that are unknown or still run.
func (c *conn) Acknowledge(_ context.Context, ids ...string) error {
	if err := c.alive(); err != nil {
		return err
	}
	b := c.box
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, id := range ids {
		known := b.calls[id]
		if known == nil {
			continue
		}
		select {
		case <-known.done:
			known.acked = true
		default:
		}
	}
	return nil
}

// Exec knows one program, echo, unless a test has set what answers.
func (c *conn) Exec(ctx context.Context, e sandbox.Exec) (sandbox.ExecResult, error) {
	if err := c.alive(); err != nil {
		return sandbox.ExecResult{}, err
	}
	if len(e.Argv) == 0 {
		return sandbox.ExecResult{}, fault.New(fault.Invalid, "no command was given").WithField("argv")
	}
	f := c.box.fake
	f.mu.Lock()
	command := f.command
	f.execs = append(f.execs, e)
	f.mu.Unlock()
	if command != nil {
		res := command(ctx, e)
		return res, context.Cause(ctx)
	}
	if e.Argv[0] != "echo" {
		return sandbox.ExecResult{Code: 127, Stderr: []byte(e.Argv[0] + ": command not found\n")}, nil
	}
	var out []byte
	for i, a := range e.Argv[1:] {
		if i > 0 {
			out = append(out, ' ')
		}
		out = append(out, a...)
	}
	return sandbox.ExecResult{Stdout: append(out, '\n')}, nil
}

func (c *conn) Terminal(context.Context, sandbox.Size) (sandbox.Terminal, error) {
	return nil, fmt.Errorf("open a terminal: %w", sandbox.ErrUnsupported)
}
