package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-dev/berth/internal/api"
	"github.com/berth-dev/berth/internal/config"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/session"
)

// agentsCmd groups what can be seen and set of agents.
type agentsCmd struct {
	List agentsList `cmd:"" help:"List the agents that are known here or at the platform."`
	Show agentsShow `cmd:"" help:"Show what an agent's sandboxes are made with, and which sessions use it."`
	Set  agentsSet  `cmd:"" help:"Change what an agent's sandboxes are made with from now on."`
}

type agentsList struct {
	Limit int `help:"At most this many." default:"200"`
}

func (cmd *agentsList) Run(ctx context.Context, d *deps) error {
	c, err := d.client()
	if err != nil {
		return err
	}
	list := api.AgentList{Page: api.Page[api.Agent]{Data: []api.Agent{}}}
	for after := ""; len(list.Data) < cmd.Limit; {
		q := url.Values{"limit": {strconv.Itoa(min(cmd.Limit-len(list.Data), 200))}, "after": {after}}
		var page api.AgentList
		if err := c.call(ctx, http.MethodGet, "/api/v1/agents?"+q.Encode(), nil, &page); err != nil {
			return err
		}
		list.Data, list.Warning = append(list.Data, page.Data...), page.Warning
		if after = page.Next; after == "" {
			break
		}
	}
	if d.out.json {
		return d.out.value(list)
	}
	if list.Warning != "" {
		d.out.progress("%s", list.Warning)
	}
	if len(list.Data) == 0 {
		d.out.line("No agents yet. They are created in the Claude console; berth demo brings one of its own.")
		return nil
	}
	rows := make([][]cell, 0, len(list.Data))
	for _, a := range list.Data {
		last := "-"
		if a.LastAt != nil {
			last = d.out.ago(*a.LastAt)
		}
		name := orDash(plain(a.Name, 32))
		if a.Archived {
			name += " (archived)"
		}
		rows = append(rows, []cell{
			{a.ID, cyan},
			{name, ""},
			{orDash(plain(a.Model, 32)), ""},
			{fmt.Sprintf("%d of %d", a.Live, a.Sessions), ""},
			{orDash(plain(strings.Join(a.Set, ", "), 60)), ""},
			{last, dim},
		})
	}
	d.out.table([]string{"agent", "name", "model", "live sessions", "set here", "seen"}, rows)
	return nil
}

type agentsShow struct {
	Agent string `arg:"" help:"Agent id (agent_…)."`
}

func (cmd *agentsShow) Run(ctx context.Context, d *deps) error {
	c, err := d.client()
	if err != nil {
		return err
	}
	var a api.AgentDetail
	if err := c.call(ctx, http.MethodGet, "/api/v1/agents/"+url.PathEscape(cmd.Agent), nil, &a); err != nil {
		return err
	}
	if d.out.json {
		return d.out.value(a)
	}
	field := func(name, value string) {
		if value != "" {
			d.out.line("%s  %s", d.out.paint(dim, name+strings.Repeat(" ", max(12-len(name), 0))), value)
		}
	}
	field("agent", d.out.paint(cyan, a.ID))
	field("name", plain(a.Name, 200))
	field("model", plain(a.Model, 100))
	if a.Version > 0 {
		field("version", itoa(a.Version))
	}
	if a.Archived {
		field("archived", "yes")
	}
	if !a.Known {
		field("note", "nothing is known of this id yet; the settings hold once a session of it comes")
	}
	field("note", a.Warning)
	if at := a.Sandbox.ChangedAt; at != nil {
		field("revision", itoa(a.Revision)+", "+d.out.ago(*at))
	}
	d.out.line("")
	d.out.settings(&a.Sandbox)
	if len(a.Users) == 0 {
		return nil
	}
	d.out.line("")
	rows := make([][]cell, 0, len(a.Users))
	for _, u := range a.Users {
		since, differs := "-", "-"
		if u.Since != nil {
			since, differs = d.out.ago(*u.Since), "as above"
			if len(u.Differs) > 0 {
				differs = "differs until it is replaced: " + strings.Join(u.Differs, ", ")
			}
		}
		rows = append(rows, []cell{{u.ID, cyan}, {string(u.Phase), phaseStyle(u.Phase)}, {since, dim}, {differs, ""}})
	}
	d.out.table([]string{"session", "phase", "sandbox since", "made with"}, rows)
	return nil
}

// sourceNames say where a value comes from.
var sourceNames = map[session.Source]string{
	session.FromServer: "server's default", session.FromFile: "configuration file", session.FromSet: "set",
}

// settings shows what an agent's next sandbox is made with.
func (o *output) settings(sb *api.AgentSandbox) {
	p := &sb.Effective
	or := func(text, other string, none bool) string {
		if none {
			return other
		}
		return text
	}
	lines := [][2]string{
		{"image", plain(p.Image, 100)},
		{"cpus", strconv.FormatFloat(p.CPUs, 'g', -1, 64)},
		{"memory", p.Memory.String()},
		{"disk", or(p.Disk.String(), "no limit of its own", p.Disk == 0)},
		{"processes", itoa(p.Processes)},
		{"open_files", itoa(p.OpenFiles)},
		{"warm", p.Warm.String()},
		{"lifetime", or(p.Lifetime.String(), "no limit", p.Lifetime == 0)},
		{"tool_timeout", p.ToolTimeout.String()},
		{"setup", or(plain(p.Setup, 100), "none", p.Setup == "")},
		{"setup_timeout", p.SetupTimeout.String()},
	}
	for _, k := range slices.Sorted(maps.Keys(p.Env)) {
		lines = append(lines, [2]string{"env." + k, plain(p.Env[k], 100)})
	}
	rows := make([][]cell, 0, len(lines))
	for _, l := range lines {
		from, st := sb.Sources[l[0]], dim
		if from != session.FromServer {
			st = ""
		}
		rows = append(rows, []cell{{l[0], ""}, {l[1], ""}, {sourceNames[from], st}})
	}
	o.table([]string{"setting", "value", "from"}, rows)
}

