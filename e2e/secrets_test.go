package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/access"
	"github.com/berth-dev/berth/internal/claude/local"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/testbin"
)

// TestNoCredentialIsInASandbox lets a session work, and then looks for every
// credential of the server in all that its sandbox consists of: environments,
// command lines, files and memory, from inside and from the host. Values that
// were planted there show that the searches find what is there.
func TestNoCredentialIsInASandbox(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("reading the memory of a sandbox needs root")
	}
	for _, runtime := range []string{"gvisor", "runc"} {
		t.Run(runtime, func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath(runtime); runtime != "gvisor" && err != nil {
				t.Skipf("%s is not installed", runtime)
			}
			noCredential(t, runtime)
		})
	}
}

func noCredential(t *testing.T, runtime string) {
	planted := map[string]string{}
	for _, where := range []string{"env", "argument", "file", "memory", "skill"} {
		planted[where] = "planted" + rand.Text()
	}
	h := newHouse(t, local.Options{}, `
name: planted
steps:
  - calls:
      - {tool: bash, input: {command: "echo `+planted["file"]+` > marker; (exec -a `+planted["argument"]+` sleep 600 >/dev/null 2>&1 &)"}, expect: {error: false}}
      - {tool: bash, input: {command: "cat /workspace/skills/*/SKILL.md /mnt/memory/notes/x.md"}, expect: {text: '(?s)`+planted["skill"]+`.*`+planted["memory"]+`', error: false}}
  - message: Done.
`)
	secrets := h.withSecrets()
	h.env = append(h.env, "BERTH_RUNTIME="+runtime)
	tokens := h.eavesdrop()
	h.start()
	s := h.plantedSession(planted)
	h.finished(60*time.Second, s)
	maps.Copy(secrets, tokens())
	for _, file := range []string{access.TokenFile, "vault.key"} {
		b, err := os.ReadFile(filepath.Join(h.dir, file))
		if err != nil {
			t.Fatal(err)
		}
		secrets[file] = strings.TrimSuffix(string(b), "\n")
	}
	for _, name := range []string{"API key", "environment key", "webhook key", "sessions token", access.TokenFile, "vault.key"} {
		if len(secrets[name]) < 20 {
			t.Fatalf("the test does not know the %s: %q", name, secrets[name])
		}
	}
	h.serverHas(secrets)
	found := h.searchAll(s, secrets, planted)
	for place, names := range found {
		for _, name := range names {
			if _, secret := secrets[name]; secret {
				t.Errorf("the %s is in the sandbox: %s", name, place)
			}
		}
	}
	for place, names := range mustBeFound(runtime) {
		for _, name := range names {
			if !slices.Contains(found[place], name) {
				t.Errorf("the search of %s does not find what was planted as %s, but %q", place, name, found[place])
			}
		}
	}
}

// mustBeFound is where each planted value has to be, so that the same search
// would find a credential there.
func mustBeFound(runtime string) map[string][]string {
	must := map[string][]string{
		"environments inside":  {"env"},
		"command lines inside": {"argument"},
		"files inside":         {"file", "memory", "skill"},
		"files on the host":    {"env", "file", "memory"},
		"memory on the host":   {"env", "argument"},
	}
	if runtime != "gvisor" { // whose processes on the host are not those inside
		must["environments on the host"] = []string{"env"}
		must["command lines on the host"] = []string{"argument"}
	} else {
		must["command lines on the host"] = []string{"id"}
	}
	return must
}

// withSecrets gives the house credentials that are nowhere else.
func (h *house) withSecrets() map[string]string {
	hook := make([]byte, 32)
	if _, err := rand.Read(hook); err != nil {
		h.t.Fatal(err)
	}
	h.apiKey, h.envKey = h.platform.MintAPIKey(), h.platform.MintEnvironmentKey(environment)
	key := base64.StdEncoding.EncodeToString(hook)
	h.env = append(h.env, "ANTHROPIC_API_KEY="+h.apiKey, "ANTHROPIC_WEBHOOK_SIGNING_KEY=whsec_"+key)
	return map[string]string{"API key": h.apiKey, "environment key": h.envKey, "webhook key": key}
}

