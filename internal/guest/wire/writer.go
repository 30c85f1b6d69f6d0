package wire

import (
	"bufio"
	"context"
	"io"
	"sync"
)

// writer owns the outgoing half of a connection: one goroutine, run, writes
// what others push. A write may block for ever when nobody reads at the other
// end; only run waits for it.
type writer struct {
	w     io.Writer
	slots chan struct{} // held by frames that may fill the queue
	wake  chan struct{} // cap 1: the queue is not empty, or stop was called
	ended chan struct{} // closed when run has returned

	mu      sync.Mutex
	queue   []queued
	epoch   uint64 // frames of other epochs are dropped
	stopped bool
}

type queued struct {
	frame   Frame
	slotted bool
}

const queueSlots = 8

func newWriter(w io.Writer) *writer {
	return &writer{w: w, slots: make(chan struct{}, queueSlots), wake: make(chan struct{}, 1), ended: make(chan struct{})}
}

// begin drops everything queued and lets only frames of epoch through.
func (w *writer) begin(epoch uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.epoch = epoch
	for _, q := range w.queue {
		if q.slotted {
			<-w.slots
		}
	}
	w.queue = nil
}

// push queues a frame when there is room. It gives up when one of the channels
// closes or ctx ends, and reports whether the frame was queued.
func (w *writer) push(ctx context.Context, f Frame, gone, over <-chan struct{}) bool {
	select {
	case w.slots <- struct{}{}:
		w.add(f, true)
		return true
	case <-gone:
	case <-over:
	case <-ctx.Done():
	}
	return false
}

// force queues a frame without waiting, for the reading goroutine and for
// frames that end something. Their number is bounded by the streams' number.
func (w *writer) force(f Frame) { w.add(f, false) }

func (w *writer) add(f Frame, slotted bool) {
	w.mu.Lock()
	if f.Epoch == w.epoch {
		w.queue = append(w.queue, queued{f, slotted})
	} else if slotted {
		<-w.slots
	}
	w.mu.Unlock()
	w.poke()
}

// stop lets run return once the queue is empty.
func (w *writer) stop() {
	w.mu.Lock()
	w.stopped = true
	w.mu.Unlock()
	w.poke()
}

func (w *writer) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// pop returns the oldest frame. It reports false for an empty queue, and
// whether stop was called.
func (w *writer) pop() (f Frame, ok, stopped bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) == 0 {
		return Frame{}, false, w.stopped
	}
	q := w.queue[0]
	w.queue[0] = queued{}
	w.queue = w.queue[1:]
	if q.slotted {
		<-w.slots
	}
	return q.frame, true, w.stopped
}

// run writes preamble and then frames until stop is called or failed, which
// hears of every write error, returns false.
func (w *writer) run(preamble []byte, failed func(error) (goOn bool)) {
	defer close(w.ended)
	out := bufio.NewWriterSize(w.w, 2*MaxPayload)
	buf := preamble
	for {
		_, err := out.Write(buf)
		f, ok, stopped := w.pop()
		if err == nil && !ok {
			err = out.Flush()
		}
		if err != nil {
			if !failed(err) {
				return
			}
			out.Reset(w.w)
		}
		for !ok {
			if stopped {
				return
			}
			<-w.wake
			f, ok, stopped = w.pop()
		}
		buf = Append(buf[:0], f)
	}
}
