package session_test

import (
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/session"
)

func settings(t *testing.T, text string) session.Settings {
	t.Helper()
	var s session.Settings
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestEverySettingHasItsPlaceInAProfile(t *testing.T) {
	s, p := reflect.TypeFor[session.Settings](), reflect.TypeFor[session.Profile]()
	if s.NumField() != p.NumField() {
		t.Errorf("%d settings, %d places", s.NumField(), p.NumField())
	}
	for f := range s.Fields() {
		place, ok := p.FieldByName(f.Name)
		name := func(f reflect.StructField) string { n, _, _ := strings.Cut(f.Tag.Get("json"), ","); return n }
		if !ok || name(f) != name(place) {
			t.Errorf("%s is %q here and %q there", f.Name, name(f), name(place))
		}
		if want := f.Type; ok && want != place.Type && want.Kind() == reflect.Pointer && want.Elem() != place.Type {
			t.Errorf("%s is %s and %s", f.Name, f.Type, place.Type)
		}
	}
}

func TestWhatWasSetWinsOverTheFileAndThatOverTheServer(t *testing.T) {
	defaults := session.Profile{Image: "host", CPUs: 2, Memory: 2 << 30, Warm: sandbox.Span(5 * time.Minute), Processes: 512}
	file := settings(t, `{"cpus":4,"memory":"4GiB","env":{"A":"file","B":"file"},"setup":"make"}`)
	set := settings(t, `{"memory":"8GiB","env":{"B":"set","C":""},"setup":"","warm":"0s"}`)
	got, from := session.Resolve(defaults, file, set)
	want := session.Profile{
		Image: "host", CPUs: 4, Memory: 8 << 30, Processes: 512, Env: map[string]string{"A": "file", "B": "set", "C": ""},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("profile (-want +got):\n%s", d)
	}
	wantFrom := map[string]session.Source{
		"image": "server", "cpus": "file", "memory": "set", "disk": "server", "processes": "server", "open_files": "server", "warm": "set",
		"lifetime": "server", "tool_timeout": "server", "setup": "set", "setup_timeout": "server", "env.A": "file", "env.B": "set", "env.C": "set",
	}
	if d := cmp.Diff(wantFrom, from); d != "" {
		t.Errorf("sources (-want +got):\n%s", d)
	}
	if defaults.Env != nil || file.Env["B"] != "file" {
		t.Error("a layer was changed")
	}
}

func TestAPatchChangesWhatItNamesAlone(t *testing.T) {
	old := settings(t, `{"cpus":4,"image":"host","env":{"A":"1","B":"2"}}`)
	for _, c := range []struct {
		set, want string
		unset     []string
	}{
		{set: `{"cpus":1,"env":{"B":"3","C":"4"}}`, want: `{"cpus":1,"image":"host","env":{"A":"1","B":"3","C":"4"}}`},
		{set: `{}`, unset: []string{"cpus", "env.A", "env.none"}, want: `{"image":"host","env":{"B":"2"}}`},
		{set: `{"env":{"Z":""}}`, unset: []string{"env", "image"}, want: `{"cpus":4,"env":{"Z":""}}`},
		{set: `{"cpus":2}`, unset: []string{"cpus"}, want: `{"cpus":2,"image":"host","env":{"A":"1","B":"2"}}`},
	} {
		got, err := old.With(settings(t, c.set), c.unset)
		if d := cmp.Diff(settings(t, c.want), got); err != nil || d != "" {
			t.Errorf("%s without %v: %v\n%s", c.set, c.unset, err, d)
		}
	}
	if _, err := old.With(session.Settings{}, []string{"cpu"}); fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), "cpus") {
		t.Errorf("a name that there is not: %v", err)
	}
	if d := cmp.Diff(settings(t, `{"cpus":4,"image":"host","env":{"A":"1","B":"2"}}`), old); d != "" {
		t.Errorf("the old ones were changed:\n%s", d)
	}
}

func TestSettingsOutOfBoundsAreRefusedByName(t *testing.T) {
	secret := func(s string) bool { return strings.Contains(s, "hunter2") }
	for _, good := range []string{
		`{}`, `{"image":"host","cpus":0.1,"memory":"64MiB","disk":"64MiB","processes":16,"open_files":64,"warm":"0s","lifetime":"0s","tool_timeout":"1s","setup":"","setup_timeout":"1h"}`,
		`{"cpus":256,"memory":"1TiB","warm":"24h","lifetime":"720h","env":{"_A1":"x=y z\n"}}`, `{"lifetime":"1m"}`,
	} {
		s := settings(t, good)
		if err := s.Check(secret); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for bad, field := range map[string]string{
		`{"cpus":0}`: "cpus", `{"cpus":257}`: "cpus", `{"cpus":-1}`: "cpus", `{"memory":"1MiB"}`: "memory", `{"memory":"2TiB"}`: "memory",
		`{"disk":"1B"}`: "disk", `{"processes":1}`: "processes", `{"open_files":1}`: "open_files", `{"warm":"25h"}`: "warm",
		`{"lifetime":"59s"}`: "lifetime", `{"lifetime":"721h"}`: "lifetime", `{"tool_timeout":"2h"}`: "tool_timeout", `{"setup_timeout":"0s"}`: "setup_timeout",
		`{"image":""}`: "image", `{"image":"a b"}`: "image", `{"image":"a\u0000"}`: "image", `{"image":"ä"}`: "image",
		`{"env":{"1A":""}}`: "env", `{"env":{"":""}}`: "env", `{"env":{"A-B":""}}`: "env", `{"env":{"A=B":""}}`: "env",
		`{"env":{"ANTHROPIC_API_KEY":"x"}}`: "env.ANTHROPIC_API_KEY", `{"env":{"anthropic_x":"x"}}`: "env.anthropic_x",
		`{"env":{"K":"sk-ant-api03-x"}}`: "env.K", `{"env":{"K":"Bearer sk-ant-x"}}`: "env.K", `{"env":{"K":"whsec_x"}}`: "env.K",
		`{"env":{"K":"my hunter2"}}`: "env.K", `{"env":{"K":"a\u0000"}}`: "env.K", `{"setup":"export K=sk-ant-x"}`: "setup", `{"setup":"echo hunter2"}`: "setup",
		`{"setup":"a\u0000"}`: "setup", `{"setup":"` + strings.Repeat("x", 16<<10+1) + `"}`: "setup", `{"env":{"K":"` + strings.Repeat("x", 32<<10) + `"}}`: "env",
	} {
		s := settings(t, bad)
		var f *fault.Error
		if err := s.Check(secret); !errors.As(err, &f) || f.Code != fault.Invalid || f.Field != field || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "sk-ant-api03") {
			t.Errorf("%.60s: %v, want %s to be blamed", bad, err, field)
		}
	}
	nan := math.NaN()
	if s := (session.Settings{CPUs: &nan}); s.Check(nil) == nil {
		t.Error("not a number is taken as one")
	}
	many := session.Settings{Env: map[string]string{}}
	for i := range 257 {
		many.Env["V"+strings.Repeat("x", i)] = ""
	}
	if many.Check(nil) == nil {
		t.Error("any number of variables is taken")
	}
}

func TestAnAgentsIdIsToldFromAName(t *testing.T) {
	for id, ok := range map[string]bool{
		"agent_01AbC-_": true, "agent_": false, "Coder": false, "": false, "agent_a/b": false, "agent_a b": false, "agent_" + strings.Repeat("x", 200): false,
	} {
		if err := session.CheckAgent(id); (err == nil) != ok {
			t.Errorf("%.20s: %v", id, err)
		}
	}
}
