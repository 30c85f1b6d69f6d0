//go:build linux

package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/berth-dev/berth/internal/fault"
)

// keychain finds a registry's credentials as docker does: in config.json, or by
// the credential helper that it names. The file is read at each use, so that a
// sign-in counts at once.
type keychain struct{ dir string }

// Resolve implements authn.Keychain.
func (k keychain) Resolve(target authn.Resource) (authn.Authenticator, error) {
	return k.ResolveContext(context.Background(), target)
}

// ResolveContext implements authn.ContextKeychain.
func (k keychain) ResolveContext(_ context.Context, target authn.Resource) (authn.Authenticator, error) {
	if k.dir == "" {
		return authn.Anonymous, nil
	}
	f, err := os.Open(filepath.Join(k.dir, "config.json"))
	if err != nil {
		if os.IsNotExist(err) {
			return authn.Anonymous, nil
		}
		return nil, k.unusable(err)
	}
	defer f.Close()
	file, err := config.LoadFromReader(f)
	if err != nil {
		return nil, k.unusable(err)
	}
	for _, key := range []string{target.String(), target.RegistryStr()} {
		if key == name.DefaultRegistry {
			key = authn.DefaultAuthKey
		}
		c, err := file.GetAuthConfig(key)
		if err != nil {
			return nil, fault.Wrap(err, fault.Refused, "the credentials for %s cannot be read", target.RegistryStr()).WithField("image").
				WithNext("check the credential helper that %s names", filepath.Join(k.dir, "config.json"))
		}
		c.ServerAddress = ""
		if c != (types.AuthConfig{}) {
			return authn.FromConfig(authn.AuthConfig{
				Username: c.Username, Password: c.Password, Auth: c.Auth, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken,
			}), nil
		}
	}
	return authn.Anonymous, nil
}

func (k keychain) unusable(err error) error {
	return fault.Wrap(fmt.Errorf("read credentials: %w", err), fault.Invalid, "the Docker configuration in %s cannot be read", k.dir).
		WithField("sandbox.images.docker_config").WithNext("mend its config.json, or sign in again with docker login")
}
