package local

import "slices"

// The tools that a model is offered: the six stock tools that run at the worker,
// with the inputs of contract §5, and the agent's custom tools.

// stock returns the definition of a stock tool, nil for any other name.
func stock(name string) *modelTool {
	i := slices.IndexFunc(stockDefinitions, func(t modelTool) bool { return t.Name == name })
	if i < 0 {
		return nil
	}
	return &stockDefinitions[i]
}

var stockDefinitions = []modelTool{
	{
		"bash", "Runs a command in a persistent bash shell: directory, variables and background jobs stay. " +
			"Standard input is empty. The output is stdout and stderr together, its end kept when it is long.",
		inputs(nil, property{"command", "string", "The command to run."},
			property{"restart", "boolean", "Start a new shell first."},
			property{"timeout_ms", "integer", "Give up after this many milliseconds; 120000 when omitted."}),
	},
	{
		"read", "Reads a text file. Large files need view_range.",
		inputs([]string{"file_path"}, property{"file_path", "string", "The file, absolute or relative to the working directory."},
			property{"view_range", "range", "First and last line, counted from 1; a last line of 0 or less means the end."}),
	},
	{
		"write", "Writes a text file, replacing it whole; missing directories are made.",
		inputs([]string{"file_path", "content"}, property{"file_path", "string", "The file."},
			property{"content", "string", "Its new content."}),
	},
	{
		"edit", "Replaces a text in a file. The text must occur exactly once unless replace_all is set.",
		inputs([]string{"file_path", "old_string", "new_string"}, property{"file_path", "string", "The file."},
			property{"old_string", "string", "The text to replace."}, property{"new_string", "string", "The text to put there."},
			property{"replace_all", "boolean", "Replace every occurrence."}),
	},
	{
		"glob", "Lists files whose path matches a pattern such as **/*.go, newest first.",
		inputs([]string{"pattern"}, property{"pattern", "string", "A relative pattern; ** crosses directories."},
			property{"path", "string", "The directory to search; the working directory when omitted."}),
	},
	{
		"grep", "Searches file contents for a regular expression; prints path:line:text.",
		inputs([]string{"pattern"}, property{"pattern", "string", "The regular expression."},
			property{"path", "string", "The file or directory to search; the working directory when omitted."}),
	},
}

type property struct{ name, kind, description string }

// inputs builds the schema of a tool's input.
func inputs(required []string, properties ...property) map[string]any {
	all := map[string]any{}
	for _, p := range properties {
		schema := map[string]any{"type": p.kind, "description": p.description}
		if p.kind == "range" {
			schema["type"] = "array"
			schema["items"] = map[string]any{"type": "integer"}
			schema["minItems"], schema["maxItems"] = 2, 2
		}
		all[p.name] = schema
	}
	schema := map[string]any{"type": "object", "properties": all}
	if required != nil {
		schema["required"] = required
	}
	return schema
}

// offered returns the tools of a decoded agent snapshot that a model may call.
// The web tools and MCP run on the real platform only, and are not offered.
func offered(agent map[string]any) []modelTool {
	var tools []modelTool
	list, _ := agent["tools"].([]any)
	for _, entry := range list {
		tool, _ := entry.(map[string]any)
		switch tool["type"] {
		case agentToolsetType:
			for _, def := range stockDefinitions {
				if enabled(tool, def.Name) {
					tools = append(tools, def)
				}
			}
		case "custom":
			name, _ := tool["name"].(string)
			description, _ := tool["description"].(string)
			tools = append(tools, modelTool{name, description, tool["input_schema"]})
		}
	}
	return tools
}

// enabled reports whether a decoded toolset has a tool switched on.
func enabled(toolset map[string]any, name string) bool {
	rule, _ := toolset["default_config"].(map[string]any)
	configs, _ := toolset["configs"].([]any)
	for _, c := range configs {
		if config, _ := c.(map[string]any); config["name"] == name {
			rule = config
		}
	}
	on, _ := rule["enabled"].(bool)
	return on
}

// customNames returns the names of the custom tools of a decoded snapshot.
func customNames(agent map[string]any) map[string]bool {
	names := map[string]bool{}
	list, _ := agent["tools"].([]any)
	for _, entry := range list {
		if tool, _ := entry.(map[string]any); tool["type"] == "custom" {
			name, _ := tool["name"].(string)
			names[name] = true
		}
	}
	return names
}
