package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vch/internal/fault"
	"vch/machine"
	"vch/portlayer"
)

func configureCommand(stdout io.Writer) *cobra.Command {
	c := life{out: stdout}
	var w words
	var stores machine.StoreChange
	var unset []string
	force := false
	cmd := &cobra.Command{
		Use:   "configure NAME",
		Short: "Change a VCH's settings: add, change and remove volume stores, and all others",
		Long: `vch configure changes settings of a VCH; what it does not name stays as it is. Stores that are new are checked first. A store that containers use is not removed; its volumes stay where they
are in any case. The daemon reads its settings at its start, so it is started again, and containers go on. If it does not come up with them, it goes back to those that it had.

A setting that is a list, as --listen, is replaced as a whole, but for the volume stores. --unset gives a setting its default again.`,
		Example: `  vch configure web --add-volume-store nfs://nas/vch:shared
  vch configure web --set-volume-store shared=nfs://other/vch --memory 1G
  vch configure web --remove-volume-store shared --unset memory --dry-run`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.checkFormat("text", "json"); err != nil {
				return err
			}
			return c.configure(cmd.Context(), args[0], cmd.Flags(), stores, unset, force)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringArrayVar(&stores.Add, "add-volume-store", nil, "a new volume `STORE`, as --volume-store of vch create; may be given several times")
	f.StringArrayVar(&stores.Set, "set-volume-store", nil, "what a volume store is from now on, `NAME=WHERE`, or as --volume-store; may be given several times")
	f.StringArrayVar(&stores.Remove, "remove-volume-store", nil, "the `NAME` of a volume store that is to be one no more; its volumes stay where they are; may be given several times")
	f.StringArrayVar(&unset, "unset", nil, "a `SETTING` that is to have its default again; may be given several times")
	f.BoolVar(&force, "force", false, "go on where new volume stores cannot be reached: they are degraded")
	c.flags(f)
	w.flagsOfVCH(f)
	for _, name := range []string{machine.StoresSetting, configFlag} {
		_ = f.MarkHidden(name)
	}
	return cmd
}

// commandOf is the command line that f was read from.
func commandOf(verb machine.Command, name string, f *pflag.FlagSet) string {
	line := fmt.Sprintf("vch %s %s", verb, name)
	f.Visit(func(flag *pflag.Flag) {
		values := []string{flag.Value.String()}
		if list, many := flag.Value.(pflag.SliceValue); many {
			values = list.GetSlice()
		}
		for _, v := range values {
			switch {
			case flag.Name == "dry-run" || flag.Name == "format" || flag.Name == "wait":
			case flag.Value.Type() == "bool" && v == "true":
				line += " --" + flag.Name
			default:
				line += " --" + flag.Name + " " + shellQuote(v)
			}
		}
	})
	return line
}

// cutOff is what a command wanted that was cut off and is run again, word for word.
func (s site) cutOff(command machine.Command, again string) (machine.Desired, bool) {
	j, err := s.Home.Journal()
	return j.Desired, err == nil && j.Command == command && j.Again == again
}

func (c *life) configure(ctx context.Context, name string, f *pflag.FlagSet, stores machine.StoreChange, unset []string, force bool) error {
	s, err := c.whole(name, machine.Configure)
	if err != nil {
		return err
	}
	again := commandOf(machine.Configure, name, f)
	if d, ok := s.cutOff(machine.Configure, again); ok {
		_, err := c.change(ctx, s, machine.Configure, d, nil, again, nil, nil)
		return err
	}
	if j, err := s.Home.Journal(); err == nil {
		return j.Refusal()
	}
	o, record, was, err := s.observe(ctx)
	if err != nil {
		return err
	}
	set, err := s.changed(asked(o.Settings, s.place), f, stores, unset)
	if err != nil {
		return err
	}
	if file := first(set["password-file"]); file != "" && f.Changed("password-file") {
		if s.password, err = (&vsphereTarget{PasswordFile: file}).password(); err != nil {
			return err
		}
	}
	set = complete(set, s.place)
	found, err := checked(set, s.at)
	if err != nil {
		return err
	}
	removed := movedStores(was.Stores, found.Stores)
	if err := s.unused(ctx, o, was.Stores, removed); err != nil {
		return err
	}
	others, err := c.others(name, s.at)
	if err != nil {
		return err
	}
	fresh := slices.DeleteFunc(slices.Clone(found.Stores), func(p storePlace) bool {
		return slices.ContainsFunc(was.Stores, func(old storePlace) bool { return old.Name == p.Name && old.String() == p.String() })
	})
	var checks []machine.Check
	if len(fresh) > 0 {
		v, err := s.again(ctx, found, fresh)
		if err != nil {
			return err
		}
		defer v.close()
		checks = append(v.checks, checkStores(ctx, found, fresh, others, v)...)
	}
	if t := found.VSphere; len(fresh) == 0 && t != nil && (s.password != "" || t.User != was.VSphere.User || t.Thumbprint != was.VSphere.Thumbprint || t.Network != was.VSphere.Network) {
		v, err := s.again(ctx, found, nil)
		if err != nil {
			return err
		}
		defer v.close()
		checks = append(checks, v.checks...)
	}
	for _, a := range found.Listen {
		if !slices.Contains(was.Listen, a) {
			checks = append(checks, checkListen(a, others))
		}
	}
	if checks, err = machine.Judge(checks, force); err != nil {
		return err
	}
	d := s.desired(set, found)
	d.Directories = nil
	d.Program, d.Supervisor, d.Running = record.Program, record.Supervisor, o.Running
	if o.Certificates != nil && d.Certificates != nil { // this host's names of the moment are not what is asked for
		d.Certificates = append(slices.Clone(found.TLS.Names), o.Certificates...)
	}
	d.Stores = reached(fresh, checks)
	did, err := c.change(ctx, s, machine.Configure, d, checks, again, func() (machine.Plan, error) {
		o.Stores = storesThere(d.Stores)
		p, err := machine.PlanFor(machine.Configure, d, o, s.own(d, o))
		for i := range p.Changes {
			p.Changes[i].Restart = p.Changes[i].Restart && o.Running
		}
		for _, v := range o.Volumes {
			if slices.Contains(removed, portlayer.StoreName(v.Store)) {
				p.Keeps = append(p.Keeps, v)
			}
		}
		return p, err
	}, nil)
	if err != nil || !did || c.format == "json" || slices.Equal(was.Listen, found.Listen) {
		return err
	}
	return printLine(c.out, "Reach it with\n\n  "+strings.Join(contextLines(s.place, found), "\n  "))
}

// again looks at the target of a VCH that is there, for one that changes. close follows.
func (s site) again(ctx context.Context, found settings, stores []storePlace) (*survey, error) {
	if found.VSphere == nil || stores != nil && !slices.ContainsFunc(stores, func(p storePlace) bool { return p.Datastore }) {
		return &survey{}, nil
	}
	password := s.password
	if password == "" {
		password = s.keptPassword()
	}
	v := surveyed(ctx, found, password, "")
	return &v, nil
}

// changed are the settings with what the command line changes.
func (s site) changed(set machine.Settings, f *pflag.FlagSet, stores machine.StoreChange, unset []string) (machine.Settings, error) {
	for _, name := range []string{"state", "absent-stores", configFlag} {
		if f.Changed(name) {
			return nil, usagef("--%s cannot be changed", name)
		}
	}
	if f.Changed(machine.StoresSetting) {
		return nil, usagef("--%s: say --add-volume-store, --set-volume-store or --remove-volume-store; stores that are not named stay as they are", machine.StoresSetting)
	}
	for _, name := range []string{"image-store", "target", "datacenter", "pool", "folder", "extension"} {
		if f.Changed(name) || slices.Contains(unset, name) {
			return nil, usagef("--%s cannot be changed: containers are made of what is there; make another VCH", name)
		}
	}
	news := said(f, s.at)
	for key, values := range news {
		set[key] = values
	}
	_, known, err := settingsFlags(nil)
	if err != nil {
		return nil, err
	}
	known.VisitAll(func(k *pflag.Flag) {
		if f.Changed(k.Name) && news[k.Name] == nil { // its default was said
			delete(set, k.Name)
		}
	})
	for _, name := range unset {
		name = strings.TrimPrefix(name, "--")
		if known.Lookup(name) == nil || slices.Contains(ownSettings, name) || name == machine.StoresSetting {
			return nil, usagef("--unset %s: there is no such setting, or it cannot be unset; the settings are %s", name, names(known))
		}
		delete(set, name)
	}
	for _, list := range []*[]string{&stores.Add, &stores.Set} {
		placedAll := []string{}
		for _, text := range *list {
			if name, where, ok := strings.Cut(text, "="); ok && storeName.MatchString(name) && list == &stores.Set {
				text = name + "=" + strings.TrimSuffix(placed(machine.StoresSetting, where+":"+name, s.at, remote(set)), ":"+name)
			} else {
				text = placed(machine.StoresSetting, text, s.at, remote(set))
			}
			placedAll = append(placedAll, text)
		}
		*list = placedAll
	}
	after, err := stores.Stores(set[machine.StoresSetting])
	if err != nil {
		return nil, kindly(err)
	}
	if set[machine.StoresSetting] = after; len(after) == 0 {
		delete(set, machine.StoresSetting)
	}
	return set, nil
}

// movedStores are the names of stores that are no more, or are elsewhere. One that is reached with other options is where it was.
func movedStores(was, is []storePlace) (names []portlayer.StoreName) {
	for _, old := range was {
		same := func(p storePlace) bool {
			if p.Name != old.Name || (p.NFS == nil) != (old.NFS == nil) {
				return false
			}
			return p.NFS == nil && p.Path == old.Path || p.NFS != nil && p.NFS.Host == old.NFS.Host && p.NFS.Port == old.NFS.Port && p.NFS.Path == old.NFS.Path
		}
		if !slices.ContainsFunc(is, same) {
			names = append(names, old.Name)
		}
	}
	return names
}

// unused refuses to take a store from containers that use volumes in it.
func (s site) unused(ctx context.Context, o machine.Observed, stores []storePlace, removed []portlayer.StoreName) error {
	if len(removed) == 0 || len(o.Containers) == 0 {
		return nil
	}
	start := fault.New(fault.Conflict, "VCH %s has containers, and without its daemon nobody can say whether they use volume store %s; start it first: vch start %[1]s", s.Name, removed[0])
	if !o.Running {
		return start
	}
	e := endpoint{s.Socket}
	all, err := e.containers(ctx)
	if err != nil {
		return fmt.Errorf("%w (%w)", start, err)
	}
	volumes, warnings, err := e.volumes(ctx, stores)
	if err != nil {
		return fmt.Errorf("%w (%w)", start, err)
	}
	at := map[string]string{}
	for _, v := range volumes {
		at[v.Name+"@"+v.Store] = v.Store
		if at[v.Name] == "" {
			at[v.Name] = v.Store
		}
	}
	for _, store := range removed {
		var users []string
		for _, k := range all {
			for _, m := range k.Mounts {
				where, known := at[m.Name]
				switch {
				case m.Type != "volume":
				case where == string(store):
					users = append(users, fmt.Sprintf("%s (%s)", k.noun(), m.Name))
				case !known && len(warnings) > 0: // it may be in a store that is away
					users = append(users, fmt.Sprintf("%s (%s, which may be in it: %s)", k.noun(), m.Name, strings.Join(warnings, "; ")))
				}
			}
		}
		if users != nil {
			return fault.New(fault.InUse, "volume store %s cannot be removed or put elsewhere: containers use its volumes: %s; remove these containers first", store, strings.Join(users, ", "))
		}
	}
	return nil
}
