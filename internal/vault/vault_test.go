package vault

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestSealedSecretOpensAfterRestart(t *testing.T) {
	dir := t.TempDir()
	first, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	plain := []byte("sk-ant-req-secret")
	sealed, err := first.Seal(plain)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, plain) {
		t.Fatal("the sealed form contains the secret")
	}
	second, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := second.Open(sealed)
	if err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("Open = %q, %v; want the secret", got, err)
	}
}

func TestChangedSecretDoesNotOpen(t *testing.T) {
	v, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := v.Seal([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if _, err := v.Open(bad); err == nil {
			t.Fatalf("a secret with byte %d changed was opened", i)
		}
	}
	for _, bad := range [][]byte{nil, {}, sealed[:1], sealed[:len(sealed)-1]} {
		if _, err := v.Open(bad); err == nil {
			t.Fatalf("Open accepted %d bytes of %d", len(bad), len(sealed))
		}
	}
}

func TestKeyThatOthersMayReadIsRefused(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "vault.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil {
		t.Fatal("a world-readable key was accepted")
	}
}
