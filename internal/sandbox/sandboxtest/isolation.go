package sandboxtest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/berth-dev/berth/internal/sandbox"
)

// linuxCases: what is visible and possible inside, for backends that offer a
// full Linux. Commands run as the agent's do.
var linuxCases = []testCase{
	{claim: "two sandboxes share nothing", needs: onLinux, run: func(h *host) {
		_, a := h.start()
		_, b := h.start()
		h.sh(a, "echo secret | tee /tmp/a /workspace/a /dev/shm/a /var/tmp/a")
		h.says(b, "ls /tmp /workspace /dev/shm /var/tmp", "/dev/shm:\n\n/tmp:\n\n/var/tmp:\n\n/workspace:")
		h.sh(a, "exec -a marker sleep 600 </dev/null >/dev/null 2>&1 & disown")
		h.until(a, "grep -qs marker /proc/[0-9]*/cmdline")
		h.says(b, "grep -ls mark[e]r /proc/[0-9]*/cmdline", "")
	}},
	{claim: "loopback works and is one's own", needs: onLinux, run: func(h *host) {
		_, a := h.start()
		_, b := h.start()
		listen := `exec python3 -c '
import socket
s = socket.socket()
s.bind(("127.0.0.1", 4321))
s.listen()
open("/tmp/ready", "w")
while True: s.accept()[0].sendall(b"pong")' </dev/null >/dev/null 2>&1 & disown`
		h.sh(a, listen)
		h.until(a, "test -e /tmp/ready")
		h.says(a, "cat < /dev/tcp/127.0.0.1/4321", "pong")
		h.says(b, "(cat < /dev/tcp/127.0.0.1/4321) 2>/dev/null || echo refused", "refused")
	}},
	{claim: "there is no network beyond loopback", needs: onLinux, run: func(h *host) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			h.Fatal(err)
		}
		defer l.Close()
		_, g := h.start()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		targets := []string{"127.0.0.1/" + port, "1.1.1.1/53", "169.254.169.254/80", "10.0.0.1/80"}
		for _, a := range hostAddresses(h) {
			targets = append(targets, a+"/"+port)
		}
		for _, target := range targets {
			h.says(g, fmt.Sprintf("(timeout 5 bash -c ': < /dev/tcp/%s') 2>/dev/null && echo reached", target), "")
		}
		h.says(g, "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '", "lo")
	}},
	{claim: "the host's secrets are not there", needs: onLinux, run: hideHost},
	{claim: "the agent has no privileges", needs: onLinux, run: func(h *host) {
		_, g := h.start()
		h.says(g, "grep -E '^(CapInh|CapPrm|CapEff|CapAmb)' /proc/self/status | cut -f2 | sort -u", "0000000000000000")
		h.says(g, "grep NoNewPrivs /proc/self/status | cut -f2", "1")
		h.says(g, "mount -t tmpfs x /tmp 2>/dev/null && echo mounted", "")
		h.says(g, "chroot / true 2>/dev/null && echo chrooted", "")
	}},
	{claim: "the agent can neither read, trace nor end the guest", needs: onLinux, run: func(h *host) {
		_, g := h.start()
		for _, file := range []string{"mem", "environ", "maps", "fd/0", "fd/1", "root", "cwd"} {
			h.says(g, fmt.Sprintf("head -c 1 /proc/1/%s >/dev/null 2>&1 && echo read", file), "")
		}
		if h.oneUser(g) { // then it may end its own sandbox
			return
		}
		h.says(g, "ls /proc/1/fd 2>/dev/null", "")
		h.sh(g, "kill -9 1; kill -STOP 1; kill -TERM 1; kill -9 -1")
		h.says(g, "echo alive", "alive")
	}},
	{claim: "programs and system files are read-only, scratch is writable", needs: onLinux, run: func(h *host) {
		_, g := h.start()
		closed := []string{"/usr", "/usr/bin", "/bin"}
		if !h.oneUser(g) {
			closed = append(closed, "/", "/etc", "/.berth")
		}
		for _, dir := range closed {
			h.says(g, fmt.Sprintf("touch %s/x 2>/dev/null && echo wrote", dir), "")
		}
		for _, dir := range []string{"/tmp", "/var/tmp", "/dev/shm", "/workspace"} {
			h.says(g, fmt.Sprintf("echo x > %s/x && cat %s/x", dir, dir), "x")
		}
	}},
	{claim: "ordinary programs work", needs: onLinux, run: func(h *host) {
		_, g := h.start()
		h.says(g, "awk 'BEGIN { print 6*7 }'", "42")
		h.says(g, "printf 'b\\na\\n' | sort | tr '\\n' ' ' | sed 's/ $//'", "a b")
		h.says(g, "pwd; cd ~ && pwd; whoami >/dev/null && getent hosts localhost | grep -c localhost", "/workspace\n/workspace\n1")
		h.says(g, "for i in $(seq 20); do (exit 3) & done; wait; echo waited", "waited")
		h.says(g, "date +%s | grep -c '^[0-9]*$'", "1")
	}},
	{claim: "whatever an agent leaves behind can be removed", needs: onLinux, run: func(h *host) {
		outside := h.TempDir()
		kept := filepath.Join(outside, "kept")
		if err := os.WriteFile(kept, []byte("x"), 0o644); err != nil {
			h.Fatal(err)
		}
		s := h.spec()
		box := h.create(s)
		h.sh(h.guest(box), fmt.Sprintf(`cd /workspace
mkdir -p shut/in/deep; touch shut/in/deep/file; chmod 000 shut/in/deep shut/in shut
ln -s %s out; ln -s / root; ln -s loop loop; mkfifo pipe
mkdir -p d/$(printf 'x%%.0s' $(seq 200))/$(printf 'y%%.0s' $(seq 200)); touch "$(printf 'new\nline')" ./-rf`, outside))
		h.destroy(box, sandbox.Everything)
		if h.listed(s) {
			h.Error("still listed")
		}
		if _, err := os.Stat(kept); err != nil {
			h.Errorf("a link was followed out: %v", err)
		}
	}},
}

