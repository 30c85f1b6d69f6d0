package session

import (
	"fmt"
	"time"
)

// For names what a session waits for (DESIGN promise 3).
type For string

// The things a session can wait for. Only Tool, Sandbox, Network and Platform
// are ours to bound; the rest is somebody else's turn.
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
}

// explain computes what the session waits for now. It is a pure function of the
// state.
func (s *State) explain() (For, string) {
	var running, held, ready, unsent, foreign int
	var name string
	for _, c := range s.Calls {
		switch c.State {
		case Started:
			running++
			name = c.Name
		case Held:
			held++
			name = c.Name
		case Ready, Seen:
			ready++
		case Finished:
			unsent++
		case Foreign:
			foreign++
		}
	}
	open := running + held + ready + unsent
	switch {
	case s.Lease != LeaseHeld && open > 0:
		return ForPlatform, fmt.Sprintf("%s unanswered and no work item to answer under", count(open, "call"))
	case s.Lease != LeaseHeld:
		return ForNothing, ""
	case !s.synced:
		return ForNetwork, "reading the session's history"
	case running > 0:
		if running == 1 && held == 0 {
			return ForTool, name
		}
		return ForTool, count(running, "running call")
	case ready > 0:
		return ForSandbox, "starting the sandbox for " + count(ready, "call")
	case unsent > 0:
		return ForNetwork, "sending " + count(unsent, "result")
	case held > 0:
		return ForPerson, count(held, "call") + " held for confirmation"
	case s.stuck():
		return ForPlatform, "the platform refused the result of " + count(len(s.Requires), "call") + "; interrupt the session to go on"
	case foreign > 0 && s.Status == "idle" && s.StopReason == "requires_action":
		return ForClient, count(foreign, "call") + " for another client"
	case s.Status == "idle" && s.StopReason == "requires_action":
		required := 0
		for _, id := range s.Requires {
			if !s.closed[id] {
				required++
			}
		}
		if required > 0 {
			return ForPerson, "the platform waits for " + count(required, "event")
		}
	case s.Status == "idle":
		return ForMessage, s.StopReason
	}
	return ForModel, ""
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
