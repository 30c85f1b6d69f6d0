package session

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/berth-dev/berth/internal/tool"
)

func TestPreparedContentIsWhatThePlatformTakes(t *testing.T) {
	image := `{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AA=="}}`
	for name, test := range map[string]struct {
		result  tool.Result
		content string
		isError bool
	}{
		"text":               {tool.Text("hi"), `[{"type":"text","text":"hi"}]`, false},
		"nothing":            {tool.Result{}, `[{"type":"text","text":"(no output)"}]`, false},
		"empty text":         {tool.Text(""), `[{"type":"text","text":"(no output)"}]`, false},
		"empty error":        {tool.Error(""), `[{"type":"text","text":"(no output)"}]`, true},
		"text beside empty":  {tool.Result{Content: []tool.Block{{Type: "text"}, {Type: "text", Text: "x"}}}, `[{"type":"text","text":"x"}]`, false},
		"NUL and broken":     {tool.Text("a\x00b\xffc"), `[{"type":"text","text":"a` + "\uFFFD" + `b` + "\uFFFD" + `c"}]`, false},
		"image":              {tool.Result{Content: []tool.Block{{Type: "image", Raw: json.RawMessage(image)}}}, `[` + image + `]`, false},
		"another type":       {tool.Result{Content: []tool.Block{{Type: "chart", Raw: json.RawMessage(`{"type":"chart"}`)}}}, `[{"type":"text","text":"{\"type\":\"chart\"}"}]`, false},
		"malformed image":    {tool.Result{Content: []tool.Block{{Type: "image", Raw: json.RawMessage(`{`)}}}, `[{"type":"text","text":"the result holds a malformed image block"}]`, true},
		"image without data": {tool.Result{Content: []tool.Block{{Type: "image"}}}, `[{"type":"text","text":"the result holds a malformed image block"}]`, true},
		"too many blocks":    {tool.Result{Content: make([]tool.Block, 101)}, `[{"type":"text","text":"the result has 101 content blocks; at most 100 are possible"}]`, true},
	} {
		t.Run(name, func(t *testing.T) {
			content, isError := prepare(test.result)
			if string(content) != test.content || isError != test.isError {
				t.Errorf("prepare = %s, %v; want %s, %v", content, isError, test.content, test.isError)
			}
		})
	}
}

func TestLongTextKeepsHeadAndTail(t *testing.T) {
	s := clean("head" + strings.Repeat("\u00e9", tool.MaxTextBytes) + "tail")
	if len(s) > tool.MaxTextBytes || !utf8.ValidString(s) || !strings.HasPrefix(s, "head") || !strings.HasSuffix(s, "tail") {
		t.Errorf("clean kept %d bytes: %.20q…", len(s), s)
	}
}

func TestResultThatIsTooLargeTellsTheModel(t *testing.T) {
	var r tool.Result
	for range 30 {
		r.Content = append(r.Content, tool.Block{Type: "text", Text: strings.Repeat("x", tool.MaxTextBytes)})
	}
	content, isError := prepare(r)
	if !isError || len(content) > 1000 || !strings.Contains(string(content), "at most") {
		t.Errorf("prepare = %.100s, %v", content, isError)
	}
}

// FuzzPrepare: whatever a guest says becomes content that the platform takes.
func FuzzPrepare(f *testing.F) {
	f.Add([]byte(`{"content":[{"type":"text","text":"hi"}]}`), false)
	f.Add([]byte(`{"content":[{"type":"image","source":null},{"type":"text","text":""}],"is_error":true}`), true)
	f.Add([]byte(`{"content":[{"type":"x","y":"\u0000\ud800"}]}`), true)
	f.Fuzz(func(t *testing.T, b []byte, raw bool) {
		r := tool.Text(string(b))
		if raw {
			r = tool.Result{}
			if json.Unmarshal(b, &r) != nil {
				return
			}
		}
		content, _ := prepare(r)
		var blocks []tool.Block
		if err := json.Unmarshal(content, &blocks); err != nil || len(blocks) == 0 || len(blocks) > tool.MaxResultBlocks {
			t.Fatalf("prepare = %s: %v", content, err)
		}
		if len(content) > tool.MaxResultBytes {
			t.Fatalf("%d bytes", len(content))
		}
		for _, b := range blocks {
			if b.Type == "text" && (b.Text == "" || strings.ContainsRune(b.Text, 0) || !utf8.ValidString(b.Text)) {
				t.Fatalf("text block %q", b.Text)
			}
		}
	})
}

// FuzzCallBound: no input of a call makes its bound unreasonable.
func FuzzCallBound(f *testing.F) {
	f.Add([]byte(`{"timeout_ms":600000}`))
	f.Add([]byte(`{"timeout_ms":-1}`))
	f.Add([]byte(`{"timeout_ms":9223372036854775807}`))
	f.Add([]byte(`{"timeout_ms":1e300}`))
	f.Fuzz(func(t *testing.T, input []byte) {
		const timeout = 120e9
		if d := callLimit(tool.Bash, input, timeout); d < timeout || d > maxCallBound {
			t.Fatalf("bound = %v", d)
		}
	})
}
