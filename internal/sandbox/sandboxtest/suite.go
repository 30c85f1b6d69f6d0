package sandboxtest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/tool"
)

// Run holds a backend against the contracts of package sandbox. Each call of
// open returns a Backend on the same data folder, as a server does that was
// started again; the suite closes it. What a backend does not claim in its
// Features is not asked of it; of a full Linux it needs bash and python3. The
// suite leaves nothing behind.
func Run(t *testing.T, open func(t *testing.T) sandbox.Backend) {
	for _, group := range [][]testCase{lifeCases, guestCases, linuxCases, shareCases, limitCases, diskCases, attackCases} {
		for _, c := range group {
			t.Run(c.claim, func(t *testing.T) {
				h := &host{T: t, open: open}
				h.Backend = h.another()
				if c.needs != nil && !c.needs(h.Features()) {
					t.Skipf("the backend does not claim it: %+v", h.Features())
				}
				c.run(h)
			})
		}
	}
}

// testCase is one claim about a backend.
type testCase struct {
	claim string
	needs func(sandbox.Features) bool // nil: every backend
	run   func(h *host)
}

func onLinux(f sandbox.Features) bool    { return f.Linux }
func withLimits(f sandbox.Features) bool { return f.Linux && f.Limits }
func withOwnKernel(f sandbox.Features) bool {
	return withLimits(f) && f.Isolation != sandbox.Namespaces
}

func withHostKernel(f sandbox.Features) bool {
	return withLimits(f) && f.Isolation == sandbox.Namespaces
}
func withDisk(f sandbox.Features) bool     { return f.Linux && f.Disk }
func withTerminal(f sandbox.Features) bool { return f.Terminal }

// patience bounds every single step of the suite.
const patience = 60 * time.Second

// host is what a case works on: a backend, and the sandboxes made with it.
type host struct {
	*testing.T
	sandbox.Backend
	open func(t *testing.T) sandbox.Backend
}

var cases atomic.Int64

// restart gives the case a new Backend in place of the present one, as a server
// does that was started again.
func (h *host) restart() {
	h.Helper()
	if err := h.Close(); err != nil {
		h.Errorf("close backend: %v", err)
	}
	h.Backend = h.another()
}

// another opens a Backend beside the present one. Only one of them may connect
// to a guest.
func (h *host) another() sandbox.Backend {
	b := h.open(h.T)
	h.Cleanup(func() {
		if err := b.Close(); err != nil {
			h.Errorf("close backend: %v", err)
		}
	})
	return b
}

// ctx bounds a step.
func (h *host) ctx() context.Context {
	ctx, cancel := context.WithTimeoutCause(h.Context(), patience, fmt.Errorf("no answer within %s", patience))
	h.Cleanup(cancel)
	return ctx
}

// spec describes a sandbox that no other case uses. It is removed with the case.
func (h *host) spec() sandbox.Spec {
	session := fmt.Sprintf("sesn_suite_%d_%d", time.Now().UnixNano(), cases.Add(1))
	s := sandbox.Spec{ID: sandbox.ID(session), Session: session, Image: "host"}
	h.Cleanup(func() { h.purge(s) })
	return s
}

// purge removes a sandbox with all of its files, whoever runs it.
func (h *host) purge(s sandbox.Spec) {
	b := h.open(h.T)
	defer b.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ref := sandbox.Ref{ID: s.ID, Backend: b.Name(), Session: s.Session}
	if err := b.Remove(ctx, ref, sandbox.Everything); err != nil {
		h.Errorf("remove %s: %v", s.ID, err)
	}
}

func (h *host) create(s sandbox.Spec) sandbox.Sandbox {
	h.Helper()
	box, err := h.Create(h.ctx(), s)
	if err != nil {
		h.Fatalf("Create: %v", err)
	}
	return box
}

func (h *host) guest(box sandbox.Sandbox) sandbox.Guest {
	h.Helper()
	g, err := box.Guest(h.ctx())
	if err != nil {
		h.Fatalf("Guest: %v", err)
	}
	return g
}

// start makes a sandbox and connects to it.
func (h *host) start() (sandbox.Sandbox, sandbox.Guest) {
	h.Helper()
	box := h.create(h.spec())
	return box, h.guest(box)
}

func (h *host) destroy(box sandbox.Sandbox, how sandbox.Removal) {
	h.Helper()
	if err := box.Destroy(h.ctx(), how); err != nil {
		h.Fatalf("Destroy: %v", err)
	}
}

func (h *host) listed(s sandbox.Spec) bool {
	h.Helper()
	refs, err := h.List(h.ctx())
	if err != nil {
		h.Fatalf("List: %v", err)
	}
	return slices.ContainsFunc(refs, func(r sandbox.Ref) bool { return r.ID == s.ID })
}

// bash is a call of the bash tool.
func bash(id, command string) tool.Call {
	input, _ := json.Marshal(map[string]string{"command": command}) // a string cannot fail
	return tool.Call{ID: id, Name: tool.Bash, Input: input, Timeout: 30 * time.Second}
}

func text(r tool.Result) string {
	var b strings.Builder
	for _, block := range r.Content {
		b.WriteString(block.Text)
	}
	return b.String()
}

// call runs a call and returns its text.
func (h *host) call(g sandbox.Guest, c tool.Call) string {
	h.Helper()
	r, err := g.Call(h.ctx(), c)
	if err != nil {
		h.Fatalf("Call %s: %v", c.ID, err)
	}
	return text(r)
}

// sh runs a command as the agent does, outside the ledger, and returns what it
// wrote to both streams.
func (h *host) sh(g sandbox.Guest, command string) string {
	h.Helper()
	r := h.exec(g, sandbox.Exec{Argv: []string{"/bin/bash", "-c", command}})
	return strings.TrimSpace(string(r.Stdout) + string(r.Stderr))
}

func (h *host) exec(g sandbox.Guest, e sandbox.Exec) sandbox.ExecResult {
	h.Helper()
	e.Timeout = 30 * time.Second
	r, err := g.Exec(h.ctx(), e)
	if err != nil {
		h.Fatalf("Exec %q: %v", e.Argv, err)
	}
	return r
}

// says fails unless a command inside answers with want.
func (h *host) says(g sandbox.Guest, command, want string) {
	h.Helper()
	if got := h.sh(g, command); got != want {
		h.Errorf("%s\n got %q\nwant %q", command, got, want)
	}
}

// until runs a command inside until it succeeds.
func (h *host) until(g sandbox.Guest, condition string) {
	h.Helper()
	// The waiting is done inside, where there is nothing else to wait on.
	loop := fmt.Sprintf("for i in $(seq 600); do if %s; then exit 0; fi; sleep 0.05; done; exit 1", condition)
	if r := h.exec(g, sandbox.Exec{Argv: []string{"/bin/bash", "-c", loop}}); r.Code != 0 {
		h.Fatalf("it never became true: %s", condition)
	}
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

func onlyByte(b []byte, c byte) bool { return len(bytes.Trim(b, string(c))) == 0 }
