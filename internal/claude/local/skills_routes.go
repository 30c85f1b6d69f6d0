package local

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// anyBearer are the credentials that may read versions of skills: workers do so
// with a sessions token, older ones with the environment key (contract §1.2).
const anyBearer = credAPIKey | credEnvKey | credSession

// skills returns the collection behind the agents of this server.
func (s *Server) skills() *skills { return s.agents.(*agents).skills.(*skills) }

func (s *Server) routeSkills(sk *skills) {
	s.handle("POST /v1/skills", credAPIKey, func(w http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
		c, display, err := uploadedSkill(w, r)
		if err != nil {
			return nil, err
		}
		line, err := sk.create("", display, "custom", c)
		if err != nil {
			return nil, err
		}
		return shapeOf(r).skill(line), nil
	})
	s.handle("GET /v1/skills", credAPIKey, func(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
		shape := shapeOf(r)
		return shape.list(listed(r, 20, 1000, func() ([]any, *apiError) {
			return each(sk.all(r.URL.Query().Get("source")), shape.skill), nil
		}))
	})
	s.handle("GET /v1/skills/{skill}", credAPIKey, func(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
		line, err := sk.find(r.PathValue("skill"))
		if err != nil {
			return nil, err
		}
		return shapeOf(r).skill(line), nil
	})
	s.handle("DELETE /v1/skills/{skill}", credAPIKey, func(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
		id := r.PathValue("skill")
		return answer(deleted(id, "skill_deleted"), sk.remove(id))
	})

	s.handle("POST /v1/skills/{skill}/versions", credAPIKey, func(w http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
		c, _, err := uploadedSkill(w, r)
		if err != nil {
			return nil, err
		}
		v, err := sk.addVersion(r.PathValue("skill"), c)
		if err != nil {
			return nil, err
		}
		return shapeOf(r).version(r.PathValue("skill"), v), nil
	})
	s.handle("GET /v1/skills/{skill}/versions", anyBearer, func(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
		shape := shapeOf(r)
		return shape.list(listed(r, 20, 1000, func() ([]any, *apiError) {
			line, err := sk.find(r.PathValue("skill"))
			if err != nil {
				return nil, err
			}
			slices.Reverse(line.versions) // newest first
			return each(line.versions, func(v skillVersion) any { return shape.version(line.id, v) }), nil
		}))
	})
	s.handle("GET /v1/skills/{skill}/versions/{version}", anyBearer, func(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
		v, err := sk.version(r.PathValue("skill"), r.PathValue("version"))
		if err != nil {
			return nil, err
		}
		return shapeOf(r).version(r.PathValue("skill"), v), nil
	})
	s.handle("DELETE /v1/skills/{skill}/versions/{version}", credAPIKey, func(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
		v, err := sk.removeVersion(r.PathValue("skill"), r.PathValue("version"))
		id := v.id
		if shapeOf(r) == oldShape {
			id = v.number
		}
		return answer(deleted(id, "skill_version_deleted"), err)
	})
	s.handle("GET /v1/skills/{skill}/versions/{version}/content", anyBearer, func(w http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
		v, err := sk.version(r.PathValue("skill"), r.PathValue("version"))
		if err != nil {
			return nil, err
		}
		w.Header().Set("Content-Type", v.contentType)
		w.Header().Set("Content-Disposition", "attachment; filename="+strconv.Quote(v.name+".zip"))
		w.Header().Set("Content-Length", strconv.Itoa(len(v.archive)))
		_, _ = w.Write(v.archive) // the client may be gone; there is nobody to tell
		return written{}, nil
	})
}

// deleted is the reply to a DELETE.
func deleted(id, kind string) map[string]string { return map[string]string{"id": id, "type": kind} }

// each maps a list.
func each[T any](all []T, f func(T) any) []any {
	out := make([]any, 0, len(all))
	for _, v := range all {
		out = append(out, f(v))
	}
	return out
}

// skillShape is one of two forms of the skill replies: the present one, or the
// one that clients ask for with the beta of October 2025.
type skillShape bool

const (
	oldShape   skillShape = true
	betaSkills            = "skills-2025-10-02"
)

func shapeOf(r *http.Request) skillShape {
	return skillShape(strings.Contains(strings.Join(r.Header.Values("anthropic-beta"), ","), betaSkills))
}

func (old skillShape) skill(l skillLine) any {
	if !old {
		return l.reply()
	}
	return map[string]any{
		"id": l.id, "type": "skill", "display_title": l.display, "latest_version": l.latest().number, "source": l.source,
		"created_at": stamp(l.created), "updated_at": stamp(l.updated),
	}
}

func (old skillShape) version(skill string, v skillVersion) any {
	if !old {
		return v.reply(skill)
	}
	return map[string]any{
		"id": v.id, "type": "skill_version", "version": v.number, "skill_id": skill, "name": v.name,
		"description": v.description, "directory": v.name, "created_at": stamp(v.created),
	}
}

// list adds has_more, which the old lists carry.
func (old skillShape) list(page any, err *apiError) (any, *apiError) {
	if m, ok := page.(map[string]any); ok && bool(old) {
		m["has_more"] = m["next_page"] != nil
	}
	return page, err
}
