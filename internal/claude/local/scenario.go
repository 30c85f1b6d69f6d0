package local

import (
	"embed"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
)

// Scenario is a script that plays an agent. It runs once per session, from the
// first message on, and stops between turns: a turn ends at a wait or an idle
// step, at an interrupt, or at the end; the next user.message goes on behind it.
//
// As a file:
//
//	name: fix-the-test            # chosen by the session's metadata.scenario
//	description: What it shows.
//	loop: false                   # true: begin again with the next message
//	faults: [{kind: drop, on: ack}]   # injected when the session's first turn begins; see Fault
//	steps:
//	  - message: "You said: ${input}"     # ${input} is the text of the last user.message
//	  - thinking: true
//	  - pause: 500ms                      # on the platform's clock
//	  - calls:                            # all are made in parallel, then waited for
//	      - tool: bash
//	        input: {command: "go test ./..."}
//	        expect: {text: "^ok", error: false}
//	      - {tool: deploy, kind: custom, input: {env: prod}}
//	      - tool: write
//	        input: {file_path: /workspace/a, content: b}
//	        permission: ask               # allow, ask, deny, or unknown: a word that nobody knows yet; default: the agent's policy
//	        person: {says: deny, because: "not there", after: 2s}   # or says: allow
//	        expect: {error: true}
//	      - {tool: deploy, kind: custom, client: {text: done, after: 1s}}   # another client answers it
//	  - wait: message                     # end the turn; go on with the next message
//	  - open_thread: reviewer             # a child thread; calls and messages may name it
//	  - {thread: reviewer, message: "Looking."}
//	  - {thread: reviewer, calls: [{tool: read, input: {file_path: go.mod}}]}
//	  - end_thread: reviewer              # its turn is over; kill_thread ends it for good
//	  - calls: [{tool: bash, input: {command: "sleep 600"}}]
//	    interrupt: {after: 1s}            # somebody interrupts; thread: name for one thread
//	  - fault: {kind: lease_lost}         # inject now, for this session
//	  - error: {type: model_overloaded_error, message: busy, retry: retrying}
//	  - idle: refusal                     # end the turn with another stop reason
//	  - fail: "the model gave up"         # end the turn with an error
//	  - terminate: true                   # or archive: true, delete: true
//
// A call that does not meet its expectation fails the scenario: the session gets
// a session.error that says why and is terminated, and [Server.Scenario] reports
// it.
type Scenario struct {
	Name        string  `yaml:"name"`
	Description string  `yaml:"description"`
	Loop        bool    `yaml:"loop"`
	Faults      []Fault `yaml:"faults"`
	Steps       []Step  `yaml:"steps"`
}

// Step is one step of a scenario. Exactly one action is set; Thread goes with
// Message, Thinking and Calls, Interrupt with Calls.
type Step struct {
	Message    string         `yaml:"message"`
	Thinking   bool           `yaml:"thinking"`
	Pause      time.Duration  `yaml:"pause"`
	Calls      []StepCall     `yaml:"calls"`
	Wait       string         `yaml:"wait"` // "message"
	OpenThread string         `yaml:"open_thread"`
	EndThread  string         `yaml:"end_thread"`
	KillThread string         `yaml:"kill_thread"`
	Fault      *Fault         `yaml:"fault"`
	Error      *StepError     `yaml:"error"`
	Idle       string         `yaml:"idle"`
	Fail       string         `yaml:"fail"`
	Terminate  bool           `yaml:"terminate"`
	Archive    bool           `yaml:"archive"`
	Delete     bool           `yaml:"delete"`
	Thread     string         `yaml:"thread"`
	Interrupt  *StepInterrupt `yaml:"interrupt"`
}

// StepCall is one tool call of a step.
type StepCall struct {
	Tool       string         `yaml:"tool"`
	Kind       CallKind       `yaml:"kind"`   // "", custom or mcp
	Server     string         `yaml:"server"` // of an mcp call
	Input      map[string]any `yaml:"input"`
	Permission string         `yaml:"permission"`
	Person     *StepPerson    `yaml:"person"`
	Client     *StepClient    `yaml:"client"`
	Served     string         `yaml:"served"` // the platform's own answer, for mcp, web_search and web_fetch
	Expect     *Expectation   `yaml:"expect"`
}

// StepPerson is a pretend person who decides about a call that asks.
type StepPerson struct {
	Says    string        `yaml:"says"` // allow or deny
	Because string        `yaml:"because"`
	After   time.Duration `yaml:"after"`
}

// StepClient is a pretend client, other than the worker, that answers a call.
type StepClient struct {
	Text  string        `yaml:"text"`
	After time.Duration `yaml:"after"`
}

// StepInterrupt is a pretend person who interrupts while calls are open.
type StepInterrupt struct {
	After  time.Duration `yaml:"after"`
	Thread string        `yaml:"thread"` // "" interrupts the session
}

// StepError is a session.error.
type StepError struct {
	Type    string `yaml:"type"`
	Message string `yaml:"message"`
	Retry   string `yaml:"retry"` // retrying, exhausted or terminal
}

// Expectation is what a call's result must be. The expressions are RE2 and need
// not match the whole text; (?s) and (?m) work.
type Expectation struct {
	Text        string `yaml:"text"`
	Not         string `yaml:"not"`
	Error       *bool  `yaml:"error"`
	Interrupted *bool  `yaml:"interrupted"`
}

//go:embed scenarios/*.yaml
var embedded embed.FS

