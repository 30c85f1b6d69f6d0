// Package wire is the protocol between Berth and its guest: frames, the
// handshake, and many streams over one pair of byte streams.
//
// The two ends may be FIFOs that outlive the process on the host. A process
// that dies in the middle of a frame leaves a torn one behind, and whoever
// attaches next starts reading anywhere. Three rules make that harmless:
//
//   - Each attach chooses a random epoch, every frame carries it, and both ends
//     drop what belongs to another one.
//   - An attach first writes as many zero bytes as the largest frame, so that
//     a torn frame swallows padding and never the hello.
//   - A header and its payload are believed only when their checksums agree;
//     anything else is skipped up to the next header.
package wire

import (
	"encoding/binary"
	"hash/crc32"
)

// Sizes of the protocol, in bytes unless said.
const (
	HeaderSize = 32
	MaxPayload = 64 << 10  // of one frame; larger messages are several frames
	Window     = 256 << 10 // what one end may send on a stream before the other has read it
	MaxStreams = 256       // streams open at the same time in one session
	// Padding precedes a hello: it completes whatever frame an earlier client
	// left torn.
	Padding = HeaderSize + MaxPayload
	// MaxGarbage is what a client skips while it looks for its welcome: the
	// contents of the largest pipe and what the guest had under way.
	MaxGarbage = 4 << 20
)

// Kind says what a frame means.
type Kind uint8

// The kinds of frames. "Initiator" is the end that sent the hello.
const (
	KindHello   Kind = iota + 1 // initiator: begin an epoch; Hello
	KindWelcome                 // acceptor: the epoch has begun; Welcome
	KindOpen                    // initiator: a stream begins; Request
	KindData                    // either: bytes of a stream; with Last, no more follow
	KindEnd                     // acceptor: the stream is over; Trailer
	KindCredit                  // either: that many more bytes may be sent
	KindReset                   // initiator: it lost interest in the stream
	KindBye                     // initiator: the session is over
	kindLimit
)

// Header describes a frame.
type Header struct {
	Kind   Kind
	Last   bool // with KindOpen and KindData: the initiator's body is complete
	Epoch  uint64
	Stream uint32
	Length uint32 // of the payload
	Sum    uint32 // CRC-32C of the payload
}

// Frame is a header and its payload. Append fills in Length and Sum.
type Frame struct {
	Header
	Payload []byte
}

// The first byte cannot occur in UTF-8, so that text never looks like a frame.
var magic = [4]byte{0xf8, 'B', 'r', 't'}

const flagLast = 1

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Append appends the encoded frame to b. The payload must not exceed
// MaxPayload.
func Append(b []byte, f Frame) []byte {
	var h [HeaderSize]byte
	copy(h[0:4], magic[:])
	h[4] = byte(f.Kind)
	if f.Last {
		h[5] = flagLast
	}
	binary.BigEndian.PutUint64(h[8:16], f.Epoch)
	binary.BigEndian.PutUint32(h[16:20], f.Stream)
	binary.BigEndian.PutUint32(h[20:24], uint32(len(f.Payload)))
	binary.BigEndian.PutUint32(h[24:28], crc32.Checksum(f.Payload, castagnoli))
	binary.BigEndian.PutUint32(h[28:32], crc32.Checksum(h[:28], castagnoli))
	return append(append(b, h[:]...), f.Payload...)
}

// parseHeader decodes the first HeaderSize bytes of b. It reports false for
// anything that Append cannot have written.
func parseHeader(b []byte) (Header, bool) {
	if len(b) < HeaderSize || [4]byte(b[:4]) != magic ||
		binary.BigEndian.Uint32(b[28:32]) != crc32.Checksum(b[:28], castagnoli) {
		return Header{}, false
	}
	h := Header{
		Kind:   Kind(b[4]),
		Last:   b[5] == flagLast,
		Epoch:  binary.BigEndian.Uint64(b[8:16]),
		Stream: binary.BigEndian.Uint32(b[16:20]),
		Length: binary.BigEndian.Uint32(b[20:24]),
		Sum:    binary.BigEndian.Uint32(b[24:28]),
	}
	known := h.Kind > 0 && h.Kind < kindLimit && b[5]&^flagLast == 0 && b[6] == 0 && b[7] == 0
	return h, known && h.Length <= MaxPayload
}
