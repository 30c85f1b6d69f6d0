package config

import (
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write docs/configuration.md and deploy/berth.yaml anew")

func TestTheReferenceIsCurrent(t *testing.T) {
	for path, want := range map[string]string{"docs/configuration.md": Docs(), "deploy/berth.yaml": Example()} {
		path = filepath.Join("..", "..", path)
		if *update {
			if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, string(got)); d != "" {
			t.Errorf("%s is not current; run: go test ./internal/config -run Reference -update\n%s", path, d)
		}
	}
}

func TestEverySettingIsDocumented(t *testing.T) {
	docs := Docs()
	for _, name := range []string{
		"ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_ENVIRONMENT_ID", "ENVIRONMENT_ID", "ANTHROPIC_ENVIRONMENT_KEY",
		"ANTHROPIC_WEBHOOK_SIGNING_KEY", "WEBHOOK_SECRET", "BERTH_DATA_DIR", "BERTH_LISTEN", "BERTH_CONFIG", "BERTH_DEFAULT_BACKEND", "BERTH_TOKEN",
		"BERTH_SERVER", "BERTH_LOG_LEVEL", "BERTH_LOG_FORMAT", "NO_COLOR",
	} {
		if !strings.Contains(docs, "`"+name+"`") {
			t.Errorf("%s is not in the reference", name)
		}
	}
	walk(reflect.ValueOf(reference()).Elem(), "", func(f field) {
		if f.doc() == "" {
			t.Errorf("%s has no meaning", f.path)
		}
		if f.value.CanInt() && f.tag.Get("min") == "" {
			t.Errorf("%s has no bounds", f.path)
		}
	})
}

// The example must be what it says: uncommented, it loads, and changes nothing
// but what has no default.
func TestTheExampleLoads(t *testing.T) {
	setting := regexp.MustCompile(`(?m)^( *)#([a-z_]+:|-)`)
	text := setting.ReplaceAllString(Example(), "$1$2")
	files := vars{"/srv/berth.yaml": text, "/srv/api.token": "0123456789abcdef", "/srv/environment.key": "k", "/srv/webhook.key": "w"}
	env := vars{"ANTHROPIC_API_KEY": "a", "WEBHOOK_KEY_1": "1", "WEBHOOK_KEY_2": "2"}
	got := mustLoad(t, world(env, files))
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
	if len(got.Environments) != 1 || len(got.WebhookSecrets()) != 3 {
		t.Errorf("read %d environments and %d signing keys", len(got.Environments), len(got.WebhookSecrets()))
	}
	want := good()
	// What has no fixed default is a sample.
	i := &want.Sandbox.Images
	i.DockerConfig, i.Platform, i.Insecure, i.Folders = "/root/.docker", "linux/amd64", "registry.lan:5000", "/srv/images"
	for _, pair := range [][2]any{{got.Sessions, want.Sessions}, {got.Sandbox, want.Sandbox}, {got.Log, want.Log}, {got.Listen, want.Listen}} {
		if d := cmp.Diff(pair[1], pair[0]); d != "" {
			t.Error(d)
		}
	}
}
