package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"github.com/berth-dev/berth/internal/event"
	"github.com/berth-dev/berth/internal/fault"
)

func TestEveryCommandIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	var g grammar
	parser, err := kong.New(&g, kong.Name("berth"))
	if err != nil {
		t.Fatal(err)
	}
	for _, leaf := range parser.Model.Leaves(true) {
		path := strings.Fields(leaf.FullPath())
		var words []string
		for _, w := range path {
			if strings.ToLower(w) == w && !strings.HasPrefix(w, "<") && !strings.HasPrefix(w, "[") {
				words = append(words, w)
			}
		}
		if name := "`" + strings.Join(words, " ") + "`"; !strings.Contains(string(doc), name) {
			t.Errorf("docs/cli.md does not name %s", name)
		}
	}
}

// main runs the command line in this process, without configuration.
func runMain(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	t.Setenv("BERTH_DATA_DIR", t.TempDir())
	var out, errs bytes.Buffer
	code = Main(Program{Version: "1.2.3", Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs})
	return out.String(), errs.String(), code
}

func TestVersionForPeopleAndPrograms(t *testing.T) {
	if out, _, code := runMain(t, "version"); code != 0 || !strings.HasPrefix(out, "berth 1.2.3 ") {
		t.Errorf("version: code %d, %q", code, out)
	}
	out, _, code := runMain(t, "version", "--json")
	var v map[string]string
	if err := json.Unmarshal([]byte(out), &v); err != nil || code != 0 || v["version"] != "1.2.3" {
		t.Errorf("version --json: code %d, %v, %q", code, err, out)
	}
}

func TestWrongUsageIsCodeTwo(t *testing.T) {
	for _, args := range [][]string{{"fly"}, {"sessions"}, {"sessions", "show"}, {"serve", "--no-such-flag"}} {
		if _, errs, code := runMain(t, args...); code != fault.ExitUsage || errs == "" {
			t.Errorf("berth %s: code %d, %q; want 2 and a message", strings.Join(args, " "), code, errs)
		}
	}
}

func TestErrorsSayTheNextStepOnce(t *testing.T) {
	out, errs, code := runMain(t, "sessions", "list")
	if code != fault.ExitRefused || strings.Count(errs, "berth serve") != 1 || out != "" {
		t.Errorf("without a server's token: code %d\n%s", code, errs)
	}
	out, _, code = runMain(t, "--json", "sessions", "list")
	var v struct{ Error struct{ Code, Next string } }
	if err := json.Unmarshal([]byte(out), &v); err != nil || code != fault.ExitRefused || v.Error.Code != "unauthorized" || v.Error.Next == "" {
		t.Errorf("as JSON: code %d, %v, %s", code, err, out)
	}
}

func TestPlainTextHoldsNoControls(t *testing.T) {
	got := plain("a\x1b[31mred\x07\nb\u202ec\x00\xff", 100)
	if got != "a[31mred bc" {
		t.Errorf("plain = %q", got)
	}
	if got := plain("häuser", 3); got != "häu…" {
		t.Errorf("plain cut = %q", got)
	}
}

func TestTheTimelineShowsHostileOutputAsText(t *testing.T) {
	var out bytes.Buffer
	view := newTimeline(&output{out: &out, err: &out, now: time.Now})
	view.show(event.Event{Type: "claude.user.tool_result", Data: json.RawMessage(
		`{"content":[{"type":"text","text":"\u001b]0;owned\u0007line1\nline2"},{"type":"image"}]}`)})
	view.show(event.Event{Type: "claude.agent.message", Data: json.RawMessage(`not json`)})
	if s := out.String(); strings.ContainsAny(s, "\x1b\x07") || !strings.Contains(s, "line2") || !strings.Contains(s, "[image]") {
		t.Errorf("the timeline shows %q", s)
	}
}

func TestFollowGoesOnWhereItWas(t *testing.T) {
	connections := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		connections++
		w.Header().Set("Content-Type", "text/event-stream")
		switch r.URL.Query().Get("after") {
		case "0":
			_, _ = w.Write([]byte("id: 1\nevent: a\ndata: {\"seq\":1,\"type\":\"a\"}\n\nid: 2\ndata: {\"seq\":2"))
		case "1":
			_, _ = w.Write([]byte("data: {\"seq\":2,\"type\":\"b\"}\n\n"))
		}
	}))
	defer server.Close()
	c := newClient(server.URL, "token")
	var got []event.Type
	err := c.follow(context.Background(), "sesn_1", 0, func(e event.Event) (bool, error) {
		got = append(got, e.Type)
		return len(got) < 2, nil
	})
	if err != nil || connections != 2 || len(got) != 2 || got[0] != "a" || got[1] != "b" {
		t.Errorf("follow = %v after %d connections, saw %v; want a and b over two", err, connections, got)
	}
}
