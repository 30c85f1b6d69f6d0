package session

import (
	"cmp"
	"errors"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
)

// Settings are what one agent's sandboxes are to be, as far as somebody has said
// so: nil means that the layer below decides. The names in the tags are the
// same in the configuration, on the command line, in the API and in errors.
type Settings struct {
	Image        *string           `json:"image,omitempty" doc:"what is installed in a sandbox"`
	CPUs         *float64          `json:"cpus,omitempty" doc:"processor time, in cores"`
	Memory       *sandbox.Bytes    `json:"memory,omitempty" doc:"of all its processes together, such as 2GiB"`
	Disk         *sandbox.Bytes    `json:"disk,omitempty" doc:"what the session may write, such as 10GiB"`
	Processes    *int64            `json:"processes,omitempty" doc:"processes and threads"`
	OpenFiles    *int64            `json:"open_files,omitempty" doc:"of one process"`
	Warm         *sandbox.Span     `json:"warm,omitempty" doc:"how long its processes stay after the work item was released, such as 5m"`
	Lifetime     *sandbox.Span     `json:"lifetime,omitempty" doc:"longest life of one sandbox, such as 24h; 0s: no limit"`
	ToolTimeout  *sandbox.Span     `json:"tool_timeout,omitempty" doc:"longest run of one tool call, such as 120s"`
	Setup        *string           `json:"setup,omitempty" doc:"shell command that is run once in a new sandbox; empty: none"`
	SetupTimeout *sandbox.Span     `json:"setup_timeout,omitempty" doc:"longest run of the set-up command, such as 5m"`
	Env          map[string]string `json:"env,omitempty" doc:"environment variables of the agent's commands; never a credential"`
}

// Profile is what a sandbox is made with: Settings in which nothing is open.
type Profile struct {
	Image        string            `json:"image"`
	CPUs         float64           `json:"cpus"`
	Memory       sandbox.Bytes     `json:"memory"`
	Disk         sandbox.Bytes     `json:"disk,omitzero" doc:"absent: no limit of its own"`
	Processes    int64             `json:"processes"`
	OpenFiles    int64             `json:"open_files"`
	Warm         sandbox.Span      `json:"warm"`
	Lifetime     sandbox.Span      `json:"lifetime" doc:"0s: no limit"`
	ToolTimeout  sandbox.Span      `json:"tool_timeout"`
	Setup        string            `json:"setup,omitempty"`
	SetupTimeout sandbox.Span      `json:"setup_timeout"`
	Env          map[string]string `json:"env,omitempty"`
}

// Limits are the profile's limits in the words of the sandbox contract.
func (p *Profile) Limits() sandbox.Limits {
	return sandbox.Limits{
		MemoryBytes: int64(p.Memory), CPUs: p.CPUs, Processes: p.Processes,
		OpenFiles: uint64(max(p.OpenFiles, 0)), DiskBytes: int64(p.Disk),
	}
}

// Source says where a value comes from.
type Source string

// The layers, the strongest last.
const (
	FromServer Source = "server" // sandbox.* and sessions.* of the server's configuration
	FromFile   Source = "file"   // agents of the server's configuration
	FromSet    Source = "set"    // set through the API
)

// AgentSettings is what is stored about an agent.
type AgentSettings struct {
	Agent     string
	Settings  Settings
	Revision  int64 // grows by one with each change; 0: nothing was ever set
	ChangedAt time.Time
}

// AgentFile are the settings of agents that the configuration names, by id or by
// name.
type AgentFile struct {
	ID, Name string // one of them is set
	Settings Settings
}

// envName is the prefix of a variable's name among the names of settings.
const envName = "env."

// value is one setting: a nil pointer, or one to its value.
type value struct {
	name string
	reflect.Value
}

// values returns the settings but the variables, in their order.
func (s *Settings) values() []value {
	var out []value
	v := reflect.ValueOf(s).Elem()
	for i := range v.NumField() {
		if v.Field(i).Kind() == reflect.Pointer {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			out = append(out, value{name, v.Field(i)})
		}
	}
	return out
}

// SettingNames are the names of all settings, without the variables.
func SettingNames() []string {
	var names []string
	for _, v := range new(Settings).values() {
		names = append(names, v.name)
	}
	return names
}

