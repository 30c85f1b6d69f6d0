//go:build linux

package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"github.com/berth-dev/berth/internal/guest/wire"
	"github.com/berth-dev/berth/internal/sandbox"
)

const (
	defaultExecTimeout = 2 * time.Minute
	maxExecs           = 32
)

// exec runs one command for a person or for set-up, as the agent's user. It is
// killed when the stream is given up.
func (s *Server) exec(st *wire.Stream) {
	body, err := st.ReadAll(context.Background(), wire.MaxInput)
	if err != nil {
		st.End(wire.Trailer{Code: wire.Invalid, Message: err.Error()})
		return
	}
	var e sandbox.Exec
	if err := json.Unmarshal(body, &e); err != nil || len(e.Argv) == 0 {
		st.End(wire.Trailer{Code: wire.Invalid, Message: "exec: argv is required"})
		return
	}
	select {
	case s.execs <- struct{}{}:
		defer func() { <-s.execs }()
	default:
		st.End(wire.Trailer{Code: wire.Busy, Message: fmt.Sprintf("exec: %d commands run already", maxExecs)})
		return
	}
	res, err := s.execute(st.Done(), e)
	if err != nil {
		st.End(wire.Trailer{Code: wire.Invalid, Message: fmt.Sprintf("exec: %v", err)})
		return
	}
	answer, err := json.Marshal(res)
	if err != nil {
		st.End(wire.Trailer{Code: wire.Internal, Message: err.Error()})
		return
	}
	if _, err := st.Write(answer); err == nil {
		st.End(wire.Trailer{})
	}
}

func (s *Server) execute(gone <-chan struct{}, e sandbox.Exec) (sandbox.ExecResult, error) {
	mend(s.cfg.Workdir)
	env := s.environment(e.Env)
	if e.Dir == "" {
		e.Dir = s.cfg.Workdir
	}
	if e.Timeout <= 0 {
		e.Timeout = defaultExecTimeout
	}
	path, err := lookPath(e.Argv[0], e.Dir, env["PATH"])
	if err != nil {
		return sandbox.ExecResult{}, err
	}
	out, errs := tail{limit: wire.MaxOutput}, tail{limit: wire.MaxOutput}
	cmd := &exec.Cmd{
		Path: path, Args: e.Argv, Dir: e.Dir, Env: list(env),
		Stdin: bytes.NewReader(e.Stdin), Stdout: &out, Stderr: &errs,
		WaitDelay: time.Second,
	} // for output held open by a process left behind
	if err := s.spawn.start(cmd); err != nil {
		return sandbox.ExecResult{}, err
	}
	waited := make(chan error, 1)
	s.wg.Go(func() { waited <- s.spawn.wait(cmd) })
	timer := time.NewTimer(min(e.Timeout, maxTimeout))
	defer timer.Stop()
	res := sandbox.ExecResult{}
	select {
	case err = <-waited:
	case <-timer.C:
		res.TimedOut = true
		killSession(cmd)
		err = <-waited
	case <-gone:
		killSession(cmd)
		err = <-waited
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		return sandbox.ExecResult{}, err
	}
	res.Code = cmd.ProcessState.ExitCode()
	res.Stdout, res.Stderr = out.bytes(), errs.bytes()
	res.Truncated = out.cut || errs.cut
	return res, nil
}

// tail keeps the last limit bytes written to it.
type tail struct {
	limit int
	buf   []byte
	cut   bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if len(t.buf) > 2*t.limit { // halve seldom rather than shift always
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-t.limit:]...)
		t.cut = true
	}
	return len(p), nil
}

func (t *tail) bytes() []byte {
	if len(t.buf) > t.limit {
		t.cut = true
		return t.buf[len(t.buf)-t.limit:]
	}
	return t.buf
}
