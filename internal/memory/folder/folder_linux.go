package folder

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/memory"
	"github.com/berth-dev/berth/internal/sandbox"
)

// Folder implements memory.Folder. Safe for concurrent use.
type Folder struct {
	dir      string
	uid, gid int
	fileMode uint32
	dirMode  uint32

	temps atomic.Int64 // counts files that were begun

	mu    sync.Mutex
	known map[string]hashed
}

// hashed is a file's hash, and how the file looked when it was taken.
type hashed struct {
	look stamp
	file memory.File
}

// stamp changes whenever a file does: an agent cannot set its ctime.
type stamp struct {
	ino   uint64
	size  int64
	ctime unix.Timespec
}

var _ memory.Folder = (*Folder)(nil)

// Open returns the folder behind a share. Files of a read-only one belong to
// whoever the folder belongs to, whom the agent cannot become, and everybody
// inside can read them; the others belong to the agent alone.
func Open(d sandbox.SharedDir, readOnly bool) (memory.Folder, error) {
	f := &Folder{dir: d.Dir, uid: d.UID, gid: d.GID, fileMode: 0o600, dirMode: 0o700, known: map[string]hashed{}}
	fd, err := f.root()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if readOnly {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, fmt.Errorf("look at the folder: %w", err)
		}
		f.uid, f.gid, f.fileMode, f.dirMode = int(st.Uid), int(st.Gid), 0o644, 0o755
	}
	return f, nil
}

const openFlags = unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK

// root opens the folder itself; the path to it is ours.
func (f *Folder) root() (int, error) {
	fd, err := openat(unix.AT_FDCWD, f.dir, unix.O_RDONLY|unix.O_DIRECTORY|openFlags, 0)
	if err != nil {
		return -1, fmt.Errorf("open the folder: %w", err)
	}
	return fd, nil
}

// openat is openat(2) that an interruption does not end.
func openat(dir int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// parent opens the folder that a path lies in, step by step, and returns it with
// the path's last name. With lay it makes what is missing.
func (f *Folder) parent(at string, lay bool) (int, string, error) {
	fd, err := f.root()
	if err != nil {
		return -1, "", err
	}
	names := strings.Split(strings.TrimPrefix(at, "/"), "/")
	for _, name := range names[:len(names)-1] {
		next, err := openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|openFlags, 0)
		if errors.Is(err, unix.ENOENT) && lay {
			next, err = f.mkdir(fd, name)
		}
		unix.Close(fd)
		if err != nil {
			return -1, "", err
		}
		fd = next
	}
	return fd, names[len(names)-1], nil
}

func (f *Folder) mkdir(dir int, name string) (int, error) {
	if err := unix.Mkdirat(dir, name, f.dirMode); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	fd, err := openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|openFlags, 0)
	if err != nil {
		return -1, err
	}
	if err := f.own(fd, f.dirMode); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// own gives something that was just made its owner and mode.
func (f *Folder) own(fd int, mode uint32) error {
	if err := unix.Fchmod(fd, mode); err != nil {
		return err
	}
	if f.uid == os.Geteuid() && f.gid == os.Getegid() {
		return nil
	}
	return unix.Fchown(fd, f.uid, f.gid)
}

// nothing reports whether an error means that there is nothing at a path: also
// when something on the way is no folder.
func nothing(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// Look implements memory.Folder.
func (f *Folder) Look(at string) (*memory.File, error) {
	dir, name, err := f.parent(at, false)
	if err != nil {
		if nothing(err) {
			return nil, nil
		}
		return nil, err
	}
	defer unix.Close(dir)
	return look(dir, name)
}

func look(dir int, name string) (*memory.File, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if nothing(err) {
			return nil, nil
		}
		return nil, err
	}
	file, err := examine(dir, name, &st)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	return &file, err
}

// examine hashes a file that was found to look so.
func examine(dir int, name string, st *unix.Stat_t) (memory.File, error) {
	mark := fmt.Sprintf("%o %d %d %d", st.Mode, st.Ino, st.Size, st.Ctim.Nano())
	problem := func(format string, args ...any) (memory.File, error) {
		return memory.File{SHA256: mark, Problem: fmt.Sprintf(format, args...)}, nil
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return problem("it is not a regular file")
	case st.Size > memory.MaxContent:
		return problem("it has %d bytes, more than %d", st.Size, memory.MaxContent)
	}
	content, err := read(dir, name)
	switch {
	case errors.Is(err, unix.ENOENT):
		return memory.File{}, err
	case err != nil:
		return problem("%v", err)
	case !utf8.ValidString(content):
		return memory.File{SHA256: memory.Hash(content), Problem: "it is not UTF-8"}, nil
	}
	return memory.File{SHA256: memory.Hash(content)}, nil
}

