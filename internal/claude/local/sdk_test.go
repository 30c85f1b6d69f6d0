package local

import (
	"archive/zip"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/google/go-cmp/cmp"
)

// The typed client of the official SDK decodes strictly; these tests send every
// call that it has for a resource.

func TestTheSDKsClientRoundTripsAgents(t *testing.T) {
	d := openDoor(t, Options{})
	c, ctx := d.client().Beta.Agents, t.Context()
	skill, version, err := d.srv.SeedSkill(SkillSeed{Name: "a", Description: "d"})
	if err != nil {
		t.Fatal(err)
	}
	made, err := c.New(ctx, anthropic.BetaAgentNewParams{
		Name: "builder", Model: anthropic.BetaManagedAgentsModelConfigParams{ID: "claude-opus-5-5"}, System: anthropic.String("Be brief."),
		Metadata: map[string]string{"team": "ml"},
		Skills:   []anthropic.BetaManagedAgentsSkillParamsUnion{anthropic.BetaManagedAgentsSkillParamsOfCustom(skill)},
		Tools: []anthropic.BetaAgentNewParamsToolUnion{
			{OfAgentToolset20260401: &anthropic.BetaManagedAgentsAgentToolset20260401Params{}},
			{OfCustom: &anthropic.BetaManagedAgentsCustomToolParams{
				Name: "deploy", Description: "Deploys.",
				InputSchema: anthropic.BetaManagedAgentsCustomToolInputSchemaParam{Required: []string{"env"}, Properties: map[string]any{"env": map[string]any{"type": "string"}}},
			}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if made.Version != 1 || made.Skills[0].Version != version || len(made.Tools) != 2 || made.Tools[1].Name != "deploy" || made.ExecutionIdentity.Type != "service_account" {
		t.Errorf("created %s", made.RawJSON())
	}
	changed, err := c.Update(ctx, made.ID, anthropic.BetaAgentUpdateParams{Version: anthropic.Int(1), Name: anthropic.String("renamed")})
	if err != nil || changed.Version != 2 || changed.Name != "renamed" || changed.System != "Be brief." {
		t.Errorf("updated %+v, %v", changed, err)
	}
	_, err = c.Update(ctx, made.ID, anthropic.BetaAgentUpdateParams{Version: anthropic.Int(1), Name: anthropic.String("late")})
	if refused := (*anthropic.Error)(nil); !errors.As(err, &refused) || refused.StatusCode != 409 {
		t.Errorf("an update of an old version: %v, want a 409", err)
	}
	first, err := c.Get(ctx, made.ID, anthropic.BetaAgentGetParams{Version: anthropic.Int(1)})
	if err != nil || first.Name != "builder" {
		t.Errorf("version 1 is %+v, %v", first, err)
	}
	versions, err := c.Versions.List(ctx, made.ID, anthropic.BetaAgentVersionListParams{})
	if err != nil || len(versions.Data) != 2 {
		t.Errorf("versions %+v, %v", versions, err)
	}
	if gone, err := c.Archive(ctx, made.ID, anthropic.BetaAgentArchiveParams{}); err != nil || gone.ArchivedAt.IsZero() {
		t.Errorf("archived %+v, %v", gone, err)
	}
	n := 0
	for pages := c.ListAutoPaging(ctx, anthropic.BetaAgentListParams{IncludeArchived: anthropic.Bool(true), Limit: anthropic.Int(1)}); pages.Next(); n++ {
	}
	if n != 1 {
		t.Errorf("the list has %d agents, want 1", n)
	}
}

func TestTheSDKsClientRoundTripsSkills(t *testing.T) {
	d := openDoor(t, Options{})
	c, ctx := d.client().Beta.Skills, t.Context()
	files := func() []io.Reader {
		return []io.Reader{
			anthropic.File(strings.NewReader(skillMD), "pdf-forms/SKILL.md", "text/markdown"),
			anthropic.File(strings.NewReader("print()"), "pdf-forms/scripts/fill.py", "text/x-python"),
		}
	}
	made, err := c.New(ctx, anthropic.BetaSkillNewParams{Files: files(), DisplayName: anthropic.String("PDF forms")})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Get(ctx, made.ID, anthropic.BetaSkillGetParams{}); err != nil || got.DisplayName != "PDF forms" || got.Source.Type != "custom" {
		t.Errorf("skill %+v, %v", got, err)
	}
	second, err := c.Versions.New(ctx, made.ID, anthropic.BetaSkillVersionNewParams{Files: files()})
	if err != nil {
		t.Fatal(err)
	}
	latest, err := c.Versions.Get(ctx, "latest", anthropic.BetaSkillVersionGetParams{SkillID: made.ID})
	if err != nil || latest.ID != second.ID || latest.Name != "pdf-forms" {
		t.Errorf("latest %+v, %v", latest, err)
	}
	res, err := c.Versions.Download(ctx, latest.ID, anthropic.BetaSkillVersionDownloadParams{SkillID: made.ID})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		t.Fatal(err)
	}
	if z, err := zip.NewReader(bytes.NewReader(raw), int64(len(raw))); err != nil || len(z.File) != 2 {
		t.Errorf("archive of %d bytes: %v", len(raw), err)
	}
	if list, err := c.Versions.List(ctx, made.ID, anthropic.BetaSkillVersionListParams{}); err != nil || len(list.Data) != 2 {
		t.Errorf("versions %+v, %v", list, err)
	}
	if gone, err := c.Versions.Delete(ctx, second.ID, anthropic.BetaSkillVersionDeleteParams{SkillID: made.ID}); err != nil || gone.ID != second.ID {
		t.Errorf("deleted version %+v, %v", gone, err)
	}
	if list, err := c.List(ctx, anthropic.BetaSkillListParams{Source: anthropic.String("custom")}); err != nil || len(list.Data) != 1 {
		t.Errorf("skills %+v, %v", list, err)
	}
	if gone, err := c.Delete(ctx, made.ID, anthropic.BetaSkillDeleteParams{}); err != nil || gone.ID != made.ID {
		t.Errorf("deleted %+v, %v", gone, err)
	}
}

func TestTheSDKsClientRoundTripsMemoryStores(t *testing.T) {
	d := openDoor(t, Options{})
	c, ctx := d.client().Beta.MemoryStores, t.Context()
	store, err := c.New(ctx, anthropic.BetaMemoryStoreNewParams{Name: "Team notes", Description: anthropic.String("d")})
	if err != nil {
		t.Fatal(err)
	}
	if s, err := c.Update(ctx, store.ID, anthropic.BetaMemoryStoreUpdateParams{Name: anthropic.String("Notes")}); err != nil || s.Name != "Notes" {
		t.Errorf("updated store %+v, %v", s, err)
	}
	if s, err := c.Get(ctx, store.ID, anthropic.BetaMemoryStoreGetParams{}); err != nil || s.Description != "d" {
		t.Errorf("store %+v, %v", s, err)
	}
	m, err := c.Memories.New(ctx, store.ID, anthropic.BetaMemoryStoreMemoryNewParams{Path: "/notes/a.md", Content: anthropic.String("one")})
	if err != nil {
		t.Fatal(err)
	}
	m2, err := c.Memories.Update(ctx, m.ID, anthropic.BetaMemoryStoreMemoryUpdateParams{
		MemoryStoreID: store.ID, Content: anthropic.String("two"),
		Precondition: anthropic.BetaManagedAgentsPreconditionParam{Type: "content_sha256", ContentSha256: anthropic.String(m.ContentSha256)},
	})
	if err != nil || m2.ContentSha256 != hashOf("two") {
		t.Errorf("updated memory %+v, %v", m2, err)
	}
	_, err = c.Memories.Update(ctx, m.ID, anthropic.BetaMemoryStoreMemoryUpdateParams{
		MemoryStoreID: store.ID, Content: anthropic.String("three"),
		Precondition: anthropic.BetaManagedAgentsPreconditionParam{Type: "content_sha256", ContentSha256: anthropic.String(m.ContentSha256)},
	})
	if refused := (*anthropic.Error)(nil); !errors.As(err, &refused) || refused.Type() != anthropic.ErrorTypeMemoryPreconditionFailedError {
		t.Errorf("a stale update: %v, want memory_precondition_failed_error", err)
	}
	if got, err := c.Memories.Get(ctx, m.ID, anthropic.BetaMemoryStoreMemoryGetParams{MemoryStoreID: store.ID}); err != nil || got.Content != "two" {
		t.Errorf("memory %+v, %v", got, err)
	}
	list, err := c.Memories.List(ctx, store.ID, anthropic.BetaMemoryStoreMemoryListParams{Depth: anthropic.Int(1)})
	if err != nil || len(list.Data) != 1 || list.Data[0].Type != "memory_prefix" || list.Data[0].Path != "/notes/" {
		t.Errorf("listing %+v, %v", list, err)
	}
	if gone, err := c.Memories.Delete(ctx, m.ID, anthropic.BetaMemoryStoreMemoryDeleteParams{MemoryStoreID: store.ID, ExpectedContentSha256: anthropic.String(m2.ContentSha256)}); err != nil || gone.ID != m.ID {
		t.Errorf("deleted memory %+v, %v", gone, err)
	}
	var operations []string
	for pages := c.MemoryVersions.ListAutoPaging(ctx, store.ID, anthropic.BetaMemoryStoreMemoryVersionListParams{Limit: anthropic.Int(2)}); pages.Next(); {
		operations = append(operations, string(pages.Current().Operation))
	}
	if diff := cmp.Diff([]string{"deleted", "modified", "created"}, operations); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
	v, err := c.MemoryVersions.Redact(ctx, m.MemoryVersionID, anthropic.BetaMemoryStoreMemoryVersionRedactParams{MemoryStoreID: store.ID})
	if err != nil || v.RedactedAt.IsZero() || v.RedactedBy.Type != "api_actor" {
		t.Errorf("redacted %+v, %v", v, err)
	}
	if v, err = c.MemoryVersions.Get(ctx, m.MemoryVersionID, anthropic.BetaMemoryStoreMemoryVersionGetParams{MemoryStoreID: store.ID}); err != nil || v.Content != "" {
		t.Errorf("redacted version %+v, %v", v, err)
	}
	if s, err := c.Archive(ctx, store.ID, anthropic.BetaMemoryStoreArchiveParams{}); err != nil || s.ArchivedAt.IsZero() {
		t.Errorf("archived %+v, %v", s, err)
	}
	if all, err := c.List(ctx, anthropic.BetaMemoryStoreListParams{IncludeArchived: anthropic.Bool(true)}); err != nil || len(all.Data) != 1 {
		t.Errorf("stores %+v, %v", all, err)
	}
	if gone, err := c.Delete(ctx, store.ID, anthropic.BetaMemoryStoreDeleteParams{}); err != nil || gone.ID != store.ID {
		t.Errorf("deleted store %+v, %v", gone, err)
	}
}
