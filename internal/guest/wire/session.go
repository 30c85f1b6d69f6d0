package wire

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/berth-dev/berth/internal/sandbox"
)

// Session is one epoch of a connection: the streams that were opened since its
// hello. Safe for concurrent use.
type Session struct {
	epoch  uint64
	out    *writer
	accept func(*Stream, Request) // nil on the initiating side
	done   chan struct{}

	mu      sync.Mutex
	streams map[uint32]*Stream
	last    uint32 // the highest stream id so far
	err     error  // why the session is over
}

func newSession(epoch uint64, out *writer, accept func(*Stream, Request)) *Session {
	return &Session{epoch: epoch, out: out, accept: accept, done: make(chan struct{}), streams: map[uint32]*Stream{}}
}

// Done is closed when the session is over.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err tells why the session is over, nil while it lives.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Open begins a stream; only the initiator may. It blocks while the connection
// is busy.
func (s *Session) Open(ctx context.Context, r Request) (*Stream, error) {
	payload, err := encode(r)
	if err != nil {
		return nil, err
	}
	// The slot comes first and the id second, so that ids reach the other end
	// in their order.
	select {
	case s.out.slots <- struct{}{}:
	case <-s.done:
		return nil, s.Err()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err != nil:
		err = s.err
	case len(s.streams) >= MaxStreams:
		err = fmt.Errorf("open stream: %d are open, which is the limit", MaxStreams)
	case s.last == ^uint32(0):
		err = errors.New("open stream: this session has used all its numbers")
	}
	if err != nil {
		<-s.out.slots
		return nil, err
	}
	s.last++
	st := newStream(s, s.last)
	s.streams[st.id] = st
	s.out.add(Frame{Header: Header{Kind: KindOpen, Epoch: s.epoch, Stream: st.id}, Payload: payload}, true)
	return st, nil
}

// Stream returns the open stream with this id, nil when there is none.
func (s *Session) Stream(id uint32) *Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streams[id]
}

// fail ends the session and all its streams. The first cause stays.
func (s *Session) fail(err error) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	s.err = err
	streams := s.streams
	s.streams = nil
	close(s.done)
	s.mu.Unlock()
	for _, st := range streams {
		st.finish(nil, err)
	}
}

func (s *Session) forget(id uint32) {
	s.mu.Lock()
	delete(s.streams, id)
	s.mu.Unlock()
}

// receive handles one frame of this epoch. It never blocks. An error is a
// violation of the protocol.
func (s *Session) receive(f Frame) error {
	switch {
	case f.Kind == KindOpen:
		return s.opened(f)
	case f.Kind == KindBye && s.accept != nil:
		s.fail(errBye)
		return nil
	}
	s.mu.Lock()
	st, known := s.streams[f.Stream], f.Stream <= s.last
	s.mu.Unlock()
	if !known {
		return violation(f, "its stream was never opened")
	}
	if st == nil {
		return nil // crossed the end of its stream on the way
	}
	switch f.Kind {
	case KindData:
		if f.Last && s.accept == nil {
			return violation(f, "an answer ends with a trailer")
		}
		return st.deliver(f)
	case KindCredit:
		if len(f.Payload) != 4 {
			return violation(f, "its payload is not a number")
		}
		return st.grant(f)
	case KindEnd:
		if s.accept != nil {
			return violation(f, "it came from the initiator")
		}
		s.forget(f.Stream)
		st.finish(append([]byte{}, f.Payload...), nil)
		return nil
	case KindReset:
		if s.accept == nil {
			return violation(f, "it came from the acceptor")
		}
		s.forget(f.Stream)
		st.finish(nil, errReset)
		return nil
	}
	return violation(f, "unexpected")
}

func (s *Session) opened(f Frame) error {
	var r Request
	if s.accept == nil {
		return violation(f, "it came from the acceptor")
	}
	if err := json.Unmarshal(f.Payload, &r); err != nil {
		return violation(f, err.Error())
	}
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return nil
	}
	if f.Stream <= s.last {
		s.mu.Unlock()
		return violation(f, "its stream number was used before")
	}
	s.last = f.Stream
	full := len(s.streams) >= MaxStreams
	st := newStream(s, f.Stream)
	st.inEOF = f.Last
	if !full {
		s.streams[f.Stream] = st
	}
	s.mu.Unlock()
	if full {
		s.out.force(st.end(Trailer{Code: Busy, Message: "too many streams are open"}))
		return nil
	}
	s.accept(st, r)
	return nil
}

// frame returns a frame of this epoch.
func (s *Session) frame(kind Kind, stream uint32, payload []byte) Frame {
	return Frame{Header: Header{Kind: kind, Epoch: s.epoch, Stream: stream}, Payload: payload}
}

func number(n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }

var (
	errReset = errors.New("the other end gave the stream up")
	errBye   = errors.New("the other end said goodbye")
	errNewer = errors.New("a newer session began")
)

func violation(f Frame, why string) error {
	return fmt.Errorf("%w: frame of kind %d on stream %d: %s", sandbox.ErrProtocol, f.Kind, f.Stream, why)
}
