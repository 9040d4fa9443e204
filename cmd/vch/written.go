package main

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/spf13/pflag"

	"vch/machine"
)

// Settings as they are written: on a command line, in a VCH's vch.toml, and back.

// ownSettings are those that a VCH's directory decides, and no command line.
var ownSettings = []string{"state", "absent-stores", "extension", configFlag}

// said gives the flags of f that the command line or its configuration file has, paths made absolute: the daemon has another working directory.
func said(f *pflag.FlagSet, at surroundings) machine.Settings {
	s := machine.Settings{}
	var all words
	known := pflag.NewFlagSet("", pflag.ContinueOnError)
	all.flags(known)
	target := f.Lookup("target")
	elsewhere := target != nil && target.Value.String() != machine.Local
	known.VisitAll(func(k *pflag.Flag) {
		flag := f.Lookup(k.Name)
		if flag == nil || !flag.Changed || slices.Contains(ownSettings, k.Name) {
			return
		}
		values := []string{flag.Value.String()}
		if list, many := flag.Value.(pflag.SliceValue); many {
			values = list.GetSlice()
		} else if values[0] == flag.DefValue {
			return
		}
		if len(values) == 0 {
			return
		}
		for i, v := range values {
			values[i] = placed(k.Name, v, at, elsewhere)
		}
		s[k.Name] = values
	})
	return s
}

// placed is a value with its path made absolute, if it has one. Where machines are elsewhere, those of images and volumes are datastores'.
func placed(setting, value string, at surroundings, elsewhere bool) string {
	if elsewhere && (setting == machine.StoresSetting || setting == "image-store") {
		return value
	}
	switch setting {
	case "tlscacert", "tlscert", "tlskey", "cache", "kernel", "bind-allow", "password-file":
		if value != "" {
			return absolute(value, at)
		}
	case "image-store":
		if value != "" && !strings.Contains(value, "://") && !strings.HasPrefix(value, "[") {
			return absolute(value, at)
		}
	case "qemu":
		if strings.Contains(value, "/") {
			return absolute(value, at)
		}
	case machine.StoresSetting:
		if i := strings.LastIndexByte(value, ':'); i > 0 && !strings.Contains(value, "://") && !strings.HasPrefix(value, "[") {
			return absolute(value[:i], at) + value[i:]
		}
	}
	return value
}

// complete adds what every VCH has: its own state and socket, and that a store which is away keeps it from nothing. With an address of TCP it has TLS, unless
// that address is plain.
func complete(s machine.Settings, l place) machine.Settings {
	s = s.Clone()
	s["state"], s["absent-stores"] = []string{l.State}, []string{"degrade"}
	own := "unix://" + l.Socket
	listen := slices.DeleteFunc(slices.Clone(s["listen"]), func(a string) bool { return a == own })
	s["listen"] = append([]string{own}, listen...)
	if remote(s) { // what is made for it there is in what was asked for
		s["password-file"] = []string{l.passwordFile()}
		for _, key := range []string{"pool", "folder"} {
			if len(s[key]) == 1 {
				s[key] = []string{path.Join(s[key][0], l.Name)}
			}
		}
		if s["folder"] != nil {
			s["extension"] = []string{"org.vch." + l.Name}
		}
	}
	tcp := slices.ContainsFunc(listen, func(a string) bool { return strings.HasPrefix(a, "tcp://") })
	if tcp && s["plain-tcp"] == nil {
		s["tlsverify"] = []string{"true"}
	}
	return s
}

// asked is the opposite of complete: what an administrator has to say.
func asked(s machine.Settings, l place) machine.Settings {
	s = s.Clone()
	for _, key := range ownSettings {
		delete(s, key)
	}
	if remote(s) {
		delete(s, "password-file")
		for _, key := range []string{"pool", "folder"} {
			if len(s[key]) == 1 && path.Base(s[key][0]) == l.Name {
				s[key] = []string{path.Dir(s[key][0])}
			}
		}
	}
	s["listen"] = slices.DeleteFunc(s["listen"], func(a string) bool { return a == "unix://"+l.Socket })
	if len(s["listen"]) == 0 {
		delete(s, "listen")
	} else if s["plain-tcp"] == nil {
		delete(s, "tlsverify")
	}
	return s
}

