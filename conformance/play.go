package conformance

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/berth-dev/berth/internal/claude/local"
)

// Trace is what the platform saw of one case. The judge looks at nothing else.
type Trace struct {
	Case     Case
	Session  string // or, for an item without one, the item's id
	Report   local.Report
	Events   []local.Event
	Posts    []local.Post
	Requests []local.Request // the worker's
	Works    []local.Work
	Open     []string // calls that wait for a client
	Status   string
	Released time.Duration // from the end of the turn to the release; 0 if it was not released
	Lag      time.Duration // the longest that the kit itself was kept waiting for the processor
	Parked   bool          // given up: calls wait, and nobody has or gets the work
	Late     string        // what did not happen in time
	Memories []map[string]string
	Hooks    []int // what webhooks were answered with
}

// play plays a case in a lane and returns what was seen. An error means that the
// kit itself failed.
func (l *lane) play(ctx context.Context, c Case) (*Trace, error) {
	token := strings.ToLower(rand.Text()[:8])
	c, err := c.with(map[string]any{"log": "log-" + token, "memory": l.subject.Memory})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.Within+l.subject.Release)
	defer cancel()
	p := &player{lane: l, c: c, t: &Trace{Case: c}}
	if c.Item != "" {
		err = p.item(ctx)
	} else {
		err = p.story(ctx, token)
	}
	if err != nil {
		return nil, err
	}
	p.collect()
	if len(p.stores) > 0 {
		err = p.memories(context.WithoutCancel(ctx))
	}
	p.leave()
	return p.t, err
}

// player plays one case.
type player struct {
	lane    *lane
	c       Case
	t       *Trace
	session string
	stores  []string

	next int       // action
	due  time.Time // of the next action, once its moment has come
}

// tickEvery is how often a player looks at the platform.
const tickEvery = 20 * time.Millisecond

// lull is how long a player watches on when everything is over, for what comes
// late.
const lull = 500 * time.Millisecond

// parkedAfter is how long a session may wait for results without anybody to give
// them before the case is given up.
const parkedAfter = 8 * time.Second

// item plays an item without a story.
func (p *player) item(ctx context.Context) error {
	srv, kind, about := p.lane.stage.server, "session", "sesn_"+rand.Text()
	switch p.c.Item {
	case "healthcheck":
		kind = "healthcheck"
	case "archived":
		if err := p.create(ctx, ""); err != nil {
			return err
		}
		about = p.session
		if err := p.lane.stage.ask(ctx, "POST", "/v1/sessions/"+about+"/archive", nil, nil); err != nil {
			return err
		}
	}
	id, err := srv.Enqueue(p.lane.environment, kind, about)
	if err != nil {
		return err
	}
	p.session = about
	if !p.wait(ctx, func() bool { return released(p.works()) }) {
		p.t.Late = "the item was not stopped"
	}
	p.t.Session = about
	p.pause(ctx, lull)
	_ = id
	return nil
}

// create makes an agent and an idle session that plays the scenario.
func (p *player) create(ctx context.Context, scenario string) error {
	agent := map[string]any{"name": "conformance", "model": "claude-opus-5-5", "tools": []any{
		map[string]any{"type": "agent_toolset_20260401"},
		map[string]any{"type": "custom", "name": "deploy", "description": "Deploys.", "input_schema": map[string]any{"type": "object"}},
	}}
	var skills []any
	for _, sk := range p.c.Skills {
		id, err := p.seed(sk)
		if err != nil {
			return err
		}
		skills = append(skills, map[string]any{"type": "custom", "skill_id": id})
	}
	if skills != nil {
		agent["skills"] = skills
	}
	var made object
	if err := p.lane.stage.ask(ctx, "POST", "/v1/agents", agent, &made); err != nil {
		return err
	}
	session := map[string]any{"agent": made.ID, "environment_id": p.lane.environment, "metadata": map[string]any{"scenario": scenario}}
	var resources []any
	for _, store := range p.c.Stores {
		id, err := p.store(ctx, store)
		if err != nil {
			return err
		}
		p.stores = append(p.stores, id)
		resources = append(resources, map[string]any{"type": "memory_store", "memory_store_id": id, "access": store.Access})
	}
	if resources != nil {
		session["resources"] = resources
	}
	err := p.lane.stage.ask(ctx, "POST", "/v1/sessions", session, &made)
	p.session, p.t.Session = made.ID, made.ID
	return err
}

func (p *player) seed(sk Skill) (string, error) {
	seed := local.SkillSeed{Name: sk.Name, Description: "Of a case.", Files: sk.Files}
	if sk.Archive != "" {
		var err error
		if seed.Archive, seed.ContentType, err = archive(sk.Archive); err != nil {
			return "", err
		}
	}
	id, _, err := p.lane.stage.server.SeedSkill(seed)
	return id, err
}

