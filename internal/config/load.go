package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Source is where a configuration is loaded from. OS returns the real one.
type Source struct {
	// Getenv reads an environment variable; "" and unset are the same.
	Getenv func(name string) string
	// ReadFile reads a whole file. Its error for a file that does not exist
	// matches fs.ErrNotExist.
	ReadFile func(path string) ([]byte, error)
	Dir      string // working directory, for berth.yaml and relative paths
	Root     bool   // running as root, which changes where data is kept
	CPUs     int    // cores this process may use, for the capacity

	// File is the --config flag: the file to read, which must exist.
	File string
	// Set are further flags, by setting: {"listen": ":7070"}. They win.
	Set map[string]string
}

// SystemFile is read when there is no other file.
const SystemFile = "/etc/berth/berth.yaml"

// Load reads the configuration: defaults, then the file, then the environment,
// then src.Set. The error is Problems, and lists everything that is malformed. A
// configuration without error is well-formed but not checked: see Validate.
func Load(src Source) (Config, error) {
	var c Config
	var problems Problems
	c.applyDefaults()

	name, body, err := findFile(src)
	if err != nil {
		return Config{}, Problems{{Error: invalid("", "%v", err).WithNext("check --config and BERTH_CONFIG")}}
	}
	c.File = name
	if name != "" {
		problems = append(problems, readYAML(src, name, body, &c)...)
	}
	problems = append(problems, c.applyEnv(src)...)
	problems = append(problems, c.applySet(src.Set)...)
	if len(problems) > 0 {
		return Config{}, problems
	}
	c.compute(src)
	return c, nil
}

func (c *Config) applyDefaults() {
	walk(reflect.ValueOf(c).Elem(), "", func(f field) {
		if text := f.tag.Get("default"); text != "" {
			if err := f.setText(text); err != nil {
				panic("config: default of " + f.path + ": " + err.Error())
			}
		}
	})
}

// findFile returns the file to read and what is in it, or "" when there is none.
func findFile(src Source) (string, []byte, error) {
	for _, given := range []string{src.File, src.Getenv("BERTH_CONFIG")} {
		if given == "" {
			continue
		}
		path := given
		if !filepath.IsAbs(path) {
			path = filepath.Join(src.Dir, path)
		}
		body, err := src.ReadFile(path)
		if err != nil {
			return "", nil, fmt.Errorf("read configuration: %w", err)
		}
		return path, body, nil
	}
	for _, path := range []string{filepath.Join(src.Dir, "berth.yaml"), SystemFile} {
		body, err := src.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", nil, fmt.Errorf("read configuration: %w", err)
		}
		return path, body, nil
	}
	return "", nil, nil
}

// applyEnv lays the environment over the file.
func (c *Config) applyEnv(src Source) Problems {
	var problems Problems
	for _, f := range leaves(reflect.ValueOf(c).Elem()) {
		for _, name := range f.env() {
			text := strings.TrimSpace(src.Getenv(name))
			if text == "" {
				continue
			}
			switch f.value.Interface().(type) {
			case Secret:
				f.value.Set(reflect.ValueOf(fromEnv(src, name)))
			case []Secret:
				f.value.Set(reflect.Append(f.value, reflect.ValueOf(fromEnv(src, name))))
			default:
				if err := f.setText(text); err != nil {
					problems = append(problems, Problem{Error: invalid(name, "%v", err)})
				}
			}
			break // the first name that is set counts; the others are aliases
		}
	}
	c.NoColor = src.Getenv("NO_COLOR") != ""
	c.CrashAt = strings.TrimSpace(src.Getenv(crashAt))
	return append(problems, c.environmentFromEnv(src)...)
}

// leaves returns the settings outside the lists: the variables of environments
// have rules of their own, and agents have none.
func leaves(v reflect.Value) []field {
	var out []field
	walk(v, "", func(f field) {
		if !strings.Contains(f.path, "[") {
			out = append(out, f)
		}
	})
	return out
}

