package storetest_test

import (
	"testing"

	"github.com/berth-dev/berth/internal/session"
	"github.com/berth-dev/berth/internal/store/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Run(t, func(*testing.T) session.Records { return &storetest.Memory{} })
}
