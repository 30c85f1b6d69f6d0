package conformance

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"io/fs"
)

// archive makes an archive of a skill by its name, hostile or in another format.
func archive(name string) (data []byte, contentType string, err error) {
	var buf bytes.Buffer
	contentType = "application/zip"
	switch name {
	case "tar.gz":
		contentType = "application/gzip"
		err = tarred(&buf)
	case "garbage":
		contentType = "text/html"
		buf.WriteString("<html>this is no archive</html>")
	default:
		err = zipped(&buf, name)
	}
	if err != nil {
		return nil, "", fmt.Errorf("make the archive %s: %w", name, err)
	}
	return buf.Bytes(), contentType, nil
}

func tarred(to io.Writer) error {
	z := gzip.NewWriter(to)
	t := tar.NewWriter(z)
	for name, content := range map[string]string{"packed/SKILL.md": "---\nname: packed\n---\n", "packed/fill.sh": "echo filled\n"} {
		if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))}); err != nil {
			return err
		}
		if _, err := io.WriteString(t, content); err != nil {
			return err
		}
	}
	if err := t.Close(); err != nil {
		return err
	}
	return z.Close()
}

// bombBytes unpacks to more than the gigabyte that the contract allows.
const bombBytes = 1<<30 + 1<<20

func zipped(to io.Writer, name string) error {
	z := zip.NewWriter(to)
	add := func(name string, mode fs.FileMode, content string) error {
		h := &zip.FileHeader{Name: name, Method: zip.Deflate}
		h.SetMode(mode)
		w, err := z.CreateHeader(h)
		if err == nil {
			_, err = io.WriteString(w, content)
		}
		return err
	}
	err := add("evil/SKILL.md", 0o644, "---\nname: evil\n---\n")
	switch name {
	case "slip":
		for _, path := range []string{"evil/../../../escaped", "/escaped", `..\escaped`} {
			if err == nil {
				err = add(path, 0o644, "escaped")
			}
		}
	case "symlink":
		if err == nil {
			err = add("evil/link", fs.ModeSymlink|0o777, "/etc")
		}
		if err == nil {
			err = add("evil/link/escaped", 0o644, "escaped")
		}
	case "many":
		for i := range 10_001 {
			if err == nil {
				err = add(fmt.Sprintf("evil/%d", i), 0o644, "")
			}
		}
	case "bomb":
		var w io.Writer
		if w, err = z.Create("evil/zeros"); err == nil {
			_, err = io.CopyN(w, zeros{}, bombBytes)
		}
	default:
		err = fmt.Errorf("there is no archive %q", name)
	}
	if err != nil {
		return err
	}
	return z.Close()
}

// zeros has no end.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
