//go:build linux

package server

import (
	"os"
	"sync"
	"syscall"

	"github.com/creack/pty"

	"github.com/berth-dev/berth/internal/guest/wire"
	"github.com/berth-dev/berth/internal/sandbox"
)

// screens finds the PTY of a terminal's stream.
type screens struct {
	mu   sync.Mutex
	open map[*wire.Stream]*os.File
}

func (s *screens) add(st *wire.Stream, f *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = map[*wire.Stream]*os.File{}
	}
	s.open[st] = f
}

func (s *screens) remove(st *wire.Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, st)
}

// resize changes a terminal's size; one that has ended is left alone.
func (s *screens) resize(st *wire.Stream, size sandbox.Size) error {
	s.mu.Lock()
	f := s.open[st]
	s.mu.Unlock()
	if f == nil {
		return nil
	}
	return pty.Setsize(f, winsize(size))
}

// controlling makes the child's standard input its controlling terminal.
func controlling() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
}