func (p *player) store(ctx context.Context, s Store) (string, error) {
	var made object
	if err := p.lane.stage.ask(ctx, "POST", "/v1/memory_stores", map[string]any{"name": s.Name}, &made); err != nil {
		return "", err
	}
	for path, content := range s.Memories {
		err := p.lane.stage.ask(ctx, "POST", "/v1/memory_stores/"+made.ID+"/memories", map[string]any{"path": path, "content": content}, nil)
		if err != nil {
			return "", err
		}
	}
	return made.ID, nil
}

// memories reads what the stores hold in the end.
func (p *player) memories(ctx context.Context) error {
	for _, id := range p.stores {
		var page struct {
			Data []struct{ Path, Content string } `json:"data"`
		}
		if err := p.lane.stage.ask(ctx, "GET", "/v1/memory_stores/"+id+"/memories?view=full", nil, &page); err != nil {
			return err
		}
		held := map[string]string{}
		for _, m := range page.Data {
			held[m.Path] = m.Content
		}
		p.t.Memories = append(p.t.Memories, held)
	}
	return nil
}

// story plays a scenario to its end, and on until the work is given back.
func (p *player) story(ctx context.Context, token string) error {
	srv, name := p.lane.stage.server, "case-"+token
	if err := srv.AddScenario(p.c.script(name)); err != nil {
		return err
	}
	if err := p.create(ctx, name); err != nil {
		return err
	}
	if err := p.inject(p.c.Faults); err != nil {
		return err
	}
	if err := p.lane.stage.message(p.session, "go"); err != nil {
		return err
	}
	var over, parked time.Time
	ended := p.wait(ctx, func() bool {
		now := time.Now()
		report := srv.Scenario(p.session)
		if len(report.Failures) > 0 {
			return true
		}
		acted, err := p.act(ctx, now)
		if err != nil {
			report.Failures = append(report.Failures, err.Error())
			p.t.Late = "the action " + p.c.Do[p.next].Do + ": " + err.Error()
			return true
		}
		works := p.works()
		if p.ended(report) && !p.needed() {
			if over.IsZero() {
				over = now
			}
			if released(works) {
				p.t.Released = max(now.Sub(over), time.Millisecond)
				return true
			}
			return now.Sub(over) > p.lane.subject.Release+parkedAfter
		}
		over = time.Time{}
		if acted || !released(works) || len(srv.OpenCalls(p.session)) == 0 || p.expects("parked") {
			parked = time.Time{}
		} else if parked.IsZero() {
			parked = now
		}
		p.t.Parked = !parked.IsZero() && now.Sub(parked) > parkedAfter
		return p.t.Parked
	})
	if !ended {
		report := srv.Scenario(p.session)
		p.t.Late = fmt.Sprintf("after %s the scenario is at step %d of %d", p.c.Within, report.Step, report.Steps)
	}
	p.pause(ctx, lull)
	return nil
}

// ended reports whether the session has come to its end.
func (p *player) ended(r local.Report) bool {
	status := p.lane.stage.server.Status(p.session)
	switch p.c.Ends {
	case "terminated":
		return status == "terminated"
	case "deleted":
		return status == ""
	}
	return r.Done && status == "idle" && len(p.lane.stage.server.OpenCalls(p.session)) == 0
}

// needed reports whether an action is still to come that has to.
func (p *player) needed() bool {
	return slices.ContainsFunc(p.c.Do[p.next:], func(a Action) bool { return !a.Maybe })
}

// expects reports whether the next action waits for a moment.
func (p *player) expects(when string) bool {
	return p.next < len(p.c.Do) && p.c.Do[p.next].When == when
}

// act does the next action if it is due.
func (p *player) act(ctx context.Context, now time.Time) (bool, error) {
	if p.next == len(p.c.Do) {
		return false, nil
	}
	a := p.c.Do[p.next]
	if p.due.IsZero() {
		if !p.moment(a.When) {
			return false, nil
		}
		p.due = now.Add(a.After)
	}
	if now.Before(p.due) {
		return false, nil
	}
	if err := p.do(ctx, a); err != nil {
		return false, err
	}
	p.next, p.due = p.next+1, time.Time{}
	return true, nil
}

