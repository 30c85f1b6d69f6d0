package wire

import (
	"bufio"
	"bytes"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/berth-dev/berth/internal/sandbox"
)

// Scanner finds frames in a byte stream that may hold anything else as well.
// It is not safe for concurrent use.
type Scanner struct {
	// Epoch, when not zero, is the only epoch whose frames count. Everything
	// else is skipped byte by byte, so that a forged header in old data cannot
	// swallow what follows it.
	Epoch uint64
	// Garbage is how many bytes may be skipped in all; negative means any
	// number.
	Garbage int

	r       *bufio.Reader
	skipped int
	payload [MaxPayload]byte
}

// NewScanner returns a scanner that skips any amount of garbage.
func NewScanner(r io.Reader) *Scanner {
	return &Scanner{r: bufio.NewReaderSize(r, 2*MaxPayload), Garbage: -1}
}

// Next returns the next frame. Its payload is valid until the following call.
// The error is sandbox.ErrProtocol when more than Garbage bytes were skipped,
// and otherwise the reader's own.
func (s *Scanner) Next() (Frame, error) {
	for {
		head, err := s.r.Peek(HeaderSize)
		if err != nil {
			return Frame{}, err
		}
		h, ok := parseHeader(head)
		if !ok || (s.Epoch != 0 && h.Epoch != s.Epoch) {
			if err := s.skip(s.distance()); err != nil {
				return Frame{}, err
			}
			continue
		}
		if _, err := s.r.Discard(HeaderSize); err != nil {
			return Frame{}, err
		}
		payload := s.payload[:h.Length]
		if _, err := io.ReadFull(s.r, payload); err != nil {
			return Frame{}, err
		}
		if crc32.Checksum(payload, castagnoli) != h.Sum {
			// A torn frame that was completed by padding.
			if err := s.count(HeaderSize + len(payload)); err != nil {
				return Frame{}, err
			}
			continue
		}
		return Frame{Header: h, Payload: payload}, nil
	}
}

// distance returns how far the next byte that may begin a header is, at least 1.
func (s *Scanner) distance() int {
	b, err := s.r.Peek(s.r.Buffered())
	if err != nil || len(b) == 0 {
		return 1
	}
	if i := bytes.IndexByte(b[1:], magic[0]); i >= 0 {
		return 1 + i
	}
	return len(b)
}

func (s *Scanner) skip(n int) error {
	if err := s.count(n); err != nil {
		return err
	}
	_, err := s.r.Discard(n)
	return err
}

func (s *Scanner) count(n int) error {
	if s.Garbage < 0 {
		return nil
	}
	if s.skipped += n; s.skipped > s.Garbage {
		return fmt.Errorf("%w: %d bytes are not frames", sandbox.ErrProtocol, s.skipped)
	}
	return nil
}
