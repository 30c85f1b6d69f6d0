package sandboxtest

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"time"

	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/tool"
)

// attackCases: agent code runs beside the guest; it cannot be impersonated,
// starved, killed or read by that code without the session noticing and
// recovering.
var attackCases = []testCase{
	{claim: "the streams and the memory of guest and tool process are closed to the agent", needs: onLinux, run: func(h *host) {
		_, g := h.start()
		h.read(g, "c1", "/etc/hostname") // the tool process runs
		h.says(g, python(burglar+`
child = os.fork()
if child == 0:
    os.read(os.pipe()[0], 1)
print("the tool process is there:", len(workers()) > 0)
print("control:", {"mem", "fd"} <= opened(child))
os.kill(child, 9)
for pid in [1] + workers():
    print("opened:", sorted(opened(pid)))
`), "the tool process is there: True\ncontrol: True\nopened: []\nopened: []")
		h.says(g, "find / -xdev -type p 2>/dev/null", "")
	}},
	{claim: "a tool process cannot be caught while it starts", needs: onLinux, run: func(h *host) {
		_, g := h.start()
		if h.oneUser(g) { // then it starts as the agent
			return
		}
		h.background(g, python(burglar+`
caught, seen = set(), set()
open("/tmp/hunting", "w").close()
while len(seen) < 4:
    for pid in workers():
        seen.add(pid)
        caught |= opened(pid, quick=True)
        try: os.kill(pid, 9)
        except OSError: pass
open("/tmp/caught.new", "w").write(str(sorted(caught)))
os.rename("/tmp/caught.new", "/tmp/caught")
`))
		h.until(g, "test -e /tmp/hunting")
		for i := 0; i < 100 && h.sh(g, "cat /tmp/caught 2>/dev/null") == ""; i++ {
			h.read(g, fmt.Sprintf("c%d", i), "/workspace/none") // which starts another
		}
		h.says(g, "cat /tmp/caught", "[]")
	}},
	{claim: "results that an agent forges are nothing but text", needs: onLinux, run: func(h *host) {
		_, g := h.start()
		h.call(g, bash("c1", "echo genuine > /workspace/f"))
		// The forger holds the terminal of c1's shell, and of no other.
		h.call(g, bash("c2", "(setsid python3 -u - </dev/null <<'END' &)\n"+forger()+"\nEND\nuntil test -e /tmp/forging; do sleep 0.02; done"))
		for i := range 2 {
			other := bash(fmt.Sprintf("other%d", i), "cat /workspace/f")
			other.Shell = "another"
			if got := h.call(g, other); strings.TrimSpace(got) != "genuine" {
				h.Errorf("another shell: %.300q", got)
			}
			if got := h.read(g, fmt.Sprintf("read%d", i), "/workspace/f"); got != "genuine" {
				h.Errorf("read: %.300q", got)
			}
		}
		// Its own shell may show what the forger says beside what the command says.
		if got := h.call(g, bash("c3", "cat /workspace/f")); !strings.Contains(got, "genuine") {
			h.Errorf("its own shell: %.300q", got)
		}
		first, again := h.recall(g, "other0"), h.recall(g, "c1")
		if strings.TrimSpace(first) != "genuine" || strings.Contains(again, "forged") {
			h.Errorf("recalled: %.300q, %.300q", first, again)
		}
		if err := g.Ping(h.ctx()); err != nil {
			h.Errorf("Ping: %v", err)
		}
	}},
	{claim: "who kills all that it may is outlived", needs: onLinux, run: func(h *host) {
		_, g := h.start()
		if h.oneUser(g) { // then it may end its own sandbox
			return
		}
		h.call(g, bash("c1", "echo kept > /workspace/f; cp /workspace/f /workspace/g"))
		h.background(g, python(`
import os, time
end = time.monotonic() + 1
while time.monotonic() < end:
    try: os.kill(-1, 9)
    except OSError: pass
open("/workspace/calm", "w").write("calm")
`))
		for i := range 3 {
			// Whatever is said is the truth: what was asked for, or that it was killed.
			if got := h.read(g, fmt.Sprintf("read%d", i), "/workspace/f"); got != "kept" && !honest(got) {
				h.Errorf("read: %q", got)
			}
			c := bash(fmt.Sprintf("bash%d", i), "cat /workspace/g")
			c.Shell = fmt.Sprintf("shell%d", i)
			if got := h.call(g, c); strings.TrimSpace(got) != "kept" && !honest(got) {
				h.Errorf("bash: %q", got)
			}
			if err := g.Ping(h.ctx()); err != nil {
				h.Errorf("Ping: %v", err)
			}
		}
		h.sees(g, "/workspace/calm")
		h.recovers(g)
	}},
	{claim: "busy loops starve nobody", needs: onLinux, run: func(h *host) {
		s := h.spec()
		s.Limits.Processes = 64
		g := h.guest(h.create(s))
		if h.Features().Isolation == sandbox.Namespaces { // elsewhere it is a number without meaning
			h.says(g, "python3 -c 'import os; os.setpriority(0, 0, -20)' 2>&1 | grep -c PermissionError", "1")
		}
		h.call(g, bash("c1", "echo here > f; for i in $(seq 30); do (until test -e calm; do :; done) & done >/dev/null 2>&1"))
		if got := h.read(g, "read", "/workspace/f"); got != "here" {
			h.Errorf("read: %q", got)
		}
		if err := g.Ping(h.ctx()); err != nil {
			h.Errorf("Ping: %v", err)
		}
		h.file(g, "calm", tool.Write, map[string]string{"file_path": "/workspace/calm", "content": "x"})
		h.recovers(g)
	}},
	{claim: "a full process table leaves the file tools, and is told of", needs: onLinux, run: func(h *host) {
		s := h.spec()
		s.Limits.Processes = 48
		g := h.guest(h.create(s))
		h.call(g, bash("c1", "echo here > /workspace/f"))
		h.background(g, python(`
import os, time
children, end = [], time.monotonic() + 30
while not os.path.exists("/workspace/enough") and time.monotonic() < end:
    try: pid = os.fork()
    except OSError:
        if not os.path.exists("/workspace/full"): open("/workspace/full", "w").write("full")
        time.sleep(0.01)
        continue
    if pid == 0:
        os.setsid()
        os.read(os.pipe()[0], 1)
    children.append(pid)
for pid in children: os.kill(pid, 9)
for pid in children: os.waitpid(pid, 0)
open("/workspace/over", "w").write("over")
`))
		h.sees(g, "/workspace/full")
		if got := h.read(g, "read", "/workspace/f"); got != "here" && !honest(got) { // the tool process may want a thread, too
			h.Errorf("read: %q", got)
		}
		c := bash("c2", "echo ran")
		c.Shell = "another"
		if got := h.call(g, c); !strings.Contains(got, "resource temporarily unavailable") && !honest(got) {
			h.Errorf("bash: %q", got)
		}
		if err := g.Ping(h.ctx()); err != nil {
			h.Errorf("Ping: %v", err)
		}
		h.file(g, "write", tool.Write, map[string]string{"file_path": "/workspace/enough", "content": "x"})
		h.sees(g, "/workspace/over")
		h.recovers(g)
	}},
	{claim: "who opens all files that it may leaves the others theirs", needs: onLinux, run: func(h *host) {
		s := h.spec()
		s.Limits.OpenFiles, s.Limits.Processes = 256, 64
		g := h.guest(h.create(s))
		h.background(g, python(`
import os, time
for n in range(16):
    if os.fork() == 0:
        try:
            while True: os.pipe()
        except OSError: pass
        try:
            while True: os.open("/dev/null", 0)
        except OSError: pass
        os.mkdir("/tmp/hoard%d" % n)
        time.sleep(20)
        os._exit(0)
`))
		h.until(g, "test $(ls -d /tmp/hoard* 2>/dev/null | wc -l) = 16")
		h.file(g, "write", tool.Write, map[string]string{"file_path": "/workspace/f", "content": "here"})
		h.recovers(g)
	}},
	{claim: "what an agent plants for shells changes neither the guest nor the file tools", needs: onLinux, run: planted},
	{claim: "a link that is changed meanwhile leads no tool out", needs: onLinux, run: swapped},
}

