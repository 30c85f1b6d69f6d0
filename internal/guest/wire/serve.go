package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/berth-dev/berth/internal/sandbox"
)

// Acceptor is what the accepting end does with what it is asked for.
type Acceptor interface {
	// Hello hears of a new session. Earlier ones have ended.
	Hello(Hello) Welcome
	// Accept takes a new stream and must end it. It runs on the reading
	// goroutine, so that streams are accepted in the order of their opening:
	// it must not block.
	Accept(*Stream, Request)
}

// Serve accepts one session after the other over r and w until r ends, and
// then returns nil, or the reader's error. A session that breaks the protocol
// is dropped and the next hello is awaited: the initiator is trusted, and
// giving up here would cost everything that lives in this sandbox. Serve
// closes w, which must make a blocked write return.
func Serve(r io.Reader, w io.WriteCloser, a Acceptor) error {
	out := newWriter(w)
	s := &serving{out: out, acceptor: a}
	var wg sync.WaitGroup
	wg.Go(func() {
		out.run(nil, func(err error) bool {
			s.drop(fmt.Errorf("%w: %w", sandbox.ErrDisconnected, err))
			return true
		})
	})
	err := s.read(NewScanner(r))
	s.drop(sandbox.ErrDisconnected)
	out.stop()
	_ = w.Close()
	wg.Wait()
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

type serving struct {
	out      *writer
	acceptor Acceptor

	mu      sync.Mutex
	session *Session
}

func (s *serving) read(in *Scanner) error {
	for {
		f, err := in.Next()
		if err != nil {
			return fmt.Errorf("read frame: %w", err)
		}
		if f.Kind == KindHello {
			s.hello(f)
			continue
		}
		session := s.current()
		if session == nil || session.epoch != f.Epoch {
			continue
		}
		if err := session.receive(f); err != nil {
			s.drop(err)
		}
	}
}

func (s *serving) hello(f Frame) {
	var h Hello
	if json.Unmarshal(f.Payload, &h) != nil || f.Epoch == 0 {
		return
	}
	s.drop(errNewer)
	session := newSession(f.Epoch, s.out, s.acceptor.Accept)
	var w Welcome
	version, err := Agree(h)
	if err != nil {
		w.Error = err.Error()
	} else {
		w = s.acceptor.Hello(h)
		w.Version = version
		s.mu.Lock()
		s.session = session
		s.mu.Unlock()
	}
	payload, err := encode(w)
	if err != nil {
		payload, _ = encode(Welcome{Error: "the welcome is too large"})
	}
	s.out.begin(f.Epoch)
	s.out.force(session.frame(KindWelcome, 0, payload))
}

func (s *serving) current() *Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.session
}

func (s *serving) drop(err error) {
	s.mu.Lock()
	session := s.session
	s.session = nil
	s.mu.Unlock()
	if session != nil {
		session.fail(err)
	}
}
