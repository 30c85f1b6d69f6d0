//go:build !linux

package skill

import (
	"errors"
	"os"
)

// Sandboxes need Linux: elsewhere only the other commands run.

func syncAll(*os.Root) error { return nil }

func link(*os.Root, string, *os.Root, string) error { return errors.ErrUnsupported }

func noSpace(err error) error { return err }
