package sandboxtest

import (
	"errors"
	"strings"

	"github.com/berth-dev/berth/internal/sandbox"
)

// limitCases: what a sandbox may not use, and how it ends when it tries.
var limitCases = []testCase{
	{claim: "a sandbox over its memory ends and says why", needs: withOwnKernel, run: func(h *host) {
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
	{claim: "a command over the memory ends and its sandbox goes on", needs: withHostKernel, run: func(h *host) {
		s := h.spec()
		s.Limits.MemoryBytes = 256 << 20
		g := h.guest(h.create(s))
		got := h.call(g, bash("c1", "python3 -c 'b = bytearray(1 << 30); b[::4096] = b\"x\" * (1 << 18)'; echo status $?"))
		if !strings.Contains(got, "status 137") || !strings.Contains(got, "memory limit of 256MiB was reached") {
			h.Errorf("the call: %q", got)
		}
		h.says(g, "echo again", "again")
	}},
	{claim: "memory inside is the limit, not the host's", needs: withOwnKernel, run: func(h *host) {
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
	{claim: "processes are limited", needs: onLinux, run: func(h *host) {
		s := h.spec()
		s.Limits.Processes = 48
		g := h.guest(h.create(s))
		h.says(g, "ulimit -Hu", "48")
		// Without bash, which tries again for a minute.
		h.says(g, `python3 -c '
import os
r, w = os.pipe()
for n in range(100):
    try:
        pid = os.fork()
    except OSError as e:
        print(e.strerror, n <= 48)
        break
    if pid == 0: # until the parent ends
        os.close(w)
        os.read(r, 1)
        os._exit(0)
'`, "Resource temporarily unavailable True")
	}},
	{claim: "a fork bomb hurts only itself", needs: onLinux, run: func(h *host) {
		s := h.spec()
		s.Limits.Processes = 48
		box := h.create(s)
		g := h.guest(box)
		// What runs tools is the agent's user too, and may fall to the bomb;
		// the call is answered all the same.
		answer := h.call(g, bash("c1", "bomb() { bomb | bomb & }; bomb; sleep 2; echo over"))
		if got, err := g.Recall(h.ctx(), "c1"); err != nil || text(got) != answer {
			h.Errorf("Recall after the bomb: %v, %v", got, err)
		}
		if h.guest(box) != g {
			h.Error("the connection was lost")
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
