package local

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
)

// web_fetch and web_search run at the platform, even for self-hosted
// environments (contract §4.5). The local platform keeps and shows their
// settings, and runs neither.

// webParams are the settings that only the web tools take.
type webParams struct {
	Allowed      maybe[[]string]                   `json:"allowed_domains"`
	Blocked      maybe[[]string]                   `json:"blocked_domains"`
	MaxTokens    maybe[int]                        `json:"max_content_tokens"`
	URLSources   maybe[map[string]json.RawMessage] `json:"url_sources"`
	UserLocation maybe[userLocation]               `json:"user_location"`
}

type userLocation struct {
	Type     string  `json:"type"`
	City     *string `json:"city,omitempty"`
	Region   *string `json:"region,omitempty"`
	Country  *string `json:"country,omitempty"`
	Timezone *string `json:"timezone,omitempty"`
}

var (
	hostName    = regexp.MustCompile(`^([a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?\.)*[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?$`)
	countryCode = regexp.MustCompile(`^[A-Z]{2}$`)
)

// resolve checks the settings for one tool and returns them as replied.
func (p webParams) resolve(tool string) (map[string]any, *apiError) {
	fetch, search := tool == "web_fetch", tool == "web_search"
	extra := map[string]any{}
	for _, setting := range []struct {
		name    string
		sent    bool
		allowed bool
	}{
		{"allowed_domains", p.Allowed.Sent, fetch || search},
		{"blocked_domains", p.Blocked.Sent, fetch || search},
		{"max_content_tokens", p.MaxTokens.Sent, fetch},
		{"url_sources", p.URLSources.Sent, fetch},
		{"user_location", p.UserLocation.Sent, search},
	} {
		if setting.sent && !setting.allowed {
			return nil, fail(400, "configs.%s: %s is not one of its settings", tool, setting.name)
		}
	}
	if p.Allowed.given() && p.Blocked.given() {
		return nil, fail(400, "configs.%s: allowed_domains and blocked_domains exclude each other", tool)
	}
	for name, domains := range map[string]maybe[[]string]{"allowed_domains": p.Allowed, "blocked_domains": p.Blocked} {
		if !domains.given() {
			continue
		}
		if n := len(domains.Value); n == 0 || n > maxDomains {
			return nil, fail(400, "configs.%s.%s: must have 1 to %d entries", tool, name, maxDomains)
		}
		for _, d := range domains.Value {
			if len(d) > 253 || !hostName.MatchString(d) {
				return nil, fail(400, "configs.%s.%s: %q is not a plain host name", tool, name, d)
			}
		}
		extra[name] = domains.Value
	}
	if p.MaxTokens.given() {
		if p.MaxTokens.Value < 1 {
			return nil, fail(400, "configs.%s.max_content_tokens: must be at least 1", tool)
		}
		extra["max_content_tokens"] = p.MaxTokens.Value
	}
	if p.UserLocation.given() {
		l := p.UserLocation.Value
		if l.Type != "approximate" {
			return nil, fail(400, "configs.%s.user_location.type: must be approximate", tool)
		}
		for _, part := range []*string{l.City, l.Region, l.Timezone} {
			if part == nil {
				continue
			}
			if err := bounded("configs."+tool+".user_location", *part, 1, 255); err != nil {
				return nil, err
			}
		}
		if l.Country != nil && !countryCode.MatchString(*l.Country) {
			return nil, fail(400, "configs.%s.user_location.country: must be two capital letters", tool)
		}
		extra["user_location"] = l
	}
	if !fetch {
		return extra, nil
	}
	extra["url_sources"] = nil
	if p.URLSources.given() {
		sources, err := urlSources(p.URLSources.Value)
		if err != nil {
			return nil, err
		}
		extra["url_sources"] = sources
	}
	return extra, nil
}

// urlSources spells out the shorthands of web_fetch's url_sources.
func urlSources(in map[string]json.RawMessage) (map[string]any, *apiError) {
	known := []string{"user_input", "client_tool_results", "server_tool_results"}
	out := map[string]any{}
	for _, name := range known {
		out[name] = nil
	}
	for name, raw := range in {
		if !slices.Contains(known, name) {
			return nil, fail(400, "url_sources: unknown field %q", name)
		}
		if isNull(raw) {
			continue
		}
		var filter struct {
			Type  string            `json:"type"`
			Tools []json.RawMessage `json:"tools,omitempty"`
		}
		if json.Unmarshal(raw, &filter.Type) != nil {
			if err := strict(bytes.Clone(raw), &filter, "url_sources."+name); err != nil {
				return nil, err
			}
		}
		switch listed := filter.Type == "only" || filter.Type == "except"; {
		case !listed && filter.Type != "all" && filter.Type != "none",
			listed && name == "user_input":
			return nil, fail(400, "url_sources.%s: unknown type %q", name, filter.Type)
		case listed && (len(filter.Tools) == 0 || len(filter.Tools) > maxTools):
			return nil, fail(400, "url_sources.%s.tools: must have 1 to %d entries", name, maxTools)
		case !listed && filter.Tools != nil:
			return nil, fail(400, "url_sources.%s: %s takes no tools", name, filter.Type)
		}
		out[name] = filter
	}
	return out, nil
}
