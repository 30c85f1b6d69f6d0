package local

import (
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// The tools of an agent are a union of three kinds (contract §5, §8.1): the
// agent toolset, the toolset of an MCP server, and a custom tool.

// agentTool is a resolved entry: agentToolset, mcpToolset or customTool.
type agentTool interface{ kind() string }

// agentToolset is the stock toolset. Configs holds only the tools that the
// client configured; every other tool follows Default.
type agentToolset struct {
	Type    string       `json:"type"`
	Default toolDefault  `json:"default_config"`
	Configs []toolConfig `json:"configs"`
}

type mcpToolset struct {
	Type       string       `json:"type"`
	ServerName string       `json:"mcp_server_name"`
	Default    toolDefault  `json:"default_config"`
	Configs    []toolConfig `json:"configs"`
}

type customTool struct {
	Type        string          `json:"type"`
	Name        string          `json:"name"`
	Description string          `json:"description"`
	InputSchema json.RawMessage `json:"input_schema"`
}

func (agentToolset) kind() string { return agentToolsetType }
func (mcpToolset) kind() string   { return "mcp_toolset" }
func (customTool) kind() string   { return "custom" }

type toolDefault struct {
	Enabled bool   `json:"enabled"`
	Policy  policy `json:"permission_policy"`
}

// policy is a permission policy: always_allow, always_ask or auto.
type policy struct {
	Type string `json:"type"`
}

// toolConfig is the configuration of one tool by its name. Extra holds what
// only the web tools have, already resolved.
type toolConfig struct {
	Type    string // the stock tool's own name; "" for tools of an MCP server
	Name    string
	Enabled bool
	Policy  policy
	Extra   map[string]any
}

// MarshalJSON lays Extra beside the common fields.
func (c toolConfig) MarshalJSON() ([]byte, error) {
	out := map[string]any{"name": c.Name, "enabled": c.Enabled, "permission_policy": c.Policy}
	if c.Type != "" {
		out["type"] = c.Type
	}
	maps.Copy(out, c.Extra)
	return json.Marshal(out)
}

const (
	agentToolsetType = "agent_toolset_20260401"
	maxTools         = 128 // contract §8.1: of two documented bounds, the lower
	maxToolName      = 128
	maxDomains       = 64
)

var (
	// stockTools are the tools of the agent toolset. The web tools run at the
	// platform, the others at the worker (contract §4.5).
	stockTools = []string{"bash", "read", "write", "edit", "glob", "grep", "web_fetch", "web_search"}

	policies     = []string{"always_allow", "always_ask", "auto"}
	toolName     = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,128}$`)
	propertyName = regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,64}$`)
)

// toolsFrom resolves the tools of an agent.
func toolsFrom(in []json.RawMessage) ([]agentTool, *apiError) {
	if len(in) > maxTools {
		return nil, fail(400, "tools: at most %d entries, got %d", maxTools, len(in))
	}
	tools := []agentTool{}
	seen := map[string]bool{} // toolsets by kind and server, custom tools by name
	for _, raw := range in {
		var (
			t   agentTool
			key string
			err *apiError
		)
		switch kind := typeOf(raw); kind {
		case agentToolsetType:
			key = kind
			t, err = agentToolsetFrom(raw)
		case "mcp_toolset":
			var set mcpToolset
			set, err = mcpToolsetFrom(raw)
			t, key = set, "mcp_toolset of "+set.ServerName
		case "custom":
			var c customTool
			c, err = customToolFrom(raw)
			t, key = c, "tool "+c.Name
		default:
			err = fail(400, "tools: unknown type %q", kind)
		}
		if err != nil {
			return nil, err
		}
		if seen[key] {
			return nil, fail(400, "tools: the %s is there twice", key)
		}
		seen[key] = true
		tools = append(tools, t)
	}
	return tools, nil
}

// toolParams is a tool's configuration as sent.
type toolParams struct {
	Type    string        `json:"type"`
	Name    string        `json:"name"`
	Enabled maybe[bool]   `json:"enabled"`
	Policy  maybe[policy] `json:"permission_policy"`
	webParams
}

type defaultParams struct {
	Enabled maybe[bool]   `json:"enabled"`
	Policy  maybe[policy] `json:"permission_policy"`
}

// over resolves the parameters over a default.
func (p defaultParams) over(d toolDefault, where string) (toolDefault, *apiError) {
	if p.Enabled.given() {
		d.Enabled = p.Enabled.Value
	}
	if p.Policy.given() {
		d.Policy = p.Policy.Value
	}
	if !slices.Contains(policies, d.Policy.Type) {
		return d, fail(400, "%s.permission_policy: %q is not one of %q", where, d.Policy.Type, policies)
	}
	return d, nil
}