// read reads a regular file to its end, if that is within the bound.
func read(dir int, name string) (string, error) {
	fd, err := openat(dir, name, unix.O_RDONLY|openFlags, 0)
	if err != nil {
		return "", fmt.Errorf("it cannot be opened: %w", err)
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "", errors.New("it is not a regular file")
	}
	b, err := io.ReadAll(io.LimitReader(file, memory.MaxContent+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("it cannot be read: %w", err)
	case len(b) > memory.MaxContent:
		return "", fmt.Errorf("it has more than %d bytes", memory.MaxContent)
	}
	return string(b), nil
}

// Read implements memory.Folder.
func (f *Folder) Read(at string) (string, error) {
	dir, name, err := f.parent(at, false)
	if err != nil {
		return "", err
	}
	defer unix.Close(dir)
	content, err := read(dir, name)
	if err == nil && !utf8.ValidString(content) {
		err = errors.New("it is not UTF-8")
	}
	return content, err
}

// Write implements memory.Folder.
func (f *Folder) Write(at, content, was string) error {
	if err := memory.CheckPath(at); err != nil {
		return err
	}
	if len(content) > memory.MaxContent {
		return fmt.Errorf("it has %d bytes, more than %d", len(content), memory.MaxContent)
	}
	dir, name, err := f.parent(at, true)
	if err != nil {
		return fmt.Errorf("make its folder: %w", err)
	}
	defer unix.Close(dir)
	return f.put(dir, name, content, func() error {
		file, err := look(dir, name)
		switch {
		case err != nil:
			return err
		case was == "" && file != nil, was != "" && (file == nil || file.SHA256 != was):
			return memory.ErrChanged
		}
		return nil
	})
}

// put writes a new file and then gives it its name, if check still agrees.
func (f *Folder) put(dir int, name, content string, check func() error) error {
	temp := fmt.Sprintf("%s%d-%d-%d", memory.TempPrefix, os.Getpid(), time.Now().UnixNano(), f.temps.Add(1))
	fd, err := openat(dir, temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|openFlags, f.fileMode)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), temp)
	_, err = file.WriteString(content)
	if err == nil {
		err = f.own(fd, f.fileMode)
	}
	err = errors.Join(err, file.Close())
	if err == nil {
		err = check()
	}
	if err == nil {
		err = unix.Renameat(dir, temp, dir, name)
	}
	if err != nil {
		_ = unix.Unlinkat(dir, temp, 0) // the next listing tries again
	}
	return err
}

// Remove implements memory.Folder. Folders that are empty then go, too.
func (f *Folder) Remove(at, was string) error {
	dir, name, err := f.parent(at, false)
	if err != nil {
		if nothing(err) {
			return nil
		}
		return err
	}
	defer unix.Close(dir)
	file, err := look(dir, name)
	switch {
	case err != nil || file == nil:
		return err
	case file.SHA256 != was:
		return memory.ErrChanged
	}
	if err := unix.Unlinkat(dir, name, 0); err != nil && !nothing(err) {
		return err
	}
	f.prune(path.Dir(at))
	return nil
}

// prune removes folders that are empty, from at upwards.
func (f *Folder) prune(at string) {
	for ; at != "/" && at != "."; at = path.Dir(at) {
		dir, name, err := f.parent(at, false)
		if err != nil {
			return
		}
		err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
		unix.Close(dir)
		if err != nil {
			return // it is not empty
		}
	}
}

// SetMarker implements memory.Folder.
func (f *Folder) SetMarker(content string) error {
	dir, err := f.root()
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return f.put(dir, memory.Marker, content, func() error { return nil })
}

// CheckMarker implements memory.Folder.
func (f *Folder) CheckMarker() (string, error) {
	dir, err := f.root()
	if err != nil {
		return "", err
	}
	defer unix.Close(dir)
	return marker(dir), nil
}

// marker reads the marker; what is not a small file is none.
func marker(root int) string {
	content, err := read(root, memory.Marker)
	if err != nil || len(content) > maxMarker {
		return ""
	}
	return content
}

const maxMarker = 512

// Keep implements memory.Folder.
func (f *Folder) Keep() error {
	dir, err := f.root()
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return unix.Syncfs(dir)
}
