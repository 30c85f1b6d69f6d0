package local

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// The scripted brain plays scenarios. It remembers for each session which step
// comes next, so that a scenario spans many turns.

// scenarioKey is the metadata key of a session that names its scenario.
const scenarioKey = "scenario"

// Report tells how far a session's scenario has come.
type Report struct {
	Scenario string       `json:"scenario"`
	Session  string       `json:"session"`
	Step     int          `json:"step"` // the last one begun, from 1
	Steps    int          `json:"steps"`
	Done     bool         `json:"done"`     // all steps have run
	Failures []string     `json:"failures"` // unmet expectations and broken scenarios
	Calls    []CallReport `json:"calls"`    // the newest 1,000
}

// CallReport is what became of one call.
type CallReport struct {
	ID          string `json:"id"`
	Tool        string `json:"tool"`
	Text        string `json:"text"` // the beginning
	IsError     bool   `json:"is_error"`
	Denied      bool   `json:"denied"`
	Interrupted bool   `json:"interrupted"`
}

type scriptedBrain struct {
	server *Server

	mu        sync.Mutex
	scenarios map[string]*Scenario
	played    map[string]*play // by session
	order     []string         // sessions, oldest first
}

const maxPlays = 10_000

// play is one session's way through its scenario. Only the session's turn
// changes it, with the brain's lock.
type play struct {
	scenario *Scenario
	next     int
	threads  map[string]string // name to id
	report   Report
}

func newScriptedBrain(s *Server, more []*Scenario) *scriptedBrain {
	b := &scriptedBrain{server: s, scenarios: map[string]*Scenario{}, played: map[string]*play{}}
	for _, name := range EmbeddedScenarios() {
		b.scenarios[name] = embeddedScenario(name)
	}
	for _, sc := range more {
		if err := sc.Check(); err != nil {
			panic("options: " + err.Error())
		}
		b.scenarios[sc.Name] = sc
	}
	return b
}

// AddScenario makes a scenario known by its name, in place of any older one.
// Sessions that play already keep theirs.
func (s *Server) AddScenario(sc *Scenario) error {
	if err := sc.Check(); err != nil {
		return err
	}
	s.scripted.mu.Lock()
	defer s.scripted.mu.Unlock()
	s.scripted.scenarios[sc.Name] = sc
	return nil
}

// Scenario reports on the scenario of a session. The zero Report means that the
// session has played none.
func (s *Server) Scenario(session string) Report {
	s.scripted.mu.Lock()
	defer s.scripted.mu.Unlock()
	p, ok := s.scripted.played[session]
	if !ok {
		return Report{}
	}
	r := p.report
	r.Failures, r.Calls = slices.Clone(r.Failures), slices.Clone(r.Calls)
	return r
}

