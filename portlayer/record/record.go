// Package record keeps the durable records of a VCH: containers, images, the commit journal.
//
// It is a typed face on one bbolt file, whose lock also guards against a second daemon on the same state. A write is on disk when the call returns. A transaction waits for the
// medium twice (bbolt: data, then the page that makes it count), so that writes which come while one is on its way share the next: nobody waits to be joined. Records are JSON, so that a later vch can read an earlier one's; an unknown field is kept by no one.
package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"vch/internal/fault"
)

// lockWait is how long Open waits for another daemon to let go of the file: enough for one that is stopping.
const lockWait = 2 * time.Second

// DB is the open file.
type DB struct {
	bolt *bolt.DB

	mu      sync.Mutex // guards below
	writing bool       // somebody is at a transaction
	waiting []*write   // for the next one
}

// write is a Change that waits for its transaction.
type write struct {
	changes []Change
	leads   chan struct{} // closed: it is to write all that waits, itself included
	done    chan error
}

// Open opens or makes the file at path. InUse: another daemon has it.
func Open(path string) (*DB, error) {
	b, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: lockWait})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fault.New(fault.InUse, "another vch serve uses %s; stop it first, or give this one its own --state", path)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open records %s: %w", path, err)
	}
	return &DB{bolt: b}, nil
}

// Close lets go of the file.
func (db *DB) Close() error { return db.bolt.Close() }

// Change is a write of one record, to be done by DB.Do.
type Change func(*bolt.Tx) error

// Do makes changes, durably: all of them, or after an error none.
func (db *DB) Do(changes ...Change) error {
	w := &write{changes: changes, leads: make(chan struct{}), done: make(chan error, 1)}
	db.mu.Lock()
	db.waiting = append(db.waiting, w)
	if db.writing {
		db.mu.Unlock()
		select {
		case err := <-w.done:
			return err
		case <-w.leads:
		}
		db.mu.Lock()
	}
	db.writing = true
	all := db.waiting
	db.waiting = nil
	db.mu.Unlock()

	errs := db.commit(all)

	db.mu.Lock()
	if db.writing = len(db.waiting) > 0; db.writing {
		close(db.waiting[0].leads)
	}
	db.mu.Unlock()
	var own error
	for i, other := range all {
		if other == w {
			own = errs[i]
		} else {
			other.done <- errs[i]
		}
	}
	return own
}

// commit does all writes in one transaction, or, if one of them fails, each in its own.
func (db *DB) commit(all []*write) []error {
	errs := make([]error, len(all))
	err := db.bolt.Update(func(tx *bolt.Tx) error {
		for _, w := range all {
			if err := w.apply(tx); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		return errs
	}
	for i, w := range all {
		errs[i] = err
		if len(all) > 1 {
			errs[i] = db.bolt.Update(w.apply)
		}
	}
	return errs
}

func (w *write) apply(tx *bolt.Tx) error {
	for _, change := range w.changes {
		if err := change(tx); err != nil {
			return err
		}
	}
	return nil
}

// Table is one kind of record, keyed by text.
type Table[T any] struct {
	db   *DB
	name []byte
}

// NewTable gives the table called name, making it where it is not there.
func NewTable[T any](db *DB, name string) (Table[T], error) {
	t := Table[T]{db: db, name: []byte(name)}
	return t, db.bolt.Update(func(tx *bolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(t.name)
		return err
	})
}

// Put writes v under key, durably.
func (t Table[T]) Put(key string, v T) error { return t.db.Do(t.Putting(key, v)) }

// Putting is Put as a Change.
func (t Table[T]) Putting(key string, v T) Change {
	data, err := json.Marshal(v)
	return func(tx *bolt.Tx) error {
		if err != nil {
			return err
		}
		return tx.Bucket(t.name).Put([]byte(key), data)
	}
}

// Get reads what is under key; ok is false if nothing is.
func (t Table[T]) Get(key string) (v T, ok bool, err error) {
	err = t.db.bolt.View(func(tx *bolt.Tx) error {
		data := tx.Bucket(t.name).Get([]byte(key))
		if data == nil {
			return nil
		}
		ok = true
		return json.Unmarshal(data, &v)
	})
	return v, ok, err
}

// Delete removes key, durably; a missing one is no error.
func (t Table[T]) Delete(key string) error { return t.db.Do(t.Deleting(key)) }

// Deleting is Delete as a Change.
func (t Table[T]) Deleting(key string) Change {
	return func(tx *bolt.Tx) error { return tx.Bucket(t.name).Delete([]byte(key)) }
}

// All reads every record.
func (t Table[T]) All() (map[string]T, error) {
	all := map[string]T{}
	err := t.db.bolt.View(func(tx *bolt.Tx) error {
		return tx.Bucket(t.name).ForEach(func(k, data []byte) error {
			var v T
			if err := json.Unmarshal(data, &v); err != nil {
				return fmt.Errorf("cannot read record %s/%s: %w", t.name, k, err)
			}
			all[string(k)] = v
			return nil
		})
	})
	return all, err
}
