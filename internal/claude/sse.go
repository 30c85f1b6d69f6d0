package claude

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

// errFrame is the error of a stream whose lines or events are too long.
var errFrame = errors.New("an event on the stream is larger than Berth accepts")

// frames reads server-sent events. Comments and fields other than event and
// data are ignored: there is no replay, so ids mean nothing (contract §4.7).
type frames struct {
	r     *bufio.Reader
	limit int // of one event, in bytes
}

func newFrames(r io.Reader, limit int) *frames {
	return &frames{r: bufio.NewReaderSize(r, 64<<10), limit: limit}
}

// next returns the next event that has data; name is "" when the frame did not
// give one. io.EOF means that the stream ended between two events. data is the
// caller's.
func (f *frames) next() (name string, data []byte, err error) {
	var lines [][]byte
	size := 0
	for {
		line, err := f.line(f.limit - size)
		if err != nil {
			if errors.Is(err, io.EOF) && (name != "" || lines != nil || len(line) > 0) {
				return "", nil, io.ErrUnexpectedEOF
			}
			return "", nil, err
		}
		if size += len(line); len(line) == 0 {
			if data = bytes.Join(lines, []byte("\n")); len(data) > 0 {
				return name, data, nil
			}
			name, size, lines = "", 0, nil // an event without data is none
			continue
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "event":
			name = string(value)
		case "data":
			lines = append(lines, value)
		default:
			size -= len(line) // not kept
		}
	}
}

// line reads one line without its end. With an error it returns what there was.
func (f *frames) line(limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := f.r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > limit+2 {
			return nil, errFrame
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return line, err
		}
		return bytes.TrimSuffix(line[:len(line)-1], []byte("\r")), nil
	}
}
