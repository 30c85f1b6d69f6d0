package conformance

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/berth-dev/berth/internal/claude/local"
)

// Options say what is run.
type Options struct {
	Cases    []Case
	Subjects []Subject
	// Match chooses cases by name; nil means all.
	Match *regexp.Regexp
	// Slow runs the slow cases, too.
	Slow bool
	// Patience multiplies the time that a case may take, for busy machines.
	// Default 1.
	Patience int
	// Alone is how many platforms for one case each run at once, for each
	// subject. Default 2.
	Alone int
	// Progress hears of every result as it comes, one at a time. May be nil.
	Progress func(Result)
}

// Verdict is how a case ended for a subject.
type Verdict string

// The verdicts.
const (
	Passes  Verdict = "passes"
	Fails   Verdict = "fails"
	Beyond  Verdict = "beyond"  // fails only what the contract does not demand
	Skipped Verdict = "skipped" // the subject does not claim what the case needs
	Broken  Verdict = "broken"  // the kit itself failed
)

// Result is what became of one case.
type Result struct {
	Subject  string        `json:"subject"`
	Case     string        `json:"case"`
	Verdict  Verdict       `json:"verdict"`
	Breaches []Breach      `json:"breaches,omitempty"`
	Why      string        `json:"why,omitempty"` // of skipped and broken
	Took     time.Duration `json:"took"`
	Trace    *Trace        `json:"-"`
	Log      string        `json:"-"` // the end of what the worker wrote
}

// Report is what became of all of them.
type Report struct {
	Subjects []Subject
	Cases    []Case
	Results  map[string]map[string]Result // by subject and case
}

// Failed counts the results that are breaches of the contract, or no results.
func (r *Report) Failed() (n int) {
	for _, of := range r.Results {
		for _, res := range of {
			if res.Verdict == Fails || res.Verdict == Broken {
				n++
			}
		}
	}
	return n
}

// Run plays the cases with every subject. It returns an error when the kit
// itself cannot go on; what workers do wrong is in the report.
func Run(ctx context.Context, o Options) (*Report, error) {
	report := &Report{Results: map[string]map[string]Result{}}
	for _, c := range o.Cases {
		c.Within *= time.Duration(max(o.Patience, 1))
		if (o.Match == nil || o.Match.MatchString(c.Name)) && (o.Slow || !c.Slow) {
			report.Cases = append(report.Cases, c)
		}
	}
	if o.Alone <= 0 {
		o.Alone = 2
	}
	var mu sync.Mutex
	record := func(res Result) {
		mu.Lock()
		defer mu.Unlock()
		report.Results[res.Subject][res.Case] = res
		if o.Progress != nil {
			o.Progress(res)
		}
	}
	errs := make([]error, len(o.Subjects))
	var all sync.WaitGroup
	for i, s := range o.Subjects {
		s = s.withDefaults()
		report.Subjects = append(report.Subjects, s)
		report.Results[s.Name] = map[string]Result{}
		all.Go(func() { errs[i] = runSubject(ctx, s, report.Cases, o.Alone, record) })
	}
	all.Wait()
	return report, errors.Join(append(errs, ctx.Err())...)
}

// runSubject plays all cases with one subject.
func runSubject(ctx context.Context, s Subject, cases []Case, alone int, record func(Result)) error {
	var shared, single []Case
	for _, c := range cases {
		switch need := s.lacks(c); {
		case need != "":
			record(Result{Subject: s.Name, Case: c.Name, Verdict: Skipped, Why: "does not claim " + need})
		case c.Alone != nil:
			single = append(single, c)
		default:
			shared = append(shared, c)
		}
	}
	var st *stage
	var crew sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	fail := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, err)
	}
	singles := deal(single)
	for range min(alone, len(single)) {
		crew.Go(func() {
			for c := range singles {
				record(playAlone(ctx, s, c))
			}
		})
	}
	if len(shared) > 0 {
		var err error
		if st, err = newStage(ctx, s, nil); err != nil {
			return err
		}
		queue := deal(shared)
		for range min(s.Processes, len(shared)) {
			crew.Go(func() {
				if err := st.serve(ctx, s, queue, record); err != nil {
					fail(err)
				}
			})
		}
	}
	crew.Wait()
	if st != nil {
		if wrong := polls(st.server.Requests()); len(shared) > 0 {
			record(Result{Subject: s.Name, Case: pollsCase.Name, Verdict: verdict(wrong), Breaches: wrong})
		}
		fail(st.close())
	}
	return errors.Join(errs...)
}