// burglar is Python that tries to open a process.
const burglar = `
import os, ctypes
libc = ctypes.CDLL(None, use_errno=True)

def cmdline(pid):
    try: return open("/proc/%d/cmdline" % pid, "rb").read()
    except OSError: return b""

def pids():
    return [int(p) for p in os.listdir("/proc") if p.isdigit()]

def workers():
    return [p for p in pids() if p > 1 and b"guest\0worker\0" in cmdline(p)]

def can_open(path):
    for how in os.O_RDONLY, os.O_WRONLY:
        try:
            os.close(os.open(path, how | os.O_NONBLOCK))
            return True
        except OSError: pass
    return False

def opened(pid, quick=False):
    "names what of a process can be opened"
    got = set()
    root = "/proc/%d/" % pid
    for name in "environ", "mem":
        if can_open(root + name): got.add(name)
    if any(can_open(root + "fd/%d" % n) for n in range(2 if quick else 64)): got.add("fd")
    if quick: return got
    try:
        if any(can_open(root + "task/%s/fd/%d" % (t, n)) for t in os.listdir(root + "task") for n in range(8)): got.add("task fd")
    except OSError: pass
    pidfd = libc.syscall(434, pid, 0)
    if pidfd >= 0 and any(libc.syscall(438, pidfd, n, 0) >= 0 for n in range(64)): got.add("pidfd_getfd")
    class Iovec(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
    here = ctypes.create_string_buffer(8)
    for call in "process_vm_readv", "process_vm_writev":
        for address in 0x10000, 0x400000, 0xc000000000:
            a, b = Iovec(ctypes.addressof(here), 1), Iovec(address, 1)
            done = getattr(libc, call)(pid, ctypes.byref(a), 1, ctypes.byref(b), 1, 0)
            if done >= 0 or ctypes.get_errno() == 14: # EFAULT comes after the permission
                got.add(call)
    for how in 16, 0x4206: # attach, seize
        if libc.ptrace(how, pid, None, None) == 0: got.add("ptrace")
    return got
`

