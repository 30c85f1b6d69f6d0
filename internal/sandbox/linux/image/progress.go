//go:build linux

package image

import (
	"sync"

	"github.com/berth-dev/berth/internal/sandbox"
)

// progress is how far a pull has got.
type progress struct {
	mu  sync.Mutex
	now sandbox.ImageProgress
}

func (p *progress) step(step sandbox.ImageStep, layer, layers int, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now.Step, p.now.Layer, p.now.Layers, p.now.Done, p.now.Total = step, layer, layers, 0, total
}

// add counts bytes, or takes back those of an attempt that failed.
func (p *progress) add(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now.Done += n
}

// skip counts what need not be loaded.
func (p *progress) skip(n int64) { p.add(n) }

// nextLayer counts a layer that is being unpacked.
func (p *progress) nextLayer() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now.Layer++
}

func (p *progress) get() sandbox.ImageProgress {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now
}
