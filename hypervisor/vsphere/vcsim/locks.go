package vcsim

import (
	"strings"
	"sync"
)

// locks are those that VMFS has on files that are open: one who writes, or any number who read.
type locks struct {
	mu   sync.Mutex         // guards below
	open map[string]*opened // by local path
}

type opened struct {
	writer  bool
	holders map[string]int // who, by a VM's reference or a task's
}

// take opens a file for who; false if others have it open so that this cannot be.
func (l *locks) take(path, who string, write bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := l.open[path]
	if o == nil {
		o = &opened{writer: write, holders: map[string]int{}}
		l.open[path] = o
	} else if write || o.writer {
		return false
	}
	o.holders[who]++
	return true
}

// drop closes a file that who has taken.
func (l *locks) drop(path, who string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := l.open[path]
	if o == nil || o.holders[who] == 0 {
		return
	}
	if o.holders[who]--; o.holders[who] == 0 {
		delete(o.holders, who)
	}
	if len(o.holders) == 0 {
		delete(l.open, path)
	}
}

// below is the path of a file that is open and is path or in it; "" if there is none.
func (l *locks) below(path string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p := range l.open {
		if p == path || strings.HasPrefix(p, path+"/") {
			return p
		}
	}
	return ""
}
