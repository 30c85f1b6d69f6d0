package session_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/session"
)

var update = flag.Bool("update", false, "write golden files instead of comparing with them")

// line is one input of a recorded log: the time since its beginning, the input's
// name, and what it carries in the fields that it needs.
type line struct {
	AtMS   int64  `json:"at_ms"`
	In     string `json:"in"`
	Events []struct {
		ID         string
		Type       string
		AtMS       *int64 // processed_at; absent while it is queued
		Thread     string
		Name       string
		Permission string
		Refers     string
		Verdict    string
		StopReason string
		Requires   []string
	} `json:"events"`
	Read     int             `json:"read"`
	Instance string          `json:"instance"`
	ID       string          `json:"id"`
	Why      string          `json:"why"`
	Status   int             `json:"status"`
	Result   json.RawMessage `json:"result"`
}

func (l line) input(t *testing.T) session.Input {
	switch l.In {
	case "claimed":
		return session.Claimed{Alive: true}
	case "connected":
		return session.Connected{}
	case "disconnected":
		return session.Disconnected{}
	case "observed":
		in := session.Observed{Read: l.Read}
		for _, e := range l.Events {
			ev := session.Event{
				ID: e.ID, Type: e.Type, Thread: e.Thread, Name: e.Name, Permission: e.Permission, Refers: e.Refers,
				Verdict: e.Verdict, StopReason: e.StopReason, Requires: e.Requires,
			}
			if e.AtMS != nil {
				ev.ProcessedAt = begin.Add(time.Duration(*e.AtMS) * time.Millisecond)
			}
			in.Events = append(in.Events, ev)
		}
		return in
	case "history read":
		return session.HistoryRead{Read: l.Read}
	case "history failed":
		return session.HistoryFailed{Read: l.Read}
	case "sandbox up":
		return session.SandboxUp{Instance: l.Instance}
	case "sandbox down":
		return session.SandboxDown{Why: l.Why}
	case "call finished":
		in := session.CallFinished{ID: l.ID}
		if err := json.Unmarshal(l.Result, &in.Result); err != nil {
			t.Fatal(err)
		}
		return in
	case "post done":
		return session.PostDone{ID: l.ID}
	case "post failed":
		if l.Status == 0 {
			return session.PostFailed{ID: l.ID, Err: errors.New("connection reset by peer")}
		}
		return session.PostFailed{ID: l.ID, Err: &session.Refusal{Status: l.Status}}
	case "lease lost":
		return session.LeaseLost{Why: l.Why}
	case "lease stopping":
		return session.LeaseStopping{Why: l.Why}
	case "released":
		return session.Released{}
	case "tick":
		return session.Tick{}
	}
	t.Fatalf("unknown input %q", l.In)
	return nil
}

// outcome is what one step came to, in words.
func outcome(out session.Outcome) string {
	var parts []string
	for _, c := range out.Changed {
		parts = append(parts, fmt.Sprintf("%s is %s", c.ID, c.State))
	}
	for _, e := range out.Effects {
		parts = append(parts, name(e))
	}
	if out.Waiting != nil {
		parts = append(parts, fmt.Sprintf("waits for %s (%s)", out.Waiting.For, out.Waiting.Detail))
	}
	if !out.WakeAt.IsZero() {
		parts = append(parts, "wakes at "+out.WakeAt.Sub(begin).String())
	}
	return strings.Join(parts, "; ")
}

// TestRecordedLogsReplayTheSame feeds recorded logs to a fresh machine, as often
// as it takes to notice that something depends on chance.
func TestRecordedLogsReplayTheSame(t *testing.T) {
	files, err := filepath.Glob("testdata/replay/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no recorded logs: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var lines []line
			if err := json.Unmarshal(b, &lines); err != nil {
				t.Fatal(err)
			}
			got := replay(t, lines)
			golden := strings.TrimSuffix(file, ".json") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("the outcome changed (-want +got); if it should have, run with -update:\n%s", diff)
			}
			for range 20 {
				if again := replay(t, lines); again != got {
					t.Fatalf("another run came out differently (-first +again):\n%s", cmp.Diff(got, again))
				}
			}
		})
	}
}

func replay(t *testing.T, lines []line) string {
	rules := session.Rules{Owns: session.Owns, ReleaseAfter: 10 * time.Second, ReadEvery: time.Minute, SandboxTries: 2}
	s := session.NewState("sesn_1", rules)
	var b strings.Builder
	for _, l := range lines {
		at := time.Duration(l.AtMS) * time.Millisecond
		out := s.Step(begin.Add(at), l.input(t))
		fmt.Fprintf(&b, "%-8s %s: %s\n", at, l.In, outcome(out))
	}
	return b.String()
}
