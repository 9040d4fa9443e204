package image

import (
	"archive/tar"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"vch/portlayer"
)

// BenchmarkPull125MB is the whole of a pull from a registry on loopback: 3 layers, 9000 files, 125 MB of half compressible content. cpu-ms is the
// processor time of the whole test process, the registry's included.
func BenchmarkPull125MB(b *testing.B) {
	ref := bigImage(b)
	var cpu time.Duration
	for b.Loop() {
		b.StopTimer()
		x := newBox(b)
		before := cpuTime(b)
		b.StartTimer()
		if _, err := x.Pull(b.Context(), ref, "", portlayer.Credentials{}, nil); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		cpu += cpuTime(b) - before
		b.StartTimer()
	}
	b.ReportMetric(float64(cpu.Milliseconds())/float64(b.N), "cpu-ms/op")
}

// BenchmarkDisk125MB is the part of it that turns the layers into a disk.
func BenchmarkDisk125MB(b *testing.B) {
	x := newBox(b)
	img, err := x.Pull(b.Context(), bigImage(b), "", portlayer.Credentials{}, nil)
	if err != nil {
		b.Fatal(err)
	}
	k, _ := x.catalog.get(img.ID)
	before := cpuTime(b)
	for b.Loop() {
		if err := x.makeDisk(b.Context(), k.disk, k.layers); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64((cpuTime(b)-before).Milliseconds())/float64(b.N), "cpu-ms/op")
}

// bigImage pushes the image of the benchmarks and gives its reference.
func bigImage(b *testing.B) string {
	b.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	var layers [][]byte
	for l := range 3 {
		var ents []ent
		for i := range 3000 {
			body := make([]byte, 14000)
			for j := range body {
				body[j] = byte(random.UintN(16) * uint(1+j%2*15))
			}
			ents = append(ents, ent{name: fmt.Sprintf("usr/lib%d/d%d/f%d", l, i%100, i), body: string(body), mode: 0o644, typ: tar.TypeReg})
		}
		layers = append(layers, makeTar(b, ents...))
	}
	return newHub(b).push("big", makeImage(b, hostPlatform().Architecture, layers...))
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