// oneUser reports whether guest and agent are the same user, as on a host where
// the backend has no users to give (its Features.Note says so).
func (h *host) oneUser(g sandbox.Guest) bool {
	h.Helper()
	return h.sh(g, "id -u") == h.sh(g, "stat -c %u /proc/1")
}

// plant gives this process a secret for the rest of its life: suites of several
// backends run side by side.
var plant = sync.OnceValue(func() error {
	return os.Setenv("BERTH_SUITE_SECRET", "planted-secret")
})

// hideHost plants secrets on the host and looks for them inside.
func hideHost(h *host) {
	if err := plant(); err != nil {
		h.Fatal(err)
	}
	planted := filepath.Join(h.TempDir(), "planted")
	if err := os.WriteFile(planted, []byte("planted-secret"), 0o644); err != nil {
		h.Fatal(err)
	}
	name, err := os.Hostname()
	if err != nil {
		h.Fatal(err)
	}
	_, g := h.start()
	h.says(g, fmt.Sprintf("cat %s 2>/dev/null", planted), "")
	h.says(g, "env | grep -c planted-secret", "0")
	h.says(g, "cat /proc/[0-9]*/environ 2>/dev/null | grep -c planted-secret", "0")
	for _, hidden := range []string{"/etc/shadow", "/etc/sudoers", "/etc/machine-id", "/etc/ssh", "/run/docker.sock", "/var/run/docker.sock", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		h.says(g, fmt.Sprintf("test -e %s && echo there", hidden), "")
	}
	h.says(g, "ls -A /root /home/* /opt /srv /mnt /media /boot /run 2>/dev/null | grep -v ':$' | grep -v '^$'", "")
	if got := h.sh(g, "hostname; cat /etc/hostname /proc/sys/kernel/hostname"); name != "berth" && strings.Contains(got, name) {
		h.Errorf("the host's name is known inside: %q", got)
	}
	// Of the processes outside, the suite's own is one that must not be seen.
	self := filepath.Base(os.Args[0])
	h.says(g, fmt.Sprintf("cat /proc/[0-9]*/comm | grep -cxF %q", self[:min(len(self), 15)]), "0")
	h.says(g, "ls /dev | grep -E '^(sd|vd|nvme|mem|kmsg|kvm)' ", "")
}

// hostAddresses returns some addresses of the host other than loopback.
func hostAddresses(h *host) []string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		h.Fatal(err)
	}
	var out []string
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() && len(out) < 2 {
			out = append(out, ip.IP.String())
		}
	}
	return out
}
