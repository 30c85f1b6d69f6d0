package local

import (
	"iter"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

const (
	maxMemoryPath     = 1024
	maxMemorySegments = 20
)

var hexDigest = regexp.MustCompile(`^[a-f0-9]{64}$`)

func isSHA256(s string) bool { return hexDigest.MatchString(s) }

// checkMemoryPath holds a path against the rules of contract §6.2.
func checkMemoryPath(path string) *apiError {
	if !strings.HasPrefix(path, "/") || len(path) < 2 {
		return fail(400, "path: must begin with / and name something")
	}
	if len(path) > maxMemoryPath {
		return fail(400, "path: at most %d bytes", maxMemoryPath)
	}
	if !utf8.ValidString(path) || !norm.NFC.IsNormalString(path) {
		return fail(400, "path: must be UTF-8 in normalization form C")
	}
	if i := strings.IndexFunc(path, func(r rune) bool { return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) }); i >= 0 {
		return fail(400, "path: a control or format character at byte %d", i)
	}
	segments := strings.Split(path[1:], "/")
	if len(segments) > maxMemorySegments {
		return fail(400, "path: at most %d segments", maxMemorySegments)
	}
	for _, s := range segments {
		if s == "" || s == "." || s == ".." {
			return fail(400, "path: a segment must not be empty, . or ..")
		}
	}
	return nil
}

// ancestors yields every path above path.
func ancestors(path string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := strings.LastIndexByte(path, '/'); i > 0; i = strings.LastIndexByte(path[:i], '/') {
			if !yield(path[:i]) {
				return
			}
		}
	}
}

func checkMemoryContent(content string) *apiError {
	if len(content) > maxMemoryBytes {
		return fail(400, "content: at most %d bytes of UTF-8, got %d", maxMemoryBytes, len(content))
	}
	return nil
}

// memoryItem is one line of a listing: a memory, or a prefix that stands for
// the memories below it.
type memoryItem struct {
	memory *memory
	prefix string
}

// below lists what lies under prefix, in the order of the paths: every memory
// for depth 0; the direct children for depth 1, with deeper ones rolled up.
func (s *memoryStore) below(prefix string, depth int) ([]memoryItem, *apiError) {
	if prefix == "" {
		prefix = "/"
	}
	if !strings.HasPrefix(prefix, "/") || !strings.HasSuffix(prefix, "/") {
		return nil, fail(400, "path_prefix: must begin and end with /")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var items []memoryItem
	for _, path := range slices.Sorted(maps.Keys(s.paths)) {
		rest, ok := strings.CutPrefix(path, prefix)
		if !ok {
			continue
		}
		if dir, _, deeper := strings.Cut(rest, "/"); deeper && depth == 1 {
			marker := prefix + dir + "/"
			if n := len(items); n == 0 || items[n-1].prefix != marker {
				items = append(items, memoryItem{prefix: marker})
			}
			continue
		}
		m := s.memories[s.paths[path]]
		items = append(items, memoryItem{memory: &m})
	}
	return items, nil
}
