package config

import (
	"reflect"
	"strings"
	"time"

	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/session"
)

// Agent are the settings of one agent, or of all agents with one name.
type Agent struct {
	ID      string       `yaml:"id" doc:"Id of the agent (agent_…)."`
	Name    string       `yaml:"name" doc:"Or its name: the settings hold for every agent of this name that has no entry by its id."`
	Sandbox AgentSandbox `yaml:"sandbox" doc:"What its sandboxes are made with. What is left out is as for all agents."`
}

// AgentSandbox is what one agent's sandboxes are made with. Nil is left open. The
// names are those of session.Settings.
type AgentSandbox struct {
	Image        *string           `yaml:"image" computed:"sandbox.image" doc:"What is installed in a sandbox."`
	CPUs         *float64          `yaml:"cpus" min:"0.1" max:"256" computed:"sandbox.limits.cpus" doc:"Processor time, in cores."`
	Memory       *Bytes            `yaml:"memory" min:"64MiB" max:"1TiB" computed:"sandbox.limits.memory" doc:"Memory of all its processes together."`
	Disk         *Bytes            `yaml:"disk" min:"64MiB" max:"16TiB" computed:"sandbox.limits.disk" doc:"What the session may write."`
	Processes    *int64            `yaml:"processes" min:"16" max:"65536" computed:"sandbox.limits.processes" doc:"Processes and threads."`
	OpenFiles    *int64            `yaml:"open_files" min:"64" max:"1048576" computed:"sandbox.limits.open_files" doc:"Open files of one process."`
	Warm         *time.Duration    `yaml:"warm" min:"0s" max:"24h" computed:"sandbox.warm" doc:"How long its processes stay after its work item was released."`
	Lifetime     *time.Duration    `yaml:"lifetime" min:"0s" max:"720h" computed:"sandbox.lifetime" doc:"Longest life of one sandbox. 0s: no limit, else at least 1m."`
	ToolTimeout  *time.Duration    `yaml:"tool_timeout" min:"1s" max:"1h" computed:"sessions.tool_timeout" doc:"Longest run of one tool call."`
	Setup        *string           `yaml:"setup" computed:"none" doc:"Shell command that is run in a new sandbox before the first call, in /workspace, as the agent's user."`
	SetupTimeout *time.Duration    `yaml:"setup_timeout" min:"1s" max:"1h" computed:"sandbox.setup_timeout" doc:"Longest run of the set-up command."`
	Env          map[string]string `yaml:"env" computed:"none" doc:"Environment variables of the agent's commands. Never a credential: the agent can read them."`
}

// Settings returns them in the words of the sessions.
func (a *AgentSandbox) Settings() session.Settings {
	return session.Settings{
		Image: a.Image, CPUs: a.CPUs, Memory: a.Memory, Disk: a.Disk, Processes: a.Processes, OpenFiles: a.OpenFiles,
		Warm: (*sandbox.Span)(a.Warm), Lifetime: (*sandbox.Span)(a.Lifetime), ToolTimeout: (*sandbox.Span)(a.ToolTimeout),
		Setup: a.Setup, SetupTimeout: (*sandbox.Span)(a.SetupTimeout), Env: a.Env,
	}
}

// AgentFiles returns the entries for agents in the words of the sessions.
func (c *Config) AgentFiles() []session.AgentFile {
	var out []session.AgentFile
	for i := range c.Agents {
		a := &c.Agents[i]
		out = append(out, session.AgentFile{ID: a.ID, Name: a.Name, Settings: a.Sandbox.Settings()})
	}
	return out
}

// ReadSettings reads a file that holds one agent's sandbox settings, as they
// stand below sandbox in an entry of agents. The error is Problems.
func ReadSettings(file string, source []byte) (session.Settings, error) {
	var a AgentSandbox
	r := &reader{file: file, source: source}
	if r.document(reflect.ValueOf(&a).Elem()); len(r.problems) > 0 {
		return session.Settings{}, r.problems
	}
	return a.Settings(), nil
}

// leastSecret is the length from which a secret of this server is looked for in
// settings: shorter ones would be found by chance.
const leastSecret = 8

// Secret reports whether a text holds one of the credentials that are configured
// here.
func (c Config) Secret(text string) bool {
	found := false
	check := func(s Secret) {
		v := s.Reveal()
		found = found || len(v) >= leastSecret && strings.Contains(text, v)
	}
	walk(reflect.ValueOf(c), "", func(f field) {
		switch s := f.value.Interface().(type) {
		case Secret:
			check(s)
		case []Secret:
			for i := range s {
				check(s[i])
			}
		}
	})
	return found
}
