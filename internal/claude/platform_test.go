package claude

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/session"
)

func TestInfoReadsTheSessionAndItsAgents(t *testing.T) {
	u := newUpstream(t, ok(`{"id":"sesn_1","type":"session","status":"running","environment_id":"env_1","title":null,
 "metadata":{"repo":"r"},"vault_ids":[],"archived_at":null,"created_at":"2026-11-23T10:00:00Z","novel":{"x":1},
 "resources":[
   {"type":"memory_store","id":"sesrsc_1","memory_store_id":"memstore_1","access":"read_only","mount_path":"/mnt/memory/a","name":"A"},
   {"type":"memory_store","id":"sesrsc_2","memory_store_id":"memstore_2","access":"read_write","mount_path":"/mnt/memory/b","name":"B"},
   {"type":"file","id":"sesrsc_3","file_id":"file_1"},
   {"type":"hologram","id":"sesrsc_4"}],
 "agent":{"id":"agent_1","type":"agent","version":7,"name":"builder","model":{"id":"claude-opus-5-5","speed":"x"},
  "tools":[{"type":"agent_toolset_20260401","configs":[]},{"type":"custom","name":"deploy"},{"type":"custom","name":"deploy"},{"type":"novel","name":"n"}],
  "skills":[{"type":"custom","skill_id":"skill_1","version":"skver_1"},{"type":"anthropic","skill_id":"pdf","version":"latest"},{"type":"custom","skill_id":"skill_1","version":"skver_0"}],
  "multiagent":{"type":"coordinator","agents":[
    {"type":"agent","id":"agent_2","skills":[{"type":"custom","skill_id":"skill_2","version":"skver_2"},{"type":"anthropic","skill_id":"pdf","version":"1"}],
     "tools":[{"type":"custom","name":"review"}]},
    {"type":"advisor","model":"claude-x"}]}}}`))
	got, err := newTestPlatform(t, u).Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := session.Info{
		ID: "sesn_1", Status: "running", Environment: "env_1", AgentID: "agent_1", AgentName: "builder", AgentVersion: 7,
		Model: "claude-opus-5-5", Metadata: map[string]string{"repo": "r"},
		Skills: []session.Skill{
			{ID: "skill_1", Type: "custom", Version: "skver_1"},
			{ID: "pdf", Type: "anthropic", Version: "latest"},
			{ID: "skill_2", Type: "custom", Version: "skver_2"},
		},
		Memories: []session.Memory{
			{Store: "memstore_1", Name: "A", MountPath: "/mnt/memory/a", ReadOnly: true},
			{Store: "memstore_2", Name: "B", MountPath: "/mnt/memory/b"},
		},
		CustomTools: []string{"deploy", "review"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if r := u.only(t); r.Path != "/v1/sessions/sesn_1" {
		t.Errorf("path = %s", r.Path)
	}
}

func TestInfoOfAnArchivedSession(t *testing.T) {
	u := newUpstream(t, ok(`{"id":"sesn_1","status":"terminated","archived_at":"2026-11-23T10:00:00Z"}`))
	got, err := newTestPlatform(t, u).Info(t.Context())
	if err != nil || !got.Archived || got.Status != "terminated" {
		t.Errorf("Info = %+v, %v", got, err)
	}
}

func TestInfoRefusesWhatIsNoSession(t *testing.T) {
	for _, body := range []string{`{}`, `[]`, `null`, ``} {
		if got, err := newTestPlatform(t, newUpstream(t, ok(body))).Info(t.Context()); err == nil {
			t.Errorf("%q: Info = %+v, want an error", body, got)
		}
	}
}

func TestSkillIsResolvedAndThenDownloadedByItsVersion(t *testing.T) {
	for version, path := range map[string]string{"": "latest", "latest": "latest", "skver_9": "skver_9"} {
		u := newUpstream(t,
			ok(`{"id":"skver_9","type":"skill_version","skill_id":"skill_1","name":"report-writer","description":"d","created_at":"2026-11-23T10:00:00Z"}`),
			reply(200, "application/zip", "PK the archive"))
		p := newTestPlatform(t, u)
		v, err := p.SkillVersion(t.Context(), session.Skill{ID: "skill_1", Version: version})
		if err != nil {
			t.Fatal(err)
		}
		archive, err := p.SkillArchive(t.Context(), "skill_1", v.ID)
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(archive)
		if err != nil || v.Name != "report-writer" || string(content) != "PK the archive" {
			t.Errorf("Skill = %+v, %q, %v", v, content, err)
		}
		if err := archive.Close(); err != nil {
			t.Error(err)
		}
		var paths []string
		for _, r := range u.requests() {
			paths = append(paths, r.Path)
			if beta := r.Header.Get("anthropic-beta"); beta != "" {
				t.Errorf("anthropic-beta = %q, want none for skills", beta)
			}
		}
		want := []string{"/v1/skills/skill_1/versions/" + path, "/v1/skills/skill_1/versions/skver_9/content"}
		if d := cmp.Diff(want, paths); d != "" {
			t.Error(d)
		}
	}
}

func TestASkillThatIsTooLargeFails(t *testing.T) {
	announced := newUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "67108865")
	})
	if _, err := newTestPlatform(t, announced).SkillArchive(t.Context(), "s", "skver_9"); !errors.Is(err, errTooLarge) {
		t.Errorf("announced: SkillArchive = %v, want errTooLarge", err)
	}
	endless := newUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		chunk := make([]byte, 1<<20)
		for {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	archive, err := newTestPlatform(t, endless).SkillArchive(t.Context(), "s", "skver_9")
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	n, err := io.Copy(io.Discard, archive)
	if !errors.Is(err, errTooLarge) || n != session.MaxSkillArchive {
		t.Errorf("endless: read %d bytes, %v", n, err)
	}
}