// deal returns the cases as a queue for several players.
func deal(cases []Case) <-chan Case {
	queue := make(chan Case, len(cases))
	for _, c := range cases {
		queue <- c
	}
	close(queue)
	return queue
}

// serve plays cases from the queue with one process, as many at once as it takes.
func (st *stage) serve(ctx context.Context, s Subject, queue <-chan Case, record func(Result)) error {
	l, err := st.open(ctx, s)
	if err != nil {
		return err
	}
	var slots sync.WaitGroup
	if s.Slots > 1 {
		for range s.Slots {
			slots.Go(func() {
				for c := range queue {
					if ctx.Err() == nil {
						record(l.result(ctx, c))
					}
				}
			})
		}
		slots.Wait()
		return l.worker.stop()
	}
	for c := range queue {
		if ctx.Err() != nil {
			break
		}
		res := l.result(ctx, c)
		record(res)
		if res.Verdict == Passes || res.Verdict == Beyond && res.Trace.Late == "" && !res.Trace.Parked {
			continue
		}
		// It may be stuck: the next case shall not suffer from it.
		if err := l.worker.stop(); err != nil {
			return err
		}
		if l, err = st.open(ctx, s); err != nil {
			return err
		}
	}
	return l.worker.stop()
}

// playAlone plays one case with a platform and a worker of its own.
func playAlone(ctx context.Context, s Subject, c Case) (res Result) {
	broken := func(err error) Result {
		return Result{Subject: s.Name, Case: c.Name, Verdict: Broken, Why: err.Error()}
	}
	st, err := newStage(ctx, s, c.Alone)
	if err != nil {
		return broken(err)
	}
	l, err := st.open(ctx, s)
	if err != nil {
		return broken(errors.Join(err, st.close()))
	}
	res = l.result(ctx, c)
	if err := errors.Join(l.worker.stop(), st.close()); err != nil {
		return broken(err)
	}
	return res
}

// result plays a case and judges it.
func (l *lane) result(ctx context.Context, c Case) Result {
	began := time.Now()
	res := Result{Subject: l.subject.Name, Case: c.Name}
	t, err := l.play(ctx, c)
	res.Took = time.Since(began)
	if err != nil {
		res.Verdict, res.Why = Broken, err.Error()
		return res
	}
	res.Trace, res.Breaches = t, Judge(t)
	res.Verdict = verdict(res.Breaches)
	if res.Verdict != Passes {
		res.Log = l.worker.log.String()
	}
	return res
}

func verdict(b []Breach) Verdict {
	switch {
	case len(b) == 0:
		return Passes
	case slices.ContainsFunc(b, func(b Breach) bool { return b.Beyond == "" }):
		return Fails
	}
	return Beyond
}

// pollsCase stands for what all polls of a run have in common.
var pollsCase = Case{
	Name: "whole/polls", Says: "every poll of the run is one that the platform takes, with the environment key and a worker's name", Cites: "§1.2, §2.2",
}

// polls judges the requests that are about no session.
func polls(requests []local.Request) (wrong []Breach) {
	seen := map[string]bool{}
	for _, r := range requests {
		if r.Operation != "poll" || r.Fault != "" {
			continue
		}
		what := ""
		switch {
		case r.Status >= 400 && r.Status != 429 && r.Status < 500:
			what = fmt.Sprintf("a poll with %s was answered %d", r.Credential, r.Status)
		case r.Worker == "":
			what = "a poll without Anthropic-Worker-ID"
		}
		if what != "" && !seen[what] {
			seen[what] = true
			b := Breach{Check: "valid", What: what}
			if r.Worker == "" {
				b.Beyond = "the header feeds statistics only"
			}
			wrong = append(wrong, b)
		}
	}
	return wrong
}
