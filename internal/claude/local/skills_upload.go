package local

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
)

// Skills arrive in two ways: as files of a multipart upload, checked like the
// platform checks them, and as seeds from Go, where nothing is checked, so that
// a test can serve an archive that no honest platform would.

const (
	maxSkillFiles       = 10_000
	maxSkillName        = 64
	maxSkillDescription = 1024
	maxSkillDisplay     = 255
)

var skillSlug = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

// SkillSeed is a skill to put in place without an upload.
type SkillSeed struct {
	ID          string // "" makes one up; an existing id gets another version
	Name        string // the slug, which is also the top directory of Files
	Description string
	Source      string // "custom" when empty; else anthropic, anthropic_example or plugin

	// Files maps paths below the top directory to contents. A SKILL.md is made
	// from Name and Description when there is none.
	Files map[string]string
	// Archive is served verbatim instead of Files when it is not nil: any
	// format, and any hostility.
	Archive []byte
	// ContentType goes with Archive. Default application/zip.
	ContentType string
}

// SeedSkill puts a skill in place and returns the ids of the skill and of the
// new version. Files are zipped; an Archive is not looked at.
func (s *Server) SeedSkill(seed SkillSeed) (skillID, versionID string, err error) {
	c := skillContent{
		name: seed.Name, description: seed.Description, archive: seed.Archive, contentType: seed.ContentType,
	}
	if c.contentType == "" {
		c.contentType = "application/zip"
	}
	if c.archive == nil {
		files := map[string][]byte{}
		for name, content := range seed.Files {
			files[name] = []byte(content)
		}
		if files["SKILL.md"] == nil {
			files["SKILL.md"] = fmt.Appendf(nil, "---\nname: %s\ndescription: %q\n---\n", seed.Name, seed.Description)
		}
		if c.archive, err = zipSkill(seed.Name, files); err != nil {
			return "", "", fmt.Errorf("seed skill %s: %w", seed.Name, err)
		}
	}
	if seed.Source == "" {
		seed.Source = "custom"
	}
	sk := s.skills()
	if seed.ID != "" {
		if _, missing := sk.find(seed.ID); missing == nil {
			v, e := sk.addVersion(seed.ID, c)
			if e != nil {
				return "", "", fmt.Errorf("seed skill %s: %w", seed.ID, e)
			}
			return seed.ID, v.id, nil
		}
	}
	line, e := sk.create(seed.ID, "", seed.Source, c)
	if e != nil {
		return "", "", fmt.Errorf("seed skill %s: %w", seed.Name, e)
	}
	return line.id, line.latest().id, nil
}

// zipSkill packs files under one top directory, in a fixed order.
func zipSkill(top string, files map[string][]byte) ([]byte, error) {
	var buf bytes.Buffer
	z := zip.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		w, err := z.Create(top + "/" + name)
		if err != nil {
			return nil, fmt.Errorf("add %s: %w", name, err)
		}
		if _, err := w.Write(files[name]); err != nil {
			return nil, fmt.Errorf("write %s: %w", name, err)
		}
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("close archive: %w", err)
	}
	return buf.Bytes(), nil
}

// uploadedSkill reads a multipart upload: files with one common top directory
// and a SKILL.md in it, or one .zip of the same. display is "" when not sent.
func uploadedSkill(w http.ResponseWriter, r *http.Request) (c skillContent, display string, e *apiError) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	parts, err := r.MultipartReader()
	if err != nil {
		return c, "", fail(400, "send the files as multipart/form-data: %v", err)
	}
	files := map[string][]byte{}
	for {
		part, err := parts.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		var content []byte
		if err == nil {
			content, err = io.ReadAll(part)
		}
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			return c, "", fail(413, "the upload exceeds %d bytes", maxBody)
		}
		if err != nil {
			return c, "", fail(400, "reading the upload: %v", err)
		}
		switch part.FormName() {
		case "files", "files[]":
			// FileName would drop the directories, which matter here.
			_, params, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
			if err != nil || params["filename"] == "" {
				return c, "", fail(400, "files: every file needs a name")
			}
			if e := addFile(files, params["filename"], content); e != nil {
				return c, "", e
			}
		case "display_name", "display_title":
			display = string(content)
			if e := bounded("display_name", display, 1, maxSkillDisplay); e != nil {
				return c, "", e
			}
		default:
			return c, "", fail(400, "unknown field %q", part.FormName())
		}
	}
	if files, e = unzipped(files); e != nil {
		return c, "", e
	}
	c, e = skillFrom(files)
	return c, display, e
}

