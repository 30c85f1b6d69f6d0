package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/berth-dev/berth/internal/sandbox"
)

// Stream carries one operation. The initiator sends a body and closes it; the
// acceptor sends an answer and ends the stream with a trailer. Reading and
// writing may happen at the same time, but at most one goroutine does each.
type Stream struct {
	id       uint32
	session  *Session
	readable chan struct{} // cap 1
	writable chan struct{} // cap 1
	done     chan struct{}

	mu      sync.Mutex
	in      bytes.Buffer
	inEOF   bool   // the other end sends no more
	room    int    // bytes that the other end may still send
	owed    int    // bytes read that it has not been told of
	credit  int    // bytes that we may still send
	over    bool   // done is closed
	err     error  // why it is over, nil for a regular end
	trailer []byte // the acceptor's last word
}

func newStream(s *Session, id uint32) *Stream {
	return &Stream{
		id: id, session: s, room: Window, credit: Window,
		readable: make(chan struct{}, 1), writable: make(chan struct{}, 1), done: make(chan struct{}),
	}
}

// ID is the stream's number within its session.
func (st *Stream) ID() uint32 { return st.id }

// Session is the session that the stream belongs to.
func (st *Stream) Session() *Session { return st.session }

// Done is closed when the stream is over: ended, reset, or its session is.
func (st *Stream) Done() <-chan struct{} { return st.done }

// Read reads what the other end sends; io.EOF after its last byte.
func (st *Stream) Read(p []byte) (int, error) { return st.ReadContext(context.Background(), p) }

// ReadContext is Read until ctx ends.
func (st *Stream) ReadContext(ctx context.Context, p []byte) (int, error) {
	for {
		st.mu.Lock()
		if st.in.Len() > 0 || len(p) == 0 {
			n, _ := st.in.Read(p)
			grant := st.consumed(n)
			st.mu.Unlock()
			if grant > 0 {
				f := st.session.frame(KindCredit, st.id, number(grant))
				st.session.out.push(ctx, f, st.session.done, st.done)
			}
			return n, nil
		}
		eof, over, err := st.inEOF, st.over, st.err
		st.mu.Unlock()
		switch {
		case eof:
			return 0, io.EOF
		case over && err == nil:
			return 0, io.EOF
		case over:
			return 0, err
		}
		select {
		case <-st.readable:
		case <-st.done:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// consumed accounts for n bytes read and returns how many to grant now.
func (st *Stream) consumed(n int) int {
	st.owed += n
	if st.owed < Window/2 || st.inEOF || st.over {
		return 0
	}
	grant := st.owed
	st.owed = 0
	st.room += grant
	return grant
}

// ReadAll reads to the end and refuses more than limit bytes.
func (st *Stream) ReadAll(ctx context.Context, limit int) ([]byte, error) {
	var all bytes.Buffer
	n, err := io.Copy(&all, io.LimitReader(reader{ctx, st}, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if n > int64(limit) {
		return nil, fmt.Errorf("%w: a message exceeds %d bytes", sandbox.ErrProtocol, limit)
	}
	return all.Bytes(), nil
}

// Reader returns the stream as an io.Reader that ctx ends.
func (st *Stream) Reader(ctx context.Context) io.Reader { return reader{ctx, st} }

type reader struct {
	ctx context.Context // an io.Reader has no other place for it
	st  *Stream
}

func (r reader) Read(p []byte) (int, error) { return r.st.ReadContext(r.ctx, p) }

// Write sends p, in pieces as the other end reads. It blocks while the window
// is full.
func (st *Stream) Write(p []byte) (int, error) { return st.WriteContext(context.Background(), p) }

// WriteContext is Write until ctx ends.
func (st *Stream) WriteContext(ctx context.Context, p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		st.mu.Lock()
		n := min(len(p)-sent, st.credit, MaxPayload)
		st.credit -= n
		over := st.over
		st.mu.Unlock()
		if over {
			return sent, st.closed()
		}
		if n == 0 {
			select {
			case <-st.writable:
			case <-st.done:
			case <-ctx.Done():
				return sent, context.Cause(ctx)
			}
			continue
		}
		f := st.session.frame(KindData, st.id, append([]byte{}, p[sent:sent+n]...))
		if !st.session.out.push(ctx, f, st.session.done, st.done) {
			if err := context.Cause(ctx); err != nil {
				return sent, err
			}
			return sent, st.closed()
		}
		sent += n
	}
	return sent, nil
}

// closed is the error of writing to a stream that is over.
func (st *Stream) closed() error {
	if err := st.Err(); err != nil {
		return err
	}
	return io.ErrClosedPipe
}

// CloseBody tells the acceptor that the body is complete. Only the initiator
// calls it. It does not block.
func (st *Stream) CloseBody() {
	f := st.session.frame(KindData, st.id, nil)
	f.Last = true
	st.session.out.force(f)
}

// Reset gives the stream up. Only the initiator calls it; it is idempotent and
// does not block.
func (st *Stream) Reset() {
	if st.finish(nil, errReset) {
		st.session.forget(st.id)
		st.session.out.force(st.session.frame(KindReset, st.id, nil))
	}
}

// End sends the trailer and ends the stream. Only the acceptor calls it. It
// blocks while the connection is busy; a stream that is over is left alone.
func (st *Stream) End(t Trailer) {
	st.session.out.push(context.Background(), st.end(t), st.session.done, st.done)
	st.session.forget(st.id)
	st.finish(nil, nil)
}

func (st *Stream) end(t Trailer) Frame { return st.session.frame(KindEnd, st.id, t.encode()) }

// Trailer returns the acceptor's last word. It is there once Read has returned
// io.EOF on the initiating side.
func (st *Stream) Trailer() (Trailer, error) {
	st.mu.Lock()
	raw, err := st.trailer, st.err
	st.mu.Unlock()
	if err != nil {
		return Trailer{}, err
	}
	var t Trailer
	if err := json.Unmarshal(raw, &t); err != nil {
		return Trailer{}, fmt.Errorf("%w: trailer: %w", sandbox.ErrProtocol, err)
	}
	return t, nil
}

// Err tells why the stream is over: nil while it lives and after a regular end.
func (st *Stream) Err() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.err
}

// finish marks the stream as over and reports whether it was not before.
func (st *Stream) finish(trailer []byte, err error) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.over {
		return false
	}
	st.over, st.trailer, st.err = true, trailer, err
	close(st.done)
	return true
}

// deliver takes a data frame from the other end.
func (st *Stream) deliver(f Frame) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case st.over:
		return nil
	case st.inEOF:
		return violation(f, "it follows the last one")
	case len(f.Payload) > st.room:
		return violation(f, "it exceeds the window")
	}
	st.room -= len(f.Payload)
	st.in.Write(f.Payload)
	st.inEOF = f.Last
	poke(st.readable)
	return nil
}

// grant takes a credit frame from the other end.
func (st *Stream) grant(f Frame) error {
	n := binary.BigEndian.Uint32(f.Payload)
	st.mu.Lock()
	defer st.mu.Unlock()
	if n > Window || st.credit+int(n) > Window {
		return violation(f, "it grants more than a window")
	}
	st.credit += int(n)
	poke(st.writable)
	return nil
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// IsReset reports whether err means that the other end lost interest in one
// stream, rather than that the connection broke.
func IsReset(err error) bool { return errors.Is(err, errReset) }
