package local

import (
	"fmt"
	"slices"
	"strings"
)

// This file turns a session into a request of the Messages API. The API wants
// turns of user and assistant, and every tool_use answered in the message right
// after it; a session's log has events in the order of their processing, and
// calls that an interrupt settled without an answer.

// modelRequest is the body of POST /v1/messages.
type modelRequest struct {
	Model     string         `json:"model"`
	MaxTokens int            `json:"max_tokens"`
	System    string         `json:"system,omitempty"`
	Messages  []modelMessage `json:"messages"`
	Tools     []modelTool    `json:"tools,omitempty"`
	Output    *modelOutput   `json:"output_config,omitempty"`
	Cache     map[string]any `json:"cache_control"`
	Stream    bool           `json:"stream"`
}

type modelMessage struct {
	Role    string `json:"role"`
	Content []any  `json:"content"`
}

type modelTool struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	InputSchema any    `json:"input_schema"`
}

type modelOutput struct {
	Effort string `json:"effort"`
}

// interruptedText answers calls that were settled without a result.
const interruptedText = "The call was interrupted before it had a result."

// bodyFor builds the next request of a session.
func (b *MessagesBrain) bodyFor(t *Turn) modelRequest {
	agent := t.Agent()
	model, _ := agent["model"].(map[string]any)
	r := modelRequest{
		MaxTokens: b.opt.MaxTokens, Stream: true, System: t.systemPrompt(), Messages: conversation(t.History()),
		Tools: offered(agent), Cache: map[string]any{"type": "ephemeral"},
	}
	r.Model, _ = model["id"].(string)
	if b.opt.Model != "" {
		r.Model = b.opt.Model
	}
	// high is what the API does by itself, also for models without the setting.
	if e, _ := model["effort"].(map[string]any); e != nil && e["type"] != "high" {
		level, _ := e["type"].(string)
		r.Output = &modelOutput{Effort: level}
	}
	return r
}

// systemPrompt is the agent's own prompt, and what the platform adds: where the
// work is done, and the skills and memory stores that lie there (contract §5.3,
// §6.1, §6.2).
func (t *Turn) systemPrompt() string {
	agent := t.Agent()
	var parts []string
	if own, _ := agent["system"].(string); own != "" {
		parts = append(parts, own)
	}
	if slices.ContainsFunc(offered(agent), func(m modelTool) bool { return stock(m.Name) != nil }) {
		parts = append(parts, "Your tools run in a sandbox whose working directory is /workspace.")
	}
	var skills []string
	list, _ := agent["skills"].([]any)
	for _, s := range list {
		ref, _ := s.(map[string]any)
		id, _ := ref["skill_id"].(string)
		version, _ := ref["version"].(string)
		if v, err := t.s.skills().version(id, version); err == nil {
			skills = append(skills, fmt.Sprintf("- skills/%s: %s", v.name, v.description))
		}
	}
	if len(skills) > 0 {
		parts = append(parts, "Skills lie in these directories of the working directory. Read the SKILL.md of one before you use it:\n"+
			strings.Join(skills, "\n"))
	}
	var stores []string
	for _, r := range t.Resources() {
		if r["type"] != "memory_store" {
			continue
		}
		var line strings.Builder
		line.WriteString(fmt.Sprintf("- %v (%v, %v)", r["mount_path"], r["name"], r["access"]))
		for _, more := range []string{"description", "instructions"} {
			if s, _ := r[more].(string); s != "" {
				line.WriteString(": " + s)
			}
		}
		stores = append(stores, line.String())
	}
	if len(stores) > 0 {
		parts = append(parts, "Memory that outlives this session lies in these directories:\n"+strings.Join(stores, "\n"))
	}
	return strings.Join(parts, "\n\n")
}

