//go:build linux

package server

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/tools/agenttoolset"
	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/tool"
)

// tardy is a shell of the SDK whose terminal is ready too late: its first
// answers after a start hold what was typed.
type tardy struct {
	anthropic.BetaTool
	late, left int
	ran        []string
}

func (b *tardy) Execute(_ context.Context, raw json.RawMessage) ([]anthropic.BetaToolResultBlockParamContentUnion, error) {
	var in struct {
		Command string
		Restart bool
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, err
	}
	if in.Restart {
		b.left = b.late
	}
	if in.Command != "" {
		b.ran = append(b.ran, in.Command)
	}
	text := "said " + in.Command
	if in.Command == ":" || in.Command == "" {
		text = ""
	}
	if in.Command == "exit" {
		b.left = b.late
		return nil, errors.New("bash: bash session terminated")
	}
	if b.left > 0 {
		b.left--
		text = "{ " + in.Command + "\n} </dev/null 2>&1; printf …\n__ANT_CMD_0_DONE__0\n" + text
	}
	block := anthropic.BetaToolResultBlockParamContentUnion{OfText: &anthropic.BetaTextBlockParam{Text: text}}
	return []anthropic.BetaToolResultBlockParamContentUnion{block}, nil
}

func TestNothingThatWasTypedComesBackFromAShellThatStartsSlowly(t *testing.T) {
	b := &tardy{late: 2, left: 2}
	sh := &shell{tool: b}
	for _, c := range []struct{ input, want string }{
		{`{"command":"one"}`, "said one"},
		{`{"command":"two"}`, "said two"},
		{`{"restart":true,"command":"three"}`, "said three"},
		{`{"restart":true}`, ""},
		{`{"command":"four"}`, "said four"},
		{`{"command":"exit"}`, "bash: bash session terminated"},
		{`{"command":"five"}`, "said five"},
	} {
		res := sh.run(t.Context(), json.RawMessage(c.input))
		text := ""
		for _, block := range res.Content {
			text += block.Text
		}
		if c.want != "" && text != c.want {
			t.Errorf("%s says %q, want %q", c.input, text, c.want)
		}
	}
	var told []string
	for _, c := range b.ran {
		if c != ":" {
			told = append(told, c)
		}
	}
	if diff := cmp.Diff([]string{"one", "two", "three", "four", "exit", "five"}, told); diff != "" {
		t.Errorf("what ran (-want +got):\n%s", diff)
	}
}

func TestShellWhoseTerminalIsNeverReadyIsSaidSo(t *testing.T) {
	sh := &shell{tool: &tardy{late: 100, left: 100}}
	if res := sh.run(t.Context(), json.RawMessage(`{"command":"x"}`)); !res.IsError || !strings.Contains(res.Content[0].Text, "try again") {
		t.Errorf("it says %+v", res)
	}
}

// hopeless is a shell that the host has no room for.
type hopeless struct{ anthropic.BetaTool }

func (hopeless) Execute(context.Context, json.RawMessage) ([]anthropic.BetaToolResultBlockParamContentUnion, error) {
	return nil, errors.New("fork/exec /bin/bash: resource temporarily unavailable")
}

func TestShellThatCannotBeStartedSaysWhy(t *testing.T) {
	sh := &shell{tool: hopeless{}}
	if res := sh.run(t.Context(), json.RawMessage(`{"command":"x"}`)); !res.IsError || !strings.Contains(res.Content[0].Text, "resource temporarily unavailable") {
		t.Errorf("it says %+v", res)
	}
}

func TestWhichResultsStandForANewShell(t *testing.T) {
	failed := func(text string) tool.Result { return tool.Error(text) }
	for _, c := range []struct {
		name, input string
		result      tool.Result
		want        bool
	}{
		{"success", `{"command":"x"}`, tool.Text("bash session terminated"), false},
		{"failure", `{"command":"x"}`, failed("oh\nexit code: 3"), false},
		{"its end", `{"command":"x"}`, failed("bash: bash session terminated"), true},
		{"time-out", `{"command":"x"}`, failed("\n[timed out]\nsession restarted after timeout"), true},
		{"cancelled", `{"command":"x"}`, failed("bash: context canceled"), true},
		{"asked for", `{"restart":true}`, tool.Text("bash session restarted"), true},
	} {
		if got := restarts(json.RawMessage(c.input), c.result); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestTheRealShellSettles(t *testing.T) {
	sh := &shell{tool: agenttoolset.BetaBashTool(&agenttoolset.AgentToolContext{Workdir: t.TempDir()})}
	res := sh.run(t.Context(), json.RawMessage(`{"command":"x=1; echo one"}`))
	if again := sh.run(t.Context(), json.RawMessage(`{"command":"echo $x"}`)); blank(res) || blank(again) || !sh.settled {
		t.Errorf("it says %+v and %+v", res, again)
	}
	if c, ok := sh.tool.(interface{ Close() error }); ok {
		_ = c.Close()
	}
}