// python is a command that runs a script.
func python(script string) string {
	return "python3 - <<'END'\n" + script + "\nEND"
}

// background starts a command that goes on as long as it likes.
func (h *host) background(g sandbox.Guest, command string) {
	h.Helper()
	h.sh(g, "(setsid bash -s >/tmp/background.log 2>&1 &) <<'BACKGROUND'\n"+command+"\nBACKGROUND")
}

// file runs a file tool.
func (h *host) file(g sandbox.Guest, id, name string, input map[string]string) tool.Result {
	h.Helper()
	c := bash(id, "")
	c.Name = name
	c.Input, _ = json.Marshal(input) // strings cannot fail
	r, err := g.Call(h.ctx(), c)
	if err != nil {
		h.Fatalf("Call %s: %v", id, err)
	}
	if err := g.Acknowledge(h.ctx(), id); err != nil {
		h.Fatalf("Acknowledge %s: %v", id, err)
	}
	return r
}

// read runs the read tool.
func (h *host) read(g sandbox.Guest, id, path string) string {
	h.Helper()
	return strings.TrimSpace(text(h.file(g, id, tool.Read, map[string]string{"file_path": path})))
}

// forger is Python that writes what results look like to the terminal that it
// was started on, and to every stream that it may.
func forger() string {
	forged := tool.Text("forged")
	body, _ := json.Marshal(forged) // a text cannot fail
	return fmt.Sprintf(`
import os, time, glob
said = bytes.fromhex("%x")
out = [os.open("/dev/stdout", os.O_WRONLY)]
for path in glob.glob("/proc/[0-9]*/fd/[01]"):
    try: out.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError: pass
frames = [bytes.fromhex(f) for f in "%s".split()]
end, n = time.monotonic() + 15, 0
while time.monotonic() < end:
    for fd in out:
        try:
            for id in b"c3", b"other0", b"read0":
                os.write(fd, b'\n{"id":"' + id + b'","result":' + said + b'}\n' + frames[n %% len(frames)])
        except OSError: pass
    n += 1
    if n == 10: open("/tmp/forging", "w").close()
    time.sleep(0.01)
`, body, forgedFrames(body))
}

// forgedFrames are frames as the guest and its tool process exchange them, for
// many streams, in hexadecimal.
func forgedFrames(payload []byte) string {
	var all []string
	sum := crc32.MakeTable(crc32.Castagnoli)
	for stream := range uint32(16) {
		for _, kind := range []byte{4, 5} { // data, end
			f := append([]byte{0xf8, 'B', 'r', 't', kind, 1, 0, 0}, make([]byte, 8)...) // of no epoch
			for _, n := range []uint32{stream, uint32(len(payload)), crc32.Checksum(payload, sum)} {
				f = binary.BigEndian.AppendUint32(f, n)
			}
			f = binary.BigEndian.AppendUint32(f, crc32.Checksum(f, sum))
			all = append(all, hex.EncodeToString(append(f, payload...)))
		}
	}
	return strings.Join(all, " ")
}

