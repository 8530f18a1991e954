package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
)

const (
	openingStreams  = 64 // streams opened at the same time
	deliveryTimeout = 2 * time.Minute
)

// watch opens o.watchers streams, distributed over the connections, and returns when each has received its first message,
// which confirms that its watch is established. It calls received for each further message of a stream.
func watch(ctx context.Context, conns []*grpc.ClientConn, request []byte, o options, received func(stream int, message []byte)) (<-chan error, error) {
	errs := make(chan error, o.watchers)
	var next, opened atomic.Int64
	ready := make(chan struct{})
	for range min(openingStreams, o.watchers) {
		go func() {
			for i := int(next.Add(1) - 1); i < o.watchers; i = int(next.Add(1) - 1) {
				s, err := open(ctx, conns[i%len(conns)], request, o)
				if err != nil {
					errs <- err
					return
				}
				if int(opened.Add(1)) == o.watchers {
					close(ready)
				}
				go func() {
					for {
						var message []byte
						if err := s.RecvMsg(&message); err != nil {
							errs <- err
							return
						}
						received(i, message)
					}
				}()
			}
		}()
	}
	select {
	case <-ready:
		return errs, nil
	case err := <-errs:
		return nil, err
	}
}

func open(ctx context.Context, conn *grpc.ClientConn, request []byte, o options) (grpc.ClientStream, error) {
	desc := &grpc.StreamDesc{ServerStreams: true, ClientStreams: o.keepOpen}
	s, err := conn.NewStream(ctx, desc, o.method)
	if err != nil {
		return nil, err
	}
	if err := s.SendMsg(&request); err != nil {
		return nil, err
	}
	if !o.keepOpen {
		if err := s.CloseSend(); err != nil {
			return nil, err
		}
	}
	var first []byte
	return s, s.RecvMsg(&first)
}

type fanoutResult struct {
	Last []float64 `json:"last"` // ms from the first trigger to the last event on the last stream, per round
}

// fanout opens streams and sends rounds of triggers. After each round it waits until every stream has every event.
func fanout(conns []*grpc.ClientConn, request []byte, o options) (fanoutResult, error) {
	triggers, err := read(o.triggers)
	if err != nil {
		return fanoutResult{}, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	complete := make(chan struct{}, o.watchers)
	counts := make([]int, o.watchers)
	errs, err := watch(ctx, conns, request, o, func(stream int, message []byte) {
		if counts[stream] += events(message, protowire.Number(o.field)); counts[stream] >= o.events {
			counts[stream] -= o.events
			complete <- struct{}{}
		}
	})
	if err != nil {
		return fanoutResult{}, err
	}
	var result fanoutResult
	each := len(triggers) / o.rounds
	for round := range o.rounds {
		start := time.Now()
		sent := make(chan error, 1)
		go func() {
			var response []byte
			for i := range each {
				if err := conns[0].Invoke(ctx, o.trigger, &triggers[round*each+i], &response); err != nil {
					sent <- err
					return
				}
			}
			sent <- nil
		}()
		for range o.watchers {
			select {
			case <-complete:
			case err := <-errs:
				return fanoutResult{}, err
			case <-time.After(deliveryTimeout):
				return fanoutResult{}, fmt.Errorf("timed out before every stream received every event")
			}
		}
		result.Last = append(result.Last, ms(time.Since(start)))
		if err := <-sent; err != nil {
			return fanoutResult{}, err
		}
	}
	return result, nil
}

type steadyResult struct {
	Delivery percentiles `json:"delivery"` // ms from the scheduled time of an event to its arrival on a stream
	Call     percentiles `json:"call"`     // ms from the scheduled time of a trigger to its response
	Messages int64       `json:"messages"` // received messages, which may contain several events
	Seconds  float64     `json:"seconds"`  // from the first trigger until every stream had every event
}

type percentiles struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// steady opens streams and sends each trigger once, without waiting for earlier ones. A trigger causes o.events events,
// o.rate per second in all. Each event contains o.marker and its number. Times count from the schedule, so that a slow
// server cannot hide delays.
func steady(conns []*grpc.ClientConn, request []byte, o options) (steadyResult, error) {
	triggers, err := read(o.triggers)
	if err != nil {
		return steadyResult{}, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var start time.Time // set before the first trigger
	total := len(triggers) * o.events
	scheduled := func(n int) time.Time { return start.Add(time.Duration(n) * time.Second / time.Duration(o.rate)) }
	latencies := make([][]time.Duration, o.watchers)
	for i := range latencies {
		latencies[i] = make([]time.Duration, 0, total)
	}
	var complete sync.WaitGroup
	complete.Add(o.watchers)
	var messages atomic.Int64
	marker := []byte(o.marker)
	errs, err := watch(ctx, conns, request, o, func(stream int, message []byte) {
		now := time.Now()
		messages.Add(1)
		for {
			at := bytes.Index(message, marker)
			if at < 0 {
				return
			}
			message = message[at+len(marker):]
			n, err := strconv.Atoi(string(message[:6]))
			if err != nil {
				continue
			}
			if latencies[stream] = append(latencies[stream], now.Sub(scheduled(n))); len(latencies[stream]) == total {
				complete.Done()
			}
		}
	})
	if err != nil {
		return steadyResult{}, err
	}
	start = time.Now()
	calls := make([]time.Duration, len(triggers))
	var responses sync.WaitGroup
	failed := make(chan error, len(triggers))
	done := make(chan struct{})
	for n := range triggers {
		time.Sleep(time.Until(scheduled(n * o.events)))
		responses.Go(func() {
			var response []byte
			if err := conns[0].Invoke(ctx, o.trigger, &triggers[n], &response); err != nil {
				failed <- err
			}
			calls[n] = time.Since(scheduled(n * o.events))
		})
	}
	go func() {
		responses.Wait()
		complete.Wait()
		close(done)
	}()
	select {
	case <-done:
	case err := <-errs:
		return steadyResult{}, err
	case err := <-failed:
		return steadyResult{}, err
	case <-time.After(deliveryTimeout):
		return steadyResult{}, fmt.Errorf("timed out before every stream received every event")
	}
	return steadyResult{of(slices.Concat(latencies...)), of(calls), messages.Load(), time.Since(start).Seconds()}, nil
}

func of(durations []time.Duration) percentiles {
	slices.Sort(durations)
	last := len(durations) - 1
	return percentiles{ms(durations[last/2]), ms(durations[last*99/100]), ms(durations[last])}
}

// events returns the number of occurrences of a field in an encoded message.
func events(message []byte, field protowire.Number) (count int) {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return count
		}
		message = message[n:]
		if n = protowire.ConsumeFieldValue(number, kind, message); n < 0 {
			return count
		}
		message = message[n:]
		if number == field {
			count++
		}
	}
	return count
}
