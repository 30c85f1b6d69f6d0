// Package guest is the client of Berth's end inside a sandbox. It implements
// sandbox.Guest over two byte streams; the other end is package server, the
// protocol between them is package wire.
//
// Whatever arrives here was produced beside hostile code. It is bounded and
// checked before it is handed on, and anything that breaks the protocol ends
// the connection.
package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/berth-dev/berth/internal/guest/wire"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/tool"
)

// Options of Attach. The zero value is useful.
type Options struct {
	// Env is the environment of the agent's commands, on top of the guest's
	// own. It holds for shells that start from now on. Variables of the
	// ANTHROPIC_ name space are dropped by the guest.
	Env map[string]string
	// Handshake bounds how long the guest may take to answer; 10 s when zero.
	Handshake time.Duration
}

// Client is a connection to a guest. Safe for concurrent use.
type Client struct {
	conn *wire.Conn
}

var _ sandbox.Guest = (*Client)(nil)

// Attach says hello to the guest that reads from w and writes to r. It may be
// called again and again for the same guest, also after a client died in the
// middle of a message; the newest client wins. closer must make blocked reads
// and writes return; Attach owns it and closes it when it fails. The error is
// sandbox.ErrDisconnected or sandbox.ErrProtocol.
func Attach(ctx context.Context, r io.Reader, w io.Writer, closer io.Closer, o Options) (*Client, error) {
	if o.Handshake <= 0 {
		o.Handshake = 10 * time.Second
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.Handshake, fmt.Errorf("no answer within %s", o.Handshake))
	defer cancel()
	conn, err := wire.Dial(ctx, r, w, closer, o.Env)
	if err != nil {
		return nil, err
	}
	return &Client{conn: conn}, nil
}

// Instance implements sandbox.Guest.
func (c *Client) Instance() string { return c.conn.Welcome.Instance }

// Done is closed when the connection is over.
func (c *Client) Done() <-chan struct{} { return c.conn.Done() }

// Err tells why the connection is over, nil while it lives.
func (c *Client) Err() error { return c.conn.Err() }

// Close implements sandbox.Guest. It waits until nothing of the connection
// runs any more.
func (c *Client) Close() error { return c.conn.Close() }

// Ping implements sandbox.Guest.
func (c *Client) Ping(ctx context.Context) error {
	_, err := c.ask(ctx, wire.Request{Op: wire.OpPing}, nil)
	return err
}

// Prepare starts a shell, which the first call that wants one with this
// environment finds ready. It returns when it is.
func (c *Client) Prepare(ctx context.Context) error {
	_, err := c.ask(ctx, wire.Request{Op: wire.OpPrepare}, nil)
	return err
}

// Call implements sandbox.Guest.
func (c *Client) Call(ctx context.Context, call tool.Call) (tool.Result, error) {
	if len(call.Input) > wire.MaxInput {
		return tool.Error(fmt.Sprintf("the input of %q is %d bytes, more than %d", call.Name, len(call.Input), wire.MaxInput)), nil
	}
	return c.result(ctx, wire.Request{
		Op: wire.OpCall, ID: call.ID, Name: call.Name, Shell: call.Shell, Timeout: call.Timeout,
	}, call.Input)
}

// Recall implements sandbox.Guest.
func (c *Client) Recall(ctx context.Context, id string) (tool.Result, error) {
	return c.result(ctx, wire.Request{Op: wire.OpRecall, ID: id}, nil)
}

func (c *Client) result(ctx context.Context, r wire.Request, body []byte) (tool.Result, error) {
	answer, err := c.ask(ctx, r, body)
	if err != nil {
		return tool.Result{}, err
	}
	var res tool.Result
	if err := json.Unmarshal(answer, &res); err != nil {
		return tool.Result{}, fmt.Errorf("%s %s: %w: %w", r.Op, r.ID, sandbox.ErrProtocol, err)
	}
	return wire.Bound(res), nil
}

// Cancel implements sandbox.Guest.
func (c *Client) Cancel(ctx context.Context, id string) error {
	_, err := c.ask(ctx, wire.Request{Op: wire.OpCancel, ID: id}, nil)
	return err
}

// Acknowledge implements sandbox.Guest.
func (c *Client) Acknowledge(ctx context.Context, ids ...string) error {
	body, err := json.Marshal(ids)
	if err != nil {
		return fmt.Errorf("encode ids: %w", err)
	}
	_, err = c.ask(ctx, wire.Request{Op: wire.OpAck}, body)
	return err
}

// Exec implements sandbox.Guest.
func (c *Client) Exec(ctx context.Context, e sandbox.Exec) (sandbox.ExecResult, error) {
	if len(e.Stdin) > wire.MaxStdin {
		return sandbox.ExecResult{}, fmt.Errorf("exec: standard input of %d bytes exceeds %d", len(e.Stdin), wire.MaxStdin)
	}
	body, err := json.Marshal(e)
	if err != nil {
		return sandbox.ExecResult{}, fmt.Errorf("encode exec: %w", err)
	}
	answer, err := c.ask(ctx, wire.Request{Op: wire.OpExec}, body)
	if err != nil {
		return sandbox.ExecResult{}, err
	}
	var res sandbox.ExecResult
	if err := json.Unmarshal(answer, &res); err != nil || len(res.Stdout) > wire.MaxOutput || len(res.Stderr) > wire.MaxOutput {
		return sandbox.ExecResult{}, fmt.Errorf("exec: %w", errors.Join(sandbox.ErrProtocol, err))
	}
	return res, nil
}

// ask opens a stream, sends the body and waits for the answer. When ctx ends
// it stops waiting.
func (c *Client) ask(ctx context.Context, r wire.Request, body []byte) ([]byte, error) {
	st, err := c.conn.Open(ctx, r)
	if err != nil {
		return nil, err
	}
	defer st.Reset()
	if _, err := st.WriteContext(ctx, body); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		return nil, err
	}
	st.CloseBody()
	return answer(ctx, st)
}

func answer(ctx context.Context, st *wire.Stream) ([]byte, error) {
	b, err := st.ReadAll(ctx, wire.MaxMessage)
	if err != nil {
		return nil, err
	}
	t, err := st.Trailer()
	if err != nil {
		return nil, err
	}
	switch t.Code {
	case wire.OK:
		return b, nil
	case wire.Unknown:
		return nil, sandbox.ErrUnknownCall
	case wire.Acknowledged:
		return nil, sandbox.ErrAcknowledged
	case wire.Busy:
		return nil, fmt.Errorf("%w: %s", sandbox.ErrBusy, printable(t.Message))
	}
	return nil, fmt.Errorf("the guest answered %q: %s", printable(string(t.Code)), printable(t.Message))
}

// printable makes text from the sandbox fit for a log line.
func printable(s string) string {
	if len(s) > 1000 {
		s = s[:1000]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
