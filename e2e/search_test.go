package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// formsOf returns how each value may be written: as it is, in hexadecimal, and
// in base64 wherever in a longer text it begins.
func formsOf(values map[string]string) map[string][][]byte {
	forms := map[string][][]byte{}
	for name, v := range values {
		lower := hex.EncodeToString([]byte(v))
		all := [][]byte{[]byte(v), []byte(lower), []byte(strings.ToUpper(lower))}
		for shift := range 3 {
			shifted := append(make([]byte, shift), v...)
			whole := len(shifted) / 3 * 4 // what follows changes with what comes next
			for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
				form := []byte(encoding.EncodeToString(shifted)[(shift*8+5)/6 : whole])
				if !bytes.Equal(form, all[len(all)-1]) {
					all = append(all, form)
				}
			}
		}
		forms[name] = all
	}
	return forms
}

func TestFormsOfAValue(t *testing.T) {
	const value = "sk-ant-??>>~~0123456789"
	forms := formsOf(map[string]string{"it": value})
	for n := range 4 {
		text := []byte("before"[:n] + value + "after"[:n])
		for _, written := range []string{
			string(text), hex.EncodeToString(text), fmt.Sprintf("%X", text),
			base64.StdEncoding.EncodeToString(text), base64.RawURLEncoding.EncodeToString(text),
		} {
			s := search{forms: forms, found: map[string]bool{}}
			if s.bytes([]byte(written)); !s.found["it"] {
				t.Errorf("it is not found in %s", written)
			}
		}
	}
}

// search looks for values in one kind of place.
type search struct {
	forms       map[string][][]byte
	found       map[string]bool
	size, parts int
}

func (s *search) bytes(b []byte) {
	s.size += len(b)
	s.parts++
	for name, all := range s.forms {
		if !s.found[name] && slices.ContainsFunc(all, func(f []byte) bool { return bytes.Contains(b, f) }) {
			s.found[name] = true
		}
	}
}

// overlap is more than any form is long.
const overlap = 512

// file looks into a file piece by piece; one that is gone or closed has nothing.
func (s *search) file(path string) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	const data, hole = 3, 4 // SEEK_DATA, SEEK_HOLE of Linux
	info, err := f.Stat()
	if err != nil || info.Size() == 0 { // of the kernel
		s.stream(f)
		return
	}
	for at := int64(0); ; { // a disk is nearly all holes
		from, err := f.Seek(at, data)
		if err != nil {
			return
		}
		if at, err = f.Seek(from, hole); err != nil {
			return
		}
		s.stream(io.NewSectionReader(f, from, at-from))
	}
}

func (s *search) stream(r io.Reader) {
	buf, kept := make([]byte, 1<<20), 0
	for {
		n, err := io.ReadFull(r, buf[kept:])
		s.bytes(buf[:kept+n])
		if err != nil {
			return
		}
		kept = copy(buf, buf[len(buf)-overlap:])
	}
}

// folder looks into all regular files of a folder, and at their names.
func (s *search) folder(dir string) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil { // or it is gone meanwhile
			s.bytes([]byte(path))
		}
		if err == nil && d.Type().IsRegular() {
			s.file(path)
		}
		return nil
	})
}

// memory looks into the pages of a process that can be written and exist.
func (s *search) memory(proc string) {
	regions, err := os.ReadFile(filepath.Join(proc, "maps"))
	if err != nil {
		return // gone
	}
	mem, err := os.Open(filepath.Join(proc, "mem"))
	if err != nil {
		return
	}
	defer mem.Close()
	pages, err := os.Open(filepath.Join(proc, "pagemap"))
	if err != nil {
		return
	}
	defer pages.Close()
	for line := range strings.Lines(string(regions)) {
		var from, to uint64
		var rights string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &rights); n == 3 && strings.HasPrefix(rights, "rw") && to-from <= 16<<30 {
			s.region(mem, pages, from, to)
		}
	}
}

// region looks into the runs of pages that exist; others are not made by
// looking at them.
func (s *search) region(mem, pages *os.File, from, to uint64) {
	const page, most = 4096, 16 << 20
	table := make([]byte, 8*(to-from)/page)
	n, _ := pages.ReadAt(table, int64(8*from/page)) // nothing is said of the rest
	var start uint64
	flush := func(end uint64) {
		if start != 0 && end > start {
			b := make([]byte, end-start)
			if n, _ := mem.ReadAt(b, int64(start)); n > 0 { // such as devices
				s.bytes(b[:n])
			}
		}
		start = 0
	}
	for i := range uint64(n / 8) {
		at := from + i*page
		switch exists := binary.NativeEndian.Uint64(table[8*i:])>>62 != 0; {
		case !exists:
			flush(at)
		case start == 0:
			start = at
		case at-start >= most:
			flush(at)
			start = at - page // values that lie across
		}
	}
	flush(from + uint64(n/8)*page)
}
