package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/coder/websocket"
	"golang.org/x/term"

	"github.com/berth-dev/berth/internal/api"
	"github.com/berth-dev/berth/internal/fault"
)

type attachCmd struct {
	Session string `arg:"" help:"Session id."`
}

// Run opens a terminal in the session's sandbox. It ends with the shell.
func (cmd *attachCmd) Run(ctx context.Context, d *deps) error {
	c, err := d.client()
	if err != nil {
		return err
	}
	cols, rows := fit(0, 0)
	in, isFile := d.stdin.(*os.File)
	tty := isFile && term.IsTerminal(int(in.Fd()))
	if tty {
		if w, h, err := term.GetSize(int(in.Fd())); err == nil {
			cols, rows = fit(w, h)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := c.terminal(ctx, cmd.Session, cols, rows)
	if err != nil {
		return err
	}
	defer conn.CloseNow()
	if tty {
		old, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return fmt.Errorf("set the terminal to raw mode: %w", err)
		}
		defer func() { _ = term.Restore(int(in.Fd()), old) }() // nothing can be done about a terminal that is gone
		stop := onResize(func() {
			if w, h, err := term.GetSize(int(in.Fd())); err == nil {
				w, h = fit(w, h)
				m, _ := json.Marshal(api.TerminalMessage{Type: "resize", Cols: uint16(w), Rows: uint16(h)}) // plain values always encode
				_ = conn.Write(ctx, websocket.MessageText, m)                                               // a broken connection shows below
			}
		})
		defer stop()
	}
	go typed(ctx, conn, d.stdin) // ends with the process: a read of standard input cannot be cancelled
	return shown(ctx, conn, d.out.out)
}

// fit returns a size that the server takes: some terminals do not know theirs.
func fit(cols, rows int) (int, int) {
	const most = 1000
	if cols <= 0 || rows <= 0 {
		return 80, 24
	}
	return min(cols, most), min(rows, most)
}

// terminal opens the WebSocket.
func (c *client) terminal(ctx context.Context, session string, cols, rows int) (*websocket.Conn, error) {
	address := fmt.Sprintf("ws%s/api/v1/sessions/%s/terminal?cols=%d&rows=%d", strings.TrimPrefix(c.base, "http"), url.PathEscape(session), cols, rows)
	conn, res, err := websocket.Dial(ctx, address, &websocket.DialOptions{
		HTTPHeader: http.Header{"Authorization": {"Bearer " + c.token}},
	})
	if err == nil {
		conn.SetReadLimit(1 << 20)
		return conn, nil
	}
	var p api.Problem
	if res != nil && res.Body != nil && json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&p) == nil && p.Code != "" {
		return nil, &fault.Error{Code: p.Code, Message: p.Detail, Field: p.Field, Next: p.Next}
	}
	return nil, c.unreachable(err)
}

func typed(ctx context.Context, conn *websocket.Conn, in io.Reader) {
	buf := make([]byte, 4096)
	for {
		n, err := in.Read(buf)
		if n > 0 && conn.Write(ctx, websocket.MessageBinary, buf[:n]) != nil {
			return
		}
		if err != nil {
			if errors.Is(err, io.EOF) { // a script has ended: so does the shell
				_ = conn.Write(ctx, websocket.MessageBinary, []byte{4})
			}
			return
		}
	}
}

func shown(ctx context.Context, conn *websocket.Conn, out io.Writer) error {
	for {
		typ, data, err := conn.Read(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fault.Wrap(err, fault.Unavailable, "the connection to the terminal broke")
		}
		if typ == websocket.MessageBinary {
			if _, err := out.Write(data); err != nil {
				return err
			}
			continue
		}
		var m api.TerminalMessage
		if json.Unmarshal(data, &m) == nil && m.Type == "exit" {
			if m.Code != 0 {
				return exitStatus(m.Code)
			}
			return nil
		}
	}
}
