package memory

import (
	"fmt"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Bounds of a path (contract §6.2).
const (
	MaxPath     = 1024
	MaxSegments = 20
)

// TempPrefix begins the names of files that are being written. Neither side's
// files of such a name are looked at.
const TempPrefix = ".berth-memory-"

// CheckPath holds a path against the rules of contract §6.2, and against the
// names that are reserved here.
func CheckPath(at string) error {
	switch {
	case !strings.HasPrefix(at, "/") || len(at) < 2:
		return fmt.Errorf("%q does not begin with / or names nothing", at)
	case len(at) > MaxPath:
		return fmt.Errorf("a path of %d bytes is longer than %d", len(at), MaxPath)
	case !utf8.ValidString(at) || !norm.NFC.IsNormalString(at):
		return fmt.Errorf("%q is not UTF-8 in normalization form C", at)
	case strings.ContainsFunc(at, func(r rune) bool { return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) }):
		return fmt.Errorf("%q has a control or format character", at)
	case strings.Count(at, "/") > MaxSegments:
		return fmt.Errorf("a path of %d segments has more than %d", strings.Count(at, "/"), MaxSegments)
	}
	for s := range strings.SplitSeq(at[1:], "/") {
		if s == "" || s == "." || s == ".." || len(s) > 255 {
			return fmt.Errorf("%q has a segment that no file can be named", at)
		}
	}
	if reserved(at) {
		return fmt.Errorf("the name %q is reserved", at)
	}
	return nil
}

// reserved reports whether a path is kept out of the synchronization on both
// sides.
func reserved(at string) bool {
	return at == "/"+Marker || strings.HasPrefix(path.Base(at), TempPrefix)
}