// Names are the names of what is set, variables as env.NAME.
func (s *Settings) Names() []string {
	var names []string
	for _, v := range s.values() {
		if !v.IsNil() {
			names = append(names, v.name)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(s.Env)) {
		names = append(names, envName+k)
	}
	return names
}

// With returns the settings with what set has laid over them, and without what
// unset names: names of settings, env.NAME, or env for all variables.
func (s *Settings) With(set Settings, unset []string) (Settings, error) {
	out := *s
	out.Env = maps.Clone(s.Env)
	mine, theirs := out.values(), set.values()
	for _, name := range unset {
		key, variable := strings.CutPrefix(name, envName)
		at := slices.IndexFunc(mine, func(v value) bool { return v.name == name })
		switch {
		case variable:
			delete(out.Env, key)
		case name == "env":
			out.Env = nil
		case at >= 0:
			mine[at].SetZero()
		default:
			return Settings{}, fault.New(fault.Invalid, "there is no setting %q", name).WithField("unset").
				WithNext("name one of %s, env or env.NAME", strings.Join(SettingNames(), ", "))
		}
	}
	for i := range theirs {
		if !theirs[i].IsNil() {
			mine[i].Set(theirs[i].Value)
		}
	}
	if out.Env == nil && len(set.Env) > 0 {
		out.Env = map[string]string{}
	}
	maps.Copy(out.Env, set.Env)
	return out, nil
}

// over lays the settings over a profile and notes the source of each value.
func (s *Settings) over(p *Profile, from map[string]Source, source Source) {
	into := reflect.ValueOf(p).Elem()
	v := reflect.ValueOf(s).Elem()
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		if f := v.Field(i); f.Kind() == reflect.Pointer && !f.IsNil() {
			into.FieldByName(v.Type().Field(i).Name).Set(f.Elem())
			from[name] = source
		}
	}
	for k, text := range s.Env {
		if p.Env == nil {
			p.Env = map[string]string{}
		}
		p.Env[k], from[envName+k] = text, source
	}
}

// Resolve lays layers over the server's defaults: the file's settings of an
// agent, and over them what was set. It names the source of each value.
func Resolve(defaults Profile, file, set Settings) (Profile, map[string]Source) {
	p, from := defaults, map[string]Source{}
	p.Env = maps.Clone(defaults.Env)
	for _, name := range SettingNames() {
		from[name] = FromServer
	}
	for k := range p.Env {
		from[envName+k] = FromServer
	}
	file.over(&p, from, FromFile)
	set.over(&p, from, FromSet)
	return p, from
}

// FileSettings returns what the configuration says about an agent: the entry
// with its id, or else the one with its name.
func FileSettings(entries []AgentFile, id, name string) Settings {
	for _, e := range entries {
		if e.ID != "" && e.ID == id {
			return e.Settings
		}
	}
	for _, e := range entries {
		if e.Name != "" && e.Name == name {
			return e.Settings
		}
	}
	return Settings{}
}

// Bounds of settings. internal/config shows the same ones in its tags, and a
// test there holds the two together.
const (
	maxEnvBytes = 32 << 10 // it travels in one message to the guest
	maxEnvNames = 256
	maxSetup    = 16 << 10
	maxImage    = 512
	minLife     = sandbox.Span(time.Minute)
	maxLife     = sandbox.Span(30 * 24 * time.Hour)
	hour        = sandbox.Span(time.Hour)
	second      = sandbox.Span(time.Second)
)

