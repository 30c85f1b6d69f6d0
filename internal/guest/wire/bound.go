package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/berth-dev/berth/internal/tool"
)

const cutNote = "[output truncated]\n"

// Bound returns r within the bounds of package tool, in a form that the
// platform accepts: too long a text keeps its end, an empty result becomes
// tool.EmptyText, and what cannot be repaired becomes an error result that
// says so. A result within the bounds comes back unchanged.
func Bound(r tool.Result) tool.Result {
	if len(r.Content) > tool.MaxResultBlocks {
		return tool.Error(fmt.Sprintf("the result has %d blocks, more than %d", len(r.Content), tool.MaxResultBlocks))
	}
	out := tool.Result{IsError: r.IsError, Content: make([]tool.Block, 0, len(r.Content))}
	total := 0
	for _, b := range r.Content {
		switch b.Type {
		case "text":
			if b.Text == "" {
				continue
			}
			b = tool.Block{Type: "text", Text: boundText(b.Text)}
		case "image", "document", "search_result":
			if raw := bytes.TrimSpace(b.Raw); len(raw) == 0 || raw[0] != '{' || !json.Valid(raw) {
				return tool.Error(fmt.Sprintf("the result has a %s block that is not valid", b.Type))
			}
		default:
			return tool.Error(fmt.Sprintf("the result has a block of the unknown type %.40q", b.Type))
		}
		if total += len(b.Text) + len(b.Raw); total > tool.MaxResultBytes {
			return tool.Error(fmt.Sprintf("the result exceeds %d bytes", tool.MaxResultBytes))
		}
		out.Content = append(out.Content, b)
	}
	if len(out.Content) == 0 {
		out.Content = append(out.Content, tool.Block{Type: "text", Text: tool.EmptyText})
	}
	return out
}

func boundText(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= tool.MaxTextBytes {
		return s
	}
	s = s[len(s)-tool.MaxTextBytes+len(cutNote):]
	return cutNote + strings.TrimLeftFunc(s, func(r rune) bool { return r == '\uFFFD' })
}
