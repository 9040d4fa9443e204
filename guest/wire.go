package guest

// Being written.

import (
	"context"
	"errors"
	"io"
	"net"
)

var errStub = errors.New("guest: wire is being written")

type session struct{}

func serve(context.Context, net.Conn, Handler) error                    { return errStub }
func connect(context.Context, net.Conn) (*Client, error)                { return nil, errStub }
func (session) close() error                                            { return nil }
func (session) done() <-chan struct{}                                   { return nil }
func (session) call(context.Context, string, any, any) error            { return errStub }
func (session) watch(context.Context, func(Status) bool) error          { return errStub }
func (session) output(context.Context, uint64, func(Frame) error) error { return errStub }
func (session) stdin(context.Context) (io.WriteCloser, error)           { return nil, errStub }
func (session) shutdown(context.Context) error                          { return errStub }
func (session) exec(context.Context, string, Process, io.Reader, func(int), func(Stream, []byte) error) (Exit, error) {
	return Exit{}, errStub
}
