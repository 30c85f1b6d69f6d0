//go:build linux

package server

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// stdio returns a standard stream whose blocked reads and writes end when it
// is closed. It works on a copy of the descriptor: the os package may have
// given the original one to Go's poller, which takes each only once.
func stdio(fd int) (*stream, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("copy standard stream %d: %w", fd, err)
	}
	_ = unix.SetNonblock(dup, true) // a kind of file that cannot do it blocks, which serves too
	return &stream{File: os.NewFile(uintptr(dup), "standard stream"), fd: int32(dup)}, nil
}

// stream is a file that waits by itself when a read or write would block and
// Go's poller does not know its kind.
type stream struct {
	*os.File
	fd int32
}

func (s *stream) Read(p []byte) (int, error) {
	for {
		n, err := s.File.Read(p)
		if n > 0 || !errors.Is(err, unix.EAGAIN) {
			return n, err
		}
		if err := s.wait(unix.POLLIN); err != nil {
			return 0, err
		}
	}
}

func (s *stream) Write(p []byte) (int, error) {
	sent := 0
	for {
		n, err := s.File.Write(p[sent:])
		if sent += n; sent == len(p) || !errors.Is(err, unix.EAGAIN) {
			return sent, err
		}
		if err := s.wait(unix.POLLOUT); err != nil {
			return sent, err
		}
	}
}

// wait returns when the stream is ready, and now and then, so that a closed one
// is noticed.
func (s *stream) wait(events int16) error {
	fds := []unix.PollFd{{Fd: s.fd, Events: events}}
	if _, err := unix.Poll(fds, 1000); err != nil && !errors.Is(err, unix.EINTR) {
		return err
	}
	return nil
}
