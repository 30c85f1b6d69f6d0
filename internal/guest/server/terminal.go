//go:build linux

package server

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/creack/pty"

	"github.com/berth-dev/berth/internal/guest/wire"
	"github.com/berth-dev/berth/internal/sandbox"
)

const (
	maxTerminals = 16
	// drain is how long output is still read after the shell's end: something
	// it left behind may keep the terminal open.
	drain = 200 * time.Millisecond
)

// started is the first byte of every terminal's answer: the shell runs.
var started = []byte{0}

// terminal runs a login shell on a PTY until the shell ends or the stream is
// given up.
func (s *Server) terminal(st *wire.Stream, size sandbox.Size) {
	select {
	case s.terminals <- struct{}{}:
		defer func() { <-s.terminals }()
	default:
		st.End(wire.Trailer{Code: wire.Busy, Message: fmt.Sprintf("%d terminals are open already", maxTerminals)})
		return
	}
	master, cmd, err := s.shell(size)
	if err != nil {
		st.End(wire.Trailer{Code: wire.Internal, Message: fmt.Sprintf("open terminal: %v", err)})
		return
	}
	defer master.Close()
	s.screens.add(st, master)
	defer s.screens.remove(st)

	output, ended := make(chan struct{}), make(chan struct{})
	s.wg.Go(func() { // ends when the shell has
		defer close(ended)
		_ = s.spawn.wait(cmd)
		_ = master.SetReadDeadline(time.Now().Add(drain))
	})
	s.wg.Go(func() { // ends with the stream, or when the PTY is closed below
		_, _ = io.Copy(master, st)
	})
	s.wg.Go(func() { // ends after the shell, or with the stream
		defer close(output)
		if _, err := st.Write(started); err == nil {
			_, _ = io.Copy(onlyWriter{st}, master)
		}
	})
	select {
	case <-ended:
	case <-st.Done():
		killSession(cmd)
		<-ended
	}
	<-output
	st.End(wire.Trailer{Exit: cmd.ProcessState.ExitCode()})
}

// onlyWriter hides everything but Write from io.Copy.
type onlyWriter struct{ io.Writer }

// shell starts a login shell on a new PTY.
func (s *Server) shell(size sandbox.Size) (*os.File, *exec.Cmd, error) {
	master, slave, err := pty.Open()
	if err != nil {
		return nil, nil, err
	}
	defer slave.Close()
	path := "/bin/bash"
	if _, err := os.Stat(path); err != nil {
		path = "/bin/sh"
	}
	mend(s.cfg.Workdir)
	cmd := exec.Command(path, "-l")
	cmd.Dir = s.cfg.Workdir
	cmd.Env = list(s.environment(map[string]string{"TERM": "xterm-256color"}))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = controlling()
	err = pty.Setsize(master, winsize(size))
	if err == nil && s.cfg.UID >= 0 {
		err = slave.Chown(s.cfg.UID, s.cfg.GID)
	}
	if err == nil {
		err = s.spawn.start(cmd)
	}
	if err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	return master, cmd, nil
}

func winsize(size sandbox.Size) *pty.Winsize {
	if size.Cols == 0 || size.Rows == 0 {
		size = sandbox.Size{Cols: 80, Rows: 24}
	}
	return &pty.Winsize{Cols: size.Cols, Rows: size.Rows}
}
