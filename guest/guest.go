// Package guest is the protocol between a host (the port layer) and a guest (the tether): the executor config, the
// messages, and both ends of the wire. It does no I/O but on the net.Conn that it is given, and trusts neither end.
//
// The wire is one byte stream per machine (a virtio-serial port on QEMU, mutual TLS on vSphere, net.Pipe in the fake). A connection
// starts with a hello that carries a random nonce, so that bytes of an earlier connection that are still in the pipe are told from this
// one's and thrown away; then yamux gives streams. The host opens every stream and says in its first message which call it is.
//
// The host may go away at any time (daemon killed, restarted) and connect again: the guest keeps what was not acknowledged. A process
// that writes faster than the host takes waits on its pipe; nothing is dropped.
package guest
