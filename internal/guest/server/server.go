//go:build linux

// Package server is the guest: the first process of a sandbox. It answers the
// client in package guest over its standard streams and holds results until
// they are acknowledged. It runs nothing of the agent's itself: tools run in a
// worker process, and the worker, terminals and commands run as another user,
// who can neither read nor signal the guest.
package server

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/berth-dev/berth/internal/guest/wire"
)

// Config says what a guest works with.
type Config struct {
	Workdir  string            // of all commands; must exist
	UID, GID int               // of all commands; negative: the guest's own
	Env      map[string]string // of all commands, on top of a standard one
	Shares   Shares            // that the file tools may reach, too
	Launch   Launch            // of the worker; required
	Log      *slog.Logger      // required

	reaper *reaper
}

// Server is a guest. One Server outlives any number of connections.
type Server struct {
	cfg       Config
	log       *slog.Logger
	instance  string
	calls     *table
	shells    queues
	workers   workers
	spawn     spawner
	screens   screens
	running   chan struct{}
	execs     chan struct{}
	terminals chan struct{}
	wg        sync.WaitGroup

	mu  sync.Mutex
	env map[string]string // from the latest hello
}

// New returns a guest with a new instance id. The caller must Close it.
func New(cfg Config) *Server {
	return &Server{
		cfg: cfg, log: cfg.Log, instance: rand.Text(), calls: newTable(),
		workers:   workers{launch: cfg.Launch},
		spawn:     spawner{uid: cfg.UID, gid: cfg.GID, reaper: cfg.reaper},
		running:   make(chan struct{}, maxRunning),
		execs:     make(chan struct{}, maxExecs),
		terminals: make(chan struct{}, maxTerminals),
	}
}

// Serve answers clients, one after the other, until r ends. It closes w, which
// must make a blocked write return. Calls go on running after it; a later
// Serve finds their results.
func (s *Server) Serve(r io.Reader, w io.WriteCloser) error { return wire.Serve(r, w, s) }

// Close kills what runs and waits for its end. Serve must have returned.
func (s *Server) Close() {
	s.workers.close()
	s.wg.Wait()
}

// Hello implements wire.Acceptor.
func (s *Server) Hello(h wire.Hello) wire.Welcome {
	s.mu.Lock()
	s.env = h.Env
	s.mu.Unlock()
	s.wg.Go(func() { // so that the first call finds a worker
		if _, err := s.workers.conn(context.Background()); err != nil {
			s.log.Error("worker does not start", "err", err)
		}
	})
	return wire.Welcome{Instance: s.instance}
}

// environment returns what a command gets, with extra on top.
func (s *Server) environment(extra map[string]string) map[string]string {
	s.mu.Lock()
	hello := s.env
	s.mu.Unlock()
	return merge(standard(s.cfg.Workdir, "agent"), s.cfg.Env, hello, extra)
}

// Accept implements wire.Acceptor.
func (s *Server) Accept(st *wire.Stream, r wire.Request) {
	if r.Op == wire.OpCall {
		s.acceptCall(st, r)
		return
	}
	s.wg.Go(func() { s.handle(st, r) })
}

func (s *Server) handle(st *wire.Stream, r wire.Request) {
	switch r.Op {
	case wire.OpRecall:
		c, code := s.calls.recall(r.ID)
		if code != wire.OK {
			st.End(wire.Trailer{Code: code})
			return
		}
		s.deliver(st, c)
	case wire.OpCancel:
		s.calls.stop(r.ID)
		st.End(wire.Trailer{})
	case wire.OpAck:
		st.End(s.acknowledge(st))
	case wire.OpExec:
		s.exec(st)
	case wire.OpTerminal:
		s.terminal(st, r.Size)
	case wire.OpResize:
		st.End(s.resize(st, r))
	case wire.OpPing:
		st.End(wire.Trailer{})
	case wire.OpPrepare:
		st.End(s.prepare())
	default:
		st.End(wire.Trailer{Code: wire.Invalid, Message: fmt.Sprintf("unknown operation %.40q", r.Op)})
	}
}

// prepareTimeout bounds the start of a shell.
const prepareTimeout = 20 * time.Second

// prepare lets the worker start a shell.
func (s *Server) prepare() wire.Trailer {
	ctx, cancel := context.WithTimeout(context.Background(), prepareTimeout)
	defer cancel()
	conn, err := s.workers.conn(ctx)
	if err == nil {
		var asked *wire.Stream
		if asked, err = conn.Open(ctx, wire.Request{Op: wire.OpPrepare, Env: s.environment(nil)}); err == nil {
			asked.CloseBody()
			_, err = asked.ReadAll(ctx, wire.MaxPayload)
		}
	}
	if err != nil {
		return wire.Trailer{Code: wire.Internal, Message: err.Error()}
	}
	return wire.Trailer{}
}

func (s *Server) acknowledge(st *wire.Stream) wire.Trailer {
	var ids []string
	body, err := st.ReadAll(context.Background(), wire.MaxInput)
	if err == nil {
		err = json.Unmarshal(body, &ids)
	}
	if err != nil {
		return wire.Trailer{Code: wire.Invalid, Message: err.Error()}
	}
	s.calls.acknowledge(ids)
	return wire.Trailer{}
}

func (s *Server) resize(st *wire.Stream, r wire.Request) wire.Trailer {
	target := st.Session().Stream(r.Stream)
	if target == nil {
		return wire.Trailer{}
	}
	if err := s.screens.resize(target, r.Size); err != nil {
		return wire.Trailer{Code: wire.Internal, Message: err.Error()}
	}
	return wire.Trailer{}
}