// eavesdrop puts a listener between server and platform, who hears the tokens
// that sessions were given.
func (h *house) eavesdrop() func() map[string]string {
	var mu sync.Mutex
	heard := map[string]string{}
	known := []string{h.apiKey, h.envKey}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		mu.Lock()
		if token != "" && !slices.Contains(known, token) {
			known = append(known, token)
			heard[strings.TrimSuffix(fmt.Sprintf("sessions token %d", len(heard)), " 0")] = token
		}
		mu.Unlock()
		h.platform.ServeHTTP(w, r)
	}))
	h.t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	h.url = server.URL
	return func() map[string]string {
		mu.Lock()
		defer mu.Unlock()
		return maps.Clone(heard)
	}
}

// plantedSession creates a session whose agent has a skill, a memory store and
// an environment.
func (h *house) plantedSession(planted map[string]string) string {
	h.t.Helper()
	skill, _, err := h.platform.SeedSkill(local.SkillSeed{Name: "greet", Files: map[string]string{"SKILL.md": planted["skill"] + "\n"}})
	if err != nil {
		h.t.Fatal(err)
	}
	store := h.store("notes", map[string]string{"/x.md": planted["memory"] + "\n"})
	var agent, s struct{ ID string }
	h.post("/v1/agents", map[string]any{
		"name": "e2e", "model": "claude-opus-5-5", "tools": []any{map[string]any{"type": "agent_toolset_20260401"}},
		"skills": []any{map[string]any{"type": "custom", "skill_id": skill}},
	}, &agent)
	if out, errs, code := h.berth("agents", "set", agent.ID, "--env", "PLANTED="+planted["env"]); code != 0 {
		h.t.Fatalf("agents set: code %d\n%s%s", code, out, errs)
	}
	h.post("/v1/sessions", map[string]any{
		"agent": agent.ID, "environment_id": environment, "metadata": map[string]any{"scenario": "planted"},
		"resources":      []any{map[string]any{"type": "memory_store", "memory_store_id": store, "access": "read_write"}},
		"initial_events": []any{map[string]any{"type": "user.message", "content": []any{map[string]any{"type": "text", "text": "go"}}}},
	}, &s)
	return s.ID
}

// serverHas fails unless the searches find credentials where they are: with the
// server.
func (h *house) serverHas(secrets map[string]string) {
	h.t.Helper()
	proc := filepath.Join("/proc", strconv.Itoa(h.serve.cmd.Process.Pid))
	environ := &search{forms: formsOf(secrets), found: map[string]bool{}}
	environ.file(filepath.Join(proc, "environ"))
	memory := &search{forms: environ.forms, found: map[string]bool{}}
	memory.memory(proc)
	for _, name := range []string{"API key", "environment key", "webhook key"} {
		if !environ.found[name] {
			h.t.Errorf("the search of environments does not find the %s of the server", name)
		}
	}
	for _, name := range []string{"environment key", "sessions token"} {
		if !memory.found[name] {
			h.t.Errorf("the search of memory does not find the %s of the server, but %v", name, memory.found)
		}
	}
}

// searchAll looks everywhere and returns the names of what is found, by place.
// The search inside comes last, because it takes what it looks for along.
func (h *house) searchAll(session string, secrets, planted map[string]string) map[string][]string {
	h.t.Helper()
	id := sandbox.ID(session)
	all := maps.Clone(secrets)
	maps.Copy(all, planted)
	all["id"] = id
	forms := formsOf(all)
	searches := map[string]*search{}
	in := func(place string) *search {
		s := searches[place]
		if s == nil {
			s = &search{forms: forms, found: map[string]bool{}}
			searches[place] = s
		}
		return s
	}
	tree := h.tree(id)
	if len(tree) < 2 {
		h.t.Fatalf("the sandbox has the processes %v", tree)
	}
	for _, pid := range tree {
		proc := filepath.Join("/proc", strconv.Itoa(pid))
		in("environments on the host").file(filepath.Join(proc, "environ"))
		in("command lines on the host").file(filepath.Join(proc, "cmdline"))
		in("memory on the host").memory(proc)
	}
	syscall.Sync() // to the file that is the sandbox's disk
	for _, dir := range []string{filepath.Join(h.dir, "sandboxes", id), filepath.Join(h.dir, "run")} {
		in("files on the host").folder(dir)
	}
	in("environments inside").bytes([]byte(h.sh(session, "cat /proc/[0-9]*/environ 2>/dev/null; true")))
	in("command lines inside").bytes([]byte(h.sh(session, "cat /proc/[0-9]*/cmdline 2>/dev/null; true")))
	for _, name := range h.filesInside(session, forms) {
		in("files inside").found[name] = true
	}
	found := map[string][]string{}
	for place, s := range searches {
		found[place] = slices.Sorted(maps.Keys(s.found))
		h.t.Logf("%s: %d MiB in %d parts searched, found %q", place, s.size>>20, s.parts, found[place])
	}
	return found
}

