package record

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	bolt "go.etcd.io/bbolt"

	"vch/internal/fault"
)

type thing struct{ A, B string }

func TestRecordsSurviveReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	for round := range 2 {
		db, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		tab, err := NewTable[thing](db, "things")
		if err != nil {
			t.Fatal(err)
		}
		if round == 0 {
			if err := tab.Put("x", thing{"1", "2"}); err != nil {
				t.Fatal(err)
			}
		} else {
			v, ok, err := tab.Get("x")
			if !ok || err != nil || v != (thing{"1", "2"}) {
				t.Fatalf("got %v %v %v", v, ok, err)
			}
			if err := tab.Delete("x"); err != nil {
				t.Fatal(err)
			}
			if all, err := tab.All(); len(all) != 0 || err != nil {
				t.Fatalf("after delete: %v, %v", all, err)
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := Open(path); !fault.Is(err, fault.InUse) {
		t.Fatalf("second open: %v", err)
	}
}

// Writes that come at once share transactions, each of which waits for the medium; a bad one does no harm to the others.
func TestWritesShareTransactions(t *testing.T) {
	db, err := Open(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	table, err := NewTable[int](db, "numbers")
	if err != nil {
		t.Fatal(err)
	}
	transactions := func() (id int) {
		if err := db.bolt.View(func(tx *bolt.Tx) error { id = tx.ID(); return nil }); err != nil {
			t.Fatal(err)
		}
		return id
	}
	const writes = 40
	// The first transaction is held until all others wait.
	begun, open := make(chan struct{}), make(chan struct{})
	before := transactions()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := db.Do(func(*bolt.Tx) error { close(begun); <-open; return nil }); err != nil {
			t.Error(err)
		}
	})
	<-begun
	for i := range writes {
		wg.Go(func() {
			if err := db.Do(table.Putting(fmt.Sprint("a", i), i), table.Putting(fmt.Sprint("b", i), i)); err != nil {
				t.Error(err)
			}
		})
	}
	for waiting := 0; waiting < writes; runtime.Gosched() {
		db.mu.Lock()
		waiting = len(db.waiting)
		db.mu.Unlock()
	}
	close(open)
	wg.Wait()
	if n := transactions() - before; n != 2 {
		t.Errorf("%d writes at once took %d transactions, want the held one and one for all", writes, n)
	}
	if all, err := table.All(); err != nil || len(all) != 2*writes {
		t.Errorf("%d records, %v", len(all), err)
	}

	begun, open = make(chan struct{}), make(chan struct{})
	wg.Go(func() {
		if err := db.Do(func(*bolt.Tx) error { close(begun); <-open; return nil }); err != nil {
			t.Error(err)
		}
	})
	<-begun
	wg.Go(func() {
		if err := db.Do(table.Putting("half", 1), func(*bolt.Tx) error { return errors.New("no") }); err == nil || err.Error() != "no" {
			t.Errorf("the bad one: %v", err)
		}
	})
	wg.Go(func() {
		if err := table.Put("good", 1); err != nil {
			t.Error(err)
		}
	})
	for waiting := 0; waiting < 2; runtime.Gosched() {
		db.mu.Lock()
		waiting = len(db.waiting)
		db.mu.Unlock()
	}
	close(open)
	wg.Wait()
	if _, ok, err := table.Get("good"); !ok || err != nil {
		t.Errorf("the good one: %v, %v", ok, err)
	}
	if _, ok, err := table.Get("half"); ok || err != nil {
		t.Errorf("half of the bad one: %v, %v", ok, err)
	}
}
