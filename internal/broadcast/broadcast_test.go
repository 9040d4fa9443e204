package broadcast

import (
	"context"
	"errors"
	"testing"
)

func TestLateSubscriberSeesHistoryThenLive(t *testing.T) {
	var topic Topic[int]
	topic.Publish(1)
	past, sub := topic.Subscribe()
	defer sub.Close()
	topic.Publish(2)
	if len(past) != 1 || past[0] != 1 {
		t.Fatalf("past = %v", past)
	}
	if v, err := sub.Next(t.Context()); v != 2 || err != nil {
		t.Fatalf("next = %v, %v", v, err)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	var topic Topic[int]
	for i := range History + 10 {
		topic.Publish(i)
	}
	past, sub := topic.Subscribe()
	sub.Close()
	if len(past) != History || past[0] != 10 {
		t.Fatalf("%d kept, first %d", len(past), past[0])
	}
}

func TestSlowSubscriberIsCutOffNotWaitedFor(t *testing.T) {
	var topic Topic[int]
	_, sub := topic.Subscribe()
	for i := range buffer + 1 {
		topic.Publish(i)
	}
	for i := range buffer {
		if v, err := sub.Next(t.Context()); v != i || err != nil {
			t.Fatalf("value %d: %v, %v", i, v, err)
		}
	}
	if _, err := sub.Next(t.Context()); !errors.Is(err, ErrLagged) {
		t.Fatalf("err = %v", err)
	}
	sub.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, idle := topic.Subscribe()
	if _, err := idle.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("err = %v", err)
	}
}