// tree returns the processes of a sandbox on the host: those that carry its id
// or listen on its FIFO, and all below them.
func (h *house) tree(id string) []int {
	h.t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		h.t.Fatal(err)
	}
	below := map[int][]int{}
	var todo, pids []int
	for _, proc := range procs {
		pid, _ := strconv.Atoi(filepath.Base(proc)) // it matches
		stat, err := os.ReadFile(filepath.Join(proc, "stat"))
		if err != nil {
			continue
		}
		var state string
		var parent int
		_, _ = fmt.Sscan(string(stat[bytes.LastIndexByte(stat, ')')+1:]), &state, &parent) // of the kernel
		below[parent] = append(below[parent], pid)
		cmdline, _ := os.ReadFile(filepath.Join(proc, "cmdline")) // it may be gone
		stdin, _ := os.Readlink(filepath.Join(proc, "fd/0"))
		if bytes.HasPrefix(cmdline, []byte("runsc")) && bytes.Contains(cmdline, []byte(id)) || strings.HasSuffix(stdin, "/"+id+"/in") {
			todo = append(todo, pid)
		}
	}
	for len(todo) > 0 {
		pid := todo[0]
		todo = todo[1:]
		if !slices.Contains(pids, pid) {
			pids = append(pids, pid)
			todo = append(todo, below[pid]...)
		}
	}
	return pids
}

// lookInside is Python that looks for what its input names in every file that
// the agent can read, but for programs: the host's and ours.
const lookInside = `
import json, os, stat, sys, time
forms = {name: [bytes.fromhex(f) for f in fs] for name, fs in json.load(sys.stdin).items()}
found, end = set(), time.monotonic() + 50
def look(path):
    with open(path, "rb") as f:
        tail = b""
        while chunk := f.read(1 << 20):
            text = tail + chunk
            found.update(name for name, fs in forms.items() if name not in found and any(x in text for x in fs))
            tail = text[-512:]
for root, dirs, files in os.walk("/"):
    dirs[:] = [d for d in dirs if os.path.join(root, d) not in ("/proc", "/sys", "/usr", "/.berth")]
    for name in files:
        path = os.path.join(root, name)
        try:
            if stat.S_ISREG(os.lstat(path).st_mode): look(path)
        except OSError: pass
    if time.monotonic() > end: sys.exit("too many files")
print(json.dumps(sorted(found)))
`

// filesInside returns the names of what the agent finds in files.
func (h *house) filesInside(session string, forms map[string][][]byte) []string {
	h.t.Helper()
	wanted := map[string][]string{}
	for name, all := range forms {
		for _, f := range all {
			wanted[name] = append(wanted[name], hex.EncodeToString(f))
		}
	}
	input, err := json.Marshal(wanted)
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, testbin.Path(h.t), "exec", "--stdin", session, "--", "python3", "-c", lookInside)
	cmd.Env, cmd.Dir, cmd.Stdin = cleanEnv("BERTH_DATA_DIR="+h.dir, "BERTH_SERVER=http://"+h.address), h.dir, bytes.NewReader(input)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		h.t.Fatalf("look inside: %v\n%s%s", err, &out, &errs)
	}
	var found []string
	if err := json.Unmarshal(out.Bytes(), &found); err != nil {
		h.t.Fatalf("%v: %s", err, &out)
	}
	return found
}
