package folder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/memory"
)

// Bounds of a listing. What lies beyond them is not looked at, and then nothing
// is taken for deleted.
const (
	maxEntries = 2 * memory.MaxFiles // of every kind
	maxOdd     = 20                  // warnings
	batch      = 256                 // names read at once
)

const (
	// settled is how old a change must be for its hash to be kept: a later one
	// within the clock's grain would look the same.
	settled = 2 * time.Second
	// abandoned is how old a half-written file must be to be removed.
	abandoned = 10 * time.Minute
)

// listing is one List under way.
type listing struct {
	ctx     context.Context
	folder  *Folder
	now     time.Time
	out     memory.Listing
	seen    int
	crowded bool
	known   map[string]hashed // for the next one
}

// List implements memory.Folder.
func (f *Folder) List(ctx context.Context) (memory.Listing, error) {
	root, err := f.root()
	if err != nil {
		return memory.Listing{}, err
	}
	l := &listing{ctx: ctx, folder: f, now: time.Now(), out: memory.Listing{Files: map[string]memory.File{}}, known: map[string]hashed{}}
	l.out.Marker = marker(root)
	l.walk(root, "")
	if err := context.Cause(ctx); err != nil {
		return memory.Listing{}, err
	}
	f.mu.Lock()
	f.known = l.known
	f.mu.Unlock()
	return l.out, nil
}

// walk looks through one folder and closes it.
func (l *listing) walk(fd int, at string) {
	dir := os.NewFile(uintptr(fd), at)
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(batch)
		for _, name := range names {
			if l.full() {
				return
			}
			l.one(fd, at, name)
		}
		switch {
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			l.out.Partial = true
			return
		}
	}
}

// full reports whether no more is looked at.
func (l *listing) full() bool {
	if l.ctx.Err() != nil {
		return true
	}
	if l.seen++; l.seen <= maxEntries {
		return false
	}
	l.tooMany()
	return true
}

func (l *listing) tooMany() {
	l.out.Partial = true
	if !l.crowded {
		l.crowded = true
		l.odd("", fmt.Sprintf("the folder holds more than %d files; the rest is not kept", memory.MaxFiles))
	}
}

func (l *listing) odd(at, text string) {
	if len(l.out.Odd) < maxOdd {
		l.out.Odd = append(l.out.Odd, memory.Warning{Path: at, Text: text})
	}
}

// one looks at one name in a folder.
func (l *listing) one(dir int, folder, name string) {
	at := folder + "/" + name
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		l.out.Partial = l.out.Partial || !errors.Is(err, unix.ENOENT)
		return
	}
	regular := st.Mode&unix.S_IFMT == unix.S_IFREG
	if strings.HasPrefix(name, memory.TempPrefix) {
		if regular && l.now.Sub(time.Unix(st.Ctim.Unix())) > abandoned {
			_ = unix.Unlinkat(dir, name, 0) // else the next listing tries again
		}
		return
	}
	if at == "/"+memory.Marker {
		return
	}
	if err := memory.CheckPath(at); err != nil {
		l.odd(shown(at), "it is not kept: no memory can have this name")
		return
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		next, err := openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|openFlags, 0)
		if err != nil {
			l.out.Partial = true // gone, unreadable, or a link by now
			return
		}
		l.walk(next, at)
		return
	}
	l.file(dir, name, at, &st)
}

func (l *listing) file(dir int, name, at string, st *unix.Stat_t) {
	if len(l.out.Files) == memory.MaxFiles {
		l.tooMany()
		return
	}
	look := stamp{ino: st.Ino, size: st.Size, ctime: st.Ctim}
	l.folder.mu.Lock()
	known, ok := l.folder.known[at]
	l.folder.mu.Unlock()
	if !ok || known.look != look {
		file, err := examine(dir, name, st)
		if err != nil {
			return // gone meanwhile
		}
		known = hashed{look, file}
	}
	l.out.Files[at] = known.file
	if l.now.Sub(time.Unix(st.Ctim.Unix())) > settled {
		l.known[at] = known
	}
}

// shown makes a path fit for a message.
func shown(at string) string {
	if len(at) > 200 {
		at = at[:200] + "…"
	}
	return strconv.Quote(at)
}