// addFile adds one file under a path that stays inside the upload.
func addFile(files map[string][]byte, name string, content []byte) *apiError {
	if strings.Contains(name, `\`) || path.IsAbs(name) || path.Clean(name) != name || name == ".." || strings.HasPrefix(name, "../") {
		return fail(400, "files: %q is not a clean relative path", name)
	}
	if _, ok := files[name]; ok {
		return fail(400, "files: %q is there twice", name)
	}
	if len(files) == maxSkillFiles {
		return fail(400, "files: more than %d", maxSkillFiles)
	}
	files[name] = content
	return nil
}

// unzipped replaces a single .zip by the files in it.
func unzipped(files map[string][]byte) (map[string][]byte, *apiError) {
	if len(files) != 1 {
		return files, nil
	}
	var name string
	var content []byte
	for name, content = range files {
	}
	if path.Ext(name) != ".zip" {
		return files, nil
	}
	z, err := zip.NewReader(bytes.NewReader(content), int64(len(content)))
	if err != nil {
		return nil, fail(400, "files: %s is not a zip archive: %v", name, err)
	}
	unpacked := map[string][]byte{}
	room := int64(maxBody)
	for _, f := range z.File {
		if f.FileInfo().IsDir() {
			continue
		}
		if !f.Mode().IsRegular() {
			return nil, fail(400, "files: %s in %s is not a regular file", f.Name, name)
		}
		body, err := f.Open()
		if err != nil {
			return nil, fail(400, "files: open %s in %s: %v", f.Name, name, err)
		}
		content, err := io.ReadAll(io.LimitReader(body, room+1))
		if err := errors.Join(err, body.Close()); err != nil {
			return nil, fail(400, "files: read %s in %s: %v", f.Name, name, err)
		}
		if room -= int64(len(content)); room < 0 {
			return nil, fail(413, "files: %s unpacks to more than %d bytes", name, maxBody)
		}
		if e := addFile(unpacked, f.Name, content); e != nil {
			return nil, e
		}
	}
	return unpacked, nil
}

// skillFrom reads SKILL.md and packs the files under the skill's name.
func skillFrom(files map[string][]byte) (skillContent, *apiError) {
	var top string
	below := map[string][]byte{}
	for name, content := range files {
		dir, rest, ok := strings.Cut(name, "/")
		if !ok || top != "" && dir != top {
			return skillContent{}, fail(400, "files: all must be in the same top-level directory")
		}
		top = dir
		below[rest] = content
	}
	about, ok := below["SKILL.md"]
	if !ok {
		return skillContent{}, fail(400, "files: no SKILL.md at the root of the top-level directory")
	}
	var front struct {
		Name        string `yaml:"name"`
		Description string `yaml:"description"`
	}
	header, found := bytes.CutPrefix(bytes.ReplaceAll(about, []byte("\r\n"), []byte("\n")), []byte("---\n"))
	header, _, closed := bytes.Cut(header, []byte("\n---"))
	if !found || !closed {
		return skillContent{}, fail(400, "SKILL.md: must begin with a frontmatter between two lines of ---")
	}
	if err := yaml.Unmarshal(header, &front); err != nil {
		return skillContent{}, fail(400, "SKILL.md: reading the frontmatter: %v", err)
	}
	if front.Name == "" {
		front.Name = top
	}
	if len(front.Name) > maxSkillName || !skillSlug.MatchString(front.Name) {
		return skillContent{}, fail(400, "SKILL.md: the name %q must be kebab-case with at most %d characters", front.Name, maxSkillName)
	}
	if e := bounded("SKILL.md: description", front.Description, 1, maxSkillDescription); e != nil {
		return skillContent{}, e
	}
	archive, err := zipSkill(front.Name, below)
	if err != nil {
		return skillContent{}, fail(500, "packing the skill: %v", err)
	}
	return skillContent{front.Name, front.Description, archive, "application/zip"}, nil
}
