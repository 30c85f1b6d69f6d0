package session

import (
	"time"

	"github.com/berth-dev/berth/internal/tool"
)

// Input is one thing that happened. The set is closed.
type Input interface{ input() }

// The inputs of the machine.
type (
	// Claimed: a work item for this session is ours and its lease is held. Alive
	// says that the session was read since, and has not ended.
	Claimed struct{ Alive bool }
	// Connected: a live stream is open; what it carries comes as Observed.
	Connected struct{}
	// Disconnected: the stream ended.
	Disconnected struct{}
	// Observed: events from the stream or from a page of the history.
	Observed struct {
		Events []Event
		Read   int // the number of the read, zero for the live stream
	}
	// HistoryRead: the list was read to its end.
	HistoryRead struct{ Read int }
	// HistoryFailed: it was not.
	HistoryFailed struct{ Read int }
	// SandboxUp: the sandbox is ready and its guest answers as Instance; or it is
	// found to answer as another one than before.
	SandboxUp struct{ Instance string }
	// SandboxDown: it could not be started (Starting), and trying again would not
	// help (Final); or it is gone.
	SandboxDown struct {
		Starting bool
		Final    bool
		Why      string // for the model and for people
	}
	// SandboxDelayed: its start goes on, but needs longer than starts do: the next
	// news of it may take Within beyond the usual bound.
	SandboxDelayed struct {
		Within time.Duration
		Why    string // what it is at, for people
	}
	// SandboxWanted: a person asks for the sandbox.
	SandboxWanted struct{}
	// CallFinished: the guest has a result.
	CallFinished struct {
		ID     string
		Result tool.Result
	}
	// CallLost: the guest that ran it is gone, or has forgotten it.
	CallLost struct {
		ID  string
		Why string
	}
	// CallReloaded: a closed call was read from the records; nil when it could not.
	CallReloaded struct {
		ID   string
		Call *Call
	}
	// PostDone: the platform took the result.
	PostDone struct{ ID string }
	// PostFailed: it did not, or we cannot know.
	PostFailed struct {
		ID  string
		Err error
	}
	// LeaseStopping: the platform asked for the item back (contract §3.3).
	LeaseStopping struct{ Why string }
	// LeaseLost: the item is somebody else's, or may be.
	LeaseLost struct{ Why string }
	// Rejected: the platform refuses this credential for good.
	Rejected struct{ Why string }
	// SessionOver: the session itself has ended: terminated, archived, deleted.
	SessionOver struct{ How string }
	// Released: the run is over and its work item is no longer ours.
	Released struct{}
	// Tick: time passed.
	Tick struct{}
)

func (Claimed) input()        {}
func (Connected) input()      {}
func (Disconnected) input()   {}
func (Observed) input()       {}
func (HistoryRead) input()    {}
func (HistoryFailed) input()  {}
func (SandboxUp) input()      {}
func (SandboxDown) input()    {}
func (SandboxDelayed) input() {}
func (SandboxWanted) input()  {}
func (CallFinished) input()   {}
func (CallLost) input()       {}
func (CallReloaded) input()   {}
func (PostDone) input()       {}
func (PostFailed) input()     {}
func (LeaseStopping) input()  {}
func (LeaseLost) input()      {}
func (Rejected) input()       {}
func (SessionOver) input()    {}
func (Released) input()       {}
func (Tick) input()           {}

// Effect is one thing to be done at the rim, after the changes of the same step
// were stored. The set is closed.
type Effect interface{ effect() }

// The effects of the machine.
type (
	// ReadHistory lists events from Since on and reports with the number Read.
	ReadHistory struct {
		Since time.Time
		Read  int
	}
	// StartSandbox makes the sandbox or attaches to it.
	StartSandbox struct{}
	// RunCall tells the guest to run a call that no guest has heard of.
	RunCall struct{ ID string }
	// RecallCall asks the guest for a call that an earlier run started.
	RecallCall struct{ ID string }
	// ReplaceSandbox ends the sandbox and keeps its files; it reports SandboxDown.
	ReplaceSandbox struct{ Why string }
	// ReloadCall reads a closed call with its content and reports CallReloaded.
	ReloadCall struct{ ID string }
	// Warn tells people something through the session's log.
	Warn struct{ Text string }
	// CancelCall stops a running call; its result is not wanted.
	CancelCall struct{ ID string }
	// Forget lets the guest drop results that are settled.
	Forget struct{ IDs []string }
	// Post sends one result.
	Post struct{ ID string }
	// CheckSession reads the session: it may have ended without an event.
	CheckSession struct{}
	// StopWork ends the run. Stop says whether the platform is told; Remove
	// whether the sandbox and its files go for good.
	StopWork struct {
		Why    string
		Stop   bool
		Remove bool
	}
)

func (ReadHistory) effect()    {}
func (StartSandbox) effect()   {}
func (RunCall) effect()        {}
func (RecallCall) effect()     {}
func (ReplaceSandbox) effect() {}
func (ReloadCall) effect()     {}
func (Warn) effect()           {}
func (CancelCall) effect()     {}
func (Forget) effect()         {}
func (Post) effect()           {}
func (CheckSession) effect()   {}
func (StopWork) effect()       {}

// Outcome is what one step came to. Changed calls and fresh events have to be
// stored in one transaction before the effects are done.
type Outcome struct {
	Changed []*Call // rows of the ledger that changed, each once
	Fresh   []Event // platform events seen for the first time
	Memo    bool    // the memo changed
	Waiting *Waiting
	Effects []Effect
	// WakeAt is when the next Tick is due; zero when nothing waits for time.
	WakeAt time.Time
}
