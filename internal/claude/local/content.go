package local

import (
	"encoding/json"
	"fmt"
	"slices"
)

// Content blocks (contract §4.3, §16), checked as strictly as the platform
// describes them: unknown fields and empty texts are a 400.

// Which blocks a kind of event may hold.
var (
	messageBlocks = []string{"text", "image", "document"}
	resultBlocks  = []string{"text", "image", "document", "search_result"}
	systemBlocks  = []string{"text"}
)

const maxFileBlocks = 100

type textBlock struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

type mediaBlock struct {
	Type    string        `json:"type"`
	Source  *mediaSource  `json:"source"`
	Title   maybe[string] `json:"title"`
	Context maybe[string] `json:"context"`
}

type mediaSource struct {
	Type      string `json:"type"`
	MediaType string `json:"media_type"`
	Data      string `json:"data"`
	URL       string `json:"url"`
	FileID    string `json:"file_id"`
}

type searchBlock struct {
	Type      string      `json:"type"`
	Source    string      `json:"source"`
	Title     string      `json:"title"`
	Content   []textBlock `json:"content"`
	Citations *struct {
		Enabled bool `json:"enabled"`
	} `json:"citations"`
}

// checkContent validates blocks and returns them decoded.
func checkContent(blocks []json.RawMessage, allowed []string, where string) ([]any, *apiError) {
	decoded := make([]any, 0, len(blocks))
	files := 0
	for i, raw := range blocks {
		at := fmt.Sprintf("%s.%d", where, i)
		typ := typeOf(raw)
		if !slices.Contains(allowed, typ) {
			return nil, fail(400, "%s.type: %q is not one of %v", at, typ, allowed)
		}
		file, err := checkBlock(raw, typ, at)
		if err != nil {
			return nil, err
		}
		if file {
			files++
		}
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			return nil, fail(400, "%s: %v", at, err)
		}
		decoded = append(decoded, v)
	}
	if files > maxFileBlocks {
		return nil, fail(400, "%s: at most %d blocks with a file, got %d", where, maxFileBlocks, files)
	}
	return decoded, nil
}

// checkBlock validates one block and tells whether it is a document from a file.
func checkBlock(raw json.RawMessage, typ, at string) (file bool, err *apiError) {
	switch typ {
	case "text":
		var b textBlock
		if err := strict(raw, &b, at); err != nil {
			return false, err
		}
		return false, checkText(b.Text, at+".text")
	case "search_result":
		return false, checkSearch(raw, at)
	}
	var b mediaBlock
	if err := strict(raw, &b, at); err != nil {
		return false, err
	}
	if typ == "image" && (b.Title.Sent || b.Context.Sent) {
		return false, fail(400, "%s: an image has no title and no context", at)
	}
	if b.Source == nil {
		return false, fail(400, "%s.source: required", at)
	}
	return typ == "document" && b.Source.Type == "file", checkSource(*b.Source, typ, at+".source")
}

func checkText(text, at string) *apiError {
	if text == "" {
		return fail(400, "%s: text content blocks must be non-empty", at)
	}
	return nil
}

func checkSource(src mediaSource, typ, at string) *apiError {
	need := func(name, value string) *apiError {
		if value == "" {
			return fail(400, "%s.%s: required for a source of the type %q", at, name, src.Type)
		}
		return nil
	}
	switch {
	case src.Type == "base64", src.Type == "text" && typ == "document":
		if err := need("media_type", src.MediaType); err != nil {
			return err
		}
		return need("data", src.Data)
	case src.Type == "url":
		return need("url", src.URL)
	case src.Type == "file":
		return need("file_id", src.FileID)
	}
	return fail(400, "%s.type: %q is not a source of a block of the type %q", at, src.Type, typ)
}

func checkSearch(raw json.RawMessage, at string) *apiError {
	var b searchBlock
	if err := strict(raw, &b, at); err != nil {
		return err
	}
	if b.Source == "" || b.Title == "" || b.Citations == nil {
		return fail(400, "%s: a search_result needs source, title and citations", at)
	}
	for i, t := range b.Content {
		if t.Type != "text" {
			return fail(400, "%s.content.%d.type: must be \"text\"", at, i)
		}
		if err := checkText(t.Text, fmt.Sprintf("%s.content.%d.text", at, i)); err != nil {
			return err
		}
	}
	return nil
}