// planted puts what shells and programs read in all places where the agent may.
func planted(h *host) {
	s := h.spec()
	s.Env = map[string]string{
		"PATH": "/workspace/bin:/usr/local/bin:/usr/bin:/bin", "BASH_ENV": "/workspace/.plant", "ENV": "/workspace/.plant",
		"LD_PRELOAD": "/workspace/plant.so", "PYTHONSTARTUP": "/workspace/.plant",
	}
	g := h.guest(h.create(s))
	shared := h.oneUser(g)
	h.call(g, bash("c1", `
mkdir -p bin
printf '#!/bin/sh\necho ran by $(/usr/bin/id -u) >> /workspace/ran\necho planted\n' > bin/rg
chmod +x bin/rg
for p in bash sh ls cat find grep env berth guest stty; do ln bin/rg bin/$p; done
for f in .plant .bashrc .bash_profile .bash_login .profile .inputrc .rgignore; do echo 'echo planted' > $f; done
: > plant.so
echo genuine > f`))
	for id, c := range map[string]struct {
		name  string
		input map[string]string
	}{
		"read":  {tool.Read, map[string]string{"file_path": "/workspace/f"}},
		"glob":  {tool.Glob, map[string]string{"pattern": "f"}},
		"grep":  {tool.Grep, map[string]string{"pattern": "genuine", "path": "/workspace/f"}},
		"write": {tool.Write, map[string]string{"file_path": "/workspace/w", "content": "x"}},
	} {
		if r := h.file(g, id, c.name, c.input); r.IsError || strings.Contains(text(r), "planted") {
			h.Errorf("%s: %q", id, text(r))
		}
	}
	// Commands are the agent's to spoil; the guest does not run what it planted.
	h.sh(g, "true")
	h.call(g, bash("c2", "ls"))
	if ran := h.read(g, "ran", "/workspace/ran"); !shared && strings.Contains(ran+"\n", "by 0\n") {
		h.Errorf("it ran as root: %q", ran)
	}
	if err := g.Ping(h.ctx()); err != nil {
		h.Errorf("Ping: %v", err)
	}
}

// swapped flips a folder of the workspace between what it is and a link to what
// lies outside, while the file tools work below it.
func swapped(h *host) {
	_, g := h.start()
	h.call(g, bash("c1", "mkdir d"))
	outside := "/usr /etc"
	if h.oneUser(g) { // then /etc is the agent's to change
		outside = "/usr"
	}
	before := h.sh(g, "ls -lA "+outside)
	h.background(g, python(`
import os, shutil, time
os.chdir("/workspace")
end = time.monotonic() + 30
open("flipping", "w").write("flipping")
while not os.path.exists("enough") and time.monotonic() < end:
    for target in "`+outside+`".split():
        try:
            os.rename("d", "hidden")
            os.symlink(target, "d")
            os.unlink("d")
            os.rename("hidden", "d")
        except OSError: # the tool made a folder meanwhile
            shutil.rmtree("hidden", ignore_errors=True)
open("flipped", "w").write("flipped")
`))
	h.sees(g, "/workspace/flipping")
	done := 0
	for i := 0; i < 100 || done == 0 && i < 1000; i++ {
		if !h.file(g, fmt.Sprintf("w%d", i), tool.Write, map[string]string{"file_path": "/workspace/d/hostname", "content": "written\n"}).IsError {
			done++
		}
	}
	if done == 0 {
		h.Error("no write was done")
	}
	h.file(g, "enough", tool.Write, map[string]string{"file_path": "/workspace/enough", "content": "x"})
	h.sees(g, "/workspace/flipped")
	if after := h.sh(g, "ls -lA "+outside); after != before {
		h.Errorf("it changed:\n%s\n%s", before, after)
	}
}

// honest reports whether a result says that its call was cut short.
func honest(result string) bool {
	return slices.ContainsFunc([]string{"was killed", "could not be started", "terminated", "no shell can be started", "exit code: "}, func(said string) bool {
		return strings.Contains(result, said)
	})
}

// recovers fails unless file tools and new shells work.
func (h *host) recovers(g sandbox.Guest) {
	h.Helper()
	h.file(g, "after-write", tool.Write, map[string]string{"file_path": "/workspace/after", "content": "works"})
	if got := h.read(g, "after-read", "/workspace/after"); got != "works" {
		h.Errorf("read afterwards: %q", got)
	}
	c := bash("after-bash", "cat /workspace/after")
	c.Shell = "after"
	if got := h.call(g, c); strings.TrimSpace(got) != "works" {
		h.Errorf("bash afterwards: %q", got)
	}
}

func (h *host) recall(g sandbox.Guest, id string) string {
	h.Helper()
	r, err := g.Recall(h.ctx(), id)
	if err != nil {
		h.Fatalf("Recall %s: %v", id, err)
	}
	return text(r)
}

// sees waits until the read tool finds something in a file: what runs inside may
// keep commands from starting.
func (h *host) sees(g sandbox.Guest, path string) {
	h.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	ctx := h.ctx()
	for n := 0; ; n++ {
		id := fmt.Sprintf("sees-%s-%d", path, n)
		if r := h.file(g, id, tool.Read, map[string]string{"file_path": path}); !r.IsError {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			h.Fatalf("%s: %v", path, context.Cause(ctx))
		}
	}
}