// moment reports whether something has come about.
func (p *player) moment(when string) bool {
	srv := p.lane.stage.server
	waits := len(srv.OpenCalls(p.session)) > 0
	quiet := srv.Status(p.session) == "idle" && slices.ContainsFunc(srv.Events(p.session), func(e local.Event) bool {
		return e.Type == "session.status_idle" // and not only yet to begin
	})
	switch when {
	case "start":
		return true
	case "idle":
		return quiet && !waits
	case "released":
		return quiet && !waits && released(p.works())
	case "parked":
		return waits && released(p.works())
	}
	n, _ := strconv.Atoi(strings.TrimPrefix(when, "call "))
	for _, e := range srv.Events(p.session) {
		if isCall(e) {
			n--
		}
	}
	return n <= 0
}

func (p *player) do(ctx context.Context, a Action) error {
	st, path := p.lane.stage, "/v1/sessions/"+p.session
	works := p.works()
	switch a.Do {
	case "message":
		return st.message(p.session, "go on")
	case "interrupt":
		_, err := st.server.Send(p.session, map[string]any{"type": "user.interrupt"})
		return err
	case "stop":
		w := works[len(works)-1]
		return st.ask(ctx, "POST", "/v1/environments/"+w.Environment+"/work/"+w.ID+"/stop", map[string]any{}, nil)
	case "expire":
		if !st.server.ExpireLease(works[len(works)-1].ID) {
			return errors.New("nobody holds a lease")
		}
	case "cut":
		st.server.CutStreams(p.session)
	case "archive", "delete":
		if _, err := st.server.Send(p.session, map[string]any{"type": "user.interrupt"}); err != nil {
			return err
		}
		if a.Do == "archive" {
			return st.ask(ctx, "POST", path+"/archive", nil, nil)
		}
		return st.ask(ctx, "DELETE", path, nil, nil)
	case "terminate":
		p.lane.worker.signal(syscall.SIGTERM)
	case "kill":
		p.lane.worker.signal(syscall.SIGKILL)
	case "faults":
		return p.inject(a.Faults)
	default:
		return fmt.Errorf("there is no action %q", a.Do)
	}
	return nil
}

func (p *player) inject(faults []local.Fault) error {
	for _, f := range faults {
		f.Session = p.session
		if err := p.lane.stage.server.Inject(f); err != nil {
			return err
		}
	}
	return nil
}

func (p *player) works() []local.Work { return p.lane.stage.server.Works(p.session) }

// released reports whether there was work and none of it is held or queued.
func released(works []local.Work) bool {
	return len(works) > 0 && !slices.ContainsFunc(works, func(w local.Work) bool { return w.State != "stopped" })
}

// wait looks at the platform until ok; false when the time is over.
func (p *player) wait(ctx context.Context, ok func() bool) bool {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	late := time.NewTimer(p.c.Within)
	defer late.Stop()
	for looked := time.Now(); !ok(); {
		select {
		case <-tick.C:
			now := time.Now()
			p.t.Lag = max(p.t.Lag, now.Sub(looked)-tickEvery)
			looked = now
		case <-late.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
	return true
}

func (p *player) pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// collect reads everything that the platform knows of the case.
func (p *player) collect() {
	srv := p.lane.stage.server
	p.t.Report, p.t.Events, p.t.Posts = srv.Scenario(p.session), srv.Events(p.session), srv.Posts(p.session)
	p.t.Works, p.t.Open, p.t.Status = p.works(), srv.OpenCalls(p.session), srv.Status(p.session)
	ids := map[string]bool{}
	for _, w := range p.t.Works {
		ids[w.ID] = true
	}
	for _, r := range srv.Requests() {
		ours := r.Session == p.session || r.Work != "" && ids[r.Work]
		if ours && r.Credential != "api key" && r.Credential != "admin key" {
			p.t.Requests = append(p.t.Requests, r)
		}
	}
	st := p.lane.stage
	st.mu.Lock()
	p.t.Hooks = slices.Clone(st.hooks)
	st.mu.Unlock()
}

// leave ends the session, so that its worker turns to the next one.
func (p *player) leave() {
	st := p.lane.stage
	if p.c.Item != "" || st.server.Status(p.session) == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if st.server.Status(p.session) != "terminated" {
		_, _ = st.server.Send(p.session, map[string]any{"type": "user.interrupt"}) // or it cannot be archived
		p.wait(ctx, func() bool { return st.server.Status(p.session) != "running" })
		_ = st.ask(ctx, "POST", "/v1/sessions/"+p.session+"/archive", nil, nil) // it is over in any case
	}
	for _, w := range p.works() {
		if w.State != "stopped" {
			_ = st.ask(ctx, "POST", "/v1/environments/"+w.Environment+"/work/"+w.ID+"/stop", map[string]any{"force": true}, nil)
		}
	}
}

func isCall(e local.Event) bool {
	return e.Type == "agent.tool_use" || e.Type == "agent.custom_tool_use"
}
