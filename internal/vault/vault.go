// Package vault keeps secrets unreadable at rest. What is sealed can be opened
// only with the key in the data directory; a copy of the database alone reveals
// nothing.
package vault

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// keySize is the size of the key, in bytes: AES-256.
const keySize = 32

// version is the first byte of everything sealed, so that the form can change.
const version = 1

// Vault seals and opens. Safe for concurrent use.
type Vault struct {
	aead cipher.AEAD
}

// Open reads the key of a data directory, and makes one on the first start. A
// key that others may read is refused.
func Open(dir string) (*Vault, error) {
	path := filepath.Join(dir, "vault.key")
	key, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		key, err = create(path)
	}
	if err != nil {
		return nil, fmt.Errorf("read the vault key: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("check the vault key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("the vault key %s can be read by others; run: chmod 600 %s", path, path)
	}
	if len(key) != keySize {
		return nil, fmt.Errorf("the vault key %s has %d bytes instead of %d; restore it from a backup, or remove it to start with an empty vault", path, len(key), keySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("use the vault key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("use the vault key: %w", err)
	}
	return &Vault{aead: aead}, nil
}

// create writes a new key so that a crash leaves either the whole key or none.
func create(path string) ([]byte, error) {
	key := make([]byte, keySize)
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".vault-*")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name()) // gone already when all went well
	_, err = f.Write(key)
	if err := errors.Join(err, f.Chmod(0o600), f.Sync(), f.Close()); err != nil {
		return nil, err
	}
	return key, os.Rename(f.Name(), path)
}

// Seal encrypts plain. The same plain text seals differently each time.
func (v *Vault) Seal(plain []byte) ([]byte, error) {
	return v.aead.Seal([]byte{version}, nil, plain, []byte{version}), nil
}

// Open decrypts what Seal made. It fails on anything else, also on a truncated
// or changed text.
func (v *Vault) Open(sealed []byte) ([]byte, error) {
	if len(sealed) == 0 || sealed[0] != version {
		return nil, errors.New("this was not sealed by this vault")
	}
	plain, err := v.aead.Open(nil, nil, sealed[1:], sealed[:1])
	if err != nil {
		return nil, fmt.Errorf("open a sealed secret: %w", err)
	}
	return plain, nil
}
