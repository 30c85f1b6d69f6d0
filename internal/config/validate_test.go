package config

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// good is a configuration without fault, for tests to spoil.
func good() Config {
	env := vars{"HOME": "/home/ada", "ANTHROPIC_ENVIRONMENT_ID": "env_1", "ANTHROPIC_ENVIRONMENT_KEY": "key"}
	c, err := Load(world(env, nil))
	if err != nil {
		panic(err)
	}
	return c
}

func TestValidateSaysWhatToDo(t *testing.T) {
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		spoil func(*Config)
		want  string
	}{
		"no environment": {
			func(c *Config) { c.Environments = nil },
			"environments: no environment is configured; add an entry with id and key to environments, or set ANTHROPIC_ENVIRONMENT_ID and ANTHROPIC_ENVIRONMENT_KEY",
		},
		"no key":          {func(c *Config) { c.Environments[0].Key = Secret{} }, "set environments[0].key to {env: NAME} or {file: path}, or set ANTHROPIC_ENVIRONMENT_KEY"},
		"no id":           {func(c *Config) { c.Environments[0].ID = "" }, "set environments[0].id, or ANTHROPIC_ENVIRONMENT_ID"},
		"twice":           {func(c *Config) { c.Environments = append(c.Environments, c.Environments[0]) }, "environments[1].id: env_1 is configured already in environments[0]"},
		"its base URL":    {func(c *Config) { c.Environments[0].BaseURL = "api" }, "environments[0].base_url: not an absolute"},
		"the base URL":    {func(c *Config) { c.BaseURL = "https://a:b@c" }, "base_url: the URL must have no user name"},
		"open listen":     {func(c *Config) { c.Listen = ":7070" }, "set access.token or BERTH_TOKEN, or listen on 127.0.0.1"},
		"open v6 listen":  {func(c *Config) { c.Listen = "[::]:7070" }, "no sign-in is configured"},
		"named listen":    {func(c *Config) { c.Listen = "berth.example:7070" }, "no sign-in is configured"},
		"no port":         {func(c *Config) { c.Listen = "127.0.0.1" }, "write host:port"},
		"large port":      {func(c *Config) { c.Listen = "127.0.0.1:70700" }, "write host:port"},
		"short token":     {func(c *Config) { c.Access.Token = NewSecret("short", "x") }, "shorter than 16"},
		"isolate":         {func(c *Config) { c.Sandbox.Backend = "isolate" }, "not available yet; use linux in sandbox.backend or BERTH_DEFAULT_BACKEND"},
		"http webhooks":   {func(c *Config) { c.Webhooks.PublicURL = "http://x.example" }, "over https only"},
		"too long":        {func(c *Config) { c.Sessions.ToolTimeout = 2 * time.Hour }, "sessions.tool_timeout: 2h is more than the most that is allowed, 1h"},
		"too little":      {func(c *Config) { c.Sandbox.Limits.Memory = 1 << 20 }, "sandbox.limits.memory: 1MiB is less than the least that is allowed, 64MiB"},
		"no cores":        {func(c *Config) { c.Sandbox.Limits.CPUs = 0 }, "sandbox.limits.cpus: 0 is less"},
		"no capacity":     {func(c *Config) { c.Sessions.Capacity = -1 }, "sessions.capacity: -1 is less"},
		"dangling secret": {func(c *Config) { c.Webhooks.SigningKeys = []Secret{fromEnv(world(nil, nil), "GONE")} }, "webhooks.signing_keys[0]: the environment variable GONE is not set"},
		"dangling file":   {func(c *Config) { c.APIKey = fromFile(world(nil, nil), "/gone") }, "api_key: the file cannot be read: open /gone"},
		"empty file":      {func(c *Config) { c.APIKey = fromFile(world(nil, vars{"/e": "\n"}), "/e") }, "api_key: the file /e is empty"},
		"crash points":    {func(c *Config) { c.CrashAt = "before:platform.Answer" }, "BERTH_CRASH_AT: crash points are for tests, and the platform of environment env_1 is not on this host; unset"},
	} {
		bad := good()
		c.spoil(&bad)
		err := bad.Validate()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v\nwant %s", name, err, c.want)
		}
		var p Problems
		if !errors.As(err, &p) || len(p) != 1 {
			t.Errorf("%s: %d problems, want 1: %v", name, len(p), err)
		}
	}
}

func TestCrashPointsNeedEveryPlatformOnThisHost(t *testing.T) {
	env := vars{
		"HOME": "/home/ada", "ANTHROPIC_ENVIRONMENT_ID": "env_1", "ANTHROPIC_ENVIRONMENT_KEY": "key",
		"ANTHROPIC_BASE_URL": "http://127.0.0.1:4100", "BERTH_CRASH_AT": "before:platform.Answer",
	}
	c, err := Load(world(env, nil))
	if err != nil || c.CrashAt != "before:platform.Answer" {
		t.Fatalf("%q, %v", c.CrashAt, err)
	}
	if err := c.Validate(); err != nil {
		t.Errorf("with a platform on this host: %v", err)
	}
	c.Environments = append(c.Environments, Environment{ID: "env_2", Key: NewSecret("key", "x"), BaseURL: "https://api.anthropic.com"})
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "env_2") {
		t.Errorf("with another one elsewhere: %v", err)
	}
}

func TestAnOpenListenWithATokenIsAllowed(t *testing.T) {
	for _, listen := range []string{"0.0.0.0:7070", ":7070", "[::]:1"} {
		c := good()
		c.Listen, c.Access.Token = listen, NewSecret("0123456789abcdef", "x")
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", listen, err)
		}
	}
	for _, listen := range []string{"127.0.0.1:0", "localhost:7070", "[::1]:7070", "127.8.8.8:1"} {
		c := good()
		c.Listen = listen
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", listen, err)
		}
	}
}