// remote says whether machines are elsewhere.
func remote(s machine.Settings) bool { return len(s["target"]) == 1 && s["target"][0] != machine.Local }

// settingsFlags are flags with the values that s says.
func settingsFlags(s machine.Settings) (*words, *pflag.FlagSet, error) {
	w, f := &words{}, pflag.NewFlagSet("vch", pflag.ContinueOnError)
	w.flags(f)
	for _, key := range s.Names() {
		flag := f.Lookup(key)
		if flag == nil || key == configFlag {
			return nil, nil, usagef("there is no setting %q", key)
		}
		if list, many := flag.Value.(pflag.SliceValue); many {
			if err := list.Replace(s[key]); err != nil {
				return nil, nil, usagef("--%s: %w", key, err)
			}
			flag.Changed = true
			continue
		}
		for _, v := range s[key] {
			if err := f.Set(key, v); err != nil {
				return nil, nil, usagef("--%s: %w", key, err)
			}
		}
	}
	return w, f, nil
}

// checked is the settings as vch serve will read them.
func checked(s machine.Settings, at surroundings) (settings, error) {
	w, _, err := settingsFlags(s)
	if err != nil {
		return settings{}, err
	}
	return w.settings(at)
}

// read gives the settings of a configuration file.
func read(path string) (machine.Settings, error) {
	var w words
	f := pflag.NewFlagSet("vch", pflag.ContinueOnError)
	w.flags(f)
	if err := fromFile(f, path); err != nil {
		return nil, err
	}
	s := machine.Settings{}
	f.VisitAll(func(flag *pflag.Flag) {
		if list, many := flag.Value.(pflag.SliceValue); many && len(list.GetSlice()) > 0 {
			s[flag.Name] = list.GetSlice()
		} else if !many && flag.Value.String() != flag.DefValue {
			s[flag.Name] = []string{flag.Value.String()}
		}
	})
	return s, nil
}

// tomlOf is the configuration file that says s.
func tomlOf(s machine.Settings, name string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# The settings of VCH %s, as vch serve --config reads them: see doc/configuration.md. vch configure %[1]s changes them, with checks;\n# what is changed here holds from the next start on.\n", name)
	_, f, err := settingsFlags(nil)
	if err != nil {
		return b.String()
	}
	for _, key := range s.Names() {
		var value any = s[key]
		if _, many := f.Lookup(key).Value.(pflag.SliceValue); !many {
			value = s[key][0]
			if f.Lookup(key).Value.Type() == "bool" {
				value = s[key][0] == "true"
			}
		}
		line, err := toml.Marshal(map[string]any{key: value})
		if err != nil {
			continue // a string, a bool or a list of strings can be written
		}
		b.Write(line)
	}
	return b.String()
}

// commandLine is vch create with the settings s.
func commandLine(name, root string, supervisor string, s machine.Settings) string {
	line := "vch create --name " + name
	if root != "" {
		line += " --root " + shellQuote(root)
	}
	if supervisor != "" {
		line += " --supervisor " + supervisor
	}
	for _, key := range s.Names() {
		for _, v := range s[key] {
			line += " --" + key
			if v == "true" && key == "tlsverify" {
				continue
			}
			line += " " + shellQuote(v)
		}
	}
	return line
}

// shellQuote is a word as a shell reads it.
func shellQuote(word string) string {
	plain := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_./:=,@%+[]", c)
	}
	if word != "" && !strings.ContainsFunc(word, func(c rune) bool { return !plain(c) }) && !strings.ContainsAny(word, "[]") {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// localStores are the directories of this host among the stores.
func localStores(stores []storePlace) (paths []string) {
	for _, s := range stores {
		if s.NFS == nil && !s.Datastore {
			paths = append(paths, s.Path)
		}
	}
	return paths
}

// volumesDir is what a store's directory has: by it a store is known from the mount point of one that is not mounted.
func volumesDir(store string) string {
	if onDatastore(store) {
		return inDatastore(store, "volumes")
	}
	return filepath.Join(store, "volumes")
}
