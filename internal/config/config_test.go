package config

import (
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/fault"
)

var update = flag.Bool("update", false, "write docs/configuration.md and deploy/berth.yaml anew")

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
		Dir:  "/work",
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
		Sessions: Sessions{Capacity: 16, ReleaseAfter: 15 * time.Second, ToolTimeout: 2 * time.Minute, ReadEvery: time.Minute, SweepEvery: 5 * time.Minute},
		Sandbox: Sandbox{Backend: "linux", Image: "host", Warm: 5 * time.Minute,
			Limits: Limits{Memory: 2 << 30, CPUs: 2, Processes: 512, OpenFiles: 8192}},
		Client: Client{Server: "http://127.0.0.1:7070"},
	}
	if d := cmp.Diff(want, c, cmp.AllowUnexported(Secret{})); d != "" {
		t.Error(d)
	}
}

func TestTheFileIsOverlaidByTheEnvironmentAndThatByFlags(t *testing.T) {
	files := vars{"/work/berth.yaml": "listen: 127.0.0.1:1\ndata_dir: from-file\nlog:\n  level: warn\n  format: json\nsessions:\n  capacity: 3\n  release_after: 1m30s\nsandbox: {limits: {memory: 512MiB, cpus: 1.5}}\n"}
	src := world(vars{"BERTH_LISTEN": "127.0.0.1:2", "BERTH_LOG_LEVEL": "error", "NO_COLOR": "1", "BERTH_LOG_FORMAT": " "}, files)
	src.Set = vars{"listen": "127.0.0.1:3", "sessions.capacity": "4"}
	c := mustLoad(t, src)
	got := []any{c.Listen, c.Log.Level, c.Log.Format, c.DataDir, c.Sessions.Capacity, c.Sessions.ReleaseAfter,
		c.Sandbox.Limits.Memory, c.Sandbox.Limits.CPUs, c.Sandbox.Limits.Processes, c.NoColor, c.File}
	want := []any{"127.0.0.1:3", "error", "json", "/work/from-file", 4, 90 * time.Second,
		Bytes(512 << 20), 1.5, int64(512), true, "/work/berth.yaml"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestWhichFileIsRead(t *testing.T) {
	files := vars{"/work/berth.yaml": "listen: a:1", SystemFile: "listen: a:2", "/work/other.yaml": "listen: a:3", "/etc/named.yaml": "listen: a:4"}
	for _, c := range []struct {
		name, flag, env string
		without         string
		want            string
	}{
		{"the working directory first", "", "", "", "a:1"},
		{"then the system", "", "", "/work/berth.yaml", "a:2"},
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
	if _, err := Load(src); err == nil || !strings.Contains(err.Error(), "/work/gone.yaml") || !strings.Contains(err.Error(), "BERTH_CONFIG") {
		t.Errorf("Load with a file that is gone = %v", err)
	}
	src = world(nil, files)
	src.ReadFile = func(string) ([]byte, error) { return nil, fs.ErrPermission }
	if _, err := Load(src); !strings.Contains(err.Error(), "permission") {
		t.Errorf("Load with an unreadable file = %v", err)
	}
}

func TestMistakesInTheFileAreAllReportedWithTheirPlace(t *testing.T) {
	file := `listen: 127.0.0.1:7070
lisen: x
log:
  level: loud
  format: true
environments:
  - id: 17
    kee: {env: X}
sessions:
  capacity: "3"
  release_after: 15
  tool_timeout: fast
sandbox:
  limits:
    memory: 2048
    cpus: many
    memroy: 2GiB
  image: ~
  warm: [5m]
webhooks: yes
`
	_, err := Load(world(nil, vars{"/work/berth.yaml": file}))
	want := `/work/berth.yaml:2:1: lisen: unknown key; did you mean "listen"?
    2 | lisen: x
      | ^
/work/berth.yaml:4:10: log.level: "loud" is not one of debug, info, warn, error
    4 |   level: loud
      |          ^
/work/berth.yaml:5:11: log.format: want one of text, json, not true or false
    5 |   format: true
      |           ^
/work/berth.yaml:7:9: environments[0].id: want text, not a number (put it in quotes if it is text)
    7 |   - id: 17
      |         ^
/work/berth.yaml:8:5: environments[0].kee: unknown key; did you mean "key"?
    8 |     kee: {env: X}
      |     ^
/work/berth.yaml:10:13: sessions.capacity: want a whole number, not text
   10 |   capacity: "3"
      |             ^
/work/berth.yaml:11:18: sessions.release_after: "15" is not a duration; write a number and a unit, such as 15s, 5m or 1h30m
   11 |   release_after: 15
      |                  ^
/work/berth.yaml:12:17: sessions.tool_timeout: "fast" is not a duration; write a number and a unit, such as 15s, 5m or 1h30m
   12 |   tool_timeout: fast
      |                 ^
/work/berth.yaml:15:13: sandbox.limits.memory: "2048" is not a size; write a number and a unit, such as 512MiB or 2GiB
   15 |     memory: 2048
      |             ^
/work/berth.yaml:16:11: sandbox.limits.cpus: want a number, not text
   16 |     cpus: many
      |           ^
/work/berth.yaml:17:5: sandbox.limits.memroy: unknown key; did you mean "memory"?
   17 |     memroy: 2GiB
      |     ^
/work/berth.yaml:18:10: sandbox.image: want text, not nothing
   18 |   image: ~
      |          ^
/work/berth.yaml:19:9: sandbox.warm: want a duration such as 15s or 5m, not a list
   19 |   warm: [5m]
      |         ^
/work/berth.yaml:20:11: webhooks: want settings below this key, not text
   20 | webhooks: yes
      |           ^`
	if err == nil {
		t.Fatal("no error")
	}
	if d := cmp.Diff(want, err.Error()); d != "" {
		t.Error(d)
	}
	if fault.CodeOf(err) != fault.Invalid {
		t.Errorf("code = %s", fault.CodeOf(err))
	}
}

func TestAFileThatIsNotYAMLIsReportedWithItsPlace(t *testing.T) {
	for text, want := range map[string]string{
		"a: [1\n":                      "/work/berth.yaml:1:4: not valid YAML",
		"listen: a:1\nlisten: b":       "/work/berth.yaml:2:1: not valid YAML",
		"log:\n\tlevel: info\n":        "/work/berth.yaml:2:1: not valid YAML",
		"listen: a\n---\nlog:\n":       "more than one document",
		"- a\n":                        "/work/berth.yaml:1:1: want settings below this key, not a list",
		"log: &x {level: info}":        "an anchor or alias",
		"listen: !!str 5":              "a tag",
		strings.Repeat("#", maxFile+1): "larger than a configuration can be",
	} {
		_, err := Load(world(nil, vars{"/work/berth.yaml": text}))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v\nwant %s", text, err, want)
		}
	}
}

func TestAnEmptyFileIsFine(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "---\n", "log:\nsandbox:\n  limits:\nenvironments: []\n"} {
		if _, err := Load(world(nil, vars{"/work/berth.yaml": text})); err != nil {
			t.Errorf("%q: %v", text, err)
		}
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
	got := []string{c.Access.Token.Reveal(), c.Environments[0].Key.Reveal(), c.Environments[1].Key.Reveal(), c.APIKey.Reveal(),
		c.Environments[0].BaseURL, c.Environments[1].BaseURL}
	want := []string{"0123456789abcdef", "key one", "key two", "api", "https://api.anthropic.com", "http://localhost:9"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"hook one", "hook three", "hook two"}, c.WebhookSecrets()); d != "" {
		t.Error(d)
	}
}

func TestSecretsInTheFileAreRefusedAndNotRepeated(t *testing.T) {
	for _, text := range []string{
		"api_key: hunter2-hunter2",
		"api_key: [hunter2-hunter2]",
		"api_key: {value: hunter2-hunter2}",
		"api_key: {env: {x: hunter2-hunter2}}",
		"access: {token: 'hunter2-hunter2'}",
		"environments:\n  - id: env_1\n    key: hunter2-hunter2\n",
		"environments: [{id: 5, key: hunter2-hunter2}]",
		"environments: [{ids: x, \"key\": \"hunter2-hunter2\"}]",
		"webhooks:\n  signing_keys:\n    - whsec_hunter2-hunter2\n",
		"webhooks:\n  signing_keys: sk-ant-hunter2-hunter2\n",
		"note: sk-ant-oat01-hunter2-hunter2",
		"webhook_secret: hunter2-hunter2",
		"token: hunter2-hunter2",
		"api_key: hunter2-hunter2: x",
		"api_key: \"hunter2-hunter2",
		"  - hunter2-hunter2: [",
	} {
		_, err := Load(world(nil, vars{"/work/berth.yaml": text}))
		if err == nil {
			t.Errorf("%q: no error", text)
			continue
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: the error repeats the secret:\n%v", text, err)
		}
		if !strings.Contains(err.Error(), "/work/berth.yaml:") {
			t.Errorf("%q: the error has no place: %v", text, err)
		}
	}
}

func TestTheEnvironmentAloneIsEnough(t *testing.T) {
	for name, env := range map[string]vars{
		"names":   {"ANTHROPIC_ENVIRONMENT_ID": "env_1", "ANTHROPIC_ENVIRONMENT_KEY": " key ", "ANTHROPIC_WEBHOOK_SIGNING_KEY": "hook"},
		"aliases": {"ENVIRONMENT_ID": "env_1", "ANTHROPIC_ENVIRONMENT_KEY": "key", "WEBHOOK_SECRET": "hook", "ANTHROPIC_BASE_URL": ""},
		"names win": {"ANTHROPIC_ENVIRONMENT_ID": "env_1", "ENVIRONMENT_ID": "env_9", "ANTHROPIC_ENVIRONMENT_KEY": "key",
			"ANTHROPIC_WEBHOOK_SIGNING_KEY": "hook", "WEBHOOK_SECRET": "other"},
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
		got, err := Load(world(c.env, vars{"/work/berth.yaml": c.file}))
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
	for _, want := range []string{`BERTH_LOG_LEVEL: "loud" is not one of`, `BERTH_DEFAULT_BACKEND: "docker" is not one of linux, isolate`,
		`sessions.capacity: "many" is not a whole number`, "api_key: there is no setting", "nonsense: there is no setting"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q:\n%v", want, err)
		}
	}
}

// good is a configuration without fault, for tests to spoil.
func good() Config {
	env := vars{"HOME": "/home/ada", "ANTHROPIC_ENVIRONMENT_ID": "env_1", "ANTHROPIC_ENVIRONMENT_KEY": "key"}
	c, err := Load(world(env, nil))
	if err != nil {
		panic(err)
	}
	return c
}

func TestValidateSaysWhatToDo(t *testing.T) {
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		spoil func(*Config)
		want  string
	}{
		"no environment": {func(c *Config) { c.Environments = nil },
			"environments: no environment is configured; add an entry with id and key to environments, or set ANTHROPIC_ENVIRONMENT_ID and ANTHROPIC_ENVIRONMENT_KEY"},
		"no key":          {func(c *Config) { c.Environments[0].Key = Secret{} }, "set environments[0].key to {env: NAME} or {file: path}, or set ANTHROPIC_ENVIRONMENT_KEY"},
		"no id":           {func(c *Config) { c.Environments[0].ID = "" }, "set environments[0].id, or ANTHROPIC_ENVIRONMENT_ID"},
		"twice":           {func(c *Config) { c.Environments = append(c.Environments, c.Environments[0]) }, "environments[1].id: env_1 is configured already in environments[0]"},
		"its base URL":    {func(c *Config) { c.Environments[0].BaseURL = "api" }, "environments[0].base_url: not an absolute"},
		"the base URL":    {func(c *Config) { c.BaseURL = "https://a:b@c" }, "base_url: the URL must have no user name"},
		"open listen":     {func(c *Config) { c.Listen = ":7070" }, "set access.token or BERTH_TOKEN, or listen on 127.0.0.1"},
		"open v6 listen":  {func(c *Config) { c.Listen = "[::]:7070" }, "no sign-in is configured"},
		"named listen":    {func(c *Config) { c.Listen = "berth.example:7070" }, "no sign-in is configured"},
		"no port":         {func(c *Config) { c.Listen = "127.0.0.1" }, "write host:port"},
		"large port":      {func(c *Config) { c.Listen = "127.0.0.1:70700" }, "write host:port"},
		"short token":     {func(c *Config) { c.Access.Token = NewSecret("short", "x") }, "shorter than 16"},
		"isolate":         {func(c *Config) { c.Sandbox.Backend = "isolate" }, "not available yet; use linux in sandbox.backend or BERTH_DEFAULT_BACKEND"},
		"http webhooks":   {func(c *Config) { c.Webhooks.PublicURL = "http://x.example" }, "over https only"},
		"too long":        {func(c *Config) { c.Sessions.ToolTimeout = 2 * time.Hour }, "sessions.tool_timeout: 2h is more than the most that is allowed, 1h"},
		"too little":      {func(c *Config) { c.Sandbox.Limits.Memory = 1 << 20 }, "sandbox.limits.memory: 1MiB is less than the least that is allowed, 64MiB"},
		"no cores":        {func(c *Config) { c.Sandbox.Limits.CPUs = 0 }, "sandbox.limits.cpus: 0 is less"},
		"no capacity":     {func(c *Config) { c.Sessions.Capacity = -1 }, "sessions.capacity: -1 is less"},
		"dangling secret": {func(c *Config) { c.Webhooks.SigningKeys = []Secret{fromEnv(world(nil, nil), "GONE")} }, "webhooks.signing_keys[0]: the environment variable GONE is not set"},
		"dangling file":   {func(c *Config) { c.APIKey = fromFile(world(nil, nil), "/gone") }, "api_key: the file cannot be read: open /gone"},
		"empty file":      {func(c *Config) { c.APIKey = fromFile(world(nil, vars{"/e": "\n"}), "/e") }, "api_key: the file /e is empty"},
	} {
		bad := good()
		c.spoil(&bad)
		err := bad.Validate()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v\nwant %s", name, err, c.want)
		}
		var p Problems
		if !errors.As(err, &p) || len(p) != 1 {
			t.Errorf("%s: %d problems, want 1: %v", name, len(p), err)
		}
	}
}

