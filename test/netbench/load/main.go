// Command load sends and answers for netbench, on the host, in a container, and outside. It is one static program without anything around it, so that an image needs nothing else.
//
//	load serve ADDRESS         answer whoever comes
//	load up ADDRESS SECONDS    send for so long, and print the bytes that came there in a second
//	load down ADDRESS SECONDS  be sent to, likewise
//	load rtt ADDRESS N         print the median of N round trips of one byte, in nanoseconds
//	load sleep                 wait for a signal
package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "load: %v\n", err)
		os.Exit(1)
	}
}

// What a client asks for, by its first byte.
const (
	asksUp   = 'u' // takes all until its end, and says how much that was
	asksDown = 'd' // sends until the connection ends
	asksEcho = 'e' // sends each byte back
)

const pieceSize = 128 << 10

func run(args []string) error {
	if len(args) == 1 && args[0] == "sleep" {
		for {
			time.Sleep(time.Hour)
		}
	}
	if len(args) == 2 && args[0] == "serve" {
		return serve(args[1])
	}
	if len(args) != 3 {
		return fmt.Errorf("serve ADDRESS | up|down ADDRESS SECONDS | rtt ADDRESS N | sleep")
	}
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	conn, err := net.Dial("tcp4", args[1])
	if err != nil {
		return err
	}
	defer conn.Close()
	switch args[0] {
	case "up":
		return up(conn.(*net.TCPConn), time.Duration(n)*time.Second)
	case "down":
		return down(conn, time.Duration(n)*time.Second)
	case "rtt":
		return rtt(conn, n)
	}
	return fmt.Errorf("what is %s?", args[0])
}

func serve(at string) error {
	l, err := net.Listen("tcp4", at)
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			answer(conn)
		}()
	}
}

// answer does what a client asks; one that has gone is no error.
func answer(conn net.Conn) {
	buf := make([]byte, pieceSize)
	if _, err := io.ReadFull(conn, buf[:1]); err != nil {
		return
	}
	switch buf[0] {
	case asksUp:
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{conn}, buf)
		if err == nil {
			_ = binary.Write(conn, binary.BigEndian, n)
		}
	case asksDown:
		for {
			if _, err := conn.Write(buf); err != nil {
				return
			}
		}
	case asksEcho:
		for {
			if _, err := io.ReadFull(conn, buf[:1]); err != nil {
				return
			}
			if _, err := conn.Write(buf[:1]); err != nil {
				return
			}
		}
	}
}

func up(conn *net.TCPConn, lasts time.Duration) error {
	buf := make([]byte, pieceSize)
	began := time.Now()
	if _, err := conn.Write([]byte{asksUp}); err != nil {
		return err
	}
	for time.Since(began) < lasts {
		if _, err := conn.Write(buf); err != nil {
			return err
		}
	}
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	var n int64
	if err := binary.Read(conn, binary.BigEndian, &n); err != nil {
		return err
	}
	return tell(n, time.Since(began))
}

func down(conn net.Conn, lasts time.Duration) error {
	if _, err := conn.Write([]byte{asksDown}); err != nil {
		return err
	}
	buf := make([]byte, pieceSize)
	began := time.Now()
	var n int64
	for time.Since(began) < lasts {
		k, err := conn.Read(buf)
		if err != nil {
			return err
		}
		n += int64(k)
	}
	return tell(n, time.Since(began))
}

// tell prints bytes a second.
func tell(n int64, took time.Duration) error {
	_, err := fmt.Println(int64(float64(n) / took.Seconds()))
	return err
}

func rtt(conn net.Conn, n int) error {
	if _, err := conn.Write([]byte{asksEcho}); err != nil {
		return err
	}
	took := make([]time.Duration, n)
	b := []byte{0}
	for i := range took {
		began := time.Now()
		if _, err := conn.Write(b); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, b); err != nil {
			return err
		}
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	_, err := fmt.Println(took[n/2].Nanoseconds())
	return err
}
