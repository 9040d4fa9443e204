package exec

import (
	"context"
	"io"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// withFiles runs do with a container's files. A container that ends meanwhile is asked again as one that has ended, for as long as do has not given anything out.
func (s *Service) withFiles(ctx context.Context, ref string, do func(f *files) (given bool, err error)) error {
	for {
		f, err := s.openFiles(ctx, ref)
		if err != nil {
			return err
		}
		given, err := do(f)
		run := f.run
		f.close()
		if err == nil || given || run == nil || !fault.Is(err, fault.Conflict) && !fault.Is(err, fault.Unavailable) || ctx.Err() != nil || !ends(run) {
			return err
		}
	}
}

// ExportRoot is portlayer.Containers.ExportRoot.
func (s *Service) ExportRoot(ctx context.Context, ref string, w io.Writer) error {
	return s.withFiles(ctx, ref, func(f *files) (bool, error) {
		out := counting{w: w}
		_, err := f.own.Archive(ctx, guest.ArchiveRequest{Place: guest.Place{Path: "/"}, Extent: guest.RootAlone}, out.take)
		if err == nil {
			s.publish(f.c, "export")
		}
		return out.n > 0, err
	})
}

// counting is a writer that knows whether anything was written.
type counting struct {
	w io.Writer
	n int64
}

func (c *counting) take(data []byte) error {
	n, err := c.w.Write(data)
	c.n += int64(n)
	return err
}

// Changes is portlayer.Containers.Changes.
func (s *Service) Changes(ctx context.Context, ref string) (all []guest.Change, err error) {
	err = s.withFiles(ctx, ref, func(f *files) (bool, error) {
		all = nil
		return false, f.own.Changes(ctx, func(some []guest.Change) error {
			all = append(all, some...)
			return nil
		})
	})
	return all, err
}

// MakeImage is portlayer.Containers.MakeImage.
func (s *Service) MakeImage(ctx context.Context, ref string, o portlayer.MakeImage) (img portlayer.Image, err error) {
	err = s.withFiles(ctx, ref, func(f *files) (bool, error) {
		reading, stop := context.WithCancel(ctx)
		defer stop()
		pr, pw := io.Pipe()
		archived := make(chan error, 1)
		go func() {
			out := counting{w: pw}
			r := guest.ArchiveRequest{Place: guest.Place{Path: "/"}, Extent: guest.ChangesOf, Still: o.Still && f.run != nil}
			_, err := f.own.Archive(reading, r, out.take)
			archived <- err // before the other end can hear of it
			pw.CloseWithError(err)
		}()
		img, err = s.o.Images.Derive(ctx, f.c.Image, pr, o.Derived)
		var broke error // why the archive came to no end by itself
		select {
		case broke = <-archived:
		default:
			stop()
			pr.CloseWithError(err)
			<-archived
		}
		if err != nil && broke != nil {
			err = broke
		}
		if err == nil {
			s.publish(f.c, "commit", "comment", o.Comment, "imageID", string(img.ID), "imageRef", o.Name)
		}
		return false, err
	})
	return img, err
}
