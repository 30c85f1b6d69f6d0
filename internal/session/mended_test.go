package session_test

import (
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/tool"
)

func TestStreamsThatAreCutDoNotKeepATurnOpen(t *testing.T) {
	s := newScript(t)
	s.begin(at(-1, idle("e1", "end_turn")))
	read := 1
	for range 2 { // every 4 s; the item is kept for 10 s
		read++
		s.pass(4 * time.Second)
		s.in(session.Disconnected{}, session.Connected{})
		s.want(s.in(listed(read, at(-1, idle("e1", "end_turn"))), session.HistoryRead{Read: read}))
	}
	s.want(s.pass(4*time.Second), "read 4 since -3s") // the last look before the release
	s.want(s.in(session.HistoryRead{Read: 4}), "stop work (tell true, remove false): the turn is over: end_turn")
}

func TestThePlatformsRetryAfterIsHeeded(t *testing.T) {
	s := newScript(t)
	s.begin(at(-1, use("c1", tool.Bash)))
	s.in(session.SandboxUp{Instance: "i1"}, session.CallFinished{ID: "c1", Result: tool.Text("ok")})
	s.in(session.PostFailed{ID: "c1", Err: &session.Refusal{Status: 429, RetryAfter: 6 * time.Second}})
	s.want(s.in(session.HistoryRead{Read: 2}))
	s.want(s.pass(5 * time.Second))
	s.want(s.pass(time.Second), "post c1")
}

func TestACallThatWasVoidedWhileNobodyServedIsStoppedInItsSandbox(t *testing.T) {
	before := newScript(t)
	before.begin(at(-1, use("c1", tool.Bash)))
	before.in(session.SandboxUp{Instance: "i1"}) // it runs, and the process is killed

	s := newScript(t)
	s.state.Restore(before.state.Memo(), []session.Call{*before.state.Calls["c1"]})
	s.in(session.Claimed{}, session.Connected{})
	interrupt := at(1, typed("u1", "user.interrupt"))
	s.in(listed(1, at(-1, use("c1", tool.Bash)), interrupt, at(2, use("c2", tool.Bash))))
	s.want(s.in(session.HistoryRead{Read: 1}), "start sandbox")
	s.want(s.in(session.SandboxUp{Instance: "i1"}), "cancel c1", "run c2", "forget [c1]")
}
