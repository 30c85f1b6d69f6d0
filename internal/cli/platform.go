package cli

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/berth-dev/berth/internal/claude/local"
	"github.com/berth-dev/berth/internal/config"
	"github.com/berth-dev/berth/internal/fault"
)

type platformCmd struct {
	Listen      string        `help:"Address to listen on." default:"127.0.0.1:7071" placeholder:"HOST:PORT"`
	Environment string        `help:"Id of the environment that exists from the start." default:"env_local"`
	Scenario    []string      `help:"Scenario files to know by name; the first plays sessions that name none." type:"existingfile" placeholder:"FILE"`
	Model       string        `help:"Let this model think instead of a scenario; needs ANTHROPIC_API_KEY." placeholder:"MODEL"`
	Webhook     string        `help:"URL to send webhooks to." placeholder:"URL"`
	WebhookKey  string        `help:"Their signing secret (default: a new one is printed)." placeholder:"whsec_…"`
	LeaseTTL    time.Duration `help:"How long a lease lives after a heartbeat." default:"5m"`
	Admin       bool          `help:"Open /_local: faults, scenarios, keys."`
}

// Run serves the local platform until it is told to stop, and prints what to
// export for a worker or a berth serve beside it.
func (cmd *platformCmd) Run(ctx context.Context, d *deps) error {
	apiKey, envKey := randomKey("sk-ant-api-local-"), randomKey("sk-ant-oat01-local-")
	o := local.Options{
		APIKeys:         []string{apiKey},
		EnvironmentKeys: map[string]string{cmd.Environment: envKey},
		LeaseTTL:        cmd.LeaseTTL,
	}
	if cmd.Admin {
		o.AdminKey = randomKey("admin-")
	}
	if err := cmd.brain(d, &o); err != nil {
		return err
	}
	if cmd.Webhook != "" {
		if cmd.WebhookKey == "" {
			cmd.WebhookKey = randomSigningKey()
		}
		o.Webhooks.Endpoints = []local.Endpoint{{URL: cmd.Webhook, Secret: cmd.WebhookKey}}
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cmd.Listen)
	if err != nil {
		return fault.Wrap(err, fault.Conflict, "cannot listen on %s", cmd.Listen).WithField("--listen").WithNext("choose another address")
	}
	p := servePlatform(l, o)
	exports := []struct{ Name, Value string }{
		{"ANTHROPIC_BASE_URL", p.url}, {"ANTHROPIC_ENVIRONMENT_ID", cmd.Environment}, {"ANTHROPIC_ENVIRONMENT_KEY", envKey}, {"ANTHROPIC_API_KEY", apiKey},
	}
	if cmd.Webhook != "" {
		exports = append(exports, struct{ Name, Value string }{"ANTHROPIC_WEBHOOK_SIGNING_KEY", cmd.WebhookKey})
	}
	if o.AdminKey != "" {
		exports = append(exports, struct{ Name, Value string }{"BERTH_PLATFORM_ADMIN_KEY", o.AdminKey})
	}
	if d.out.json {
		m := map[string]string{}
		for _, e := range exports {
			m[e.Name] = e.Value
		}
		if err := d.out.value(m); err != nil {
			return errors.Join(err, p.close())
		}
	} else {
		for _, e := range exports {
			d.out.line("export %s=%s", e.Name, e.Value)
		}
		d.out.progress("the local platform listens on %s; these keys are for it alone; end it with ^C", p.url)
	}
	<-ctx.Done()
	return p.close()
}

// brain chooses what thinks for the agents.
func (cmd *platformCmd) brain(d *deps, o *local.Options) error {
	for i, file := range cmd.Scenario {
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("read the scenario: %w", err)
		}
		sc, err := local.ParseScenario(data)
		if err != nil {
			return fault.Wrap(err, fault.Invalid, "%s", file).WithField("--scenario")
		}
		o.Scenarios = append(o.Scenarios, sc)
		if i == 0 {
			o.Scenario = sc.Name
		}
	}
	if cmd.Model == "" {
		return nil
	}
	c, err := d.config()
	if err != nil {
		return err
	}
	b, err := modelBrain(c, cmd.Model)
	o.Brain = b
	return err
}

// modelBrain is a real model behind the Messages API.
func modelBrain(c *config.Config, model string) (local.Brain, error) {
	key := c.APIKey.Reveal()
	if key == "" {
		return nil, fault.New(fault.Invalid, "a model needs an API key").WithField("--model").
			WithNext("set ANTHROPIC_API_KEY, or leave --model out to watch a scripted agent")
	}
	b, err := local.NewMessagesBrain(local.MessagesOptions{APIKey: key, BaseURL: c.BaseURL, Model: model})
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "the model cannot be used").WithField("--model")
	}
	return b, nil
}

// runningPlatform is a local platform that listens.
type runningPlatform struct {
	url    string
	server *local.Server
	http   *http.Server
	done   chan struct{}
}

// servePlatform serves on l until close is called.
func servePlatform(l net.Listener, o local.Options) *runningPlatform {
	url := "http://" + l.Addr().String()
	p := &runningPlatform{url: url, server: local.New(o), done: make(chan struct{})}
	p.http = &http.Server{Handler: p.server, ReadHeaderTimeout: 10 * time.Second}
	go func() { // ends with close
		defer close(p.done)
		_ = p.http.Serve(l) // ErrServerClosed, or a listener that broke: requests then fail by themselves
	}()
	return p
}

func (p *runningPlatform) close() error {
	err := errors.Join(p.server.Close(), p.http.Close())
	<-p.done
	return err
}

// randomKey returns prefix and 256 random bits.
func randomKey(prefix string) string {
	return prefix + base64.RawURLEncoding.EncodeToString(random32())
}

// randomSigningKey returns a secret in the form of Standard Webhooks.
func randomSigningKey() string { return "whsec_" + base64.StdEncoding.EncodeToString(random32()) }

func random32() []byte {
	b := make([]byte, 32)
	rand.Read(b) // never fails: crypto/rand ends the program instead
	return b
}
