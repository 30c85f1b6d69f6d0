package openapitest

import (
	"bufio"
	"bytes"
	"net"
	"net/http"
	"strings"
)

// recorder copies what a handler writes: a whole body, or an event stream frame
// by frame while it flows.
type recorder struct {
	http.ResponseWriter
	exchange *exchange
	frame    func(name, data string)

	hijacked bool
	partial  []byte // of a frame
}

func (r *recorder) WriteHeader(status int) {
	if r.exchange.status == 0 {
		r.exchange.status = status
		r.exchange.mime = r.Header().Get("Content-Type")
		r.exchange.stream = strings.HasPrefix(r.exchange.mime, "text/event-stream")
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.exchange.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	n, err := r.ResponseWriter.Write(b)
	if !r.exchange.stream {
		if room := maxBody - len(r.exchange.response); room > 0 {
			r.exchange.response = append(r.exchange.response, b[:min(n, room)]...)
		}
		return n, err
	}
	r.partial = append(r.partial, b[:n]...)
	for {
		frame, rest, ok := bytes.Cut(r.partial, []byte("\n\n"))
		if !ok {
			return n, err
		}
		r.partial = rest
		var name, data string
		for line := range strings.Lines(string(frame)) {
			line = strings.TrimSuffix(line, "\n")
			if v, ok := strings.CutPrefix(line, "event: "); ok {
				name = v
			}
			if v, ok := strings.CutPrefix(line, "data: "); ok {
				data += v
			}
		}
		if data != "" { // comments keep a connection alive and carry nothing
			r.frame(name, data)
		}
	}
}

// Flush serves handlers that ask for http.Flusher.
func (r *recorder) Flush() {
	if r.exchange.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	_ = http.NewResponseController(r.ResponseWriter).Flush() // a connection that cannot flush writes through
}

// Hijack hands the connection over; nothing is checked then.
func (r *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	r.hijacked = true
	return http.NewResponseController(r.ResponseWriter).Hijack()
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