func agentToolsetFrom(raw json.RawMessage) (agentToolset, *apiError) {
	var in struct {
		Type    string               `json:"type"`
		Default maybe[defaultParams] `json:"default_config"`
		Configs []toolParams         `json:"configs"`
	}
	set := agentToolset{Type: agentToolsetType, Configs: []toolConfig{}}
	err := strict(raw, &in, "tools."+agentToolsetType)
	if err != nil {
		return set, err
	}
	if set.Default, err = in.Default.Value.over(toolDefault{true, policy{"always_allow"}}, "default_config"); err != nil {
		return set, err
	}
	for _, p := range in.Configs {
		if !slices.Contains(stockTools, p.Name) {
			return set, fail(400, "configs.name: %q is not a tool of %s", p.Name, agentToolsetType)
		}
		if p.Type != "" && p.Type != p.Name {
			return set, fail(400, "configs.type: must be %q", p.Name)
		}
		c, err := configFrom(p, set.Default, set.Configs)
		if err != nil {
			return set, err
		}
		c.Type = p.Name
		if c.Extra, err = p.webParams.resolve(p.Name); err != nil {
			return set, err
		}
		set.Configs = append(set.Configs, c)
	}
	return set, nil
}

func mcpToolsetFrom(raw json.RawMessage) (mcpToolset, *apiError) {
	var in struct {
		Type       string               `json:"type"`
		ServerName string               `json:"mcp_server_name"`
		Default    maybe[defaultParams] `json:"default_config"`
		Configs    []struct {
			Name string `json:"name"`
			defaultParams
		} `json:"configs"`
	}
	set := mcpToolset{Type: "mcp_toolset", Configs: []toolConfig{}}
	err := strict(raw, &in, "tools.mcp_toolset")
	if err != nil {
		return set, err
	}
	set.ServerName = in.ServerName
	if err := bounded("mcp_server_name", in.ServerName, 1, maxMCPName); err != nil {
		return set, err
	}
	if set.Default, err = in.Default.Value.over(toolDefault{true, policy{"always_ask"}}, "default_config"); err != nil {
		return set, err
	}
	for _, p := range in.Configs {
		if err := bounded("configs.name", p.Name, 1, maxToolName); err != nil {
			return set, err
		}
		c, err := configFrom(toolParams{Name: p.Name, Enabled: p.Enabled, Policy: p.Policy}, set.Default, set.Configs)
		if err != nil {
			return set, err
		}
		set.Configs = append(set.Configs, c)
	}
	return set, nil
}

// configFrom resolves one tool over the default of its toolset.
func configFrom(p toolParams, d toolDefault, others []toolConfig) (toolConfig, *apiError) {
	for _, o := range others {
		if o.Name == p.Name {
			return toolConfig{}, fail(400, "configs: %q is configured twice", p.Name)
		}
	}
	rule, err := defaultParams{p.Enabled, p.Policy}.over(d, "configs."+p.Name)
	return toolConfig{Name: p.Name, Enabled: rule.Enabled, Policy: rule.Policy}, err
}

func customToolFrom(raw json.RawMessage) (customTool, *apiError) {
	var c customTool
	if err := strict(raw, &c, "tools.custom"); err != nil {
		return c, err
	}
	if !toolName.MatchString(c.Name) {
		return c, fail(400, "tools: the name %q must be 1 to %d letters, digits, _ or -", c.Name, maxToolName)
	}
	if slices.Contains(stockTools, c.Name) {
		return c, fail(400, "tools: the name %q belongs to the agent toolset", c.Name)
	}
	for _, prefix := range []string{"mcp__", "ant__"} {
		if strings.HasPrefix(c.Name, prefix) {
			return c, fail(400, "tools: the name %q must not begin with %s", c.Name, prefix)
		}
	}
	if c.Description == "" {
		return c, fail(400, "tools: %s needs a description", c.Name)
	}
	return c, checkSchema(c.Name, c.InputSchema)
}

// checkSchema holds a custom tool's schema against the rules of contract §8.1.
func checkSchema(tool string, raw json.RawMessage) *apiError {
	var schema map[string]any
	if err := json.Unmarshal(raw, &schema); err != nil || schema == nil {
		return fail(400, "tools: the input_schema of %s must be an object", tool)
	}
	if schema["type"] != "object" {
		return fail(400, `tools: the input_schema of %s must have "type":"object"`, tool)
	}
	for _, key := range []string{"oneOf", "anyOf", "allOf"} {
		if _, ok := schema[key]; ok {
			return fail(400, "tools: the input_schema of %s must not have %s at the top", tool, key)
		}
	}
	if hasKey(schema, "$ref") {
		return fail(400, "tools: the input_schema of %s must not use $ref", tool)
	}
	switch properties := schema["properties"].(type) {
	case nil:
	case map[string]any:
		for name := range properties {
			if !propertyName.MatchString(name) {
				return fail(400, "tools: %s has the property %q; names are 1 to 64 letters, digits, _, . or -", tool, name)
			}
		}
	default:
		return fail(400, "tools: the properties of %s must be an object", tool)
	}
	switch required := schema["required"].(type) {
	case nil:
	case []any:
		for _, name := range required {
			if _, ok := name.(string); !ok {
				return fail(400, "tools: required of %s must list names", tool)
			}
		}
	default:
		return fail(400, "tools: required of %s must be a list", tool)
	}
	return nil
}

// hasKey looks for an object key at any depth.
func hasKey(v any, key string) bool {
	switch v := v.(type) {
	case map[string]any:
		if _, ok := v[key]; ok {
			return true
		}
		for _, member := range v {
			if hasKey(member, key) {
				return true
			}
		}
	case []any:
		for _, member := range v {
			if hasKey(member, key) {
				return true
			}
		}
	}
	return false
}
