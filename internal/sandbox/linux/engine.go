//go:build linux

package linux

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-dev/berth/internal/sandbox"
)

// engine is what differs between runtimes: what they want mounted, what they
// read in a bundle, their command line, and what they leave behind. All else
// (folders, FIFOs, processes, cgroups, adoption, removal) is the same for all.
type engine interface {
	// isolation is the word for it in Features.
	isolation() string
	// root returns where the bundle's root folder will be for a sandbox whose
	// image is at image: the image itself, or a folder to be mounted on.
	root(f folder, image string) string
	// mounts adds to the stage what the runtime wants mounted.
	mounts(s *stage, f folder, st storage, image string)
	// complete adds to a bundle what this runtime needs besides, or takes away
	// what it cannot use.
	complete(s *specs.Spec, l layout, limits sandbox.Limits) error
	// args is the command line of our own binary that starts a sandbox and
	// leaves it running. Its standard streams are the guest's.
	args(l launch) []string
	// forget removes what the runtime remembers of a sandbox whose processes
	// have ended.
	forget(ctx context.Context, id string) error
	// check says for doctor which runtime it is, and what is wrong with it.
	check(ctx context.Context) sandbox.Info
}

// bundle is config.json.
func bundle(e engine, l layout, limits sandbox.Limits) ([]byte, error) {
	s := ociSpec(l, limits)
	if err := e.complete(s, l, limits); err != nil {
		return nil, err
	}
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode bundle: %w", err)
	}
	return b, nil
}

// gvisor is our own binary under another name.
type gvisor struct {
	state string // the runtime's state folder
}

// runtimeName is argv[0] of gVisor and the beginning of its children's.
const runtimeName = "runsc"

func (g gvisor) isolation() string                  { return Gvisor }
func (g gvisor) root(_ folder, image string) string { return image }

// mounts adds nothing: gVisor makes the writable layer itself.
func (g gvisor) mounts(*stage, folder, storage, string) {}

func (g gvisor) complete(s *specs.Spec, l layout, _ sandbox.Limits) error {
	s.Annotations = sharedMount("workspace", l.workspace)
	for i, sh := range l.shares {
		if sh.live {
			maps.Copy(s.Annotations, sharedMount(fmt.Sprintf("share%d", i), sh.source))
		}
	}
	if l.cgroup != "" && l.unified { // half a sandbox is no use
		s.Linux.Resources.Unified = map[string]string{"memory.oom.group": "1"}
	}
	return nil
}

// sharedMount tells gVisor that the host may look at and change a mount while
// the sandbox runs, and that what was written must survive a kill. It trusts
// what it has once seen of all other mounts, which makes starting programs
// faster.
func sharedMount(name, source string) map[string]string {
	hint := "dev.gvisor.spec.mount." + name + "."
	return map[string]string{hint + "source": source, hint + "type": "bind", hint + "share": "shared"}
}

func (g gvisor) args(l launch) []string {
	args := []string{runtimeName}
	if l.stage.changes() {
		args = append(args, l.stage.flag())
	}
	args = append(args,
		"--root="+g.state,
		"--log="+l.folder.path(logName),
		"--platform=systrap",
		"--network=none",
		"--gofer-network-namespace=new", // the default one is a mount that nobody removes
		"--overlay2=root:dir="+l.layer,
		"--file-access=exclusive",
		"--file-access-mounts=exclusive", // but see sharedMount
		"--host-uds=none",
		"--host-fifo=none",
		"--host-settings=ignore",
	)
	if !l.limited {
		args = append(args, "--ignore-cgroups")
	}
	return append(args, "run", "--detach", "--bundle="+l.folder.path(bundleName), l.folder.run())
}

// forget needs no runtime: gVisor keeps three files.
func (g gvisor) forget(_ context.Context, id string) error {
	names, err := filepath.Glob(filepath.Join(g.state, id+"_sandbox:*"))
	if err != nil {
		return fmt.Errorf("find runtime state: %w", err)
	}
	for _, name := range append(names, filepath.Join(g.state, "runsc-"+id+".sock")) {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove runtime state: %w", err)
		}
	}
	return nil
}

func (g gvisor) check(context.Context) sandbox.Info {
	return ok("runtime", "gVisor, inside this program: a kernel of its own between the sandbox and the host's")
}

// chooseEngine is the runtime for new sandboxes.
func (b *Backend) chooseEngine() (engine, error) {
	if b.cfg.Runtime == Gvisor {
		return gvisor{state: b.stateOf(Gvisor)}, nil
	}
	o, err := newOCI(b.cfg.Runtime, b.runtime.ids, b.limits, b.unlimited)
	o.binary, o.state = b.cfg.Binary, b.stateOf(b.cfg.Runtime)
	return o, err
}

// stateOf is the folder in which a runtime keeps its state.
func (b *Backend) stateOf(kind string) string {
	return filepath.Join(b.runtime.runs, stateName(kind))
}

// forget removes what the runtime of a sandbox remembers of it. That may be
// another one than today's.
func (b *Backend) forget(ctx context.Context, f folder) error {
	kind := b.cfg.Runtime
	if r, err := f.record(); err == nil {
		kind = cmp.Or(r.Runtime, Gvisor)
	}
	if kind == b.cfg.Runtime {
		return b.runtime.engine.forget(ctx, f.run())
	}
	if kind == Gvisor {
		return gvisor{state: b.stateOf(Gvisor)}.forget(ctx, f.run())
	}
	o := oci{kind: kind, binary: b.cfg.Binary, state: b.stateOf(kind), hidden: hybridMounts(cgroupMount)}
	o.path, _ = findRuntime(kind, runtimeDirs()) // it may have been removed meanwhile
	return o.forget(ctx, f.run())
}
