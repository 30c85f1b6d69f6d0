package conformance

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/claude/local"
)

func TestTheTableIsWhole(t *testing.T) {
	table, err := Table()
	if err != nil {
		t.Fatal(err)
	}
	switches := map[string]bool{}
	for _, c := range table {
		if strings.Contains(c.Name+c.Says, "${") {
			t.Errorf("%s: a value is missing", c.Name)
		}
		for _, f := range c.Faults {
			switches[string(f.Kind)] = true
		}
		for _, a := range c.Do {
			for _, f := range a.Faults {
				switches[string(f.Kind)] = true
			}
		}
	}
	for _, kind := range []string{ // of contract §11.2
		"drop", "status", "slow_body", "reset", "hang", "lease_lost", "not_extended", "stopping", "secret_absent", "secret_garbage",
		"secret_no_token", "secret_padded", "empty_page", "cut", "duplicate", "omit", "reorder", "huge", "error",
	} {
		if !switches[kind] {
			t.Errorf("no case has the fault %s", kind)
		}
	}
}

func TestMistakesInACaseAreFound(t *testing.T) {
	ok := map[string]any{"name": "work/a", "says": "s", "cites": "§1", "item": "healthcheck"}
	for name, change := range map[string]map[string]any{
		"a misspelt key":       {"citess": "x"},
		"no name":              {"name": ""},
		"an unknown item":      {"item": "holiday"},
		"item and steps":       {"steps": []any{map[string]any{"message": "x"}}},
		"an unknown check":     {"beyond": map[string]any{"taste": "x"}},
		"an unknown moment":    {"do": []any{map[string]any{"when": "later", "do": "cut"}}},
		"a kill among others":  {"do": []any{map[string]any{"when": "start", "do": "kill"}}},
		"faults without any":   {"do": []any{map[string]any{"when": "start", "do": "faults"}}},
		"an unknown end":       {"ends": "well"},
		"an unknown programme": {"program": "none"},
	} {
		tree := map[string]any{}
		for _, m := range []map[string]any{ok, change} {
			maps.Copy(tree, m)
		}
		if _, err := expand(tree, nil); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if cases, err := expand(ok, nil); err != nil || len(cases) != 1 {
		t.Errorf("a good one: %v", err)
	}
}

func TestEveryValueOfEachMakesACase(t *testing.T) {
	cases, err := expand(map[string]any{
		"name": "work/${on} ${status}", "says": "s", "cites": "§1", "steps": []any{map[string]any{"message": "x"}},
		"each":   map[string]any{"on": []any{"ack", "stop"}, "status": []any{429, 500}},
		"faults": []any{map[string]any{"kind": "status", "on": "${on}", "status": "${status}"}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range cases {
		got = append(got, c.Name)
	}
	want := []string{"work/ack 429", "work/ack 500", "work/stop 429", "work/stop 500"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("cases differ (-want +got):\n%s", diff)
	}
	if cases[3].Faults[0].Status != 500 {
		t.Errorf("the last one's fault is %+v", cases[3].Faults[0])
	}
}

func TestTheSameSeedMakesTheSameMixture(t *testing.T) {
	one, err := Mixtures(7, 200)
	if err != nil {
		t.Fatal(err)
	}
	two, err := Mixtures(7, 200)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(one, two); diff != "" {
		t.Errorf("they differ:\n%s", diff)
	}
	if slices.ContainsFunc(one[1:], func(c Case) bool { return cmp.Equal(c.Faults, one[0].Faults) }) {
		t.Error("two seeds make the same mixture")
	}
	platform := local.New(local.Options{})
	t.Cleanup(func() { platform.Close() })
	for _, c := range one {
		for _, f := range c.Faults {
			if err := platform.Inject(f); err != nil {
				t.Errorf("%s: %v: %+v", c.Name, err, f)
			}
		}
		if len(c.Faults) < 3 {
			t.Errorf("%s has %d faults", c.Name, len(c.Faults))
		}
	}
}
