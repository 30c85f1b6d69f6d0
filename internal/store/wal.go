package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// SQLite takes the first frame of its log that does not fit for the end of the
// log: right after a power cut, and a silent loss of everything behind it when a
// byte in the middle went bad. The two can be told apart. Every transaction is on
// disk before the next one begins, so behind the place where a cut left a gap
// there is at most the end of one transaction; where two ended, there was more.

// Sizes and places in the log (sqlite.org/fileformat2.html, "The Write-Ahead
// Log").
const (
	walHeader   = 32
	walFrame    = 24
	walMagic    = 0x377f0682 // with the lowest bit: checksums of big-endian words
	maxPageSize = 1 << 16
)

// checkLog returns an error if a log lost transactions in its middle. No log is
// a good log.
func checkLog(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the log of the database: %w", err)
	}
	defer f.Close()
	head := make([]byte, walHeader)
	if _, err := io.ReadFull(f, head); err != nil {
		return nil // shorter than its header: nothing was ever committed to it
	}
	magic, size := binary.BigEndian.Uint32(head), binary.BigEndian.Uint32(head[8:])
	if magic&^1 != walMagic || size < 512 || size > maxPageSize || size&(size-1) != 0 {
		return errors.New("the log of the database does not begin as one")
	}
	var order binary.ByteOrder = binary.LittleEndian
	if magic&1 == 1 {
		order = binary.BigEndian
	}
	sum := checksum(order, [2]uint32{}, head[:24])
	if sum != pair(head[24:]) {
		return errors.New("the beginning of the log of the database is damaged")
	}
	frame := make([]byte, walFrame+int(size))
	broken, ends := int64(0), 0
	for n := int64(1); ; n++ {
		if _, err := io.ReadFull(f, frame); err != nil {
			return nil // the end, or a frame that was begun
		}
		if string(frame[8:16]) != string(head[16:24]) {
			return nil // of an earlier use of the file
		}
		fits := checksum(order, checksum(order, sum, frame[:8]), frame[walFrame:]) == pair(frame[16:])
		switch {
		case !fits && broken == 0:
			broken = n
		case fits && broken != 0 && binary.BigEndian.Uint32(frame[4:]) != 0:
			if ends++; ends == 2 {
				return fmt.Errorf("the log of the database is damaged at frame %d, and transactions behind it would be lost", broken)
			}
		}
		sum = pair(frame[16:]) // what the next one was written upon
	}
}

func pair(b []byte) [2]uint32 {
	return [2]uint32{binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])}
}

// checksum continues SQLite's checksum over b, whose length is a multiple of 8.
func checksum(order binary.ByteOrder, s [2]uint32, b []byte) [2]uint32 {
	for ; len(b) >= 8; b = b[8:] {
		s[0] += order.Uint32(b) + s[1]
		s[1] += order.Uint32(b[4:]) + s[0]
	}
	return s
}
