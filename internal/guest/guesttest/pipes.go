//go:build linux

package guesttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/guest"
)

// Pipes are the two FIFOs that a guest speaks over.
type Pipes struct {
	In, Out string // paths: the guest's standard input and output
}

// NewPipes makes the FIFOs in a folder.
func NewPipes(dir string) (Pipes, error) {
	p := Pipes{In: filepath.Join(dir, "in"), Out: filepath.Join(dir, "out")}
	for _, path := range []string{p.In, p.Out} {
		if err := unix.Mkfifo(path, 0o600); err != nil {
			return Pipes{}, fmt.Errorf("make FIFO %s: %w", path, err)
		}
	}
	return p, nil
}

// Open opens both for reading and writing, so that neither end ever sees the
// other one leave.
func (p Pipes) Open() (in, out *os.File, err error) {
	if in, err = os.OpenFile(p.In, os.O_RDWR|unix.O_NONBLOCK, 0); err != nil {
		return nil, nil, err
	}
	if out, err = os.OpenFile(p.Out, os.O_RDWR|unix.O_NONBLOCK, 0); err != nil {
		return nil, nil, errors.Join(err, in.Close())
	}
	return in, out, nil
}

// Attach connects a client to the guest behind the FIFOs.
func (p Pipes) Attach(ctx context.Context, o guest.Options) (*guest.Client, error) {
	in, out, err := p.Open()
	if err != nil {
		return nil, err
	}
	return guest.Attach(ctx, out, in, both{in, out}, o)
}

type both struct{ in, out io.Closer }

func (b both) Close() error { return errors.Join(b.in.Close(), b.out.Close()) }
