package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/coder/websocket"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/sandbox"
)

// TerminalMessage is a text frame of the terminal's WebSocket; binary frames are
// the bytes of the terminal, both ways. The client sends resize, the server
// sends exit, once, before it closes.
type TerminalMessage struct {
	Type string `json:"type"` // resize or exit
	Cols uint16 `json:"cols,omitempty"`
	Rows uint16 `json:"rows,omitempty"`
	Code int    `json:"code"`
}

// terminal is an interactive shell in a session's sandbox over a WebSocket.
func (s *server) terminal(w http.ResponseWriter, r *http.Request) {
	if origin, err := url.Parse(r.Header.Get("Origin")); err != nil || origin.Host != "" && origin.Host != r.Host {
		writeError(w, fault.New(fault.Refused, "a page of another origin may not open a terminal"))
		return
	}
	size, err := terminalSize(r)
	if err != nil {
		writeError(w, err)
		return
	}
	g, err := s.guest(r.Context(), r.PathValue("id"))
	if err != nil {
		writeError(w, s.failed(err))
		return
	}
	t, err := g.Terminal(r.Context(), size)
	if err != nil {
		writeError(w, s.failed(refusal(err, "no terminal could be opened in the sandbox")))
		return
	}
	defer t.Close()
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // Accept has answered
	}
	defer conn.CloseNow()
	conn.SetReadLimit(64 << 10)
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { t.Close() })
	defer stop()
	go func() { // ends with the connection
		defer cancel()
		receive(ctx, conn, t)
	}()
	go func() { // ends with the request
		select {
		case <-s.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	send(ctx, conn, t)
}

// receive copies what a person types to the terminal until the connection ends.
func receive(ctx context.Context, conn *websocket.Conn, t sandbox.Terminal) {
	for {
		typ, data, err := conn.Read(ctx)
		if err != nil {
			return
		}
		if typ == websocket.MessageBinary {
			if _, err := t.Write(data); err != nil {
				return
			}
			continue
		}
		var m TerminalMessage
		if json.Unmarshal(data, &m) == nil && m.Type == "resize" && m.Cols > 0 && m.Rows > 0 {
			_ = t.Resize(sandbox.Size{Cols: m.Cols, Rows: m.Rows}) // a refused resize changes nothing
		}
	}
}

// send copies the terminal's output to the connection until the shell ends.
func send(ctx context.Context, conn *websocket.Conn, t sandbox.Terminal) {
	buf := make([]byte, 32<<10)
	for {
		n, err := t.Read(buf)
		if n > 0 {
			if conn.Write(ctx, websocket.MessageBinary, buf[:n]) != nil {
				return
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				conn.Close(websocket.StatusInternalError, "the terminal broke")
				return
			}
			break
		}
	}
	code, err := t.Wait(ctx)
	if err != nil {
		return
	}
	bye, _ := json.Marshal(TerminalMessage{Type: "exit", Code: code}) // plain values always encode
	if conn.Write(ctx, websocket.MessageText, bye) == nil {
		conn.Close(websocket.StatusNormalClosure, "the shell ended")
	}
}

func terminalSize(r *http.Request) (sandbox.Size, error) {
	size := sandbox.Size{Cols: 80, Rows: 24}
	for name, cell := range map[string]*uint16{"cols": &size.Cols, "rows": &size.Rows} {
		v := r.URL.Query().Get(name)
		if v == "" {
			continue
		}
		n, err := strconv.ParseUint(v, 10, 16)
		if err != nil || n < 1 || n > 1000 {
			return size, fault.New(fault.Invalid, "must be a whole number from 1 to 1000").WithField(name)
		}
		*cell = uint16(n)
	}
	return size, nil
}
