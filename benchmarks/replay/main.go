// Command replay generates load on a gRPC server from encoded requests and prints the results as one line of JSON. It
// does not decode messages, so that a registry, a bare echo and etcd are measured in the same way.
//
//	replay unary  -addr A -method M -requests FILE [-in-flight 64] [-connections 2] [-seconds 3] [-once]
//	replay stream -addr A -method M -requests FILE [-in-flight 8] [-seconds 3]
//	replay agents -addr A -registers FILE -beats FILE -watch FILE -watchers N [-in-flight 64] [-interval 10s]
//	replay fanout -addr A -method M -requests FILE -watchers N -trigger M -triggers FILE [-events N] [-rounds R]
//	replay steady -addr A -method M -requests FILE -watchers N -trigger M -triggers FILE -rate N -marker TEXT
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
)

// raw is a codec that passes bytes through, so that encoding in this client does not distort the measurement.
type raw struct{}

func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

func (raw) Name() string { return "proto" }

func main() {
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "replay:", err)
		os.Exit(1)
	}
}

type options struct {
	addr, method, requests, trigger, triggers, marker                     string
	inFlight, connections, seconds, watchers, events, rounds, field, rate int
	once, keepOpen                                                        bool
}

func run(mode string, args []string) error {
	encoding.RegisterCodecV2(raw{})
	if mode == "agents" {
		return agents(args)
	}
	var o options
	flags := flag.NewFlagSet(mode, flag.ExitOnError)
	flags.StringVar(&o.addr, "addr", "", "HOST:PORT")
	flags.StringVar(&o.method, "method", "", "/package.Service/Method")
	flags.StringVar(&o.requests, "requests", "", "file of requests, each preceded by its length as a 4-byte big-endian integer")
	flags.IntVar(&o.inFlight, "in-flight", 64, "number of concurrent calls")
	flags.IntVar(&o.connections, "connections", 2, "number of connections")
	flags.IntVar(&o.seconds, "seconds", 3, "duration of the measurement")
	flags.BoolVar(&o.once, "once", false, "send each request once, regardless of -seconds")
	flags.IntVar(&o.watchers, "watchers", 1, "number of receiving streams")
	flags.StringVar(&o.trigger, "trigger", "", "method whose calls cause events")
	flags.StringVar(&o.triggers, "triggers", "", "file of requests of -trigger")
	flags.IntVar(&o.events, "events", 1, "events that each stream receives per round")
	flags.IntVar(&o.rounds, "rounds", 10, "number of rounds; the triggers are distributed evenly over them")
	flags.IntVar(&o.field, "field", 1, "number of the field that contains the events of a received message")
	flags.IntVar(&o.rate, "rate", 100, "events per second")
	flags.StringVar(&o.marker, "marker", "", "text before the number of an event, six digits")
	flags.BoolVar(&o.keepOpen, "keep-open", false, "do not half-close the receiving streams")
	if err := flags.Parse(args); err != nil {
		return err
	}
	requests, err := read(o.requests)
	if err != nil {
		return err
	}
	var conns []*grpc.ClientConn
	for range o.connections {
		conn, err := grpc.NewClient(o.addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<28)),
			// Otherwise thousands of connections would allocate buffers of 64 KiB each.
			grpc.WithSharedWriteBuffer(true))
		if err != nil {
			return err
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	var result any
	switch mode {
	case "unary":
		result, err = unary(conns, requests, o)
	case "stream":
		result, err = stream(conns[0], requests, o)
	case "fanout":
		result, err = fanout(conns, requests[0], o)
	case "steady":
		result, err = steady(conns, requests[0], o)
	default:
		err = fmt.Errorf("unknown mode: %s", mode)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

func read(name string) ([][]byte, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var requests [][]byte
	for len(data) >= 4 {
		n := int(data[0])<<24 | int(data[1])<<16 | int(data[2])<<8 | int(data[3])
		requests = append(requests, data[4:4+n])
		data = data[4+n:]
	}
	if len(requests) == 0 {
		return nil, fmt.Errorf("%s contains no requests", name)
	}
	return requests, nil
}

type rates struct {
	Rate   float64 `json:"rate"` // calls per second
	P50    float64 `json:"p50"`  // ms
	P99    float64 `json:"p99"`  // ms
	Failed int64   `json:"failed"`
	Error  string  `json:"error,omitempty"` // first error
}

// unary keeps o.inFlight calls in flight. The first second is a warm-up and is not counted.
func unary(conns []*grpc.ClientConn, requests [][]byte, o options) (rates, error) {
	var next, failed, done atomic.Int64
	var first atomic.Value
	latencies := make([][]time.Duration, o.inFlight)
	warm := time.Now()
	if !o.once {
		warm = warm.Add(time.Second)
	}
	end := warm.Add(time.Duration(o.seconds) * time.Second)
	var group sync.WaitGroup
	for i := range o.inFlight {
		group.Go(func() {
			conn := conns[i%len(conns)]
			var response []byte
			for {
				n := int(next.Add(1) - 1)
				if o.once && n >= len(requests) {
					return
				}
				start := time.Now()
				if !o.once && start.After(end) {
					return
				}
				request := requests[n%len(requests)]
				if err := conn.Invoke(context.Background(), o.method, &request, &response); err != nil {
					failed.Add(1)
					first.CompareAndSwap(nil, err.Error())
				} else if start.After(warm) {
					done.Add(1)
					latencies[i] = append(latencies[i], time.Since(start))
				}
			}
		})
	}
	group.Wait()
	elapsed := time.Since(warm).Seconds()
	all := slices.Concat(latencies...)
	slices.Sort(all)
	result := rates{Rate: float64(done.Load()) / elapsed, Failed: failed.Load()}
	if len(all) > 0 {
		result.P50, result.P99 = ms(all[len(all)/2]), ms(all[len(all)*99/100])
	}
	if text, ok := first.Load().(string); ok {
		result.Error = text
	}
	return result, nil
}

// stream keeps o.inFlight messages without a response on one stream. The first second is a warm-up.
func stream(conn *grpc.ClientConn, requests [][]byte, o options) (rates, error) {
	desc := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s, err := conn.NewStream(ctx, desc, o.method)
	if err != nil {
		return rates{}, err
	}
	slots := make(chan time.Time, o.inFlight)
	warm := time.Now().Add(time.Second)
	end := warm.Add(time.Duration(o.seconds) * time.Second)
	go func() {
		for n := 0; time.Now().Before(end); n++ {
			slots <- time.Now()
			if s.SendMsg(&requests[n%len(requests)]) != nil {
				break // RecvMsg returns the reason
			}
		}
		s.CloseSend()
	}()
	var latencies []time.Duration
	for {
		var response []byte
		if err := s.RecvMsg(&response); err == io.EOF {
			break
		} else if err != nil {
			return rates{}, err
		}
		if sent := <-slots; sent.After(warm) {
			latencies = append(latencies, time.Since(sent))
		}
	}
	elapsed := time.Since(warm).Seconds()
	slices.Sort(latencies)
	return rates{Rate: float64(len(latencies)) / elapsed, P50: ms(latencies[len(latencies)/2]), P99: ms(latencies[len(latencies)*99/100])}, nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
