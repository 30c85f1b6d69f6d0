package local

import (
	"archive/zip"
	"bytes"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// upload posts files as multipart; names keep their directories.
func (d *door) upload(path string, files map[string]string, betas ...string) reply {
	d.t.Helper()
	var buf bytes.Buffer
	form := multipart.NewWriter(&buf)
	for name, content := range files {
		h := textproto.MIMEHeader{}
		h.Set("Content-Disposition", `form-data; name="files[]"; filename="`+name+`"`)
		w, err := form.CreatePart(h)
		if err != nil {
			d.t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			d.t.Fatal(err)
		}
	}
	if err := form.Close(); err != nil {
		d.t.Fatal(err)
	}
	return d.skillCall("POST", path, &buf, form.FormDataContentType(), betas...)
}

func (d *door) skillCall(method, path string, body io.Reader, mime string, betas ...string) reply {
	d.t.Helper()
	r, err := http.NewRequestWithContext(d.t.Context(), method, d.url+path, body)
	if err != nil {
		d.t.Fatal(err)
	}
	r.Header.Set("X-Api-Key", d.key)
	r.Header.Set("anthropic-version", "2026-10-21")
	r.Header.Set("Content-Type", mime)
	for _, b := range betas {
		r.Header.Add("anthropic-beta", b)
	}
	return d.send(r)
}

const skillMD = "---\nname: pdf-forms\ndescription: Fills forms.\n---\nBody.\n"

func TestAnUploadedSkillComesBackAsAnArchiveUnderItsName(t *testing.T) {
	d := openDoor(t, Options{})
	got := d.upload("/v1/skills", map[string]string{"anything/SKILL.md": skillMD, "anything/scripts/fill.py": "print()"})
	if got.Status != 200 || got.Body["display_name"] != "pdf-forms" {
		t.Fatalf("upload: %d %s", got.Status, got.Raw)
	}
	base := "/v1/skills/" + got.Body["id"].(string) + "/versions/"
	version := d.want(200, "GET", base+"latest", "").Body
	if version["id"] != got.Body["latest_version_id"] || version["name"] != "pdf-forms" || version["description"] != "Fills forms." {
		t.Errorf("latest version %v", version)
	}
	archive := d.want(200, "GET", base+version["id"].(string)+"/content", "")
	if mime := archive.Header.Get("Content-Type"); mime != "application/zip" {
		t.Errorf("content type %q", mime)
	}
	z, err := zip.NewReader(bytes.NewReader(archive.Raw), int64(len(archive.Raw)))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range z.File {
		names = append(names, f.Name)
	}
	if diff := cmp.Diff([]string{"pdf-forms/SKILL.md", "pdf-forms/scripts/fill.py"}, names); diff != "" {
		t.Errorf("archive (-want +got):\n%s", diff)
	}
}

func TestSkillUploadRefusesWhatIsNotASkill(t *testing.T) {
	d := openDoor(t, Options{})
	for name, files := range map[string]map[string]string{
		"no SKILL.md":         {"a/x.md": "x"},
		"two directories":     {"a/SKILL.md": skillMD, "b/x": "x"},
		"no directory":        {"SKILL.md": skillMD},
		"a path upwards":      {"a/SKILL.md": skillMD, "a/../../x": "x"},
		"an absolute path":    {"/a/SKILL.md": skillMD},
		"no frontmatter":      {"a/SKILL.md": "hello"},
		"no description":      {"a/SKILL.md": "---\nname: a\n---\n"},
		"a name with a space": {"a/SKILL.md": "---\nname: a b\ndescription: d\n---\n"},
		"no files":            {},
	} {
		if got := d.upload("/v1/skills", files); got.Status != 400 {
			t.Errorf("%s: status %d, want 400", name, got.Status)
		}
	}
}

func TestSkillVersionsKeepTheName(t *testing.T) {
	d := openDoor(t, Options{})
	id := d.upload("/v1/skills", map[string]string{"a/SKILL.md": skillMD}).Body["id"].(string)
	versions := "/v1/skills/" + id + "/versions"
	first := d.want(200, "GET", versions+"/latest", "").Body["id"].(string)
	if got := d.call("DELETE", versions+"/"+first, ""); got.Status != 400 {
		t.Errorf("deleting the only version: %d, want 400", got.Status)
	}
	if got := d.upload(versions, map[string]string{"a/SKILL.md": strings.Replace(skillMD, "pdf-forms", "other", 1)}); got.Status != 400 {
		t.Errorf("a version under another name: %d, want 400", got.Status)
	}
	second := d.upload(versions, map[string]string{"a/SKILL.md": skillMD}).Body["id"]
	if got := d.want(200, "GET", versions+"/latest", "").Body["id"]; got != second {
		t.Errorf("latest is %v, want %v", got, second)
	}
	d.want(200, "DELETE", versions+"/"+first, "")
	d.want(404, "GET", versions+"/"+first, "")
	d.want(200, "DELETE", "/v1/skills/"+id, "")
	d.want(404, "GET", "/v1/skills/"+id, "")
}

func TestASkillPinsToTheVersionItWasResolvedTo(t *testing.T) {
	d := openDoor(t, Options{})
	skill, first, err := d.srv.SeedSkill(SkillSeed{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	agent := d.want(200, "POST", "/v1/agents", `{"name":"n","model":"m","skills":[{"type":"custom","skill_id":"`+skill+`","version":"latest"}]}`).Body
	if _, _, err := d.srv.SeedSkill(SkillSeed{ID: skill, Name: "a"}); err != nil {
		t.Fatal(err)
	}
	got := d.want(200, "GET", "/v1/agents/"+agent["id"].(string), "").Body["skills"].([]any)[0].(map[string]any)["version"]
	if got != first {
		t.Errorf("the agent's skill is at %v, want %v", got, first)
	}
	d.want(400, "POST", "/v1/agents", `{"name":"n","model":"m","skills":[{"type":"anthropic","skill_id":"`+skill+`"}]}`)
}

func TestASeededArchiveIsServedVerbatim(t *testing.T) {
	d := openDoor(t, Options{})
	hostile := []byte("PK not really ../../etc/passwd")
	id, version, err := d.srv.SeedSkill(SkillSeed{ID: "evil", Name: "evil", Source: "anthropic", Archive: hostile, ContentType: "application/gzip"})
	if err != nil {
		t.Fatal(err)
	}
	got := d.want(200, "GET", "/v1/skills/"+id+"/versions/"+version+"/content", "")
	if !bytes.Equal(got.Raw, hostile) || got.Header.Get("Content-Type") != "application/gzip" {
		t.Errorf("content %q of type %q", got.Raw, got.Header.Get("Content-Type"))
	}
}

func TestOlderClientsGetTheOlderShapeOfSkills(t *testing.T) {
	d := openDoor(t, Options{})
	id, version, err := d.srv.SeedSkill(SkillSeed{Name: "a", Description: "d"})
	if err != nil {
		t.Fatal(err)
	}
	got := d.skillCall("GET", "/v1/skills/"+id+"/versions?limit=1", nil, "", betaSkills).Body
	v := got["data"].([]any)[0].(map[string]any)
	number, _ := v["version"].(string)
	if got["has_more"] != false || v["directory"] != "a" || v["id"] != version || number == "" {
		t.Errorf("older list %v", got)
	}
	if got := d.skillCall("GET", "/v1/skills/"+id+"/versions/"+number, nil, "", betaSkills).Body["version"]; got != number {
		t.Errorf("version %v, want %v", got, number)
	}
	if got := d.skillCall("GET", "/v1/skills/"+id, nil, "", betaSkills).Body; got["latest_version"] != number || got["source"] != "custom" {
		t.Errorf("older skill %v", got)
	}
}
