package wire

import (
	"bytes"
	"io"
	"sync"
)

// pipe is a FIFO in memory: it holds as much as a kernel's, blocks beyond, and
// outlives its readers.
type pipe struct {
	mu      sync.Mutex
	changed *sync.Cond
	buf     bytes.Buffer
	closed  bool
	stalled bool
}

const pipeSize = 64 << 10

func newPipe() *pipe {
	p := &pipe{}
	p.changed = sync.NewCond(&p.mu)
	return p
}

func (p *pipe) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	sent := 0
	for sent < len(b) {
		for p.buf.Len() >= pipeSize && !p.closed {
			p.changed.Wait()
		}
		if p.closed {
			return sent, io.ErrClosedPipe
		}
		n := min(pipeSize-p.buf.Len(), len(b)-sent)
		p.buf.Write(b[sent : sent+n])
		sent += n
		p.changed.Broadcast()
	}
	return sent, nil
}

func (p *pipe) Read(b []byte) (int, error) { return p.read(b, new(bool)) }

// read reads until *gone, which the lock guards.
func (p *pipe) read(b []byte, gone *bool) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for (p.buf.Len() == 0 || p.stalled) && !p.closed && !*gone {
		p.changed.Wait()
	}
	switch {
	case *gone:
		return 0, io.ErrClosedPipe
	case p.closed:
		return 0, io.EOF
	}
	defer p.changed.Broadcast()
	return p.buf.Read(b)
}

func (p *pipe) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	p.changed.Broadcast()
}

func (p *pipe) Close() error {
	p.set(func() { p.closed = true })
	return nil
}

// skip takes away what somebody read before it died.
func (p *pipe) skip(n int) { p.set(func() { p.buf.Next(n) }) }

func (p *pipe) stall()  { p.set(func() { p.stalled = true }) }
func (p *pipe) resume() { p.set(func() { p.stalled = false }) }

// reader is one process's hold on the pipe: closing it leaves the pipe open.
func (p *pipe) reader() *hold { return &hold{pipe: p} }

type hold struct {
	pipe *pipe
	gone bool
}

func (h *hold) Read(b []byte) (int, error) { return h.pipe.read(b, &h.gone) }

func (h *hold) Close() error {
	h.pipe.set(func() { h.gone = true })
	return nil
}
