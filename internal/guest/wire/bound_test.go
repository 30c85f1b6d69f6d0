package wire

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/tool"
)

func TestResultWithinTheBoundsIsUnchanged(t *testing.T) {
	want := tool.Result{IsError: true, Content: []tool.Block{
		{Type: "text", Text: "hi\n"},
		{Type: "image", Raw: json.RawMessage(`{"type":"image","source":{}}`)},
		{Type: "text", Text: strings.Repeat("é", tool.MaxTextBytes/2)},
	}}
	if diff := cmp.Diff(want, Bound(want)); diff != "" {
		t.Error(diff)
	}
}

func TestEmptyResultGetsAText(t *testing.T) {
	for _, r := range []tool.Result{{}, tool.Text(""), {Content: make([]tool.Block, 0)}} {
		if diff := cmp.Diff(tool.Text(tool.EmptyText), Bound(r)); diff != "" {
			t.Error(diff)
		}
	}
	if got := Bound(tool.Error("")); !got.IsError || got.Content[0].Text != tool.EmptyText {
		t.Errorf("got %v", got)
	}
}

func TestLongTextKeepsItsEnd(t *testing.T) {
	got := Bound(tool.Text(strings.Repeat("é", tool.MaxTextBytes) + "end")).Content[0].Text
	if len(got) > tool.MaxTextBytes || !strings.HasPrefix(got, cutNote+"é") || !strings.HasSuffix(got, "éend") || !utf8.ValidString(got) {
		t.Errorf("%d bytes: %.30q … %q", len(got), got, got[len(got)-10:])
	}
}

func TestResultThatCannotBeRepairedIsAnErrorThatSaysWhy(t *testing.T) {
	big := json.RawMessage(`{"type":"image","data":"` + strings.Repeat("x", tool.MaxResultBytes/2) + `"}`)
	tests := map[string]tool.Result{
		"blocks":      {Content: make([]tool.Block, tool.MaxResultBlocks+1)},
		"not valid":   {Content: []tool.Block{{Type: "image", Raw: json.RawMessage(`{"type"`)}}},
		"image block": {Content: []tool.Block{{Type: "image"}}},
		"unknown":     {Content: []tool.Block{{Type: "tool_use", Raw: json.RawMessage(`{}`)}}},
		"exceeds":     {Content: []tool.Block{{Type: "image", Raw: big}, {Type: "image", Raw: big}}},
	}
	for word, r := range tests {
		got := Bound(r)
		if !got.IsError || len(got.Content) != 1 || !strings.Contains(got.Content[0].Text, word) {
			t.Errorf("%s: got %.200v", word, got)
		}
	}
}
