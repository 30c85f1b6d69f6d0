package conformance

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/berth-dev/berth/internal/claude/local"
)

// Mixtures are cases with random faults, each made from a seed of its own: the
// same seed makes the same case. first 0 makes up a seed.
func Mixtures(first uint64, n int) ([]Case, error) {
	if first == 0 {
		first = rand.Uint64N(1_000_000_000) + 1
	}
	var all []Case
	for i := range n {
		c, err := mixture(first + uint64(i))
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// mixture draws three to six faults for a story with a long command. All of them
// pass, so the session must end as if they had not been.
func mixture(seed uint64) (Case, error) {
	programs := map[string]any{}
	if err := read("programs.yaml", &programs); err != nil {
		return Case{}, err
	}
	c, err := decode(map[string]any{
		"name": fmt.Sprintf("mixed/seed %d", seed), "says": "faults that pass leave no trace in the story", "cites": "§11.2",
		"steps": programs["long"], "within": "2m",
	})
	if err != nil {
		return Case{}, err
	}
	r := rand.New(rand.NewPCG(seed, 0))
	for range 3 + r.IntN(4) {
		c.Faults = append(c.Faults, draw(r))
	}
	return c, nil
}

// struck are the operations that connections fail for.
var struck = []string{"ack", "heartbeat", "session.get", "events.list", "events.send", "stream", "stop"}

// draw makes one fault.
func draw(r *rand.Rand) local.Fault {
	f := local.Fault{Skip: r.IntN(4), Times: 1 + r.IntN(2), On: struck[r.IntN(len(struck))]}
	switch r.IntN(8) {
	case 0:
		f.Kind = local.Reset
	case 1:
		f.Kind, f.Status = local.SendCode, []int{429, 500, 503, 529}[r.IntN(4)]
		if r.IntN(2) == 0 {
			f.RetryAfter = "1"
		}
	case 2, 3:
		if f.Kind = local.Drop; f.On == "stream" {
			f.On = "events.send"
		}
	case 4:
		f.Kind, f.Delay = local.SlowBody, time.Duration(200+r.IntN(1800))*time.Millisecond
		if f.On == "stream" {
			f.On = "events.list"
		}
	case 5:
		f.Kind, f.On, f.Times = local.LeaseLost, "heartbeat", 1
	case 6:
		f.Kind = []local.FaultKind{local.CutStream, local.Duplicate, local.Reorder, local.ErrorFrame}[r.IntN(4)]
		f.On, f.Every = "stream", 1+r.IntN(4)
	case 7:
		f.Kind, f.On = local.EmptyPage, "events.list"
	}
	return f
}
