package conformance

import (
	"cmp"
	"embed"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/berth-dev/berth/internal/claude/local"
)

// Case is one row of the table. In the files, ${name} stands for a value of
// Each; ${log} for a file name that no other run of a case has, in the working
// directory; ${memory} for the folder where memory stores are mounted; and
// "program: name" for the steps of that name in programs.yaml.
type Case struct {
	Name string `yaml:"name"` // group/what
	// Says is what must hold, as a sentence.
	Says string `yaml:"says"`
	// Cites names the sections of the contract that demand it.
	Cites string `yaml:"cites"`
	// Each makes a case for every combination of values.
	Each map[string][]any `yaml:"each"`
	// Needs lists what the worker must be able to do: skills, memory, webhooks,
	// restart.
	Needs []string `yaml:"needs"`
	// Beyond lists the checks that ask for more than the contract says, each
	// with the reason: failing one of them alone is not a breach.
	Beyond map[string]string `yaml:"beyond"`
	// Slow cases are left out unless asked for.
	Slow bool `yaml:"slow"`
	// Alone gives the case a platform and a worker of its own.
	Alone *Alone `yaml:"alone"`

	// Item is an item without a story: healthcheck, archived (its session is) or
	// missing (there is no such session).
	Item    string        `yaml:"item"`
	Program string        `yaml:"program"`
	Steps   []local.Step  `yaml:"steps"`
	Faults  []local.Fault `yaml:"faults"` // of the session, from before its first item on
	Do      []Action      `yaml:"do"`
	Skills  []Skill       `yaml:"skills"`
	Stores  []Store       `yaml:"stores"`

	// Ends is how the session ends: end_turn (the default), terminated or
	// deleted.
	Ends string `yaml:"ends"`
	// Items is how many work items the session may need; 0 means any number.
	Items int `yaml:"items"`
	// Within bounds the whole case. Default 60 s.
	Within time.Duration `yaml:"within"`
}

// Alone are the settings of a platform for one case.
type Alone struct {
	StopReply        local.StopReply `yaml:"stop_reply"`
	StrictDuplicates bool            `yaml:"strict_duplicates"`
	AckOnce          bool            `yaml:"ack_once"` // a second ack is a 409
	Webhooks         bool            `yaml:"webhooks"`
	Duplicate        bool            `yaml:"duplicate"` // of webhooks
	Skew             time.Duration   `yaml:"skew"`      // of webhooks
}

// Action is something that happens from outside while a case is played. Actions
// happen one after the other.
type Action struct {
	// When it becomes due: "start", "call N" (the N-th call was made), "idle" (the
	// turn is over), "released" (and its work item is stopped), "parked" (the
	// session waits for results and has no work item).
	When  string        `yaml:"when"`
	After time.Duration `yaml:"after"` // since then
	// Do is message, interrupt, stop (by an operator), expire (the lease), cut
	// (the streams), archive, delete, terminate (the worker, by SIGTERM), kill
	// (the worker), or faults.
	Do     string        `yaml:"do"`
	Faults []local.Fault `yaml:"faults"`
	// Maybe marks an action whose moment need not come: the story may end without.
	Maybe bool `yaml:"maybe"`
}

// Skill is a skill of the case's agent.
type Skill struct {
	Name    string            `yaml:"name"`
	Files   map[string]string `yaml:"files"`
	Archive string            `yaml:"archive"` // a hostile one, by name; see archives.go
}

// Store is a memory store of the case's session.
type Store struct {
	Name     string            `yaml:"name"`
	Access   string            `yaml:"access"` // read_write or read_only
	Memories map[string]string `yaml:"memories"`
	// Want are the memories afterwards, by path.
	Want map[string]string `yaml:"want"`
}

//go:embed cases/*.yaml
var files embed.FS

// Table is the cases that come with the package, in order.
func Table() ([]Case, error) {
	programs := map[string]any{}
	if err := read("programs.yaml", &programs); err != nil {
		return nil, err
	}
	entries, err := files.ReadDir("cases")
	if err != nil {
		return nil, fmt.Errorf("read the cases: %w", err)
	}
	var all []Case
	for _, e := range entries {
		if e.Name() == "programs.yaml" {
			continue
		}
		var trees []map[string]any
		if err := read(e.Name(), &trees); err != nil {
			return nil, err
		}
		for _, tree := range trees {
			cases, err := expand(tree, programs)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", e.Name(), err)
			}
			all = append(all, cases...)
		}
	}
	seen := map[string]bool{}
	for _, c := range all {
		if seen[c.Name] {
			return nil, fmt.Errorf("two cases are named %s", c.Name)
		}
		seen[c.Name] = true
	}
	return all, nil
}

