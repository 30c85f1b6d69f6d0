//go:build linux

package linux

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestIdentity(t *testing.T) {
	const (
		all   = "         0          0 4294967295\n"
		small = "0 100000 65536\n"
		large = "0 100000 200000\n"
		split = "0 1000 1\n1 100000 300000\n"
	)
	for name, c := range map[string]struct {
		euid int
		maps []string
		want identity
	}{
		"root of a host":                        {0, []string{all, all}, identity{base: hostIDs, agent: 1000}},
		"root of a container with its own ids":  {0, []string{large, large}, identity{base: 200000 - 65536, agent: 1000}},
		"root of a container with few ids":      {0, []string{small, small}, identity{agent: 1000}},
		"root of a container with an odd map":   {0, []string{split, split}, identity{base: 300001 - 65536, agent: 1000}},
		"root whose groups are fewer than ids":  {0, []string{all, large}, identity{base: 200000 - 65536, agent: 1000}},
		"an ordinary user, whatever the map is": {1001, []string{all, all}, identity{rootless: true, base: 1001}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := chooseIdentity(c.euid, c.maps...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(identity{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestIdentityRefusesWhatIsNoMap(t *testing.T) {
	for _, m := range []string{"0 0\n", "a 0 1\n", "0 0 many\n"} {
		if id, err := chooseIdentity(0, m); err == nil {
			t.Errorf("map %q gives %+v", m, id)
		}
	}
}
