package guest

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/berth-dev/berth/internal/guest/wire"
	"github.com/berth-dev/berth/internal/sandbox"
)

// Terminal implements sandbox.Guest.
func (c *Client) Terminal(ctx context.Context, size sandbox.Size) (sandbox.Terminal, error) {
	st, err := c.conn.Open(ctx, wire.Request{Op: wire.OpTerminal, Size: size})
	if err != nil {
		return nil, err
	}
	t := &terminal{client: c, stream: st, writing: make(chan struct{}, 1)}
	// The first byte says that the shell runs.
	if _, err := st.ReadContext(ctx, make([]byte, 1)); errors.Is(err, io.EOF) {
		_, err = t.Wait(ctx)
		return nil, errors.Join(errors.New("open terminal: it ended at once"), err)
	} else if err != nil {
		st.Reset()
		return nil, err
	}
	return t, nil
}

const resizeTimeout = 10 * time.Second

// terminal is one interactive shell. Any number of goroutines may write, one
// reads.
type terminal struct {
	client  *Client
	stream  *wire.Stream
	writing chan struct{} // held while a Write runs, so that writes do not mix
}

func (t *terminal) Read(p []byte) (int, error) { return t.stream.Read(p) }

func (t *terminal) Write(p []byte) (int, error) {
	select {
	case t.writing <- struct{}{}:
		defer func() { <-t.writing }()
	case <-t.stream.Done():
		return 0, io.ErrClosedPipe
	}
	return t.stream.Write(p)
}

func (t *terminal) Resize(size sandbox.Size) error {
	ctx, cancel := context.WithTimeout(context.Background(), resizeTimeout)
	defer cancel()
	_, err := t.client.ask(ctx, wire.Request{Op: wire.OpResize, Stream: t.stream.ID(), Size: size}, nil)
	return err
}

// Wait returns as soon as the shell has ended, whether or not its output was
// read to the end.
func (t *terminal) Wait(ctx context.Context) (int, error) {
	select {
	case <-t.stream.Done():
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	last, err := t.stream.Trailer()
	if err != nil {
		return 0, err
	}
	if last.Code != wire.OK {
		return 0, errors.New("open terminal: " + printable(last.Message))
	}
	return last.Exit, nil
}

func (t *terminal) Close() error {
	t.stream.Reset()
	return nil
}