// conversation turns the history of the primary thread into messages.
func conversation(history []Event) []modelMessage {
	w := writer{results: resultsOf(history)}
	for _, e := range history {
		if e.Thread != "" {
			continue
		}
		switch e.Type {
		case "agent.message":
			w.assistant(blocksOf(e.Fields["content"])...)
		case "agent.tool_use", "agent.custom_tool_use":
			w.assistant(map[string]any{"type": "tool_use", "id": e.ID, "name": e.Fields["name"], "input": e.Fields["input"]})
			w.open = append(w.open, e.ID)
		case "agent.tool_result", "user.tool_result", "user.custom_tool_result":
			w.answer() // all results of the message, whichever came first
		case "user.message", "system.message":
			w.user(blocksOf(e.Fields["content"])...)
		case "user.define_outcome":
			w.user(textContent(outcomeText(e))...)
		}
	}
	w.answer()
	return w.messages
}

// writer appends blocks to the messages of a conversation.
type writer struct {
	messages []modelMessage
	open     []string // tool uses of the last message without their results
	results  map[string]map[string]any
}

// assistant adds to what the model said. Calls that are open stay so: parallel
// calls stand together in one message.
func (w *writer) assistant(blocks ...any) { w.add("assistant", blocks) }

// user adds to what the model is told, after the results that it waits for.
func (w *writer) user(blocks ...any) {
	w.answer()
	w.add("user", blocks)
}

// answer appends the results of the open calls.
func (w *writer) answer() {
	if len(w.open) == 0 {
		return
	}
	var blocks []any
	for _, id := range w.open {
		result := map[string]any{"type": "tool_result", "tool_use_id": id}
		switch r := w.results[id]; {
		case r == nil:
			result["is_error"], result["content"] = true, textContent(interruptedText)
		default:
			if content := blocksOf(r["content"]); len(content) > 0 {
				result["content"] = content
			}
			if isError, _ := r["is_error"].(bool); isError {
				result["is_error"] = true
			}
		}
		blocks = append(blocks, result)
	}
	w.open = nil
	w.add("user", blocks)
}

// add appends blocks to the last message when it has the same role.
func (w *writer) add(role string, blocks []any) {
	if len(blocks) == 0 {
		return
	}
	if n := len(w.messages); n > 0 && w.messages[n-1].Role == role {
		w.messages[n-1].Content = append(w.messages[n-1].Content, blocks...)
		return
	}
	w.messages = append(w.messages, modelMessage{role, slices.Clone(blocks)})
}

// resultsOf maps the ids of calls to their first result.
func resultsOf(history []Event) map[string]map[string]any {
	results := map[string]map[string]any{}
	for _, e := range history {
		switch e.Type {
		case "agent.tool_result", "user.tool_result", "user.custom_tool_result":
			for _, ref := range []string{"tool_use_id", "custom_tool_use_id"} {
				if id, _ := e.Fields[ref].(string); id != "" && results[id] == nil {
					results[id] = e.Fields
				}
			}
		}
	}
	return results
}

// blocksOf copies content blocks that the Messages API takes. A file of the
// Files API, which this platform does not have, becomes a note.
func blocksOf(content any) []any {
	list, _ := content.([]any)
	var blocks []any
	for _, b := range list {
		block, _ := b.(map[string]any)
		source, _ := block["source"].(map[string]any)
		switch block["type"] {
		case "image", "document":
			if source["type"] == "file" {
				blocks = append(blocks, textContent(fmt.Sprintf("[the file %v is not available here]", source["file_id"]))...)
				continue
			}
			blocks = append(blocks, block)
		case "text", "search_result":
			blocks = append(blocks, block)
		}
	}
	return blocks
}

// outcomeText words a user.define_outcome for the model.
func outcomeText(e Event) string {
	text := fmt.Sprintf("Work until this outcome is reached: %v", e.Fields["description"])
	if rubric, _ := e.Fields["rubric"].(map[string]any); rubric["type"] == "text" {
		text += fmt.Sprintf("\n\nIt is judged by:\n%v", rubric["content"])
	}
	return text
}
