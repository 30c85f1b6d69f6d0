package session

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/berth-dev/berth/internal/tool"
)

// prepare turns a guest's result into the content of an answer. The guest is
// beside hostile code: whatever it says becomes something that the platform
// accepts (contract §4.3), or an error text that says why not. The returned
// bytes are stored and sent unchanged, so that a repeated send is the same.
func prepare(r tool.Result) (content json.RawMessage, isError bool) {
	if len(r.Content) > tool.MaxResultBlocks {
		return text(fmt.Sprintf("the result has %d content blocks; at most %d are possible", len(r.Content), tool.MaxResultBlocks)), true
	}
	blocks := make([]tool.Block, 0, len(r.Content))
	for _, b := range r.Content {
		switch b.Type {
		case "text":
			if s := clean(b.Text); s != "" {
				blocks = append(blocks, tool.Block{Type: "text", Text: s})
			}
		case "image", "document", "search_result":
			if !json.Valid(b.Raw) {
				return text(fmt.Sprintf("the result holds a malformed %s block", b.Type)), true
			}
			blocks = append(blocks, b)
		default:
			// Any other type travels as the text of its JSON (contract §4.3).
			if s := clean(string(b.Raw)); s != "" {
				blocks = append(blocks, tool.Block{Type: "text", Text: s})
			}
		}
	}
	if len(blocks) == 0 {
		return text(tool.EmptyText), r.IsError
	}
	content, err := json.Marshal(blocks)
	if err != nil {
		return text("the result could not be encoded: " + clean(err.Error())), true
	}
	if len(content) > tool.MaxResultBytes {
		return text(fmt.Sprintf("the result is %d bytes; at most %d can be delivered. Write it to a file and read the part that matters.", len(content), tool.MaxResultBytes)), true
	}
	return content, r.IsError
}

// text returns the content of a one-block answer.
func text(s string) json.RawMessage {
	if s = clean(s); s == "" {
		s = tool.EmptyText
	}
	b, _ := json.Marshal([]tool.Block{{Type: "text", Text: s}}) // strings always encode
	return b
}

// clean makes s valid UTF-8 without NUL, at most tool.MaxTextBytes: a longer
// text keeps its head and its tail.
func clean(s string) string {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	if strings.IndexByte(s, 0) >= 0 {
		s = strings.ReplaceAll(s, "\x00", "\uFFFD")
	}
	if len(s) <= tool.MaxTextBytes {
		return s
	}
	const keep = tool.MaxTextBytes/2 - 64
	head, tail := s[:keep], s[len(s)-keep:]
	for len(head) > 0 && !utf8.ValidString(head) {
		head = head[:len(head)-1]
	}
	for len(tail) > 0 && !utf8.RuneStart(tail[0]) {
		tail = tail[1:]
	}
	return fmt.Sprintf("%s\n[… %d bytes left out …]\n%s", head, len(s)-len(head)-len(tail), tail)
}
