package config

import (
	"io"
	"os"
	"runtime"
)

// OS returns the source that is this process: its environment, its working
// directory, its host's files.
func OS() Source {
	dir, err := os.Getwd()
	if err != nil {
		dir = "/" // the working directory was removed; nothing is found there either
	}
	return Source{
		Getenv:   os.Getenv,
		ReadFile: readFile,
		Dir:      dir,
		Root:     os.Geteuid() == 0,
		CPUs:     runtime.GOMAXPROCS(0),
	}
}

// readFile reads a file, up to a little more than any of them may have.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}