func read(name string, into any) error {
	data, err := files.ReadFile("cases/" + name)
	if err == nil {
		err = yaml.Unmarshal(data, into)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

// expand makes the cases of one entry of a file.
func expand(tree, programs map[string]any) ([]Case, error) {
	if name, ok := tree["program"].(string); ok {
		steps, ok := programs[name]
		if !ok {
			return nil, fmt.Errorf("there is no program %q", name)
		}
		tree = maps.Clone(tree)
		tree["steps"] = steps
	}
	each, _ := tree["each"].(map[string]any)
	variants := []map[string]any{{}}
	for _, key := range slices.Sorted(maps.Keys(each)) {
		values, _ := each[key].([]any)
		var more []map[string]any
		for _, v := range variants {
			for _, value := range values {
				with := maps.Clone(v)
				with[key] = value
				more = append(more, with)
			}
		}
		variants = more
	}
	var all []Case
	for _, v := range variants {
		c, err := decode(replace(tree, v))
		if err != nil {
			return nil, fmt.Errorf("%v: %w", tree["name"], err)
		}
		all = append(all, c)
	}
	return all, nil
}

// decode reads a case strictly and checks it.
func decode(tree any) (Case, error) {
	var c Case
	text, err := yaml.Marshal(tree)
	if err != nil {
		return c, err
	}
	if err := yaml.UnmarshalWithOptions(text, &c, yaml.Strict()); err != nil {
		return c, err
	}
	c.Ends = cmp.Or(c.Ends, "end_turn")
	c.Within = cmp.Or(c.Within, time.Minute)
	return c, c.check()
}

var whenCall = regexp.MustCompile(`^(start|idle|released|parked|call [1-9][0-9]*)$`)

func (c *Case) check() error {
	switch {
	case !regexp.MustCompile(`^[a-z]+/[A-Za-z0-9 ,.:_'-]+$`).MatchString(c.Name):
		return fmt.Errorf("name: %q is not group/what", c.Name)
	case c.Says == "", c.Cites == "":
		return errors.New("says and cites are required")
	case (c.Item == "") == (len(c.Steps) == 0):
		return errors.New("a case has either an item or steps")
	case !slices.Contains([]string{"", "healthcheck", "archived", "missing"}, c.Item):
		return fmt.Errorf("item: %q is not known", c.Item)
	case !slices.Contains([]string{"end_turn", "terminated", "deleted"}, c.Ends):
		return fmt.Errorf("ends: %q is not an end", c.Ends)
	}
	for name := range c.Beyond {
		if !slices.Contains(checkNames, name) {
			return fmt.Errorf("beyond: there is no check %q", name)
		}
	}
	for i, a := range c.Do {
		if !whenCall.MatchString(a.When) {
			return fmt.Errorf("do %d: when: %q is not known", i+1, a.When)
		}
		if (a.Do == "terminate" || a.Do == "kill") && c.Alone == nil {
			return fmt.Errorf("do %d: %s needs a worker alone", i+1, a.Do)
		}
		if (a.Do == "faults") != (len(a.Faults) > 0) {
			return fmt.Errorf("do %d: faults go with do: faults", i+1)
		}
	}
	if len(c.Steps) > 0 {
		return c.script("a case").Check()
	}
	return nil
}

// script is the case's scenario under a name of its own.
func (c *Case) script(name string) *local.Scenario {
	return &local.Scenario{Name: name, Description: c.Says, Steps: c.Steps}
}

// with returns the case with the values of one run put in.
func (c *Case) with(values map[string]any) (Case, error) {
	steps := make([]local.Step, len(c.Steps))
	for i, st := range c.Steps {
		steps[i] = st
		steps[i].Calls = slices.Clone(st.Calls)
		for j, call := range st.Calls {
			call.Input, _ = replace(call.Input, values).(map[string]any)
			if call.Expect != nil {
				x := *call.Expect
				x.Text, _ = replace(x.Text, values).(string)
				x.Not, _ = replace(x.Not, values).(string)
				call.Expect = &x
			}
			steps[i].Calls[j] = call
		}
	}
	run := *c
	run.Steps, run.Stores = steps, slices.Clone(c.Stores)
	for i := range run.Stores {
		run.Stores[i].Name, _ = replace(run.Stores[i].Name, values).(string)
	}
	return run, run.check()
}

// replace puts values for ${name}. A text that is nothing else becomes the value
// itself.
func replace(v any, values map[string]any) any {
	switch v := v.(type) {
	case string:
		for name, value := range values {
			if v == "${"+name+"}" {
				return value
			}
			v = strings.ReplaceAll(v, "${"+name+"}", fmt.Sprint(value))
		}
		return v
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = replace(e, values)
		}
		return out
	case map[string]any:
		if v == nil {
			return v
		}
		out := map[string]any{}
		for k, e := range v {
			out[k] = replace(e, values)
		}
		return out
	}
	return v
}
