package skill

import (
	"encoding/base64"
	"strings"
)

// bzipped is the archive of wrapped in the one format that the standard
// library only reads.
var bzipped = func() []byte {
	b, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(`
QlpoOTFBWSZTWSTOonYAAQN/hcmAAEBoAf+AACwORH8v3oAAAIAgAQgwANig0oyAAATAeoTAJkxgDTQ0aMRkA0AGhgkiphNopk9T
0zSmEw1HqNonqepkjni1Xy2ywaYNFgwCfa8ECFdbucuogR9RHsPFxSogItQyQDghkOjJDosjnxjiFLY6oFIhVsIF064YG1Ariqd2
Bj4hJfLGZ746pyUkSEoD7DbS7aCVUxylyNYEDMhykK8d7LEEGuZDcc3J335+VQI/RE39jo3itD2ozRPJSjSAhkRq0D8kgkB/i7ki
nChIEmdROwA=
`, "\n", ""))
	if err != nil {
		panic(err)
	}
	return b
}()
