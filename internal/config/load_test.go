package config

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// world is a source made of maps.
func world(env, files map[string]string) Source {
	return Source{
		Getenv: func(name string) string { return env[name] },
		ReadFile: func(path string) ([]byte, error) {
			if text, ok := files[path]; ok {
				return []byte(text), nil
			}
			return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
		},
		Dir:  "/srv",
		CPUs: 2,
	}
}

type vars = map[string]string

func mustLoad(t *testing.T, src Source) Config {
	t.Helper()
	c, err := Load(src)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDefaults(t *testing.T) {
	c := mustLoad(t, world(vars{"HOME": "/home/ada"}, nil))
	want := Config{
		Listen:   "127.0.0.1:7070",
		DataDir:  "/home/ada/.local/state/berth",
		BaseURL:  "https://api.anthropic.com",
		Log:      Log{Level: "info", Format: "text"},
		Sessions: Sessions{Capacity: 16, ReleaseAfter: 15 * time.Second, ToolTimeout: 2 * time.Minute, ReadEvery: time.Minute, MemorySync: 15 * time.Second, SweepEvery: 5 * time.Minute},
		Skills:   Skills{Keep: 720 * time.Hour, Size: 10 << 30},
		Sandbox: Sandbox{
			Backend: "linux", Image: "host", Warm: 5 * time.Minute, SetupTimeout: 5 * time.Minute,
			Limits: Limits{Memory: 2 << 30, CPUs: 2, Processes: 512, Disk: 10 << 30, OpenFiles: 8192},
			Images: Images{DockerConfig: "/home/ada/.docker", Keep: 168 * time.Hour, MaxSize: 20 << 30, PullTimeout: 30 * time.Minute},
			Linux:  Linux{Runtime: "gvisor"},
		},
		Client: Client{Server: "http://127.0.0.1:7070"},
	}
	if d := cmp.Diff(want, c, cmp.AllowUnexported(Secret{})); d != "" {
		t.Error(d)
	}
}

func TestTheFileIsOverlaidByTheEnvironmentAndThatByFlags(t *testing.T) {
	files := vars{"/srv/berth.yaml": "listen: 127.0.0.1:1\ndata_dir: from-file\nlog:\n  level: warn\n  format: json\nsessions:\n  capacity: 3\n  release_after: 1m30s\nsandbox: {limits: {memory: 512MiB, cpus: 1.5}}\n"}
	src := world(vars{"BERTH_LISTEN": "127.0.0.1:2", "BERTH_LOG_LEVEL": "error", "NO_COLOR": "1", "BERTH_LOG_FORMAT": " "}, files)
	src.Set = vars{"listen": "127.0.0.1:3", "sessions.capacity": "4"}
	c := mustLoad(t, src)
	got := []any{
		c.Listen, c.Log.Level, c.Log.Format, c.DataDir, c.Sessions.Capacity, c.Sessions.ReleaseAfter,
		c.Sandbox.Limits.Memory, c.Sandbox.Limits.CPUs, c.Sandbox.Limits.Processes, c.NoColor, c.File,
	}
	want := []any{
		"127.0.0.1:3", "error", "json", "/srv/from-file", 4, 90 * time.Second,
		Bytes(512 << 20), 1.5, int64(512), true, "/srv/berth.yaml",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestWhichFileIsRead(t *testing.T) {
	files := vars{"/srv/berth.yaml": "listen: a:1", SystemFile: "listen: a:2", "/srv/other.yaml": "listen: a:3", "/etc/named.yaml": "listen: a:4"}
	for _, c := range []struct {
		name, flag, env string
		without         string
		want            string
	}{
		{"the working directory first", "", "", "", "a:1"},
		{"then the system", "", "", "/srv/berth.yaml", "a:2"},
		{"the environment", "", "/etc/named.yaml", "", "a:4"},
		{"the flag, relative", "other.yaml", "/etc/named.yaml", "", "a:3"},
	} {
		have := vars{}
		for path, text := range files {
			if path != c.without {
				have[path] = text
			}
		}
		src := world(vars{"BERTH_CONFIG": c.env}, have)
		src.File = c.flag
		if got := mustLoad(t, src).Listen; got != c.want {
			t.Errorf("%s: read %s, want %s", c.name, got, c.want)
		}
	}
	src := world(vars{"BERTH_CONFIG": "gone.yaml"}, files)
	if _, err := Load(src); err == nil || !strings.Contains(err.Error(), "/srv/gone.yaml") || !strings.Contains(err.Error(), "BERTH_CONFIG") {
		t.Errorf("Load with a file that is gone = %v", err)
	}
	src = world(nil, files)
	src.ReadFile = func(string) ([]byte, error) { return nil, fs.ErrPermission }
	if _, err := Load(src); !strings.Contains(err.Error(), "permission") {
		t.Errorf("Load with an unreadable file = %v", err)
	}
}

func TestSecretsAreReadByReference(t *testing.T) {
	files := vars{
		"/etc/berth/berth.yaml": `
access: {token: {file: api.token}}
environments:
  - id: env_1
    key: {env: KEY_1}
    webhook_signing_keys: [{env: HOOK_1}, {file: /run/hook}]
  - id: env_2
    key: {file: keys/two}
    base_url: http://localhost:9
webhooks: {signing_keys: [{env: HOOK_1}]}
`,
		"/etc/berth/api.token": "0123456789abcdef\n", "/etc/berth/keys/two": " key two\n\n", "/run/hook": "hook two",
	}
	src := world(vars{"KEY_1": "key one", "HOOK_1": "hook one", "WEBHOOK_SECRET": "hook three", "ANTHROPIC_API_KEY": "api"}, files)
	c := mustLoad(t, src)
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "data_dir") {
		t.Errorf("Validate = %v, want only a missing data_dir", err)
	}
	got := []string{
		c.Access.Token.Reveal(), c.Environments[0].Key.Reveal(), c.Environments[1].Key.Reveal(), c.APIKey.Reveal(),
		c.Environments[0].BaseURL, c.Environments[1].BaseURL,
	}
	want := []string{"0123456789abcdef", "key one", "key two", "api", "https://api.anthropic.com", "http://localhost:9"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"hook one", "hook three", "hook two"}, c.WebhookSecrets()); d != "" {
		t.Error(d)
	}
}

func TestTheEnvironmentAloneIsEnough(t *testing.T) {
	for name, env := range map[string]vars{
		"names":   {"ANTHROPIC_ENVIRONMENT_ID": "env_1", "ANTHROPIC_ENVIRONMENT_KEY": " key ", "ANTHROPIC_WEBHOOK_SIGNING_KEY": "hook"},
		"aliases": {"ENVIRONMENT_ID": "env_1", "ANTHROPIC_ENVIRONMENT_KEY": "key", "WEBHOOK_SECRET": "hook", "ANTHROPIC_BASE_URL": ""},
		"names win": {
			"ANTHROPIC_ENVIRONMENT_ID": "env_1", "ENVIRONMENT_ID": "env_9", "ANTHROPIC_ENVIRONMENT_KEY": "key",
			"ANTHROPIC_WEBHOOK_SIGNING_KEY": "hook", "WEBHOOK_SECRET": "other",
		},
	} {
		env["HOME"] = "/home/ada"
		c := mustLoad(t, world(env, nil))
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if len(c.Environments) != 1 || c.Environments[0].ID != "env_1" || c.Environments[0].Key.Reveal() != "key" {
			t.Errorf("%s: environments %+v", name, c.Environments)
		}
		if d := cmp.Diff([]string{"hook"}, c.WebhookSecrets()); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		if got := c.Environments[0].BaseURL; got != "https://api.anthropic.com" {
			t.Errorf("%s: base URL %q", name, got)
		}
	}
}

func TestWhichEnvironmentTheVariablesSpeakOf(t *testing.T) {
	const one = "environments: [{id: env_1, key: {env: K}}]"
	const two = "environments: [{id: env_1, key: {env: K}}, {id: env_2, key: {env: K}}]"
	for _, c := range []struct {
		name, file string
		env        vars
		want       string // id=key of each
	}{
		{"one more", one, vars{"K": "k", "ANTHROPIC_ENVIRONMENT_ID": "env_9", "ANTHROPIC_ENVIRONMENT_KEY": "v"}, "env_1=k env_9=v"},
		{"one of the file's", two, vars{"K": "k", "ANTHROPIC_ENVIRONMENT_ID": "env_2", "ANTHROPIC_ENVIRONMENT_KEY": "v"}, "env_1=k env_2=v"},
		{"the only one", one, vars{"K": "k", "ANTHROPIC_ENVIRONMENT_KEY": "v"}, "env_1=v"},
		{"no key given", two, vars{"K": "k", "ANTHROPIC_ENVIRONMENT_ID": "env_2"}, "env_1=k env_2=k"},
		{"unclear", two, vars{"K": "k", "ANTHROPIC_ENVIRONMENT_KEY": "v"}, ""},
		{"a key alone", "", vars{"ANTHROPIC_ENVIRONMENT_KEY": "v"}, ""},
	} {
		got, err := Load(world(c.env, vars{"/srv/berth.yaml": c.file}))
		if (err != nil) != (c.want == "") {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil && !strings.Contains(err.Error(), "ANTHROPIC_ENVIRONMENT_ID") {
			t.Errorf("%s: the error does not say what to do: %v", c.name, err)
		}
		var all []string
		for _, e := range got.Environments {
			all = append(all, e.ID+"="+e.Key.Reveal())
		}
		if s := strings.Join(all, " "); s != c.want {
			t.Errorf("%s: %s, want %s", c.name, s, c.want)
		}
	}
}

func TestMistakesInVariablesAndFlagsNameThem(t *testing.T) {
	src := world(vars{"BERTH_LOG_LEVEL": "loud", "BERTH_DEFAULT_BACKEND": "docker"}, nil)
	src.Set = vars{"sessions.capacity": "many", "api_key": "x", "nonsense": "1"}
	_, err := Load(src)
	for _, want := range []string{
		`BERTH_LOG_LEVEL: "loud" is not one of`, `BERTH_DEFAULT_BACKEND: "docker" is not one of linux, isolate`,
		`sessions.capacity: "many" is not a whole number`, "api_key: there is no setting", "nonsense: there is no setting",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q:\n%v", want, err)
		}
	}
}

func TestDefaultsThatDependOnTheHost(t *testing.T) {
	for _, c := range []struct {
		cpus   int
		memory Bytes
		want   int
	}{
		{2, 0, 16}, {0, 0, 8}, {2, 16 << 30, 16}, {64, 8 << 30, 30}, {4, 1 << 30, 2}, {1, 100 << 20, 2}, {1000, 0, 512},
	} {
		if got := defaultCapacity(c.cpus, c.memory); got != c.want {
			t.Errorf("%d cores, %v: capacity %d, want %d", c.cpus, c.memory, got, c.want)
		}
	}
	meminfo := "MemFree: 1 kB\nMemTotal:        8388608 kB\n"
	for name, c := range map[string]struct {
		files vars
		want  Bytes
	}{
		"host":            {vars{"/proc/meminfo": meminfo}, 8 << 30},
		"no limit":        {vars{"/proc/meminfo": meminfo, "/sys/fs/cgroup/memory.max": "max\n"}, 8 << 30},
		"a smaller group": {vars{"/proc/meminfo": meminfo, "/sys/fs/cgroup/memory.max": "1073741824\n"}, 1 << 30},
		"neither":         {nil, 0},
		"malformed":       {vars{"/proc/meminfo": "MemTotal: lots kB\n", "/sys/fs/cgroup/memory.max": "-"}, 0},
	} {
		if got := memory(world(nil, c.files).ReadFile); got != c.want {
			t.Errorf("%s: memory %v, want %v", name, got, c.want)
		}
	}
	for _, c := range []struct {
		env  vars
		root bool
		want string
	}{
		{vars{"HOME": "/root"}, true, "/var/lib/berth"},
		{vars{"HOME": "/home/a", "XDG_STATE_HOME": "/state"}, false, "/state/berth"},
		{vars{"HOME": "/home/a", "XDG_STATE_HOME": "relative"}, false, "/home/a/.local/state/berth"},
		{nil, false, ""},
	} {
		src := world(c.env, nil)
		src.Root = c.root
		if got := mustLoad(t, src).DataDir; got != c.want {
			t.Errorf("%v: data_dir %q, want %q", c.env, got, c.want)
		}
	}
	for listen, want := range map[string]string{
		"127.0.0.1:1": "http://127.0.0.1:1", "0.0.0.0:2": "http://127.0.0.1:2", ":3": "http://127.0.0.1:3", "[::]:4": "http://127.0.0.1:4", "host:5": "http://host:5",
	} {
		if got := mustLoad(t, world(vars{"BERTH_LISTEN": listen}, nil)).Client.Server; got != want {
			t.Errorf("listen %s: server %s, want %s", listen, got, want)
		}
	}
}

func TestTheRealSource(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("BERTH_LISTEN", "127.0.0.1:9")
	t.Setenv("BERTH_CONFIG", "")
	if err := os.WriteFile("berth.yaml", []byte("log: {level: debug}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(OS())
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen != "127.0.0.1:9" || c.Log.Level != "debug" || c.Sessions.Capacity < 2 || filepath.Base(c.File) != "berth.yaml" {
		t.Errorf("Load(OS()) = %+v", c)
	}
}
