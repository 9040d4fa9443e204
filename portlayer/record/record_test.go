package record

import (
	"path/filepath"
	"testing"

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
