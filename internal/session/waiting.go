package session

import (
	"cmp"
	"fmt"
	"time"
)

// For names what a session waits for (DESIGN promise 3).
type For string

// The things a session can wait for. Tool, Sandbox, Network and Storage are ours
// to bound (see watch); the rest is somebody else's turn.
const (
	ForNothing  For = "nothing"  // no work item: the platform has nothing for us
	ForModel    For = "model"    // the agent thinks
	ForPerson   For = "person"   // a call is held for a verdict
	ForClient   For = "client"   // another client owns the open call
	ForMessage  For = "message"  // the turn is over
	ForTool     For = "tool"     // a call runs
	ForSandbox  For = "sandbox"  // the sandbox starts
	ForNetwork  For = "network"  // the platform is not reached
	ForStorage  For = "storage"  // its changes cannot be recorded, so nothing is done
	ForPlatform For = "platform" // the session has no lease but unfinished business
)

// Waiting explains a session: what it waits for, since when, and in words.
type Waiting struct {
	For    For       `json:"for"`
	Since  time.Time `json:"since"`
	Detail string    `json:"detail,omitempty"`
	// Until is when we act by ourselves if nothing happens before. It is absent
	// when the wait is somebody else's: then nothing is due from us.
	Until time.Time `json:"until,omitzero"`
}

func (w Waiting) equal(o Waiting) bool {
	return w.For == o.For && w.Detail == o.Detail && w.Since.Equal(o.Since) && w.Until.Equal(o.Until)
}

// tally is what the open calls of a session wait for.
type tally struct {
	running, held, ready, unsent, foreign int
	name                                  string    // of the longest running call, else of the longest held one
	runs, holds, sends                    time.Time // since when
	until                                 time.Time // when the last of the running calls has exceeded its limit
	refusal                               string    // why a result was not taken
}

func (s *State) tally() tally {
	var t tally
	for _, c := range s.inOrder() {
		switch c.State {
		case Started:
			if t.running++; t.running == 1 {
				t.name, t.runs = c.Name, c.StartedAt
			}
			if end := c.StartedAt.Add(c.limit); c.limit > 0 && end.After(t.until) {
				t.until = end
			}
		case Held:
			if t.held++; t.held == 1 {
				t.holds = c.SeenAt
				t.name = cmp.Or(t.name, c.Name)
			}
		case Ready, Seen:
			t.ready++
		case Finished:
			if t.unsent++; t.unsent == 1 || c.FinishedAt.Before(t.sends) {
				t.sends = c.FinishedAt
			}
			t.refusal = cmp.Or(t.refusal, c.refusal)
		case Foreign:
			t.foreign++
		}
	}
	return t
}

// explain computes what the session waits for now. It is a pure function of the
// state; a zero Since means since this began.
func (s *State) explain() Waiting {
	t := s.tally()
	open := t.running + t.held + t.ready + t.unsent
	switch {
	case s.Lease != LeaseHeld && open > 0:
		return Waiting{For: ForPlatform, Detail: count(open, "call") + " unanswered and no work item to answer under"}
	case s.Lease != LeaseHeld:
		return Waiting{For: ForNothing}
	case !s.synced && s.readFails > 0:
		return Waiting{For: ForNetwork, Detail: fmt.Sprintf("reading the session's history; %d tries failed", s.readFails)}
	case !s.synced:
		return Waiting{For: ForNetwork, Detail: "reading the session's history"}
	case t.running > 1 || t.running == 1 && t.held > 0:
		return Waiting{For: ForTool, Detail: count(t.running, "running call"), Since: t.runs, Until: t.until}
	case t.running == 1:
		return Waiting{For: ForTool, Detail: t.name, Since: t.runs, Until: t.until}
	case t.ready > 0 && s.Sandbox == SandboxEnding:
		return Waiting{For: ForSandbox, Detail: "replacing the sandbox", Until: s.moveUntil}
	case t.ready > 0 && s.moveWhy != "":
		return Waiting{For: ForSandbox, Detail: s.moveWhy + ", for " + count(t.ready, "call"), Until: s.moveUntil}
	case t.ready > 0:
		return Waiting{For: ForSandbox, Detail: "starting the sandbox for " + count(t.ready, "call"), Until: s.moveUntil}
	case t.unsent > 0 && t.refusal != "":
		return Waiting{For: ForNetwork, Detail: "sending " + count(t.unsent, "result") + "; the last try: " + t.refusal, Since: t.sends}
	case t.unsent > 0:
		return Waiting{For: ForNetwork, Detail: "sending " + count(t.unsent, "result"), Since: t.sends}
	case t.held > 0:
		return Waiting{For: ForPerson, Detail: count(t.held, "call") + " held for confirmation", Since: t.holds}
	case s.stuck():
		return Waiting{For: ForPlatform, Detail: "the platform takes no result for " + count(len(s.Requires), "call") + " and waits for it; interrupt the session to go on"}
	case t.foreign > 0 && s.Status == "idle" && s.StopReason == "requires_action":
		return Waiting{For: ForClient, Detail: count(t.foreign, "call") + " for another client"}
	case s.Status == "idle" && s.StopReason == "requires_action":
		required := 0
		for _, id := range s.Requires {
			if !s.closed[id] {
				required++
			}
		}
		if required > 0 {
			return Waiting{For: ForPerson, Detail: "the platform waits for " + count(required, "event")}
		}
	case s.Status == "idle":
		return Waiting{For: ForMessage, Detail: s.StopReason}
	}
	return Waiting{For: ForModel}
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