// Check holds settings against their bounds. secret reports whether a text holds
// a credential of this server; nil when there is none. The error is a fault that
// names the setting and what to do.
func (s *Settings) Check(secret func(string) bool) error {
	if s.Lifetime != nil && *s.Lifetime != 0 {
		if err := within("lifetime", s.Lifetime, minLife, maxLife); err != nil {
			return err.WithNext("use 0s for no limit")
		}
	}
	for _, err := range []*fault.Error{
		within("cpus", s.CPUs, 0.1, 256),
		within("memory", s.Memory, 64<<20, 1<<40),
		within("disk", s.Disk, 64<<20, 16<<40),
		within("processes", s.Processes, 16, 65536),
		within("open_files", s.OpenFiles, 64, 1048576),
		within("warm", s.Warm, 0, 24*hour),
		within("tool_timeout", s.ToolTimeout, second, hour),
		within("setup_timeout", s.SetupTimeout, second, hour),
		checkImage(s.Image),
		checkSetup(s.Setup, secret),
		checkEnv(s.Env, secret),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

func within[T cmp.Ordered](name string, v *T, least, most T) *fault.Error {
	switch {
	case v == nil || *v >= least && *v <= most:
		return nil
	case *v > most:
		return fault.New(fault.Invalid, "%v is more than the most that is allowed, %v", *v, most).WithField(name)
	}
	return fault.New(fault.Invalid, "%v is less than the least that is allowed, %v", *v, least).WithField(name)
}

// checkImage refuses what can be no image's name anywhere; which ones can be
// used is the backend's to say.
func checkImage(image *string) *fault.Error {
	if image == nil {
		return nil
	}
	bad := fault.New(fault.Invalid, "%q is not the name of an image", *image).WithField("image").
		WithNext("use host for the host's own programs")
	if *image == "" || len(*image) > maxImage {
		return bad
	}
	for _, r := range *image {
		if r <= ' ' || r > '~' {
			return bad
		}
	}
	return nil
}

func checkSetup(setup *string, secret func(string) bool) *fault.Error {
	switch {
	case setup == nil:
		return nil
	case len(*setup) > maxSetup:
		return fault.New(fault.Invalid, "the command has %d bytes, more than %d", len(*setup), maxSetup).WithField("setup").
			WithNext("put a script into the image or the workspace, and call it")
	case strings.ContainsRune(*setup, 0):
		return fault.New(fault.Invalid, "the command holds a zero byte").WithField("setup")
	case credential(*setup, secret):
		return fault.New(fault.Invalid, "the command holds what looks like a credential").WithField("setup").
			WithNext("no credential belongs into a sandbox: the agent could read it")
	}
	return nil
}

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func checkEnv(env map[string]string, secret func(string) bool) *fault.Error {
	if len(env) > maxEnvNames {
		return fault.New(fault.Invalid, "there are %d variables, more than %d", len(env), maxEnvNames).WithField("env")
	}
	size := 0
	for _, k := range slices.Sorted(maps.Keys(env)) {
		v := env[k]
		size += len(k) + len(v)
		switch {
		case len(k) > 256 || !variableName.MatchString(k):
			return fault.New(fault.Invalid, "%.40q is not the name of a variable", k).WithField("env").
				WithNext("use letters, digits and underscores, and no digit at the beginning")
		case strings.HasPrefix(strings.ToUpper(k), "ANTHROPIC_"):
			return fault.New(fault.Invalid, "%s belongs to Anthropic's own programs and is kept out of sandboxes", k).WithField(envName + k).
				WithNext("give the variable another name")
		case strings.ContainsRune(v, 0):
			return fault.New(fault.Invalid, "the value holds a zero byte").WithField(envName + k)
		case credential(v, secret):
			return fault.New(fault.Invalid, "the value looks like a credential").WithField(envName + k).
				WithNext("no credential belongs into a sandbox: the agent could read it")
		}
	}
	if size > maxEnvBytes {
		return fault.New(fault.Invalid, "the variables have %d bytes together, more than %d", size, maxEnvBytes).WithField("env").
			WithNext("write large values into a file of the workspace with the set-up command")
	}
	return nil
}

// credential reports whether a text holds a key of the platform, a webhook's
// secret, or anything else that this server knows to be secret.
func credential(text string, secret func(string) bool) bool {
	return strings.Contains(text, "sk-ant-") || strings.Contains(text, "whsec_") || secret != nil && secret(text)
}

// CheckAgent reports whether an id can be an agent's.
func CheckAgent(id string) error {
	rest, ok := strings.CutPrefix(id, "agent_")
	if !ok || rest == "" || len(id) > 128 || strings.ContainsFunc(rest, func(r rune) bool {
		return r != '_' && r != '-' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) {
		return fault.New(fault.Invalid, "%.140q is not an agent's id", id).WithField("agent").
			WithNext("an id begins with agent_; list them with: berth agents list")
	}
	return nil
}

// Diff names what differs between two profiles.
func (p *Profile) Diff(o *Profile) []string {
	var names []string
	a, b := reflect.ValueOf(p).Elem(), reflect.ValueOf(o).Elem()
	for i := range a.NumField() {
		name, _, _ := strings.Cut(a.Type().Field(i).Tag.Get("json"), ",")
		x, y := a.Field(i).Interface(), b.Field(i).Interface()
		if name == "env" {
			if !maps.Equal(p.Env, o.Env) {
				names = append(names, name)
			}
		} else if x != y {
			names = append(names, name)
		}
	}
	return names
}

// ErrStale is what Records returns for a change of settings that somebody else
// has changed since they were read.
var ErrStale = errors.New("the settings were changed meanwhile")

// changed names the settings that differ.
func (s *Settings) changed(o *Settings) []string {
	var names []string
	mine, theirs := s.values(), o.values()
	for i := range mine {
		if !reflect.DeepEqual(mine[i].Interface(), theirs[i].Interface()) {
			names = append(names, mine[i].name)
		}
	}
	both := maps.Clone(s.Env)
	if both == nil {
		both = map[string]string{}
	}
	maps.Copy(both, o.Env)
	for _, k := range slices.Sorted(maps.Keys(both)) {
		was, had := s.Env[k]
		is, has := o.Env[k]
		if was != is || had != has {
			names = append(names, envName+k)
		}
	}
	return names
}
