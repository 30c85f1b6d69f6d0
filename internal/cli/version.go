package cli

import "runtime"

type versionCmd struct{}

// Run prints the version.
func (*versionCmd) Run(d *deps) error {
	if d.out.json {
		return d.out.value(map[string]string{"version": d.program.Version, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH})
	}
	d.out.line("berth %s (%s, %s/%s)", d.program.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return nil
}
