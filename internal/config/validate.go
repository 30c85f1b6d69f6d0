package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/session"
)

// minToken is the least length of a token that opens the API.
const minToken = 16

// Validate checks what a server needs and returns everything that is wrong as
// Problems, each with the step that mends it.
func (c Config) Validate() error {
	v := &validator{}
	walk(reflect.ValueOf(c), "", func(f field) {
		if why := f.outside(); why != "" {
			v.add(invalid(f.path, "%s", why))
		}
		v.secrets(f)
	})
	v.listen(c)
	v.environments(c)
	v.agents(c)
	v.url("base_url", c.BaseURL)
	v.url("client.server", c.Client.Server)
	if c.Webhooks.PublicURL != "" {
		v.url("webhooks.public_url", c.Webhooks.PublicURL)
		if !strings.HasPrefix(c.Webhooks.PublicURL, "https://") {
			v.add(invalid("webhooks.public_url", "the platform delivers webhooks over https only").
				WithNext("give the https address of your reverse proxy or tunnel"))
		}
	}
	if c.DataDir == "" {
		v.add(invalid("data_dir", "there is no home directory to keep data in").WithNext("set data_dir or BERTH_DATA_DIR"))
	}
	if c.Sandbox.Backend == "isolate" {
		v.add(invalid("sandbox.backend", "the isolate backend is not available yet").
			WithNext("use linux in sandbox.backend or BERTH_DEFAULT_BACKEND"))
	}
	if c.Sandbox.Image == "" {
		v.add(invalid("sandbox.image", "no image is given").WithNext("use host for this host's own programs"))
	}
	v.crash(c)
	for _, dir := range Names(c.Sandbox.Images.Folders) {
		if !strings.HasPrefix(dir, "/") {
			v.add(invalid("sandbox.images.folders", "%q does not begin with a slash", dir).WithNext("write whole paths"))
		}
	}
	return v.problems.err()
}

type validator struct{ problems Problems }

func (v *validator) add(f *fault.Error) { v.problems = append(v.problems, Problem{Error: f}) }

// secrets reports references that lead nowhere.
func (v *validator) secrets(f field) {
	check := func(path string, s Secret) {
		if s.lack != "" {
			v.add(invalid(path, "%s", s.lack).WithNext("provide it, or remove the reference"))
		}
	}
	switch s := f.value.Interface().(type) {
	case Secret:
		check(f.path, s)
	case []Secret:
		for i := range s {
			check(fmt.Sprintf("%s[%d]", f.path, i), s[i])
		}
	}
}

func (v *validator) listen(c Config) {
	host, port, err := net.SplitHostPort(c.Listen)
	n, portErr := strconv.ParseUint(port, 10, 16)
	if err != nil || portErr != nil || n > 65535 {
		v.add(invalid("listen", "%q is not an address", c.Listen).WithNext("write host:port, such as 127.0.0.1:7070"))
		return
	}
	token := c.Access.Token
	if !loopback(host) && !token.Set() {
		v.add(invalid("listen", "%s can be reached from other hosts, and no sign-in is configured", c.Listen).
			WithNext("set access.token or BERTH_TOKEN, or listen on 127.0.0.1"))
	}
	if token.Reveal() != "" && len(token.Reveal()) < minToken {
		v.add(invalid("access.token", "the token is shorter than %d characters", minToken).
			WithNext("make one with: openssl rand -hex 32"))
	}
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

func (v *validator) environments(c Config) {
	if len(c.Environments) == 0 {
		v.add(invalid("environments", "no environment is configured").
			WithNext("add an entry with id and key to environments, or set ANTHROPIC_ENVIRONMENT_ID and ANTHROPIC_ENVIRONMENT_KEY"))
	}
	first := map[string]int{}
	for i, e := range c.Environments {
		path := fmt.Sprintf("environments[%d]", i)
		if e.ID == "" {
			v.add(invalid(path+".id", "the environment has no id").
				WithNext("set %s.id, or ANTHROPIC_ENVIRONMENT_ID", path))
		} else if j, seen := first[e.ID]; seen {
			v.add(invalid(path+".id", "%s is configured already in environments[%d]", e.ID, j).WithNext("remove one of them"))
		} else {
			first[e.ID] = i
		}
		if !e.Key.Set() {
			v.add(invalid(path+".key", "the environment has no key").
				WithNext("set %s.key to {env: NAME} or {file: path}, or set ANTHROPIC_ENVIRONMENT_KEY; "+
					"the key is made in the Claude console, on the environment's page", path))
		}
		if e.BaseURL != c.BaseURL {
			v.url(path+".base_url", e.BaseURL)
		}
	}
}

func (v *validator) agents(c Config) {
	if l := c.Sandbox.Lifetime; l > 0 && l < time.Minute {
		v.add(invalid("sandbox.lifetime", "%s is less than the least that is allowed, 1m", formatDuration(l)).WithNext("use 0s for no limit"))
	}
	first := map[string]int{}
	for i := range c.Agents {
		a := &c.Agents[i]
		path, name := fmt.Sprintf("agents[%d]", i), "name "+a.Name
		if a.ID != "" {
			name = "id " + a.ID
		}
		switch j, seen := first[name]; {
		case (a.ID == "") == (a.Name == ""):
			v.add(invalid(path, "an agent is given by its id or by its name").WithNext("set either %s.id or %s.name", path, path))
		case seen:
			v.add(invalid(path, "the agent with the %s is configured already in agents[%d]", name, j).WithNext("remove one of them"))
		default:
			first[name] = i
		}
		if a.ID != "" {
			if err := session.CheckAgent(a.ID); err != nil {
				v.add(invalid(path+".id", "%q is not an agent's id", a.ID).WithNext("an id begins with agent_; to give an agent's name use %s.name", path))
			}
		}
		s := a.Sandbox.Settings()
		var f *fault.Error
		if err := s.Check(c.Secret); errors.As(err, &f) {
			v.add(f.WithField(path + ".sandbox." + f.Field))
		}
	}
}

// crashAt is the variable of Config.CrashAt.
const crashAt = "BERTH_CRASH_AT"

// crash keeps a server that works for anybody but a test from killing itself:
// crash points need a platform on this host, for every environment.
func (v *validator) crash(c Config) {
	if c.CrashAt == "" {
		return
	}
	for _, e := range c.Environments {
		if u, err := url.Parse(e.BaseURL); err != nil || !loopback(u.Hostname()) {
			v.add(invalid(crashAt, "crash points are for tests, and the platform of environment %s is not on this host", e.ID).
				WithNext("unset %s", crashAt))
		}
	}
}

func (v *validator) url(path, text string) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		v.add(invalid(path, "not an absolute http or https URL").WithNext("write one such as https://api.anthropic.com"))
		return
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		v.add(invalid(path, "the URL must have no user name, query or fragment"))
	}
}
