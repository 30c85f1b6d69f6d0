package local

import (
	"slices"
	"strconv"
	"sync"
	"time"
)

// A skill is a line of immutable versions, each an archive with a SKILL.md under
// one top directory that carries the skill's name (contract §2.5, §6.1).
// "latest" means the newest version. skills_upload.go reads uploads and seeds,
// skills_routes.go serves them, and the older shape too.

// skills is the collection. Safe for concurrent use.
type skills struct {
	now func() time.Time

	mu    sync.Mutex
	byID  map[string]*skillLine
	order []string // ids, oldest first
}

// skillLine is all versions of one skill, oldest first; never empty.
type skillLine struct {
	id       string
	display  string
	source   string // custom, anthropic, anthropic_example or plugin
	created  time.Time
	updated  time.Time
	versions []skillVersion
}

// skillVersion is immutable.
type skillVersion struct {
	id      string
	number  string // what the older shape calls a version
	created time.Time
	skillContent
}

// skillContent is what one upload or seed brings.
type skillContent struct {
	name        string // the slug and top directory
	description string
	archive     []byte
	contentType string
}

// skill and skillVersionReply are the replies of the present shape.
type skill struct {
	ID        string            `json:"id"`
	Type      string            `json:"type"`
	Display   string            `json:"display_name"`
	Latest    string            `json:"latest_version_id"`
	Source    map[string]string `json:"source"`
	CreatedAt string            `json:"created_at"`
	UpdatedAt string            `json:"updated_at"`
}

type skillVersionReply struct {
	ID          string `json:"id"`
	Type        string `json:"type"`
	SkillID     string `json:"skill_id"`
	Name        string `json:"name"`
	Description string `json:"description"`
	CreatedAt   string `json:"created_at"`
}

func newSkills(now func() time.Time) *skills {
	return &skills{now: now, byID: map[string]*skillLine{}}
}

// create makes a skill with its first version. id "" makes one up.
func (s *skills) create(id, display, source string, c skillContent) (skillLine, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id == "" {
		id = newID("skill_")
	}
	if _, ok := s.byID[id]; ok {
		return skillLine{}, fail(409, "skill %s exists already", id)
	}
	if display == "" {
		display = c.name
	}
	now := s.now()
	line := &skillLine{id: id, display: display, source: source, created: now}
	line.add(now, c)
	s.byID[id] = line
	s.order = append(s.order, id)
	return line.copy(), nil
}

// addVersion adds a version; its name must be the skill's own.
func (s *skills) addVersion(id string, c skillContent) (skillVersion, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	line, err := s.line(id)
	if err != nil {
		return skillVersion{}, err
	}
	if name := line.versions[0].name; c.name != name {
		return skillVersion{}, fail(400, "the skill is named %q and stays so; this upload is named %q", name, c.name)
	}
	return line.add(s.now(), c), nil
}

func (s *skills) find(id string) (skillLine, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	line, err := s.line(id)
	if err != nil {
		return skillLine{}, err
	}
	return line.copy(), nil
}

// version finds a version by its id, its number, or "latest".
func (s *skills) version(id, version string) (skillVersion, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	line, err := s.line(id)
	if err != nil {
		return skillVersion{}, err
	}
	i, err := line.index(version)
	if err != nil {
		return skillVersion{}, err
	}
	return line.versions[i], nil
}

// resolve implements skillResolver. A reference that leads nowhere is the
// referrer's mistake: 400.
func (s *skills) resolve(kind, id, version string) (string, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	line, ok := s.byID[id]
	if !ok {
		return "", fail(400, "skills: %s was not found; upload or seed it first", id)
	}
	if custom := line.source == "custom" || line.source == "plugin"; custom != (kind == "custom") {
		return "", fail(400, "skills: %s is not of type %s", id, kind)
	}
	i, err := line.index(version)
	if err != nil {
		return "", fail(400, "skills: %s", err.Message)
	}
	return line.versions[i].id, nil
}

// all returns the skills of a source ("" for every source), newest first.
func (s *skills) all(source string) []skillLine {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []skillLine
	for _, id := range slices.Backward(s.order) {
		if line := s.byID[id]; source == "" || line.source == source {
			found = append(found, line.copy())
		}
	}
	return found
}

func (s *skills) remove(id string) *apiError {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.line(id); err != nil {
		return err
	}
	delete(s.byID, id)
	s.order = slices.DeleteFunc(s.order, func(o string) bool { return o == id })
	return nil
}

// removeVersion removes one version and returns it; the last one stays, for a
// skill has at least one.
func (s *skills) removeVersion(id, version string) (skillVersion, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	line, err := s.line(id)
	if err != nil {
		return skillVersion{}, err
	}
	i, err := line.index(version)
	if err != nil {
		return skillVersion{}, err
	}
	if len(line.versions) == 1 {
		return skillVersion{}, fail(400, "%s is the only version of the skill; delete the skill instead", line.versions[i].id)
	}
	gone := line.versions[i]
	line.versions = slices.Delete(slices.Clone(line.versions), i, i+1)
	return gone, nil
}

// line finds a skill. The caller holds the lock.
func (s *skills) line(id string) (*skillLine, *apiError) {
	line, ok := s.byID[id]
	if !ok {
		return nil, fail(404, "skill %s was not found", id)
	}
	return line, nil
}

// add appends a version. Numbers grow even when the clock stands still.
func (l *skillLine) add(now time.Time, c skillContent) skillVersion {
	number := now.UnixMicro()
	for _, v := range l.versions {
		if n, err := strconv.ParseInt(v.number, 10, 64); err == nil {
			number = max(number, n+1)
		}
	}
	v := skillVersion{id: newID("skver_"), number: strconv.FormatInt(number, 10), created: now, skillContent: c}
	l.versions = append(l.versions, v)
	l.updated = now
	return v
}

func (l *skillLine) index(version string) (int, *apiError) {
	if version == "latest" {
		return len(l.versions) - 1, nil
	}
	i := slices.IndexFunc(l.versions, func(v skillVersion) bool { return v.id == version || v.number == version })
	if i < 0 {
		return 0, fail(404, "skill %s has no version %s", l.id, version)
	}
	return i, nil
}

func (l *skillLine) latest() skillVersion { return l.versions[len(l.versions)-1] }

// copy detaches a line from the collection.
func (l *skillLine) copy() skillLine {
	c := *l
	c.versions = slices.Clone(l.versions)
	return c
}

func (l skillLine) reply() skill {
	return skill{
		ID: l.id, Type: "skill", Display: l.display, Latest: l.latest().id, Source: map[string]string{"type": l.source},
		CreatedAt: stamp(l.created), UpdatedAt: stamp(l.updated),
	}
}

func (v skillVersion) reply(skill string) skillVersionReply {
	return skillVersionReply{
		ID: v.id, Type: "skill_version", SkillID: skill, Name: v.name, Description: v.description, CreatedAt: stamp(v.created),
	}
}