func TestAnOpenListenWithATokenIsAllowed(t *testing.T) {
	for _, listen := range []string{"0.0.0.0:7070", ":7070", "[::]:1"} {
		c := good()
		c.Listen, c.Access.Token = listen, NewSecret("0123456789abcdef", "x")
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", listen, err)
		}
	}
	for _, listen := range []string{"127.0.0.1:0", "localhost:7070", "[::1]:7070", "127.8.8.8:1"} {
		c := good()
		c.Listen = listen
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", listen, err)
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

func TestTheReferenceIsCurrent(t *testing.T) {
	for path, want := range map[string]string{"docs/configuration.md": Docs(), "deploy/berth.yaml": Example()} {
		path = filepath.Join("..", "..", path)
		if *update {
			if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, string(got)); d != "" {
			t.Errorf("%s is not current; run: go test ./internal/config -run Reference -update\n%s", path, d)
		}
	}
}

func TestEverySettingIsDocumented(t *testing.T) {
	docs := Docs()
	for _, name := range []string{"ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_ENVIRONMENT_ID", "ENVIRONMENT_ID", "ANTHROPIC_ENVIRONMENT_KEY",
		"ANTHROPIC_WEBHOOK_SIGNING_KEY", "WEBHOOK_SECRET", "BERTH_DATA_DIR", "BERTH_LISTEN", "BERTH_CONFIG", "BERTH_DEFAULT_BACKEND", "BERTH_TOKEN",
		"BERTH_SERVER", "BERTH_LOG_LEVEL", "BERTH_LOG_FORMAT", "NO_COLOR"} {
		if !strings.Contains(docs, "`"+name+"`") {
			t.Errorf("%s is not in the reference", name)
		}
	}
	each := func(f field) {
		if f.doc() == "" {
			t.Errorf("%s has no meaning", f.path)
		}
		if f.value.CanInt() && f.tag.Get("min") == "" {
			t.Errorf("%s has no bounds", f.path)
		}
	}
	for _, f := range leavesOf(reference()) {
		each(f)
	}
}

// The example must be what it says: uncommented, it loads, and changes nothing
// but what has no default.
func TestTheExampleLoads(t *testing.T) {
	setting := regexp.MustCompile(`(?m)^( *)#([a-z_]+:|-)`)
	text := setting.ReplaceAllString(Example(), "$1$2")
	files := vars{"/work/berth.yaml": text, "/work/api.token": "0123456789abcdef", "/work/environment.key": "k", "/work/webhook.key": "w"}
	env := vars{"ANTHROPIC_API_KEY": "a", "WEBHOOK_KEY_1": "1", "WEBHOOK_KEY_2": "2"}
	got := mustLoad(t, world(env, files))
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
	if len(got.Environments) != 1 || len(got.WebhookSecrets()) != 3 {
		t.Errorf("read %d environments and %d signing keys", len(got.Environments), len(got.WebhookSecrets()))
	}
	want := good()
	for _, pair := range [][2]any{{got.Sessions, want.Sessions}, {got.Sandbox, want.Sandbox}, {got.Log, want.Log}, {got.Listen, want.Listen}} {
		if d := cmp.Diff(pair[1], pair[0]); d != "" {
			t.Error(d)
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
