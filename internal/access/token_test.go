package access

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-dev/berth/internal/fault"
)

func TestTokenStaysTheSameAndPrivate(t *testing.T) {
	dir := t.TempDir()
	first, err := LoadToken(dir)
	if err != nil {
		t.Fatal(err)
	}
	second, err := LoadToken(dir)
	if err != nil || second != first {
		t.Fatalf("second load = %v, %v; want the first token", second == first, err)
	}
	info, err := os.Stat(filepath.Join(dir, TokenFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode = %v, %v; want 0600", info.Mode(), err)
	}
}

func TestOnlyTheTokenOpensTheGuard(t *testing.T) {
	g := NewGuard("right")
	for header, want := range map[string]fault.Code{
		"":              fault.Unsigned,
		"right":         fault.Unsigned,
		"Bearer":        fault.Unsigned,
		"Bearer wrong":  fault.Unsigned,
		"Bearer rightx": fault.Unsigned,
		"Bearer right":  "",
	} {
		r := httptest.NewRequest("GET", "/api/v1/sessions", nil)
		r.Header.Set("Authorization", header)
		if got := fault.CodeOf(g.Check(r)); got != want {
			t.Errorf("Authorization %q: code %q, want %q", header, got, want)
		}
	}
}
