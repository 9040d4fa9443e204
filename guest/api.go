package guest

import (
	"context"
	"io"
	"net"
	"time"
)

// PortName is the virtio-serial port's name in the guest.
const PortName = "vch"

// Version is the protocol's version; the hello refuses another.
const Version = 1

// Handler is the guest's end: what the tether does for each call. All methods may be called at once. Errors cross as faults, kind kept.
type Handler interface {
	// Configure does what cfg says and returns when the process runs (or, with a nil Process, when all is done or, with Serve, mounted). A second call with the
	// same ID returns the first one's outcome; with another ID it is a conflict. Afterwards Status is Running, Exited or Failed.
	Configure(ctx context.Context, cfg ExecutorConfig) error
	// Reset makes a machine whose Rehearsal has exited wait for its config as if it had done nothing. Conflict in every other state.
	Reset(ctx context.Context) error
	// Status never waits.
	Status() Status
	// Changed returns a channel that is closed at the next change of Status.
	Changed() <-chan struct{}
	// Output forgets the frames up to acked, then waits for and returns the frame numbered n, which is after acked. io.EOF once the process has exited and
	// n is past the last frame; then the Status says how that went.
	Output(ctx context.Context, acked, n uint64) (Frame, error)
	// Forget drops the frames up to acked.
	Forget(acked uint64)
	// Stdin returns where the container's input goes; Close is end-of-file for the process. Only one writer at a time has meaning.
	Stdin() (io.WriteCloser, error)
	// Signal sends signal(7) number n to the container's own process, exec "" , or to that of an exec.
	Signal(ctx context.Context, exec string, n int) error
	// Resize sets a TTY's size.
	Resize(ctx context.Context, exec string, rows, cols uint16) error
	// Exec runs p beside the container's own process and returns its exit. started is called once with the guest pid when it runs. stdin is read
	// until EOF; out is called for each piece of output, by one goroutine at a time. The name id is for Signal and Resize.
	Exec(ctx context.Context, id string, p Process, stdin io.Reader, started func(pid int), out func(Stream, []byte) error) (Exit, error)
	// Top lists the processes of the container.
	Top(ctx context.Context) ([]ProcessInfo, error)
	// Mount mounts one more volume in the running container, whose disk is in the machine or about to be, as Configure would have: links in the target
	// are resolved inside the root, a missing target is made, an empty volume takes the target's content where m.Copy says so. It returns when the mount is
	// there. Again with the same m it does nothing. The kinds: Conflict while the container does not run, where something else is mounted at the
	// target or below it, and for a writable mount of a volume that is mounted read-only; what Configure has for volumes otherwise. After
	// an error nothing is mounted, and Status.Unclean says whether it was for want of a journal's replay.
	Mount(ctx context.Context, m MountSpec) error
	// Unmount takes the mount of a volume at target away, which Configure or Mount made there, by the path that those were given; nothing of theirs there: nothing
	// happens. With its last mount the volume's file system is unmounted and written out, and its disk forgotten: it can be pulled. InUse while
	// processes have it open or something is mounted below, naming them, and nothing is changed then. Conflict while the container does not run.
	Unmount(ctx context.Context, target string) error
	// Freeze makes the file system of a volume that is mounted writable whole on its disk and keeps it so until Thaw: who writes to it waits. It thaws by itself
	// after limit, and when the host is gone. Conflict if it is frozen already, is not mounted writable, or nothing is mounted.
	Freeze(ctx context.Context, source Source, limit time.Duration) error
	// Thaw ends a Freeze. Conflict if it has ended by itself: what was read from the disk meanwhile may not be whole.
	Thaw(ctx context.Context, source Source) error
	// Grow makes the file system of a volume that is mounted writable as large as its disk, once that has size bytes.
	Grow(ctx context.Context, source Source, size int64) error
	// Rooms says how full the file systems of the mounted volumes are.
	Rooms(ctx context.Context) ([]Room, error)
	// Stats counts what the container uses. Conflict while it does not run.
	Stats(ctx context.Context) (Stats, error)
	// SetLimits gives the running container other limits: all of them, at once. Conflict while it does not run; Invalid for what its kernel does not take, as
	// less memory than it can do with. After an error the limits are as they were.
	SetLimits(ctx context.Context, l Limits) error
	// SetStill has the container's processes stand still, or go on; again, nothing happens. Conflict while none runs, Unavailable for processes that do not come to a stop.
	SetStill(ctx context.Context, still bool) error
	// SetClock sets the machine's clock.
	SetClock(ctx context.Context, now time.Time) error
	// SetNetwork gives the running container other interfaces: those that it has and that n names by their tags stay as they are. Conflict while it does not run.
	SetNetwork(ctx context.Context, n Network) error
	// Host tells who is to be asked from now on; nil: nobody is there.
	Host(a Asker)
	// Archives work while the container's mounts are there: Conflict before, and once its process has ended.
	Archives
	// Shutdown unmounts what is still mounted, syncs and powers the machine off. It may not return.
	Shutdown(ctx context.Context) error
}

