package cli

import (
	"cmp"
	"encoding/json"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/berth-dev/berth/internal/event"
)

// timeline shows a session's events as a story: one line each, and for results
// the first lines of their text.
type timeline struct {
	out   *output
	calls map[string]string // call id → tool name and input
}

func newTimeline(o *output) *timeline { return &timeline{out: o, calls: map[string]string{}} }

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// maxResultLines bounds what is shown of one result.
const maxResultLines = 12

// platformEvent is what the timeline reads of a mirrored platform event.
type platformEvent struct {
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	Input     json.RawMessage `json:"input"`
	ToolUseID string          `json:"tool_use_id"`
	IsError   bool            `json:"is_error"`
	Result    json.RawMessage `json:"result"` // of a confirmation; other events use the name for objects
	Content   []struct {
		Type string `json:"type"`
		Text string `json:"text"`
	} `json:"content"`
	StopReason struct {
		Type string `json:"type"`
	} `json:"stop_reason"`
	Error struct {
		Message string `json:"message"`
	} `json:"error"`
}

func (p *platformEvent) text() string {
	var parts []string
	for _, b := range p.Content {
		switch b.Type {
		case "text":
			parts = append(parts, b.Text)
		default:
			parts = append(parts, "["+b.Type+"]")
		}
	}
	return strings.Join(parts, "\n")
}

// show prints an event, if a person would want to see it.
func (t *timeline) show(e event.Event) {
	at := t.out.paint(dim, e.At.Local().Format("15:04:05.000"))
	say := func(st style, label, text string) {
		t.out.line("%s  %s %s", at, t.out.paint(st, label+strings.Repeat(" ", max(9-len(label), 0))), text)
	}
	if typ, ok := strings.CutPrefix(string(e.Type), event.ClaudePrefix); ok {
		var p platformEvent
		if json.Unmarshal(e.Data, &p) != nil {
			return
		}
		t.platform(typ, &p, say)
		return
	}
	var d struct {
		Call, Name, Why, Text, How, Work, Skill, Sandbox, Store string
		Image                                                   string
		MS, Sent, Deleted, Fetched, Removed                     int64
		Changed                                                 []string
	}
	_ = json.Unmarshal(e.Data, &d) // what is missing is not shown
	why := plain(d.Why, 160)
	switch e.Type {
	case event.WorkClaimed:
		say(cyan, "berth", "claimed work item "+d.Work)
	case event.WorkAdopted:
		say(cyan, "berth", "took over work item "+d.Work+" from the process before")
	case event.WorkStopped, event.WorkLost:
		say(cyan, "berth", "work item ended: "+why)
	case event.SandboxStarting:
		say(cyan, "sandbox", "starting")
	case event.ImagePulling:
		say(cyan, "sandbox", "pulling the image "+plain(d.Image, 160))
	case event.SandboxReady:
		say(cyan, "sandbox", "ready: "+d.Sandbox)
	case event.SandboxAdopted:
		say(cyan, "sandbox", "found running: "+d.Sandbox)
	case event.SandboxFailed:
		say(red, "sandbox", "did not start: "+why)
	case event.SandboxLost:
		say(red, "sandbox", "ended by itself: "+why)
	case event.SandboxRemoved:
		say(cyan, "sandbox", "removed: "+why)
	case event.SetupDone:
		say(cyan, "sandbox", "set up in "+itoa(d.MS)+" ms")
	case event.SetupFailed:
		say(red, "sandbox", "set-up failed: "+why)
	case event.AgentChanged:
		say(cyan, "berth", "settings of the agent changed ("+plain(strings.Join(d.Changed, ", "), 160)+"); they hold for the next sandbox")
	case event.SkillInstalled:
		say(cyan, "skill", d.Name)
	case event.SkillFailed:
		say(red, "skill", d.Skill+": "+why)
	case event.MemorySynced:
		say(cyan, "memory", plain(cmp.Or(d.Name, d.Store), 100)+": "+itoa(d.Sent+d.Deleted)+" changes sent, "+itoa(d.Fetched+d.Removed)+" received")
	case event.MemoryConflict:
		say(yellow, "memory", plain(d.Text, 300))
	case event.MemoryFailed:
		say(red, "memory", why)
	case event.CallHeld:
		say(yellow, "held", d.Name+" waits for a confirmation")
	case event.CallSettled:
		say(yellow, "settled", t.calls[d.Call]+" "+why)
	case event.SessionEnded:
		say(cyan, "berth", "the session is "+d.How+"; everything of it was removed")
	case event.Warning:
		say(yellow, "warning", plain(d.Text, 300))
	}
}

// Bounds of a message as it is shown.
const (
	maxTextLines = 40
	textWidth    = 100
)

// sayText shows a message as its lines, long ones wrapped at spaces.
func sayText(say func(style, string, string), label, text string) {
	shown := 0
	for line := range strings.Lines(strings.TrimSpace(text)) {
		for _, part := range wrap(plain(line, 2000), textWidth) {
			if shown++; shown > maxTextLines {
				say(dim, "", "…")
				return
			}
			say(bold, label, part)
			label = ""
		}
	}
}

// wrap breaks a line at spaces so that each part has at most width characters,
// words that are longer excepted.
func wrap(line string, width int) []string {
	parts := []string{""}
	for word := range strings.FieldsSeq(line) {
		last := &parts[len(parts)-1]
		switch {
		case *last == "":
			*last = word
		case utf8.RuneCountInString(*last)+1+utf8.RuneCountInString(word) > width:
			parts = append(parts, word)
		default:
			*last += " " + word
		}
	}
	return parts
}

func (t *timeline) platform(typ string, p *platformEvent, say func(style, string, string)) {
	switch typ {
	case "user.message":
		sayText(say, "user", p.text())
	case "agent.message":
		sayText(say, "agent", p.text())
	case "agent.thinking":
		say(dim, "agent", t.out.paint(dim, "thinking"))
	case "agent.tool_use", "agent.custom_tool_use":
		t.calls[p.ID] = p.Name
		say(green, p.Name, plain(summary(p.Name, p.Input), 160))
	case "user.tool_result", "user.custom_tool_result", "agent.tool_result":
		st := dim
		if p.IsError {
			st = red
		}
		lines := strings.Split(strings.TrimRight(p.text(), "\n"), "\n")
		for i, l := range lines {
			if i == maxResultLines {
				say(dim, "", t.out.paint(dim, "  … "+itoa(int64(len(lines)-i))+" more lines"))
				break
			}
			say(dim, "", t.out.paint(st, "  "+plain(l, 200)))
		}
	case "user.tool_confirmation":
		say(yellow, "person", strings.Trim(string(p.Result), `"`)+" "+t.calls[p.ToolUseID])
	case "user.interrupt":
		say(yellow, "person", "interrupt")
	case "session.status_idle":
		if p.StopReason.Type != "requires_action" {
			say(dim, "session", t.out.paint(dim, "idle: "+p.StopReason.Type))
		}
	case "session.status_terminated", "session.deleted":
		say(red, "session", strings.TrimPrefix(strings.TrimPrefix(typ, "session."), "status_"))
	case "session.error":
		say(red, "error", plain(p.Error.Message, 300))
	}
}
