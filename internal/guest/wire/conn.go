package wire

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/berth-dev/berth/internal/sandbox"
)

// Conn is the initiating end of a connection: one session, over when it breaks
// or is closed.
type Conn struct {
	*Session
	Welcome Welcome

	closer io.Closer
	once   sync.Once
	wg     sync.WaitGroup
	reason error // of closer
}

// Dial says hello over r and w and waits for the welcome. closer must make
// blocked reads and writes return. Dial owns it: it is closed when Dial fails,
// when the connection breaks, and by Close.
func Dial(ctx context.Context, r io.Reader, w io.Writer, closer io.Closer, env map[string]string) (*Conn, error) {
	payload, err := encode(Hello{MinVersion: Version, MaxVersion: Version, Env: env})
	if err != nil {
		_ = closer.Close()
		return nil, err
	}
	epoch := newEpoch()
	out := newWriter(w)
	out.begin(epoch)
	c := &Conn{Session: newSession(epoch, out, nil), closer: closer}
	hello := Frame{Header: Header{Kind: KindHello, Epoch: epoch}, Payload: payload}
	preamble := Append(make([]byte, Padding, Padding+HeaderSize+len(payload)), hello)
	welcome := make(chan Welcome, 1)
	c.wg.Go(func() {
		out.run(preamble, func(err error) bool {
			c.broke(fmt.Errorf("%w: %w", sandbox.ErrDisconnected, err))
			return false
		})
	})
	c.wg.Go(func() { c.broke(c.read(r, welcome)) })

	select {
	case c.Welcome = <-welcome:
		return c, nil
	case <-c.Done():
		err = c.Err()
	case <-ctx.Done():
		err = fmt.Errorf("%w: %w", sandbox.ErrDisconnected, context.Cause(ctx))
		c.broke(err)
	}
	c.wg.Wait()
	return nil, fmt.Errorf("say hello to the guest: %w", err)
}

// read is the reading goroutine. It returns why it ended.
func (c *Conn) read(r io.Reader, welcome chan<- Welcome) error {
	s := NewScanner(r)
	s.Epoch, s.Garbage = c.epoch, MaxGarbage
	f, err := s.Next()
	if err != nil {
		return disconnected(err)
	}
	var w Welcome
	if f.Kind != KindWelcome || json.Unmarshal(f.Payload, &w) != nil {
		return violation(f, "it is not a welcome")
	}
	if w.Error != "" || w.Version != Version || len(w.Instance) == 0 || len(w.Instance) > 64 {
		return fmt.Errorf("%w: the guest refused: %.200q", sandbox.ErrProtocol, w.Error)
	}
	welcome <- w
	// From here on the two ends are aligned: nothing but frames may come.
	s.skipped, s.Garbage = 0, 0
	for {
		f, err := s.Next()
		if err != nil {
			return disconnected(err)
		}
		if err := c.receive(f); err != nil {
			return err
		}
	}
}

func disconnected(err error) error {
	if errors.Is(err, sandbox.ErrProtocol) {
		return err
	}
	return fmt.Errorf("%w: %w", sandbox.ErrDisconnected, err)
}

// broke ends the session and closes the connection.
func (c *Conn) broke(err error) {
	c.fail(err)
	c.once.Do(func() {
		c.out.stop()
		c.reason = c.closer.Close()
	})
}

// goodbye is how long Close tries to tell the other end.
const goodbye = 100 * time.Millisecond

// Close ends the session, says goodbye if the other end is reading, closes the
// connection and waits until nothing of it runs. It is idempotent.
func (c *Conn) Close() error {
	if c.Err() == nil {
		c.out.force(c.frame(KindBye, 0, nil))
		c.out.stop()
		c.fail(fmt.Errorf("%w: it was closed", sandbox.ErrDisconnected))
		t := time.NewTimer(goodbye)
		defer t.Stop()
		select {
		case <-c.out.ended:
		case <-t.C:
		}
	}
	c.broke(sandbox.ErrDisconnected)
	c.wg.Wait()
	return c.reason
}

func newEpoch() uint64 {
	var b [8]byte
	for {
		_, _ = rand.Read(b[:]) // never fails
		if e := binary.BigEndian.Uint64(b[:]); e != 0 {
			return e
		}
	}
}