// Serve is the guest's end on conn: it waits for a host's hello, answers calls through h, and returns when the host is gone (nil) or conn
// broke. It owns conn and closes it in every case: a virtio-serial port can be opened once at a time. The caller then calls it again on a new connection, or
// on the same port opened anew.
func Serve(ctx context.Context, conn net.Conn, h Handler) error { return serve(ctx, conn, h) }

// Client is the host's end. All methods may be called at once. An error of a connection that broke is Unavailable.
type Client struct{ session }

// Connect says hello on conn and returns the host's end. It owns conn from now on, also on error.
func Connect(ctx context.Context, conn net.Conn) (*Client, error) {
	return connect(ctx, conn, helloAgain)
}

// Dial connects by what channel gives, and by another after a while without an answer, until ctx ends. A machine that stood still while its host left may take what is sent to it
// and answer nothing: QEMU 7.2 keeps a port throttled whose guest writes just when it finds its host gone (hw/char/virtio-console.c, flush_buf, after virtio_serial_close), until
// the next one leaves.
func Dial(ctx context.Context, channel func(context.Context) (net.Conn, error)) (*Client, error) {
	for wait := firstWait; ; wait *= 2 {
		conn, err := channel(ctx)
		if err != nil {
			return nil, err
		}
		try, cancel := context.WithTimeout(ctx, wait)
		c, err := Connect(try, conn)
		late := try.Err() != nil && ctx.Err() == nil
		cancel()
		if err == nil || !late {
			return c, err
		}
	}
}

// firstWait is how long the first connection has: a machine that boots has others after it.
const firstWait = 4 * time.Second

// Close drops the connection; the guest goes on.
func (c *Client) Close() error { return c.close() }

// Done is closed when the connection has ended, for whatever reason.
func (c *Client) Done() <-chan struct{} { return c.done() }

// Configure is Handler.Configure, with the Status afterwards; after an error that is not the guest's own, Phase is "".
func (c *Client) Configure(ctx context.Context, cfg ExecutorConfig) (st Status, err error) {
	err = c.call(ctx, "configure", cfg, &st)
	return st, err
}

// Reset is Handler.Reset.
func (c *Client) Reset(ctx context.Context) error { return c.call(ctx, "reset", nil, nil) }

// Status is Handler.Status.
func (c *Client) Status(ctx context.Context) (st Status, err error) {
	err = c.call(ctx, "status", nil, &st)
	return st, err
}

// Watch calls fn with the status now and after each change, until fn returns false (nil) or the connection or ctx ends.
func (c *Client) Watch(ctx context.Context, fn func(Status) bool) error { return c.watch(ctx, fn) }

// Output calls fn for every frame after the one numbered after. When fn returns nil, the frame is acknowledged and the guest forgets it.
// It returns when the output is complete, with the status of then.
func (c *Client) Output(ctx context.Context, after uint64, fn func(Frame) error) (Status, error) {
	return c.output(ctx, after, fn)
}

// Stdin opens the container's input. Write returns when the guest has room; Close is end-of-file for the process.
// To leave without an end-of-file, end ctx.
func (c *Client) Stdin(ctx context.Context) (io.WriteCloser, error) { return c.stdin(ctx) }

// Signal is Handler.Signal.
func (c *Client) Signal(ctx context.Context, exec string, n int) error {
	return c.call(ctx, "signal", signalRequest{Exec: exec, Signal: n}, nil)
}

// Resize is Handler.Resize.
func (c *Client) Resize(ctx context.Context, exec string, rows, cols uint16) error {
	return c.call(ctx, "resize", resizeRequest{Exec: exec, Rows: rows, Cols: cols}, nil)
}

// Exec is Handler.Exec. stdin may be nil: the process then reads end-of-file. An error from out ends the call, not the process.
func (c *Client) Exec(ctx context.Context, id string, p Process, stdin io.Reader, started func(pid int), out func(Stream, []byte) error) (Exit, error) {
	return c.exec(ctx, id, p, stdin, started, out)
}

// SetClock is Handler.SetClock.
func (c *Client) SetClock(ctx context.Context, now time.Time) error {
	return c.call(ctx, "clock", now, nil)
}

// Top is Handler.Top.
func (c *Client) Top(ctx context.Context) (ps []ProcessInfo, err error) {
	err = c.call(ctx, "top", nil, &ps)
	return ps, err
}

// Shutdown is Handler.Shutdown; a connection that ends while it waits is success.
func (c *Client) Shutdown(ctx context.Context) error { return c.shutdown(ctx) }

type signalRequest struct {
	Exec   string `json:"exec"`
	Signal int    `json:"signal"`
}

type resizeRequest struct {
	Exec string `json:"exec"`
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}
