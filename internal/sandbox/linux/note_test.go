//go:build linux

package linux

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/tool"
)

func TestNotesAreAddedToACopy(t *testing.T) {
	r := tool.Text("cp: error writing 'x': No space left on device")
	if !saysFull(r) || saysFull(tool.Text("fine")) {
		t.Error("a full disk is not told from others")
	}
	got := annotate(r, []string{"[one]", "[two]"})
	if len(r.Content) != 1 {
		t.Error("the guest's own result changed")
	}
	want := tool.Result{Content: []tool.Block{r.Content[0], {Type: "text", Text: "[one]\n[two]"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(r, annotate(r, nil)); diff != "" {
		t.Error(diff)
	}
}

func TestADiskIsFullAtItsLimitOnly(t *testing.T) {
	for _, c := range []struct {
		used, limit int64
		want        bool
	}{{0, 0, false}, {1 << 30, 10 << 30, false}, {10<<30 - 100<<20, 10 << 30, true}, {40 << 20, 64 << 20, false}, {60 << 20, 64 << 20, true}} {
		if got := nearlyFull(c.used, c.limit); got != c.want {
			t.Errorf("%d of %d: %v", c.used, c.limit, got)
		}
	}
}

func TestSizes(t *testing.T) {
	for n, want := range map[int64]string{10 << 30: "10GiB", 1536 << 20: "1536MiB", 64 << 20: "64MiB", 3 << 10: "3KiB", 5: "5 bytes", 0: "0 bytes"} {
		if got := size(n); got != want {
			t.Errorf("%d: %q", n, got)
		}
	}
}
