package sandbox

import "context"

// Remover is an optional power of a Backend: to remove what List returned and
// Attach no longer finds running, such as the files of a sandbox that ended
// while no server ran. It does what Sandbox.Destroy does, also to a running
// one.
type Remover interface {
	Remove(ctx context.Context, ref Ref, how Removal) error
}
