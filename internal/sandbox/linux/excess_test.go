//go:build linux

package linux_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/sandbox/linux"
	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/internal/tool"
)

// TestAWorkspaceWithManyFilesAndOddNames: every tool answers, within bounds, and
// in text that Claude takes.
func TestAWorkspaceWithManyFilesAndOddNames(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("100,000 files take a minute")
	}
	needNamespaces(t)
	b := open(t, testbin.Path(t), dataDir(t))
	defer b.Close()
	defer clearAll(t, b)
	spec := specOf("many")
	box, err := b.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	workspace := linux.WorkspaceOf(b, spec.ID)
	const folders, each = 100, 1000
	for i := range folders {
		dir := filepath.Join(workspace, fmt.Sprintf("d%02d", i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for j := range each {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%03d.txt", j)), []byte("needle\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	odd := filepath.Join(workspace, "odd")
	if err := os.Mkdir(odd, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"latin\xe9.txt", "new\nline.txt", "-rf", strings.Repeat("n", 255)} {
		if err := os.WriteFile(filepath.Join(odd, name), []byte("odd one\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	g, err := box.Guest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct{ name, input, says string }{
		{tool.Glob, `{"pattern":"**/*.txt"}`, "d49/f949.txt"},
		{tool.Glob, `{"pattern":"*","path":"odd"}`, "-rf"},
		{tool.Grep, `{"pattern":"needle"}`, "needle"},
		{tool.Grep, `{"pattern":"odd one","path":"odd"}`, "odd one"},
		{tool.Bash, `{"command":"find . -type f | wc -l; ls odd"}`, "100005"},
		{tool.Read, `{"file_path":"odd/-rf"}`, "odd one"},
	} {
		got := answer(t, g, tool.Call{ID: fmt.Sprint(i), Name: c.name, Input: []byte(c.input)})
		if !strings.Contains(got, c.says) || !utf8.ValidString(got) || len(got) > tool.MaxResultBytes {
			t.Errorf("%s %s: %d bytes, valid %t: %.300q", c.name, c.input, len(got), utf8.ValidString(got), got)
		}
	}
}

func answer(t *testing.T, g sandbox.Guest, c tool.Call) string {
	t.Helper()
	r, err := g.Call(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, block := range r.Content {
		text.WriteString(block.Text)
	}
	return text.String()
}