// begin finds the play of a session, or starts it. isNew tells which.
func (b *scriptedBrain) begin(t *Turn) (p *play, isNew bool, err error) {
	name := t.Metadata()[scenarioKey]
	if name == "" {
		name = b.server.opt.Scenario
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if p, ok := b.played[t.Session()]; ok {
		return p, false, nil
	}
	p = &play{threads: map[string]string{}, report: Report{Scenario: name, Session: t.Session()}}
	if len(b.order) == maxPlays {
		delete(b.played, b.order[0])
		b.order = b.order[1:]
	}
	b.played[t.Session()] = p
	b.order = append(b.order, t.Session())
	sc, ok := b.scenarios[name]
	if !ok {
		p.scenario = &Scenario{Name: name}
		known := slices.Sorted(maps.Keys(b.scenarios))
		return p, true, fmt.Errorf("there is no scenario %q; known are %s", name, strings.Join(known, ", "))
	}
	p.scenario, p.report.Steps = sc, len(sc.Steps)
	return p, true, nil
}

func (b *scriptedBrain) update(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

// Run implements Brain: it plays the steps up to the end of a turn.
func (b *scriptedBrain) Run(ctx context.Context, t *Turn) error {
	p, isNew, err := b.begin(t)
	if err != nil {
		return b.broken(t, p, err)
	}
	if isNew {
		for _, f := range p.scenario.Faults {
			if err := b.inject(t, f); err != nil {
				return b.broken(t, p, err)
			}
		}
	}
	input := lastText(t.Input())
	for first := true; p.next < len(p.scenario.Steps); first = false {
		st := &p.scenario.Steps[p.next]
		b.update(func() {
			p.next++
			p.report.Step = p.next
		})
		if st.Wait != "" {
			if first {
				continue // the message that began this turn is what was waited for
			}
			return nil
		}
		if st.Idle != "" {
			t.Stop(st.Idle, nil)
			return nil
		}
		if err := b.step(ctx, t, p, st, input); err != nil {
			return err
		}
	}
	b.update(func() {
		p.report.Done = true
		if p.scenario.Loop {
			p.next = 0
		}
	})
	return nil
}

// broken records a failure, tells the session, and ends it.
func (b *scriptedBrain) broken(t *Turn, p *play, why error) error {
	b.update(func() { p.report.Failures = append(p.report.Failures, why.Error()) })
	if err := t.Error("unknown_error", why.Error(), "terminal"); err != nil {
		return err
	}
	if err := t.Terminate(); err != nil {
		return err
	}
	return ErrSessionOver
}

func (b *scriptedBrain) inject(t *Turn, f Fault) error {
	if f.Session == "" && f.On != "poll" {
		f.Session = t.Session()
	}
	return b.server.Inject(f)
}

func (b *scriptedBrain) step(ctx context.Context, t *Turn, p *play, st *Step, input string) (err error) {
	thread := p.threads[st.Thread]
	switch {
	case st.Message != "":
		text := strings.ReplaceAll(st.Message, "${input}", input)
		return speak(t, thread, len(text)/4, func() error { return t.Message(thread, text) })
	case st.Thinking:
		return speak(t, thread, 50, func() error { return t.Thinking(thread) })
	case st.Pause > 0:
		return t.Pause(ctx, st.Pause)
	case len(st.Calls) > 0:
		return b.calls(ctx, t, p, st, thread)
	case st.OpenThread != "":
		id, err := t.CreateThread(st.OpenThread, nil)
		b.update(func() { p.threads[st.OpenThread] = id })
		return err
	case st.EndThread != "":
		return t.IdleThread(p.threads[st.EndThread], "")
	case st.KillThread != "":
		return t.TerminateThread(p.threads[st.KillThread])
	case st.Fault != nil:
		return b.inject(t, *st.Fault)
	case st.Error != nil:
		return t.Error(st.Error.Type, st.Error.Message, st.Error.Retry)
	case st.Fail != "":
		return errors.New(st.Fail)
	case st.Terminate:
		return t.Terminate()
	case st.Archive:
		t.ArchiveAfter()
	case st.Delete:
		t.DeleteAfter()
	}
	return nil
}

// speak wraps what an agent says into the spans of a model request.
func speak(t *Turn, thread string, tokens int, say func() error) error {
	start, err := t.ModelStart(thread)
	if err != nil {
		return err
	}
	if err := say(); err != nil {
		return err
	}
	return t.ModelEnd(thread, start, Tokens{Input: 100, Output: max(tokens, 1)}, false)
}

// calls makes the calls of a step, lets the pretend persons act, and checks the
// results.
func (b *scriptedBrain) calls(ctx context.Context, t *Turn, p *play, st *Step, thread string) error {
	var ids []string
	err := speak(t, thread, 50*len(st.Calls), func() (err error) {
		ids, err = t.Call(asCalls(st.Calls, thread)...)
		return err
	})
	if err != nil {
		return err
	}
	personCtx, leave := context.WithCancel(ctx)
	persons := b.persons(personCtx, t, p, st, ids)
	results, err := t.Wait(ctx, ids...)
	leave()
	persons.Wait()
	if err != nil {
		return err
	}
	for i, r := range results {
		b.record(p, st.Calls[i], r)
	}
	for i, r := range results {
		if miss := st.Calls[i].Expect.miss(r); miss != "" {
			return b.broken(t, p, fmt.Errorf("scenario %s, step %d, call %d (%s): %s",
				p.scenario.Name, p.report.Step, i+1, st.Calls[i].Tool, miss))
		}
	}
	return nil
}

func asCalls(steps []StepCall, thread string) []Call {
	calls := make([]Call, len(steps))
	for i, c := range steps {
		calls[i] = Call{Kind: c.Kind, Name: c.Tool, Input: c.Input, Server: c.Server, Permission: c.Permission, Thread: thread}
		if c.Input == nil {
			calls[i].Input = map[string]any{}
		}
		if c.Served != "" {
			calls[i].Served = TextResult(c.Served, false)
		}
	}
	return calls
}

// persons starts everybody who acts on the calls of a step.
func (b *scriptedBrain) persons(ctx context.Context, t *Turn, p *play, st *Step, ids []string) *sync.WaitGroup {
	var all sync.WaitGroup
	act := func(after time.Duration, what map[string]any) {
		all.Go(func() {
			if t.Pause(ctx, after) != nil {
				return
			}
			if _, err := b.server.Send(t.Session(), what); err != nil {
				b.server.log.Debug("a pretend person came too late", "session", t.Session(), "error", err)
			}
		})
	}
	for i, c := range st.Calls {
		if c.Client != nil {
			typ, ref := "user.tool_result", "tool_use_id"
			if c.Kind == Custom {
				typ, ref = "user.custom_tool_result", "custom_tool_use_id"
			}
			act(c.Client.After, map[string]any{"type": typ, ref: ids[i], "content": textContent(c.Client.Text)})
		}
		if c.Person == nil {
			continue
		}
		verdict := map[string]any{"type": "user.tool_confirmation", "tool_use_id": ids[i], "result": c.Person.Says}
		if c.Person.Because != "" && c.Person.Says == "deny" {
			verdict["deny_message"] = c.Person.Because
		}
		act(c.Person.After, verdict)
	}
	if st.Interrupt != nil {
		what := map[string]any{"type": "user.interrupt"}
		if st.Interrupt.Thread != "" {
			what["session_thread_id"] = p.threads[st.Interrupt.Thread]
		}
		act(st.Interrupt.After, what)
	}
	return &all
}

const maxCallReports = 1000

func (b *scriptedBrain) record(p *play, c StepCall, r Result) {
	b.update(func() {
		if len(p.report.Calls) == maxCallReports {
			p.report.Calls = p.report.Calls[1:]
		}
		p.report.Calls = append(p.report.Calls, CallReport{
			ID: r.Call, Tool: c.Tool, Text: clip(r.Text()), IsError: r.IsError, Denied: r.Denied, Interrupted: r.Interrupted,
		})
	})
}

// lastText returns the text of the last message.
func lastText(events []Event) string {
	for _, e := range slices.Backward(events) {
		if e.Type == "user.message" {
			return e.Text()
		}
	}
	return ""
}
