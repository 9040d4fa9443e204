package guest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"net"
	"time"

	"vch/internal/fault"
)

// Where the host cannot come to a guest, the guest comes to the host: it dials the VCH's endpoint by what its machine's definition tells it (Contact), over TLS 1.3, in which each end
// has a certificate. The guest knows the host's by its fingerprint. The guest's own is made at boot and never leaves it; the token that comes with the first connection binds it
// to the machine, once. After that, the connection is the guest channel, or carries the frames of the machine's card (portlayer.Machine.Frames).

// Contact is how a guest finds its host.
type Contact struct {
	Address    string     `json:"address"` // HOST:PORT of the VCH's endpoint
	Host       string     `json:"host"`    // Fingerprint of its certificate
	Machine    string     `json:"machine"` // the machine's id
	Token      string     `json:"token"`   // for the guest's first connection
	Entropy    []byte     `json:"entropy"` // random bytes that are the machine's own, for its first keys
	Management Management `json:"management"`
}

// Purpose is what a connection of the guest's is for.
type Purpose string

// The purposes.
const (
	ForChannel Purpose = "channel" // Serve, and Dial at the other end
	ForFrames  Purpose = "frames"  // Ethernet frames, each after its length in four bytes, most significant first
)

// Introduction is what a guest says first.
type Introduction struct {
	Version byte    `json:"version"`
	Machine string  `json:"machine"`
	Token   string  `json:"token,omitempty"`
	Purpose Purpose `json:"purpose"`
}

// handshakeLimit bounds the handshake and the introduction.
const handshakeLimit = 20 * time.Second

// maxIntroduction bounds an introduction, in bytes: it is read of anybody, whose certificate can be any, and has an id, a token and a word.
const maxIntroduction = 4 << 10

// NewIdentity makes a key and a certificate for it, which nobody has signed and which is known by its Fingerprint.
func NewIdentity(name string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)} // clocks of guests are wrong
	template.Subject.CommonName = name
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// Fingerprint names a certificate: its SHA-256 in hex.
func Fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// peerFingerprint is that of the other end's certificate.
func peerFingerprint(s tls.ConnectionState) (string, error) {
	if len(s.PeerCertificates) == 0 {
		return "", fault.New(fault.Unavailable, "the other end has no certificate")
	}
	return Fingerprint(s.PeerCertificates[0].Raw), nil
}

// Call introduces the guest to its host over conn, which it closes after an error. Denied is the host's own word: it does not let this guest in. Who is
// not the host cannot say that: that is Unavailable.
func (c Contact) Call(ctx context.Context, conn net.Conn, identity tls.Certificate, purpose Purpose) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	secure := tls.Client(conn, &tls.Config{
		MinVersion:         tls.VersionTLS13,
		Certificates:       []tls.Certificate{identity},
		InsecureSkipVerify: true, // VerifyConnection compares the one certificate that is right
		VerifyConnection: func(s tls.ConnectionState) error {
			got, err := peerFingerprint(s)
			if err == nil && subtle.ConstantTimeCompare([]byte(got), []byte(c.Host)) != 1 {
				err = fault.New(fault.Unavailable, "who answers at %s is not the host: its certificate is %s", c.Address, got)
			}
			return err
		},
	})
	err := func() error {
		if err := secure.HandshakeContext(ctx); err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		defer stop()
		if err := writeJSON(secure, msgRequest, Introduction{Version: Version, Machine: c.Machine, Token: c.Token, Purpose: purpose}); err != nil {
			return err
		}
		kind, body, err := readMessage(secure)
		if err != nil {
			return err
		}
		return readAnswer(kind, body, nil)
	}()
	if err != nil {
		conn.Close()
		return nil, err
	}
	return secure, nil
}

// Meet is the host's end of Call. admit says whether the guest with that certificate may come in; its error is told to the guest. After an error conn is closed.
func Meet(ctx context.Context, conn net.Conn, identity tls.Certificate, admit func(i Introduction, fingerprint string) error) (i Introduction, _ net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer func() {
		if !stop() && err == nil {
			err = ctx.Err()
		}
		if err != nil {
			conn.Close()
		}
	}()
	secure := tls.Server(conn, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{identity}, ClientAuth: tls.RequireAnyClientCert})
	if err := secure.HandshakeContext(ctx); err != nil {
		return i, nil, err
	}
	kind, body, err := readShort(secure, maxIntroduction)
	if err != nil {
		return i, nil, err
	}
	if kind != msgRequest {
		return i, nil, fmt.Errorf("guest channel: message %q where an introduction was due", kind)
	}
	if err := json.Unmarshal(body, &i); err != nil {
		return i, nil, fmt.Errorf("guest channel: %w", err)
	}
	fingerprint, err := peerFingerprint(secure.ConnectionState())
	switch {
	case err != nil:
	case i.Version != Version:
		err = fault.New(fault.Unsupported, "the guest speaks version %d of the protocol, this vch speaks %d", i.Version, Version)
	case i.Purpose != ForChannel && i.Purpose != ForFrames:
		err = fault.New(fault.Invalid, "the guest wants a connection for %.32q", i.Purpose)
	default:
		err = admit(i, fingerprint)
	}
	if werr := writeJSON(secure, msgAnswer, answer{Fault: toFault(err)}); err == nil {
		err = werr
	}
	if err != nil {
		return i, nil, err
	}
	return i, secure, nil
}
