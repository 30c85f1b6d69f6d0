package sandbox

import "errors"

// Errors of the contracts. Implementations wrap them; callers use errors.Is.
var (
	// ErrGone means that the sandbox no longer runs.
	ErrGone = errors.New("the sandbox is gone")
	// ErrDisconnected means that the connection to the guest broke. What runs
	// inside goes on.
	ErrDisconnected = errors.New("the connection to the sandbox broke")
	// ErrUnknownCall means that this guest instance never heard of the call.
	ErrUnknownCall = errors.New("the guest does not know this call")
	// ErrAcknowledged means that the call finished and its result was
	// acknowledged earlier.
	ErrAcknowledged = errors.New("the call's result was acknowledged before")
	// ErrBusy means that as many commands or terminals run as are possible.
	ErrBusy = errors.New("too much runs in this sandbox already")
	// ErrUnsupported means that this backend cannot do it.
	ErrUnsupported = errors.New("not supported by this sandbox")
	// ErrUnknownShare means that the sandbox was made without this share.
	ErrUnknownShare = errors.New("the sandbox has no such share")
	// ErrProtocol means that the other end broke the protocol: hostile or of
	// another version.
	ErrProtocol = errors.New("the sandbox broke the protocol")
)
