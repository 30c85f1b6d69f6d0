//go:build linux

package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/anthropics/anthropic-sdk-go/v2"

	"github.com/berth-dev/berth/internal/tool"
)

// The SDK's shell is a terminal whose echo is switched off by a first command of
// its own, for which it waits five seconds. On a busy host that is not always
// enough: then what is typed comes back in the result of the next command, and so
// does the mark of the first one. So a command that does nothing goes ahead, until
// nothing comes back.

// settleTries is how often. The second time nothing can be left: the terminal
// takes one command after the other.
const settleTries = 5

var errUnsettled = errors.New("bash: the shell's terminal is not ready; try again")

// nothing is the input of a command that does nothing.
var nothing = json.RawMessage(`{"command":":"}`)

// settle makes a shell ready that was started, or started again.
func settle(ctx context.Context, shell anthropic.BetaTool) error {
	var res tool.Result
	for range settleTries {
		res = use(ctx, shell, nothing)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !res.IsError && blank(res):
			return nil
		}
	}
	if res.IsError && !blank(res) { // such as no room for another process
		return fmt.Errorf("bash: no shell can be started: %s", strings.TrimSpace(res.Content[0].Text))
	}
	return errUnsettled
}

func blank(r tool.Result) bool {
	for _, b := range r.Content {
		if strings.TrimSpace(b.Text) != "" {
			return false
		}
	}
	return true
}

// split takes a restart off a command, so that the new shell is ready before the
// command runs in it. It returns the rest, and whether there was such a restart.
func split(input json.RawMessage) (json.RawMessage, bool) {
	var in struct {
		Command string `json:"command"`
		Restart bool   `json:"restart"`
	}
	var all map[string]json.RawMessage
	if json.Unmarshal(input, &in) != nil || json.Unmarshal(input, &all) != nil || !in.Restart || in.Command == "" {
		return input, false // what cannot be read is the SDK's to refuse
	}
	delete(all, "restart")
	rest, err := json.Marshal(all)
	if err != nil {
		return input, false
	}
	return rest, true
}

// ended is how the result of a command ends that ran to its end and failed
// (contract §5.1). After any other error the SDK starts another shell.
var ended = regexp.MustCompile(`\nexit code: -?[0-9]+$`)

// restarts reports whether the next command is the first one of a new shell.
func restarts(input json.RawMessage, r tool.Result) bool {
	var in struct {
		Restart bool `json:"restart"`
	}
	_ = json.Unmarshal(input, &in) // as above
	return in.Restart || r.IsError && !(len(r.Content) == 1 && ended.MatchString(r.Content[0].Text))
}