// ParseScenario reads a scenario file. Unknown keys are errors.
func ParseScenario(data []byte) (*Scenario, error) {
	var sc Scenario
	if err := yaml.UnmarshalWithOptions(data, &sc, yaml.Strict()); err != nil {
		return nil, fmt.Errorf("read scenario: %w", err)
	}
	if err := sc.Check(); err != nil {
		return nil, err
	}
	return &sc, nil
}

// EmbeddedScenarios returns the names of the scenarios that come with the
// package.
func EmbeddedScenarios() []string {
	files, err := embedded.ReadDir("scenarios")
	if err != nil {
		panic("reading embedded scenarios: " + err.Error())
	}
	var names []string
	for _, f := range files {
		names = append(names, strings.TrimSuffix(f.Name(), ".yaml"))
	}
	return names
}

func embeddedScenario(name string) *Scenario {
	data, err := embedded.ReadFile(path.Join("scenarios", name+".yaml"))
	if err != nil {
		panic("reading embedded scenario: " + err.Error())
	}
	sc, err := ParseScenario(data)
	if err != nil {
		panic("embedded scenario " + name + ": " + err.Error())
	}
	return sc
}

// Check validates a scenario and completes its faults.
func (sc *Scenario) Check() error {
	if sc.Name == "" {
		return errors.New("scenario: a name is required")
	}
	if len(sc.Steps) == 0 {
		return fmt.Errorf("scenario %s: at least one step is required", sc.Name)
	}
	for i := range sc.Faults {
		if err := sc.Faults[i].check(); err != nil {
			return fmt.Errorf("scenario %s: %w", sc.Name, err)
		}
	}
	threads := []string{""}
	for i := range sc.Steps {
		st := &sc.Steps[i]
		if st.OpenThread != "" {
			threads = append(threads, st.OpenThread)
		}
		if err := st.check(threads); err != nil {
			return fmt.Errorf("scenario %s, step %d: %w", sc.Name, i+1, err)
		}
	}
	return nil
}

func (st *Step) check(threads []string) error {
	actions := 0
	for _, set := range []bool{
		st.Message != "", st.Thinking, st.Pause > 0, len(st.Calls) > 0, st.Wait != "", st.OpenThread != "",
		st.EndThread != "", st.KillThread != "", st.Fault != nil, st.Error != nil, st.Idle != "", st.Fail != "",
		st.Terminate, st.Archive, st.Delete,
	} {
		if set {
			actions++
		}
	}
	switch {
	case actions != 1:
		return fmt.Errorf("exactly one action is required, found %d", actions)
	case st.Wait != "" && st.Wait != "message":
		return errors.New(`wait: only "message" can be waited for`)
	case st.Interrupt != nil && len(st.Calls) == 0:
		return errors.New("interrupt: goes with calls only")
	case st.Idle != "" && !slices.Contains([]string{"end_turn", "retries_exhausted", "budget_reached", "refusal"}, st.Idle):
		return fmt.Errorf("idle: %q is not a stop reason", st.Idle)
	case st.Error != nil && !slices.Contains([]string{"retrying", "exhausted", "terminal"}, st.Error.Retry):
		return errors.New("error.retry: must be retrying, exhausted or terminal")
	}
	named := []string{st.Thread, st.EndThread, st.KillThread}
	if st.Interrupt != nil {
		named = append(named, st.Interrupt.Thread)
	}
	for _, n := range named {
		if !slices.Contains(threads, n) {
			return fmt.Errorf("no thread %q has been opened", n)
		}
	}
	if st.Fault != nil {
		if err := st.Fault.check(); err != nil {
			return err
		}
	}
	for i, c := range st.Calls {
		if err := c.check(); err != nil {
			return fmt.Errorf("call %d: %w", i+1, err)
		}
	}
	return nil
}

func (c StepCall) check() error {
	switch {
	case c.Tool == "":
		return errors.New("tool: required")
	case c.Kind != BuiltIn && c.Kind != Custom && c.Kind != MCP:
		return fmt.Errorf("kind: %q is neither custom nor mcp", c.Kind)
	case !slices.Contains([]string{"", "allow", "ask", "deny", "unknown"}, c.Permission):
		return fmt.Errorf("permission: %q is not allow, ask, deny or unknown", c.Permission)
	case c.Client != nil && c.Client.Text == "":
		return errors.New("client.text: required")
	case c.Person != nil && c.Person.Says != "allow" && c.Person.Says != "deny":
		return errors.New("person.says: must be allow or deny")
	}
	if c.Expect == nil {
		return nil
	}
	for _, expr := range []string{c.Expect.Text, c.Expect.Not} {
		if _, err := regexp.Compile(expr); err != nil {
			return fmt.Errorf("expect: %w", err)
		}
	}
	return nil
}

// miss says how a result falls short of the expectation; "" when it does not.
// The expressions have been compiled once by Check.
func (x *Expectation) miss(r Result) string {
	if x == nil {
		return ""
	}
	text := r.Text()
	switch {
	case x.Interrupted != nil && *x.Interrupted != r.Interrupted:
		return fmt.Sprintf("interrupted is %t", r.Interrupted)
	case x.Error != nil && *x.Error != r.IsError:
		return fmt.Sprintf("is_error is %t; the text is %q", r.IsError, clip(text))
	case x.Text != "" && !regexp.MustCompile(x.Text).MatchString(text):
		return fmt.Sprintf("the text %q does not match %q", clip(text), x.Text)
	case x.Not != "" && regexp.MustCompile(x.Not).MatchString(text):
		return fmt.Sprintf("the text %q matches %q", clip(text), x.Not)
	}
	return ""
}

// clip bounds a text that goes into a report.
func clip(s string) string {
	const most = 2000
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
