// Package record keeps the durable records of a VCH: containers, images, the commit journal.
//
// It is a typed face on one bbolt file, whose lock also guards against a second daemon on the same state. Each write is one transaction,
// on disk when the call returns. Records are JSON, so that a later vch can read an earlier one's; an unknown field is kept by no one.
package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"vch/internal/fault"
)

// lockWait is how long Open waits for another daemon to let go of the file: enough for one that is stopping.
const lockWait = 2 * time.Second

// DB is the open file.
type DB struct{ bolt *bolt.DB }

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
func (t Table[T]) Put(key string, v T) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return t.db.bolt.Update(func(tx *bolt.Tx) error { return tx.Bucket(t.name).Put([]byte(key), data) })
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
func (t Table[T]) Delete(key string) error {
	return t.db.bolt.Update(func(tx *bolt.Tx) error { return tx.Bucket(t.name).Delete([]byte(key)) })
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
