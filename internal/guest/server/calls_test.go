//go:build linux

package server

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/guest/wire"
	"github.com/berth-dev/berth/internal/tool"
)

func TestCallIsAttachedToThenRepeatedThenRemembered(t *testing.T) {
	calls := newTable()
	c, fresh, code := calls.begin("a")
	if !fresh || code != wire.OK {
		t.Fatal("the first call is not new")
	}
	if again, fresh, code := calls.begin("a"); again != c || fresh || code != wire.OK {
		t.Error("the running call is not attached to")
	}
	calls.finish(c, []byte("result"))
	if again, fresh, _ := calls.begin("a"); fresh || string(again.result) != "result" {
		t.Error("the finished call does not give its result again")
	}
	calls.acknowledge([]string{"a", "never heard of"})
	for _, id := range []string{"a", "never heard of"} {
		if _, fresh, code := calls.begin(id); fresh || code != wire.Acknowledged {
			t.Errorf("%q would run: %q", id, code)
		}
		if _, code := calls.recall(id); code != wire.Acknowledged {
			t.Errorf("recall of %q: %q", id, code)
		}
	}
	if calls.held != 0 || len(calls.calls) != 0 {
		t.Errorf("%d bytes and %d calls are still held", calls.held, len(calls.calls))
	}
}

func TestCallAcknowledgedWhileItRunsKeepsNoResult(t *testing.T) {
	calls := newTable()
	c, _, _ := calls.begin("a")
	calls.acknowledge([]string{"a"})
	if _, fresh, code := calls.begin("a"); fresh || code != wire.Acknowledged {
		t.Error("it would run again")
	}
	calls.finish(c, []byte("result"))
	if calls.held != 0 || len(calls.calls) != 0 {
		t.Error("its result is held")
	}
	if string(c.result) != "result" {
		t.Error("who waits for it gets nothing")
	}
}

func TestTableIsBounded(t *testing.T) {
	calls := newTable()
	for i := range maxOpenCalls {
		if _, fresh, _ := calls.begin(fmt.Sprint(i)); !fresh {
			t.Fatalf("call %d was refused", i)
		}
	}
	if _, _, code := calls.begin("one more"); code != wire.Busy {
		t.Errorf("got %q", code)
	}
	if _, fresh, _ := calls.begin("0"); fresh {
		t.Error("a known call is new")
	}
	for _, id := range []string{"", string(make([]byte, maxIDLength+1))} {
		if _, _, code := newTable().begin(id); code != wire.Invalid {
			t.Errorf("id of %d bytes: %q", len(id), code)
		}
	}
}

func TestResultsBeyondTheBoundAreReplacedByAnError(t *testing.T) {
	calls := newTable()
	a, _, _ := calls.begin("a")
	calls.finish(a, make([]byte, maxHeldBytes))
	b, _, _ := calls.begin("b")
	calls.finish(b, []byte("x"))
	if string(b.result) != string(tooManyResults) {
		t.Errorf("got %s", b.result)
	}
}

func TestMemoryForgetsTheOldest(t *testing.T) {
	m := memory{limit: 3, set: map[string]struct{}{}}
	for _, id := range []string{"a", "b", "b", "c", "d"} {
		m.add(id)
	}
	if m.has("a") || !m.has("b") || !m.has("c") || !m.has("d") || len(m.set) != 3 {
		t.Errorf("remembers %v", m.set)
	}
}

func TestWithdrawnCallMayComeAgain(t *testing.T) {
	calls := newTable()
	c, _, _ := calls.begin("a")
	calls.withdraw(c)
	<-c.done
	if _, fresh, _ := calls.begin("a"); !fresh {
		t.Error("it is still known")
	}
}