type agentsSet struct {
	Agent        string         `arg:"" help:"Agent id (agent_…). It need not be known here yet."`
	Image        *string        `help:"What is installed in a sandbox, such as host."`
	CPUs         *float64       `name:"cpus" help:"Processor time, in cores."`
	Memory       *sandbox.Bytes `help:"Memory, such as 4GiB." placeholder:"SIZE"`
	Disk         *sandbox.Bytes `help:"What the session may write, such as 20GiB." placeholder:"SIZE"`
	Processes    *int64         `help:"Processes and threads."`
	OpenFiles    *int64         `help:"Open files of one process."`
	Warm         *sandbox.Span  `help:"How long processes stay after the work item was released, such as 30m." placeholder:"TIME"`
	Lifetime     *sandbox.Span  `help:"Longest life of one sandbox, such as 24h; 0s: no limit." placeholder:"TIME"`
	ToolTimeout  *sandbox.Span  `help:"Longest run of one tool call." placeholder:"TIME"`
	Setup        *string        `help:"Shell command that is run in a new sandbox before the first call; empty: none." placeholder:"COMMAND"`
	SetupTimeout *sandbox.Span  `help:"Longest run of the set-up command." placeholder:"TIME"`
	Env          []string       `help:"Environment variable of the agent's commands, never a credential. May be repeated." placeholder:"NAME=VALUE" sep:"none"`
	Unset        []string       `help:"Setting to be left to the configuration again: its name, env.NAME, or env. May be repeated." placeholder:"NAME" sep:"none"`
	File         string         `help:"YAML file with settings that replace all that were set before; - is standard input. Flags go on top." placeholder:"FILE"`
}

// Run changes the settings and shows what they come to.
func (cmd *agentsSet) Run(ctx context.Context, d *deps) error {
	set := session.Settings{
		Image: cmd.Image, CPUs: cmd.CPUs, Memory: cmd.Memory, Disk: cmd.Disk, Processes: cmd.Processes, OpenFiles: cmd.OpenFiles, Warm: cmd.Warm,
		Lifetime: cmd.Lifetime, ToolTimeout: cmd.ToolTimeout, Setup: cmd.Setup, SetupTimeout: cmd.SetupTimeout, Env: map[string]string{},
	}
	for _, pair := range cmd.Env {
		name, value, ok := strings.Cut(pair, "=")
		if !ok {
			return fault.New(fault.Invalid, "%q has no value", plain(pair, 40)).WithField("--env").
				WithNext("write NAME=VALUE; NAME= sets an empty one, and --unset env.NAME removes one")
		}
		set.Env[name] = value
	}
	if len(set.Names()) == 0 && len(cmd.Unset) == 0 && cmd.File == "" {
		return fault.New(fault.Invalid, "nothing is to be set").WithNext("for example: berth agents set %s --memory 4GiB --env TZ=Europe/Berlin", cmd.Agent)
	}
	if err := set.Check(nil); err != nil {
		return err // what is wrong on any server need not be sent to one
	}
	c, err := d.client()
	if err != nil {
		return err
	}
	path := "/api/v1/agents/" + url.PathEscape(cmd.Agent) + "/sandbox"
	var after api.AgentSandbox
	if cmd.File == "" {
		err = c.call(ctx, http.MethodPatch, path, api.AgentPatch{Set: set, Unset: cmd.Unset}, &after)
	} else {
		err = cmd.replace(ctx, d, c, path, set, &after)
	}
	if err != nil {
		return err
	}
	if d.out.json {
		return d.out.value(after)
	}
	d.out.settings(&after)
	d.out.line("")
	d.out.line("This holds for the sandboxes of %s that are made from now on; those that run keep what they were made with.", d.out.paint(cyan, cmd.Agent))
	return nil
}

// replace puts a file, with the flags laid over it, in the place of whatever is
// set, unless somebody else changes that in the same moment.
func (cmd *agentsSet) replace(ctx context.Context, d *deps, c *client, path string, set session.Settings, after *api.AgentSandbox) error {
	source, err := cmd.read(d)
	if err != nil {
		return err
	}
	s, err := config.ReadSettings(cmd.File, source)
	if err == nil {
		s, err = s.With(set, cmd.Unset)
	}
	if err != nil {
		return err
	}
	var before api.AgentSandbox
	if err := c.call(ctx, http.MethodGet, path, nil, &before); err != nil {
		return err
	}
	return c.callWith(ctx, http.MethodPut, path, http.Header{"If-Match": {`"` + itoa(before.Revision) + `"`}}, s, after)
}

// maxSettingsFile bounds a file of settings, in bytes.
const maxSettingsFile = 1 << 20

func (cmd *agentsSet) read(d *deps) ([]byte, error) {
	in := d.stdin
	if cmd.File != "-" {
		f, err := os.Open(cmd.File)
		if err != nil {
			return nil, fault.Wrap(err, fault.Invalid, "the file of settings cannot be read").WithField("--file")
		}
		defer f.Close()
		in = f
	}
	source, err := io.ReadAll(io.LimitReader(in, maxSettingsFile+1))
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "the file of settings cannot be read").WithField("--file")
	}
	return source, nil
}
