package claude

import (
	"fmt"
	"net/http/httptest"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/claude/local"
	"github.com/berth-dev/berth/internal/claude/local/openapitest"
	"github.com/berth-dev/berth/internal/session"
)

func TestAgentsOfTheWorkspaceAreRead(t *testing.T) {
	const key = "sk-ant-api03-test"
	srv := local.New(local.Options{APIKeys: []string{key}, StrictBeta: true})
	web := httptest.NewServer(openapitest.Validated(t, srv))
	t.Cleanup(func() {
		_ = srv.Close() // always nil
		web.Close()
	})
	admin, err := NewAdmin(AdminOptions{BaseURL: web.URL, APIKey: key})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := admin.Agents(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("Agents of an empty workspace = %v, %v", got, err)
	}
	const many = agentsPerPage + 3 // more than a page
	names := map[string]string{}
	for i := range many {
		name := fmt.Sprint("agent ", i)
		id, err := admin.CreateAgent(t.Context(), Agent{Name: name, Model: "claude-opus-5-5"})
		if err != nil {
			t.Fatal(err)
		}
		names[id] = name
	}
	all, err := admin.Agents(t.Context())
	if err != nil || len(all) != many {
		t.Fatalf("Agents = %d, %v; want %d", len(all), err, many)
	}
	for _, a := range all {
		want := session.AgentInfo{ID: a.ID, Name: names[a.ID], Version: 1, Model: "claude-opus-5-5"}
		if d := cmp.Diff(want, a); d != "" {
			t.Fatal(d)
		}
	}
	one, err := admin.Agent(t.Context(), all[0].ID)
	if d := cmp.Diff(all[0], one); err != nil || d != "" {
		t.Errorf("Agent: %v\n%s", err, d)
	}
	if _, err := admin.Agent(t.Context(), "agent_none"); !session.Gone(err) {
		t.Errorf("an agent that there is not: %v", err)
	}
}
