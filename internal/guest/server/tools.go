//go:build linux

package server

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/tools/agenttoolset"

	"github.com/berth-dev/berth/internal/guest/wire"
	"github.com/berth-dev/berth/internal/tool"
)

// toolbox is the worker: it runs the stock tools of the SDK, unchanged, so that
// they behave as Claude expects. It trusts the guest, which checks everything
// that leaves here.
type toolbox struct {
	workdir string
	files   map[string]anthropic.BetaTool // all but bash; they keep no state
	wg      sync.WaitGroup

	mu      sync.Mutex
	shells  map[string]*shell                        // by name
	spare   *shell                                   // started before anybody wanted one; nil most of the time
	cancels map[*wire.Stream]context.CancelCauseFunc // of running calls
}

const maxShells = 64

func newToolbox(workdir string, shares Shares) *toolbox {
	b := &toolbox{
		workdir: workdir, files: map[string]anthropic.BetaTool{}, shells: map[string]*shell{},
		cancels: map[*wire.Stream]context.CancelCauseFunc{},
	}
	for _, t := range agenttoolset.BetaAgentToolset20260401(&agenttoolset.AgentToolContext{
		Workdir: workdir, AllowedRoots: shares.paths(false), ReadOnlyRoots: shares.paths(true),
	}) {
		if t.Name() != tool.Bash {
			b.files[t.Name()] = t
		}
	}
	return b
}

// serve runs calls until r ends, then stops them and the shells.
func (b *toolbox) serve(r io.Reader, w io.WriteCloser) error {
	err := wire.Serve(r, w, b)
	b.mu.Lock()
	for _, cancel := range b.cancels {
		cancel(errors.New("the worker ends"))
	}
	b.mu.Unlock()
	b.wg.Wait()
	if b.spare != nil {
		_ = b.spare.tool.(io.Closer).Close()
	}
	for _, sh := range b.shells {
		_ = sh.tool.(io.Closer).Close()
	}
	return err
}

// Hello implements wire.Acceptor.
func (b *toolbox) Hello(wire.Hello) wire.Welcome { return wire.Welcome{Instance: "worker"} }

// Accept implements wire.Acceptor.
func (b *toolbox) Accept(st *wire.Stream, r wire.Request) {
	switch r.Op {
	case wire.OpCall:
		ctx, cancel := context.WithCancelCause(context.Background())
		b.mu.Lock()
		b.cancels[st] = cancel
		b.mu.Unlock()
		b.wg.Go(func() {
			defer b.forget(st, cancel)
			b.wg.Go(func() { // ends with the call
				select {
				case <-st.Done():
					cancel(errors.New("nobody waits for it"))
				case <-ctx.Done():
				}
			})
			b.call(ctx, st, r)
		})
	case wire.OpCancel:
		if target := st.Session().Stream(r.Stream); target != nil {
			b.mu.Lock()
			cancel := b.cancels[target]
			b.mu.Unlock()
			if cancel != nil {
				cancel(errors.New("cancelled"))
			}
		}
		b.wg.Go(func() { st.End(wire.Trailer{}) })
	case wire.OpPrepare:
		b.wg.Go(func() { st.End(b.prepare(r.Env)) })
	default:
		b.wg.Go(func() { st.End(wire.Trailer{Code: wire.Invalid, Message: "unknown operation"}) })
	}
}

func (b *toolbox) forget(st *wire.Stream, cancel context.CancelCauseFunc) {
	b.mu.Lock()
	delete(b.cancels, st)
	b.mu.Unlock()
	cancel(nil)
}

func (b *toolbox) call(ctx context.Context, st *wire.Stream, r wire.Request) {
	input, err := st.ReadAll(ctx, wire.MaxInput)
	if err != nil {
		st.End(wire.Trailer{Code: wire.Invalid, Message: err.Error()})
		return
	}
	answer, err := json.Marshal(b.execute(ctx, r, input))
	if err != nil {
		answer, _ = json.Marshal(tool.Error(fmt.Sprintf("tool %q gave a result that cannot be encoded", r.Name)))
	}
	if _, err := st.Write(answer); err == nil {
		st.End(wire.Trailer{})
	}
}

// execute runs one tool. A panic becomes an error result.
func (b *toolbox) execute(ctx context.Context, r wire.Request, input json.RawMessage) (res tool.Result) {
	defer func() {
		if p := recover(); p != nil {
			res = tool.Error(fmt.Sprintf("tool %q failed: %v", r.Name, p))
		}
	}()
	if r.Name == tool.Bash {
		return b.bash(ctx, r, input)
	}
	t := b.files[r.Name]
	if t == nil {
		return tool.Error(fmt.Sprintf("unknown tool %q", r.Name))
	}
	return use(ctx, t, input)
}

