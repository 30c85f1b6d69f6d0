package sandboxtest

import (
	"errors"
	"strings"

	"github.com/berth-dev/berth/internal/sandbox"
)

// limitCases: what a sandbox may not use, and how it ends when it tries.
var limitCases = []testCase{
	{claim: "a sandbox over its memory ends and says why", needs: withLimits, run: func(h *host) {
		s := h.spec()
		s.Limits.MemoryBytes = 256 << 20
		box := h.create(s)
		g := h.guest(box)
		_, err := g.Call(h.ctx(), bash("c1", "python3 -c 'b = bytearray(1 << 30); b[::4096] = b\"x\" * (1 << 18)'"))
		if !errors.Is(err, sandbox.ErrDisconnected) && !errors.Is(err, sandbox.ErrGone) {
			h.Errorf("the call: %v", err)
		}
		exit, err := box.Wait(h.ctx())
		if err != nil || exit.Reason != "out of memory" {
			h.Errorf("Wait: %+v, %v", exit, err)
		}
		if _, err := h.Attach(h.ctx(), box.Ref()); !errors.Is(err, sandbox.ErrGone) {
			h.Errorf("Attach: %v", err)
		}
		h.says(h.guest(h.create(s)), "echo again", "again")
	}},
	{claim: "memory inside is the limit, not the host's", needs: withLimits, run: func(h *host) {
		s := h.spec()
		s.Limits.MemoryBytes = 300 << 20
		h.says(h.guest(h.create(s)), "grep MemTotal /proc/meminfo | tr -dc 0-9", "307200")
	}},
	{claim: "files on disk are not memory", needs: withLimits, run: func(h *host) {
		s := h.spec()
		s.Limits.MemoryBytes = 200 << 20
		g := h.guest(h.create(s))
		h.says(g, "head -c 300000000 /dev/zero > /tmp/big && wc -c < /tmp/big", "300000000")
	}},
	{claim: "a fork bomb hurts only itself", needs: onLinux, run: func(h *host) {
		s := h.spec()
		s.Limits.Processes = 48
		g := h.guest(h.create(s))
		c := bash("c1", "bomb() { bomb | bomb & }; bomb; sleep 2; echo over")
		if got := h.call(g, c); !strings.Contains(got, "Resource temporarily unavailable") {
			h.Errorf("answer %.300q", got)
		}
		if _, err := g.Recall(h.ctx(), "c1"); err != nil {
			h.Errorf("the guest after the bomb: %v", err)
		}
	}},
	{claim: "open files are limited", needs: onLinux, run: func(h *host) {
		s := h.spec()
		s.Limits.OpenFiles = 256
		g := h.guest(h.create(s))
		h.says(g, "ulimit -Hn", "256")
		h.says(g, "(for i in $(seq 300); do exec {fd}</dev/null || exit 1; done) 2>/dev/null || echo refused", "refused")
	}},
}
