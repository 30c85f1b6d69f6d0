package store

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pressly/goose/v3"

	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/store/storetest"
)

func TestAgentsAreSeenInTheirSessions(t *testing.T) {
	s := openStore(t, t.TempDir())
	add := func(id, agent, name string, version int64, phase session.Phase, changed time.Duration) {
		t.Helper()
		rec := storetest.Record(id)
		rec.Agent, rec.AgentName, rec.AgentVersion, rec.Phase, rec.UpdatedAt = agent, name, version, phase, at.Add(changed)
		if err := s.Commit(t.Context(), session.Change{At: at, Session: &rec}); err != nil {
			t.Fatal(err)
		}
	}
	add("sesn_1", "agent_a", "old name", 1, session.Over, 0)
	add("sesn_2", "agent_a", "new name", 2, session.Warm, time.Hour)
	add("sesn_3", "agent_a", "old name", 1, session.Parked, time.Minute)
	add("sesn_4", "agent_b", "another", 7, session.Over, 0)
	add("sesn_5", "", "", 0, session.Active, 0)
	a := session.AgentSeen{ID: "agent_a", Name: "new name", Version: 2, Model: "m", Sessions: 3, Live: 2, LastAt: at.Add(time.Hour)}
	b := session.AgentSeen{ID: "agent_b", Name: "another", Version: 7, Model: "m", Sessions: 1, LastAt: at}
	for id, want := range map[string][]session.AgentSeen{"": {a, b}, "agent_b": {b}, "agent_c": nil} {
		got, err := s.AgentsSeen(t.Context(), id)
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("AgentsSeen(%q): %v (-want +got):\n%s", id, err, d)
		}
	}
	var ids []string
	live, err := s.SessionsOf(t.Context(), "agent_a", 10)
	for _, r := range live {
		ids = append(ids, r.ID)
	}
	if fmt.Sprint(ids) != "[sesn_2 sesn_3]" || err != nil {
		t.Errorf("SessionsOf = %v, %v", ids, err)
	}
	if live, err := s.SessionsOf(t.Context(), "agent_a", 1); len(live) != 1 || err != nil {
		t.Errorf("SessionsOf with a limit = %d sessions, %v", len(live), err)
	}
	for i, id := range []string{"agent_z", "agent_m"} {
		set := session.AgentSettings{Agent: id, Revision: 1, ChangedAt: at.Add(time.Duration(i))}
		if err := s.Commit(t.Context(), session.Change{At: at, Agent: &set}); err != nil {
			t.Fatal(err)
		}
	}
	all, err := s.AllAgentSettings(t.Context())
	if err != nil || len(all) != 2 || all[0].Agent != "agent_m" {
		t.Errorf("AllAgentSettings = %+v, %v", all, err)
	}
}

// TestAFileOfTheFirstVersionIsUnderstood opens what the version before settings
// of agents left.
func TestAFileOfTheFirstVersionIsUnderstood(t *testing.T) {
	dir := t.TempDir()
	db, err := connect(filepath.Join(dir, "berth.db"), "immediate", 1)
	if err != nil {
		t.Fatal(err)
	}
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		t.Fatal(err)
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, files)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.UpTo(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	_, err = db.ExecContext(t.Context(), `INSERT INTO sessions (id, environment, phase, memo, waiting, sandbox, created_at, updated_at)
		VALUES ('sesn_1', 'env_1', 'warm', '{}', '{}', '{"id":"b1","backend":"linux","session":"sesn_1"}', 1, 2)`)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, dir)
	rec, _, err := s.LoadSession(t.Context(), "sesn_1")
	if err != nil || rec.Sandbox == nil || rec.Profile != nil || rec.Revision != 0 {
		t.Errorf("LoadSession = %+v, %v", rec, err)
	}
	got, err := s.AgentSettings(t.Context(), "agent_1")
	if d := cmp.Diff(session.AgentSettings{Agent: "agent_1"}, got); err != nil || d != "" {
		t.Errorf("AgentSettings: %v\n%s", err, d)
	}
}
