package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/fault"
)

func TestMistakesInTheFileAreAllReportedWithTheirPlace(t *testing.T) {
	file := `listen: 127.0.0.1:7070
lisen: x
log:
  level: loud
  format: true
environments:
  - id: 17
    kee: {env: X}
sessions:
  capacity: "3"
  release_after: 15
  tool_timeout: fast
sandbox:
  limits:
    memory: 2048
    cpus: many
    memroy: 2GiB
  image: ~
  warm: [5m]
webhooks: yes
`
	_, err := Load(world(nil, vars{"/srv/berth.yaml": file}))
	want := `/srv/berth.yaml:2:1: lisen: unknown key; did you mean "listen"?
    2 | lisen: x
      | ^
/srv/berth.yaml:4:10: log.level: "loud" is not one of debug, info, warn, error
    4 |   level: loud
      |          ^
/srv/berth.yaml:5:11: log.format: want one of text, json, not true or false
    5 |   format: true
      |           ^
/srv/berth.yaml:7:9: environments[0].id: want text, not a number (put it in quotes if it is text)
    7 |   - id: 17
      |         ^
/srv/berth.yaml:8:5: environments[0].kee: unknown key; did you mean "key"?
    8 |     kee: {env: X}
      |     ^
/srv/berth.yaml:10:13: sessions.capacity: want a whole number, not text
   10 |   capacity: "3"
      |             ^
/srv/berth.yaml:11:18: sessions.release_after: "15" is not a duration; write a number and a unit, such as 15s, 5m or 1h30m
   11 |   release_after: 15
      |                  ^
/srv/berth.yaml:12:17: sessions.tool_timeout: "fast" is not a duration; write a number and a unit, such as 15s, 5m or 1h30m
   12 |   tool_timeout: fast
      |                 ^
/srv/berth.yaml:15:13: sandbox.limits.memory: "2048" is not a size; write a number and a unit, such as 512MiB or 2GiB
   15 |     memory: 2048
      |             ^
/srv/berth.yaml:16:11: sandbox.limits.cpus: want a number, not text
   16 |     cpus: many
      |           ^
/srv/berth.yaml:17:5: sandbox.limits.memroy: unknown key; did you mean "memory"?
   17 |     memroy: 2GiB
      |     ^
/srv/berth.yaml:18:10: sandbox.image: want text, not nothing
   18 |   image: ~
      |          ^
/srv/berth.yaml:19:9: sandbox.warm: want a duration such as 15s or 5m, not a list
   19 |   warm: [5m]
      |         ^
/srv/berth.yaml:20:11: webhooks: want settings below this key, not text
   20 | webhooks: yes
      |           ^`
	if err == nil {
		t.Fatal("no error")
	}
	if d := cmp.Diff(want, err.Error()); d != "" {
		t.Error(d)
	}
	if fault.CodeOf(err) != fault.Invalid {
		t.Errorf("code = %s", fault.CodeOf(err))
	}
}

func TestAFileThatIsNotYAMLIsReportedWithItsPlace(t *testing.T) {
	for text, want := range map[string]string{
		"a: [1\n":                      "/srv/berth.yaml:1:4: not valid YAML",
		"listen: a:1\nlisten: b":       "/srv/berth.yaml:2:1: not valid YAML",
		"log:\n\tlevel: info\n":        "/srv/berth.yaml:2:1: not valid YAML",
		"listen: a\n---\nlog:\n":       "more than one document",
		"- a\n":                        "/srv/berth.yaml:1:1: want settings below this key, not a list",
		"log: &x {level: info}":        "an anchor or alias",
		"listen: !!str 5":              "a tag",
		strings.Repeat("#", maxFile+1): "larger than a configuration can be",
	} {
		_, err := Load(world(nil, vars{"/srv/berth.yaml": text}))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v\nwant %s", text, err, want)
		}
	}
}

func TestAnEmptyFileIsFine(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "---\n", "log:\nsandbox:\n  limits:\nenvironments: []\n"} {
		if _, err := Load(world(nil, vars{"/srv/berth.yaml": text})); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestSecretsInTheFileAreRefusedAndNotRepeated(t *testing.T) {
	for _, text := range []string{
		"api_key: hunter2-hunter2",
		"api_key: [hunter2-hunter2]",
		"api_key: {value: hunter2-hunter2}",
		"api_key: {env: {x: hunter2-hunter2}}",
		"access: {token: 'hunter2-hunter2'}",
		"environments:\n  - id: env_1\n    key: hunter2-hunter2\n",
		"environments: [{id: 5, key: hunter2-hunter2}]",
		"environments: [{ids: x, \"key\": \"hunter2-hunter2\"}]",
		"webhooks:\n  signing_keys:\n    - whsec_hunter2-hunter2\n",
		"webhooks:\n  signing_keys: sk-ant-hunter2-hunter2\n",
		"note: sk-ant-oat01-hunter2-hunter2",
		"webhook_secret: hunter2-hunter2",
		"token: hunter2-hunter2",
		"api_key: hunter2-hunter2: x",
		"api_key: \"hunter2-hunter2",
		"  - hunter2-hunter2: [",
	} {
		_, err := Load(world(nil, vars{"/srv/berth.yaml": text}))
		if err == nil {
			t.Errorf("%q: no error", text)
			continue
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: the error repeats the secret:\n%v", text, err)
		}
		if !strings.Contains(err.Error(), "/srv/berth.yaml:") {
			t.Errorf("%q: the error has no place: %v", text, err)
		}
	}
}

func FuzzYAML(f *testing.F) {
	f.Add([]byte(Example()))
	f.Add([]byte("environments: [{id: a, key: {env: X}}]\nlog: {level: x}"))
	f.Add([]byte("a: &b\n  ? c : *b\n<<: 1"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var c Config
		for _, p := range readYAML(world(nil, nil), "f.yaml", text, &c) {
			if p.text() == "" {
				t.Fatal("a problem without words")
			}
		}
	})
}
