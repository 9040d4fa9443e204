package vcsim

import (
	"context"
	"os"
)

// Machines are what VMs that are powered on run on.
type Machines interface {
	// Start starts what m describes and returns when it executes. off is called once, when the machine ends by itself, in a goroutine that Running.Stop does
	// not wait for; it is not called for a machine that was stopped.
	Start(ctx context.Context, m Machine, off func()) (Running, error)
	// Close is called when every machine has been stopped.
	Close() error
}

// Running is a machine that was started.
type Running interface {
	// Stop ends it at once, as pulling the plug; its disks are free when it returns. Again: nothing happens.
	Stop() error
	// Fail ends it at once as if it had ended by itself: off is called.
	Fail()
	Suspend(ctx context.Context) error
	Resume(ctx context.Context) error
	// PlugAdapter adds a SCSI adapter in a PCI slot; the guest hears of it some time after.
	PlugAdapter(ctx context.Context, slot int) error
	// Plug adds a disk; the guest hears of it some time after.
	Plug(ctx context.Context, d Disk) error
	// Unplug takes a disk away, whatever the guest does with it; its file is free when it returns.
	Unplug(ctx context.Context, d Disk) error
	// Resize tells the machine that the file of a disk has become longer.
	Resize(ctx context.Context, d Disk) error
	// Console is the last that it said on its first serial port.
	Console() []byte
	// Pid is its process; 0 if it has none.
	Pid() int
}

// Machine is a VM as its machine has to be.
type Machine struct {
	ID        string // the VM's reference's value
	Name      string
	MemoryMB  int
	CPUs      int
	ISO       string // what the CD-ROM drive has in it and is connected to, a local file; "" if nothing
	Adapters  []int  // PCI slot numbers of the SCSI adapters
	Disks     []Disk
	Cards     []Card
	Serial    *os.File          // where what its first serial port says goes, beside Running.Console; nil: nowhere. It is the machine's, which closes it
	GuestInfo map[string]string // extraConfig's guestinfo.*
}

// Disk is a disk where it is.
type Disk struct {
	Key     int32  // the device's, unique in the VM
	Adapter int    // PCI slot number of the SCSI adapter
	Unit    int    // SCSI target
	File    string // the extent, raw
	Size    int64
	Discard bool // what the guest writes is forgotten when it is powered off
}

// Card is a network card.
type Card struct {
	MAC     string
	Network string
	Slot    int // PCI slot number; 0: any
}

// Null are machines of which nothing runs: VMs have a power state alone.
type Null struct{}

// Start starts nothing.
func (Null) Start(_ context.Context, _ Machine, off func()) (Running, error) {
	return &nullMachine{off}, nil
}

// Close does nothing.
func (Null) Close() error { return nil }

type nullMachine struct{ off func() }

func (*nullMachine) Stop() error                            { return nil }
func (m *nullMachine) Fail()                                { m.off() }
func (*nullMachine) Suspend(context.Context) error          { return nil }
func (*nullMachine) Resume(context.Context) error           { return nil }
func (*nullMachine) PlugAdapter(context.Context, int) error { return nil }
func (*nullMachine) Plug(context.Context, Disk) error       { return nil }
func (*nullMachine) Unplug(context.Context, Disk) error     { return nil }
func (*nullMachine) Resize(context.Context, Disk) error     { return nil }
func (*nullMachine) Console() []byte                        { return nil }
func (*nullMachine) Pid() int                               { return 0 }
