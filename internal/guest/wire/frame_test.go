package wire

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/sandbox"
)

func frame(epoch uint64, payload string) Frame {
	return Frame{Header: Header{Kind: KindData, Epoch: epoch, Stream: 7}, Payload: []byte(payload)}
}

// scan returns the payloads that a scanner finds, and the error at the end.
func scan(s *Scanner) (found []string, err error) {
	for {
		f, err := s.Next()
		if err != nil {
			return found, err
		}
		found = append(found, string(f.Payload))
	}
}

func TestScannerFindsFramesBetweenGarbage(t *testing.T) {
	var b []byte
	b = append(b, "stale \xf8Brt output"...)
	b = Append(b, frame(1, "one"))
	b = append(b, magic[:]...)
	b = Append(b, frame(2, "two"))
	b = append(b, "\xf8\xf8\xf8"...)
	b = Append(b, frame(3, ""))
	got, err := scan(NewScanner(bytes.NewReader(b)))
	if diff := cmp.Diff([]string{"one", "two", ""}, got); diff != "" || !errors.Is(err, io.EOF) {
		t.Errorf("%v %s", err, diff)
	}
}

func TestTornFrameSwallowsOnlyPadding(t *testing.T) {
	whole := Append(nil, frame(1, string(bytes.Repeat([]byte("x"), MaxPayload))))
	for _, cut := range []int{0, 1, 4, HeaderSize - 1, HeaderSize, HeaderSize + 1, len(whole) / 2, len(whole) - 1} {
		b := append([]byte{}, whole[:cut]...)
		b = append(b, make([]byte, Padding)...)
		b = Append(b, frame(2, "hello"))
		got, _ := scan(NewScanner(bytes.NewReader(b)))
		if diff := cmp.Diff([]string{"hello"}, got); diff != "" {
			t.Errorf("cut at %d: %s", cut, diff)
		}
	}
}

func TestScannerOfOneEpochIsNotFooledByForgedHeaders(t *testing.T) {
	// The head of a large frame of another epoch, as an agent may print it.
	b := Append(nil, Frame{Header: Header{Kind: KindData, Epoch: 5}, Payload: make([]byte, MaxPayload)})[:HeaderSize]
	b = Append(b, frame(9, "ours"))
	s := NewScanner(bytes.NewReader(b))
	s.Epoch = 9
	got, _ := scan(s)
	if diff := cmp.Diff([]string{"ours"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestScannerGivesUpOnTooMuchGarbage(t *testing.T) {
	s := NewScanner(io.LimitReader(zeros{}, 10<<20))
	s.Garbage = 1 << 20
	if _, err := s.Next(); !errors.Is(err, sandbox.ErrProtocol) {
		t.Errorf("got %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte{}, uint8(KindData), uint64(1), uint32(1), false, []byte("payload"))
	f.Add(Append(nil, frame(1, "torn"))[:HeaderSize+2], uint8(KindHello), uint64(2), uint32(0), true, []byte("{}"))
	f.Add(append(magic[:], 0xf8, 0xf8), uint8(KindEnd), uint64(1<<63), uint32(1<<31), false, []byte{})
	f.Fuzz(func(t *testing.T, garbage []byte, kind uint8, epoch uint64, stream uint32, last bool, payload []byte) {
		want := Frame{
			Header:  Header{Kind: Kind(kind%uint8(kindLimit-1)) + 1, Epoch: epoch, Stream: stream, Last: last},
			Payload: payload[:min(len(payload), MaxPayload)],
		}
		b := append(append([]byte{}, garbage...), make([]byte, Padding)...)
		b = Append(b, want)
		s := NewScanner(bytes.NewReader(b))
		var got Frame
		for {
			f, err := s.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			// Whatever is found must encode to what was read.
			if again := Append(nil, f); !bytes.Contains(b, again) {
				t.Fatalf("a frame that was never sent: %x", again)
			}
			got = Frame{Header: f.Header, Payload: bytes.Clone(f.Payload)}
		}
		if !bytes.Equal(Append(nil, got), Append(nil, want)) {
			t.Errorf("the frame behind the garbage was lost: got %+v, want %+v", got.Header, want.Header)
		}
	})
}