func use(ctx context.Context, t anthropic.BetaTool, input json.RawMessage) tool.Result {
	blocks, err := t.Execute(ctx, input)
	if err != nil {
		return tool.Error(err.Error())
	}
	return result(blocks)
}

// shell is one persistent bash. The guest sees to it that its commands come
// one after the other.
type shell struct {
	tool    anthropic.BetaTool
	mark    string
	env     map[string]string
	settled bool // its terminal is ready; see settle
}

// run runs a command in a shell that is ready for it.
func (sh *shell) run(ctx context.Context, input json.RawMessage) tool.Result {
	if rest, again := split(input); again {
		if res := use(ctx, sh.tool, json.RawMessage(`{"restart":true}`)); res.IsError {
			return res
		}
		input, sh.settled = rest, false
	}
	if !sh.settled {
		if err := settle(ctx, sh.tool); err != nil {
			return tool.Error(err.Error())
		}
		sh.settled = true
	}
	res := use(ctx, sh.tool, input)
	if restarts(input, res) {
		sh.settled = false
	}
	return res
}

// bash runs a command and, when it was stopped, kills what the SDK's end of
// the shell did not reach.
func (b *toolbox) bash(ctx context.Context, r wire.Request, input json.RawMessage) tool.Result {
	sh, err := b.shell(r)
	if err != nil {
		return tool.Error(err.Error())
	}
	before := pids()
	res := sh.run(ctx, input)
	if before != nil && (ctx.Err() != nil || timedOut(res)) {
		killLeftovers(sh.mark, before)
	}
	return res
}

// timedOut recognises the SDK's own text (contract §5.1).
func timedOut(r tool.Result) bool {
	return r.IsError && len(r.Content) == 1 && strings.HasSuffix(r.Content[0].Text, "session restarted after timeout")
}

func (b *toolbox) shell(r wire.Request) (*shell, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if sh := b.shells[r.Shell]; sh != nil {
		return sh, nil
	}
	if len(b.shells) >= maxShells {
		return nil, fmt.Errorf("bash: %d shells are open, which is the limit", maxShells)
	}
	sh := b.spare
	if b.spare = nil; sh != nil && !maps.Equal(sh.env, r.Env) {
		unused := sh.tool.(io.Closer)
		b.wg.Go(func() { _ = unused.Close() })
		sh = nil
	}
	if sh == nil {
		sh = b.newShell(r.Env)
	}
	b.shells[r.Shell] = sh
	return sh, nil
}

func (b *toolbox) newShell(env map[string]string) *shell {
	sh := &shell{mark: rand.Text(), env: env}
	sh.tool = agenttoolset.BetaBashTool(&agenttoolset.AgentToolContext{
		Workdir: b.workdir, Env: merge(env, map[string]string{markName: sh.mark}),
	})
	return sh
}

// prepare starts a shell for whoever wants the first one.
func (b *toolbox) prepare(env map[string]string) wire.Trailer {
	ctx, cancel := context.WithTimeout(context.Background(), prepareTimeout)
	defer cancel()
	sh := b.newShell(env)
	if err := settle(ctx, sh.tool); err != nil {
		_ = sh.tool.(io.Closer).Close()
		return wire.Trailer{Code: wire.Internal, Message: err.Error()}
	}
	sh.settled = true
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.spare != nil || len(b.shells) > 0 {
		unneeded := sh.tool.(io.Closer)
		b.wg.Go(func() { _ = unneeded.Close() })
		return wire.Trailer{}
	}
	b.spare = sh
	return wire.Trailer{}
}

// result translates the SDK's blocks.
func result(blocks []anthropic.BetaToolResultBlockParamContentUnion) tool.Result {
	var res tool.Result
	for _, block := range blocks {
		if block.OfText != nil {
			res.Content = append(res.Content, tool.Block{Type: "text", Text: block.OfText.Text})
			continue
		}
		raw, err := json.Marshal(block)
		if err != nil {
			return tool.Error(fmt.Sprintf("encode result: %v", err))
		}
		var b tool.Block
		if err := json.Unmarshal(raw, &b); err != nil {
			return tool.Error(fmt.Sprintf("encode result: %v", err))
		}
		res.Content = append(res.Content, b)
	}
	return res
}