// environmentFromEnv handles ANTHROPIC_ENVIRONMENT_ID, which names an
// environment of the file or one more, and ANTHROPIC_ENVIRONMENT_KEY, which
// belongs to that environment or to the only one.
func (c *Config) environmentFromEnv(src Source) Problems {
	const keyName = "ANTHROPIC_ENVIRONMENT_KEY"
	id := strings.TrimSpace(src.Getenv("ANTHROPIC_ENVIRONMENT_ID"))
	if id == "" {
		id = strings.TrimSpace(src.Getenv("ENVIRONMENT_ID"))
	}
	at := slices.IndexFunc(c.Environments, func(e Environment) bool { return e.ID == id })
	if id != "" && at < 0 {
		c.Environments = append(c.Environments, Environment{ID: id})
		at = len(c.Environments) - 1
	}
	if strings.TrimSpace(src.Getenv(keyName)) == "" {
		return nil
	}
	if id == "" && len(c.Environments) == 1 {
		at = 0
	}
	if at < 0 {
		return Problems{{Error: invalid(keyName, "it is not clear which environment this key belongs to").
			WithNext("set ANTHROPIC_ENVIRONMENT_ID as well")}}
	}
	c.Environments[at].Key = fromEnv(src, keyName)
	return nil
}

func (c *Config) applySet(set map[string]string) Problems {
	var problems Problems
	known := leaves(reflect.ValueOf(c).Elem())
	for _, path := range slices.Sorted(maps.Keys(set)) {
		i := slices.IndexFunc(known, func(f field) bool { return f.path == path })
		switch {
		case i < 0 || known[i].kind() == "secret" || known[i].kind() == "list of secrets":
			problems = append(problems, Problem{Error: invalid(path, "there is no setting with this name that a flag can set")})
		default:
			if err := known[i].setText(set[path]); err != nil {
				problems = append(problems, Problem{Error: invalid(path, "%v", err)})
			}
		}
	}
	return problems
}

// compute fills in the defaults that depend on the host or on other settings.
func (c *Config) compute(src Source) {
	if c.DataDir == "" {
		c.DataDir = defaultDataDir(src)
	}
	if c.DataDir != "" && !filepath.IsAbs(c.DataDir) {
		c.DataDir = filepath.Join(src.Dir, c.DataDir)
	}
	if c.Sessions.Capacity == 0 {
		c.Sessions.Capacity = defaultCapacity(src.CPUs, memory(src.ReadFile))
	}
	if c.Client.Server == "" {
		c.Client.Server = "http://" + reachable(c.Listen)
	}
	if home := src.Getenv("HOME"); c.Sandbox.Images.DockerConfig == "" && filepath.IsAbs(home) {
		c.Sandbox.Images.DockerConfig = filepath.Join(home, ".docker")
	}
	for i := range c.Environments {
		if c.Environments[i].BaseURL == "" {
			c.Environments[i].BaseURL = c.BaseURL
		}
	}
}

func defaultDataDir(src Source) string {
	if src.Root {
		return "/var/lib/berth"
	}
	if dir := src.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "berth")
	}
	if home := src.Getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "state", "berth")
	}
	return ""
}

// reachable is the address at which this host reaches a listener.
func reachable(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// defaultCapacity is 8 sessions for each core, since most of them wait for the
// model most of the time, but no more than memory holds at 256 MiB for each
// after 512 MiB for everything else; between 2 and 512. Memory of 0 is unknown.
func defaultCapacity(cpus int, memory Bytes) int {
	n := 8 * max(cpus, 1)
	if memory > 0 {
		n = min(n, int((memory-512<<20)/(256<<20)))
	}
	return min(max(n, 2), 512)
}

// memory is what this process may use: the host's, or its control group's if
// that is less. 0 when neither can be read.
func memory(readFile func(string) ([]byte, error)) Bytes {
	var total Bytes
	if b, err := readFile("/proc/meminfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == "MemTotal:" {
				if n, err := strconv.ParseInt(f[1], 10, 40); err == nil {
					total = Bytes(n << 10)
				}
			}
		}
	}
	if b, err := readFile("/sys/fs/cgroup/memory.max"); err == nil {
		if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && (total == 0 || Bytes(n) < total) {
			total = Bytes(n)
		}
	}
	return total
}
