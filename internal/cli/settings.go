package cli

import "github.com/berth-dev/berth/internal/config"

type settingsCmd struct {
	Check   settingsCheck   `cmd:"" help:"Check the configuration that serve would use."`
	Docs    settingsDocs    `cmd:"" help:"Write the reference of all settings."`
	Example settingsExample `cmd:"" help:"Write a commented berth.yaml."`
}

type settingsCheck struct{}

// Run says whether the configuration is usable and where it came from.
func (*settingsCheck) Run(d *deps) error {
	c, err := d.config()
	if err != nil {
		return err
	}
	if err := c.Validate(); err != nil {
		return err
	}
	if d.out.json {
		return d.out.value(map[string]any{"ok": true, "file": c.File, "environments": len(c.Environments)})
	}
	from := "the environment and defaults"
	if c.File != "" {
		from = c.File
	}
	d.out.line("The configuration is usable: %s from %s.", plural(len(c.Environments), "environment"), from)
	return nil
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return itoa(int64(n)) + " " + noun + "s"
}

type settingsDocs struct{}

// Run writes the reference as Markdown.
func (*settingsDocs) Run(d *deps) error {
	_, err := d.out.out.Write([]byte(config.Docs()))
	return err
}

type settingsExample struct{}

// Run writes an example file.
func (*settingsExample) Run(d *deps) error {
	_, err := d.out.out.Write([]byte(config.Example()))
	return err
}
