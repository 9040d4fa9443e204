// Command vcsim serves a simulated vCenter on the loopback interface until it is told to end, for scripts and demos: hypervisor/vsphere/vcsim says what is true about it.
//
// When it serves it prints one line of JSON: url, user, password, thumbprint (SHA-256), thumbprint_sha1, certificate (a file in --dir), datacenter, cluster.
// SIGTERM and SIGINT end it and every machine; the files stay.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"vch/hypervisor/vsphere/vcsim"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "vcsim:", err)
		os.Exit(1)
	}
}

func run() error {
	dir := flag.String("dir", "", "where everything is; a datastore is the directory of its name below it")
	listen := flag.String("listen", "127.0.0.1:0", "address to serve on")
	datastores := flag.String("datastore", "datastore1", "names of datastores, with commas between them")
	networks := flag.String("network", "", "names of port groups beside "+vcsim.Network)
	hosts := flag.Int("hosts", 1, "hosts of the cluster")
	machines := flag.String("machines", "qemu", "what VMs run on: qemu, or null for nothing")
	latency := flag.Duration("latency", 0, "of each call")
	password := flag.String("password", "", "of the user who may log in")
	lacks := flag.String("lacks", "", "privileges that the user does not have, with commas between them")
	lose := flag.String("lose", "", "names of datastores that no host reaches, with commas between them")
	flag.Parse()
	if *dir == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	o := vcsim.Options{Dir: *dir, Listen: *listen, Datastores: list(*datastores), PortGroups: list(*networks), Hosts: *hosts, Latency: *latency, Lacks: list(*lacks), Password: *password,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	switch *machines {
	case "null":
	case "qemu":
		o.Machines = vcsim.QEMU{}
	default:
		return fmt.Errorf("--machines %s: qemu or null", *machines)
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	s, err := vcsim.Start(o)
	if err != nil {
		return err
	}
	defer s.Close()
	for _, name := range list(*lose) {
		d := s.Datastore(name)
		if d == nil {
			return fmt.Errorf("--lose %s: --datastore names no such one", name)
		}
		d.Lose()
	}
	cert := filepath.Join(*dir, "vcsim.pem")
	if err := os.WriteFile(cert, s.Certificate(), 0o600); err != nil {
		return err
	}
	said, _ := s.User().Password()
	if err := json.NewEncoder(os.Stdout).Encode(map[string]string{"url": s.URL().String(), "user": s.User().Username(), "password": said, "thumbprint": s.Thumbprint(),
		"thumbprint_sha1": s.ThumbprintSHA1(), "certificate": cert, "datacenter": vcsim.Datacenter, "cluster": vcsim.Cluster}); err != nil {
		return err
	}
	<-end
	return s.Close()
}

func list(text string) (all []string) {
	for _, name := range strings.Split(text, ",") {
		if name != "" {
			all = append(all, name)
		}
	}
	return all
}
