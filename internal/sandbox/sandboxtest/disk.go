package sandboxtest

import (
	"strings"

	"github.com/berth-dev/berth/internal/sandbox"
)

// The limit of most cases here, and more than that.
const (
	smallDisk = 64 << 20
	fill      = "head -c 200000000 /dev/zero > "
)

// diskCases: what a sandbox may write.
var diskCases = []testCase{
	{claim: "a full disk says so, and the sandbox goes on", needs: withDisk, run: func(h *host) {
		s := h.spec()
		s.Limits.DiskBytes = smallDisk
		g := h.guest(h.create(s))
		for _, file := range []string{"/workspace/big", "/tmp/big"} {
			h.says(g, "("+fill+file+") 2>&1 | grep -o 'No space left on device' | head -1; "+
				"test $(stat -c %s "+file+") -le 67108864 && echo bounded", "No space left on device\nbounded")
			h.says(g, "(echo x > /workspace/one && echo x > /tmp/one && head -c 1000000 /dev/zero > /workspace/two) 2>/dev/null || echo full", "full")
			got := h.call(g, bash("c"+file, "head -c 1000000 /dev/zero > /workspace/two"))
			if !strings.Contains(got, "disk limit of 64MiB is used up") {
				h.Errorf("the call that fails for lack of space: %q", got)
			}
			h.says(g, "rm -f /workspace/* "+file+"; sync; echo x > /workspace/one && cat /workspace/one", "x")
		}
	}},
	{claim: "a full disk is nobody else's", needs: withDisk, run: func(h *host) {
		s := h.spec()
		s.Limits.DiskBytes = smallDisk
		g, neighbour := h.guest(h.create(s)), h.spec()
		neighbour.Limits.DiskBytes = smallDisk
		n := h.guest(h.create(neighbour))
		h.sh(g, fill+"/workspace/big")
		h.says(n, "head -c 30000000 /dev/zero > /workspace/mine && wc -c < /workspace/mine", "30000000")
	}},
	{claim: "files on a limited disk are kept as others are", needs: withDisk, run: func(h *host) {
		s := h.spec()
		s.Limits.DiskBytes = smallDisk
		box := h.create(s)
		h.sh(h.guest(box), "echo kept > /workspace/kept; echo x > /tmp/lost")
		h.destroy(box, sandbox.KeepFiles)
		h.restart()
		g := h.guest(h.create(s))
		h.says(g, "cat /workspace/kept; ls /tmp", "kept")
		h.restart()
		again, err := h.Attach(h.ctx(), sandbox.Ref{ID: s.ID, Backend: h.Name(), Session: s.Session})
		if err != nil {
			h.Fatalf("Attach: %v", err)
		}
		h.says(h.guest(again), "cat /workspace/kept", "kept")
	}},
}
