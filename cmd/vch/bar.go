package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"
)

// bar shows how far a long piece of work is, on a terminal and nowhere else.
type bar struct {
	w     io.Writer // nil: nowhere
	began time.Time
	last  time.Time
	done  int64
	shown bool
}

func newBar(w io.Writer) *bar {
	b := &bar{began: time.Now()}
	if f, ok := w.(*os.File); ok && isTerminal(f) {
		b.w = w
	}
	return b
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// barWidth is that of the bar alone, in characters; barEvery how often it is drawn.
const (
	barWidth = 30
	barEvery = 100 * time.Millisecond
)

// show draws done of total bytes; total 0: nobody knows.
func (b *bar) show(done, total int64) {
	if b.w == nil || time.Since(b.last) < barEvery && done != total {
		return
	}
	b.last, b.shown = time.Now(), true
	rate := float64(done) / max(time.Since(b.began).Seconds(), 0.001)
	line := fmt.Sprintf("%s  %s/s", units.BytesSize(float64(done)), units.BytesSize(rate))
	if total > 0 {
		part := min(float64(done)/float64(total), 1)
		full := int(part * barWidth)
		line = fmt.Sprintf("[%s%s] %3.0f%%  %s of %s  %s/s", strings.Repeat("=", full), strings.Repeat(" ", barWidth-full), part*100,
			units.BytesSize(float64(done)), units.BytesSize(float64(total)), units.BytesSize(rate))
	}
	fmt.Fprintf(b.w, "\r\033[K%s", line)
}

// Write counts bytes that pass by.
func (b *bar) Write(p []byte) (int, error) {
	b.done += int64(len(p))
	b.show(b.done, 0)
	return len(p), nil
}

// end takes the bar away.
func (b *bar) end() {
	if b.shown {
		fmt.Fprint(b.w, "\r\033[K")
	}
}

// long is call for a piece of work that tells how far it is.
func (c *client) long(ctx context.Context, path string, request any, diag io.Writer, result any) error {
	text, err := json.Marshal(request)
	if err != nil {
		return err
	}
	resp, err := c.send(ctx, http.MethodPost, path, bytes.NewReader(text), "application/json")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b := newBar(diag)
	defer b.end()
	for lines := json.NewDecoder(resp.Body); ; {
		var line struct {
			Done, Total int64
			Error       string
			Result      json.RawMessage
		}
		if err := lines.Decode(&line); err != nil {
			return fmt.Errorf("the daemon did not say how it ended: %w", err)
		}
		switch {
		case line.Error != "":
			return errors.New(line.Error)
		case line.Result != nil:
			return json.Unmarshal(line.Result, result)
		}
		b.show(line.Done, line.Total)
	}
}
