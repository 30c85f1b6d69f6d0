//go:build linux

package linux

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Users inside a sandbox: the guest is root, the agent's commands are not.
const (
	agentUID  = 1000
	agentName = "agent"
	idCount   = 1 << 16 // ids that exist inside, where the host lets us choose
)

// hostIDs is where those ids lie on the host: a range above what
// distributions, containers and systemd hand out, so that a file in a workspace
// belongs to nobody who can sign in.
const hostIDs = 0x70000000

// identity says how users inside are users of the host.
//
//   - root: ids 0…65535 are hostIDs… on the host. A process that escaped would
//     be nobody there, with access to nothing but workspaces.
//   - root of a namespace that lacks that range: the last part of the range
//     that it has.
//   - an ordinary user: one id only, their own. Guest and agent share it;
//     the agent still runs without capabilities, and so can neither read the
//     guest's memory nor trace it.
type identity struct {
	rootless bool
	base     int // host id of root inside; 0: no user namespace of its own
	agent    int // the agent's id inside
}

func (i identity) mapped() bool { return !i.rootless && i.base > 0 }

// host returns the host id of an id inside.
func (i identity) host(id int) int {
	if i.rootless {
		return i.base
	}
	return i.base + id
}

// chooseIdentity is pure: euid is ours, maps are the contents of
// /proc/self/uid_map and gid_map.
func chooseIdentity(euid int, maps ...string) (identity, error) {
	if euid != 0 {
		return identity{rootless: true, base: euid, agent: 0}, nil
	}
	base := hostIDs
	for _, m := range maps {
		b, err := placeIDs(m)
		if err != nil {
			return identity{}, err
		}
		base = min(base, b)
	}
	return identity{base: base, agent: agentUID}, nil
}

// placeIDs finds room for idCount ids in an id map: at hostIDs, or at the end
// of the largest range, or 0 when nothing is large enough to be shared.
func placeIDs(m string) (int, error) {
	end := 0
	for line := range strings.Lines(m) {
		f := strings.Fields(line)
		if len(f) != 3 {
			return 0, fmt.Errorf("read id map: %q", line)
		}
		first, err := strconv.Atoi(f[0])
		if err != nil {
			return 0, fmt.Errorf("read id map: %w", err)
		}
		count, err := strconv.Atoi(f[2])
		if err != nil {
			return 0, fmt.Errorf("read id map: %w", err)
		}
		if first <= hostIDs && hostIDs+idCount <= first+count {
			return hostIDs, nil
		}
		if first <= idCount { // ids from idCount up belong to no one we know
			end = max(end, first+count)
		}
	}
	if end < 2*idCount {
		return 0, nil
	}
	return end - idCount, nil
}

func readIdentity() (identity, error) {
	uids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return identity{}, fmt.Errorf("read own id map: %w", err)
	}
	gids, err := os.ReadFile("/proc/self/gid_map")
	if err != nil {
		return identity{}, fmt.Errorf("read own id map: %w", err)
	}
	return chooseIdentity(os.Geteuid(), string(uids), string(gids))
}
