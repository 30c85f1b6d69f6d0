// Package folder is a folder of a sandbox as memory.Store sees it from the host.
// Everything in it was put there by hostile code, and may change while it is
// looked at. So nothing is ever resolved by the kernel across more than one
// step: every folder on the way is opened by itself, without following links;
// only regular files are opened, without waiting; sizes, counts and depth are
// bounded; and what is written is a new file that takes its name when it is
// whole. A hard link is one more name for something that the agent can read
// anyway: links do not leave a mount, and nothing is written in place.
package folder
