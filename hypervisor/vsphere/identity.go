package vsphere

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"

	"vch/guest"
	"vch/internal/atomicfile"
	"vch/internal/fault"
)

// keptIdentity reads the certificate of the guests' endpoint, or makes it: guests that run know it by its fingerprint.
func keptIdentity(file string) (tls.Certificate, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		c, err := guest.NewIdentity("vch")
		if err != nil {
			return c, err
		}
		key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
		if err != nil {
			return c, err
		}
		var b bytes.Buffer
		err = errors.Join(pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}), pem.Encode(&b, &pem.Block{Type: "PRIVATE KEY", Bytes: key}))
		if err == nil {
			err = atomicfile.Write(file, b.Bytes(), 0o600)
		}
		return c, err
	}
	if err != nil {
		return tls.Certificate{}, err
	}
	c, err := tls.X509KeyPair(text, text)
	if err != nil {
		return c, fault.New(fault.Conflict, "the certificate of the guests' endpoint in %s cannot be used: %w; remove it, and all containers have to be started anew", file, err)
	}
	return c, nil
}