func TestASkillsNameIsOneSafePathElement(t *testing.T) {
	for name, want := range map[string]string{
		"report": "report", " x ": "x", "../../etc/cron.d": "cron.d", `..\..\up`: "up", "/": "skill_1", "..": "skill_1", "": "skill_1", "a/..": "skill_1",
		"a\x00b": "skill_1", ".hidden": "skill_1",
	} {
		if got := folder(name, "skill_1"); got != want {
			t.Errorf("folder(%q) = %q, want %q", name, got, want)
		}
	}
	if got := folder("", "../.."); got != "skill" {
		t.Errorf("folder with an unsafe fallback = %q", got)
	}
}

func TestABodyAtItsBoundPassesAndOneBeyondFails(t *testing.T) {
	for size, fails := range map[int]bool{0: false, 9: false, 10: false, 11: true, 1000: true} {
		got, err := io.ReadAll(&bounded{from: strings.NewReader(strings.Repeat("x", size)), left: 10})
		if fails != errors.Is(err, errTooLarge) || len(got) != min(size, 10) {
			t.Errorf("%d bytes: read %d, %v", size, len(got), err)
		}
	}
}

func TestAdminCreatesWithTheTypedClient(t *testing.T) {
	u := newUpstream(t,
		ok(`{"id":"env_9","name":"lab","config":{"type":"self_hosted"},"archived_at":null}`),
		ok(`{"id":"agent_9"}`), ok(`{"id":"sesn_9"}`), ok(`{"data":[]}`), ok(`{"data":[]}`), ok(`{"data":[]}`))
	a, err := NewAdmin(AdminOptions{BaseURL: u.URL, APIKey: "sk-ant-api-mine"})
	if err != nil {
		t.Fatal(err)
	}
	env, err := a.CreateEnvironment(t.Context(), "lab")
	if d := cmp.Diff(Environment{ID: "env_9", Name: "lab", Type: "self_hosted"}, env); d != "" || err != nil {
		t.Error(d, err)
	}
	if id, err := a.CreateAgent(t.Context(), Agent{Name: "builder", Model: "claude-opus-5-5", System: "work"}); id != "agent_9" || err != nil {
		t.Error(id, err)
	}
	if id, err := a.CreateSession(t.Context(), NewSession{Agent: "agent_9", Environment: "env_9", Title: "t", Message: "go"}); id != "sesn_9" || err != nil {
		t.Error(id, err)
	}
	if err := a.Send(t.Context(), "sesn_9", "more"); err != nil {
		t.Error(err)
	}
	if err := a.Confirm(t.Context(), "sesn_9", "sevt_1", false); err != nil {
		t.Error(err)
	}
	if err := a.Interrupt(t.Context(), "sesn_9"); err != nil {
		t.Error(err)
	}
	var got []string
	for _, r := range u.requests() {
		got = append(got, r.Method+" "+r.Path+" "+strings.TrimSpace(r.Body))
	}
	want := []string{
		`POST /v1/environments {"name":"lab","config":{"type":"self_hosted"}}`,
		`POST /v1/agents {"model":{"id":"claude-opus-5-5"},"name":"builder","system":"work","tools":[{"type":"agent_toolset_20260401"}]}`,
		`POST /v1/sessions {"agent":"agent_9","environment_id":"env_9","title":"t","initial_events":[{"content":[{"text":"go","type":"text"}],"type":"user.message"}]}`,
		`POST /v1/sessions/sesn_9/events {"events":[{"content":[{"text":"more","type":"text"}],"type":"user.message"}]}`,
		`POST /v1/sessions/sesn_9/events {"events":[{"result":"deny","tool_use_id":"sevt_1","type":"user.tool_confirmation"}]}`,
		`POST /v1/sessions/sesn_9/events {"events":[{"type":"user.interrupt"}]}`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestAdminCreatesOnce(t *testing.T) {
	u := newUpstream(t, hangUp)
	a, err := NewAdmin(AdminOptions{BaseURL: u.URL, APIKey: "k"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.CreateEnvironment(t.Context(), "lab"); err == nil {
		t.Error("no error")
	}
	u.only(t)
	if _, err := NewAdmin(AdminOptions{}); err == nil {
		t.Error("NewAdmin accepted no key")
	}
}
