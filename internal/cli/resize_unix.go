//go:build unix

package cli

import (
	"os"
	"os/signal"
	"syscall"
)

// onResize calls fn whenever the terminal's size changes, until stop is called.
func onResize(fn func()) (stop func()) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGWINCH)
	go func() { // ends with stop
		for range ch {
			fn()
		}
	}()
	return func() {
		signal.Stop(ch)
		close(ch)
	}
}
