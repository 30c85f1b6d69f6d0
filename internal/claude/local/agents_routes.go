package local

import (
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Agents need skills to resolve references, so both register together.
func (s *Server) agentRoutes() {
	sk := newSkills(s.clock.Now)
	s.routeSkills(sk)

	a := newAgents(s.clock.Now, sk)
	s.agents = a
	s.handle("POST /v1/agents", credAPIKey, func(w http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
		var in agentCreate
		if err := decode(w, r, &in, false); err != nil {
			return nil, err
		}
		return answer(a.create(in))
	})
	s.handle("GET /v1/agents", credAPIKey, func(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
		within, err := createdWithin(r.URL.Query())
		if err != nil {
			return nil, err
		}
		return listed(r, 20, 100, func() ([]agent, *apiError) { return a.all(within), nil })
	})
	s.handle("GET /v1/agents/{agent}", credAPIKey, func(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
		version := 0
		if v := r.URL.Query().Get("version"); v != "" {
			n, err := strconv.Atoi(v)
			if err != nil || n < 1 {
				return nil, fail(400, "version: must be a whole number of at least 1")
			}
			version = n
		}
		return answer(a.version(r.PathValue("agent"), version))
	})
	s.handle("POST /v1/agents/{agent}", credAPIKey, func(w http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
		var in agentUpdate
		if err := decode(w, r, &in, false); err != nil {
			return nil, err
		}
		return answer(a.update(r.PathValue("agent"), in))
	})
	s.handle("POST /v1/agents/{agent}/archive", credAPIKey, func(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
		return answer(a.archive(r.PathValue("agent")))
	})
	s.handle("GET /v1/agents/{agent}/versions", credAPIKey, func(_ http.ResponseWriter, r *http.Request, _ caller) (any, *apiError) {
		return listed(r, 20, 100, func() ([]agent, *apiError) { return a.versions(r.PathValue("agent")) })
	})
}

// answer drops the value of a failed call, so that handlers can return a call's
// two results as they are.
func answer[T any](v T, err *apiError) (any, *apiError) {
	if err != nil {
		return nil, err
	}
	return v, nil
}

// listed answers a list request: the cursor is bound to the path and to every
// query parameter except limit and page.
func listed[T any](r *http.Request, defaultLimit, maxLimit int, all func() ([]T, *apiError)) (any, *apiError) {
	bind := r.URL.Query()
	bind.Del("limit")
	bind.Del("page")
	bind.Del("beta")
	p, err := pageOf(r, defaultLimit, maxLimit, r.URL.Path+"?"+bind.Encode())
	if err != nil {
		return nil, err
	}
	found, err := all()
	if err != nil {
		return nil, err
	}
	return list(p, found), nil
}

// createdWithin reads created_at[gte], created_at[lte] and include_archived.
func createdWithin(q url.Values) (func(created time.Time, archived bool) bool, *apiError) {
	after, err := timeParam(q, "created_at[gte]")
	if err != nil {
		return nil, err
	}
	before, err := timeParam(q, "created_at[lte]")
	if err != nil {
		return nil, err
	}
	withArchived := false
	if v := q.Get("include_archived"); v != "" {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return nil, fail(400, "include_archived: must be true or false")
		}
		withArchived = b
	}
	return func(created time.Time, archived bool) bool {
		created = created.Truncate(time.Microsecond) // as shown in replies
		return (withArchived || !archived) &&
			(after.IsZero() || !created.Before(after)) && (before.IsZero() || !created.After(before))
	}, nil
}

// timeParam reads an RFC 3339 query parameter; the zero time when it is absent.
func timeParam(q url.Values, name string) (time.Time, *apiError) {
	v := q.Get(name)
	if v == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, v)
	if err != nil {
		return t, fail(400, "%s: must be an RFC 3339 time", name)
	}
	return t, nil
}