func TestTimeoutOfACall(t *testing.T) {
	tests := []struct {
		name, input string
		asked       time.Duration
		after, text time.Duration
	}{
		{tool.Read, `{}`, 0, 120 * time.Second, 120 * time.Second},
		{tool.Read, `{"timeout_ms":600000}`, 0, 120 * time.Second, 120 * time.Second},
		{tool.Read, `{}`, 5 * time.Second, 5 * time.Second, 5 * time.Second},
		{tool.Read, `{}`, 5 * time.Hour, time.Hour, time.Hour},
		{tool.Bash, `{}`, 0, 125 * time.Second, 120 * time.Second},                                 // bash speaks first
		{tool.Bash, `{"timeout_ms":1000}`, 0, 125 * time.Second, 120 * time.Second},                // and sooner
		{tool.Bash, `{"timeout_ms":600000}`, 0, 605 * time.Second, 600 * time.Second},              // or later
		{tool.Bash, `{"timeout_ms":1e300}`, 0, time.Hour, time.Hour},                               // but not for ever
		{tool.Bash, `{"timeout_ms":-1}`, 30 * time.Second, 30 * time.Second, 30 * time.Second},     // ours comes first
		{tool.Bash, `{"timeout_ms":20000}`, 30 * time.Second, 35 * time.Second, 30 * time.Second},  //
		{tool.Bash, `{"timeout_ms":"x"}`, 200 * time.Second, 205 * time.Second, 200 * time.Second}, // nonsense is bash's to refuse
		{tool.Bash, `not JSON`, 0, 125 * time.Second, 120 * time.Second},                           //
		{tool.Bash, `{"timeout_ms":3600000}`, 0, time.Hour, time.Hour},                             //
		{tool.Bash, `{"timeout_ms":50000}`, 40 * time.Second, 55 * time.Second, 50 * time.Second},  //
		{tool.Bash, `{}`, 119 * time.Second, 119 * time.Second, 119 * time.Second},                 //
	}
	for _, test := range tests {
		after, text := timeout(wire.Request{Name: test.name, Timeout: test.asked}, []byte(test.input))
		if after != test.after || text != test.text {
			t.Errorf("%s %s %s: got %s and %s, want %s and %s", test.name, test.input, test.asked, after, text, test.after, test.text)
		}
	}
}

func TestQueueKeepsTheOrderOfArrival(t *testing.T) {
	var q queues
	first, second, third, other := q.enter("a"), q.enter("a"), q.enter("a"), q.enter("b")
	if !first.wait(nil) || !other.wait(nil) {
		t.Fatal("nothing is before them")
	}
	stop := make(chan struct{})
	close(stop)
	if second.wait(stop) || third.wait(stop) {
		t.Fatal("they overtook the first")
	}
	left := make(chan struct{})
	go func() { second.leave(); close(left) }() // gives up before its turn
	first.leave()
	<-left
	if !third.wait(nil) {
		t.Error("its turn did not come")
	}
	third.leave()
	other.leave()
	if len(q.tail) != 0 {
		t.Errorf("%d shells are remembered", len(q.tail))
	}
}

func TestEnvironmentHasNoCredentialAndNothingMalformed(t *testing.T) {
	got := list(merge(map[string]string{"A": "1", "B": "1", "anthropic_api_key": "x", "ANTHROPIC_X": "y"},
		map[string]string{"B": "2", "": "x", "C=D": "x", "E": "a\x00b", "F\x00": ""}))
	if want := "[A=1 B=2]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

func TestStatIsReadBehindTheName(t *testing.T) {
	stat := "42 (a) S 1 2) R 7 42 9 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 0 0\n"
	got, ok := parseStat(42, []byte(stat))
	if want := (process{42, 7, 9}); !ok || got != want {
		t.Errorf("got %+v, %v; want %+v", got, ok, want)
	}
	for _, bad := range []string{"", "42 (a", "42 (a) S 1 2", "42 (a) S x 2 y 0"} {
		if _, ok := parseStat(42, []byte(bad)); ok {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestDescendantsAreFoundThroughTheirParents(t *testing.T) {
	table := []process{{pid: 5, parent: 4}, {pid: 2, parent: 1}, {pid: 4, parent: 2}, {pid: 3, parent: 1}, {pid: 9, parent: 9}}
	if got := fmt.Sprint(descendants(table, 2)); got != "[4 5]" {
		t.Errorf("got %s", got)
	}
}

func TestLeftoversAreWhatTheCommandStarted(t *testing.T) {
	before := map[int]bool{1: true, 10: true, 11: true}
	marked := map[int]process{
		11: {pid: 11, parent: 1},  // a server that an earlier command started
		20: {pid: 20, parent: 11}, // its child
		21: {pid: 21, parent: 20}, // and grandchild
		30: {pid: 30, parent: 1},  // left behind
		31: {pid: 31, parent: 30}, // and its child
	}
	got := leftovers(marked, before)
	slices.Sort(got)
	if fmt.Sprint(got) != "[30 31]" {
		t.Errorf("got %v", got)
	}
}
