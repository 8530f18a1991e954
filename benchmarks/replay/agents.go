package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
)

const registry = "/ossa.registry.v1.RegistryService/"

// Numbers of fields of the registry's messages.
const (
	unknownNames  = 2 // of KeepAliveResponse
	watchCursor   = 2 // of WatchEventsResponse
	requestCursor = 3 // of WatchEventsRequest
)

// The delays of the Python SDK: registry_client/channel.py and registry_client/retry.py.
const (
	firstDelay  = 100 * time.Millisecond
	longestWait = 2 * time.Second
	beatTimeout = 5 * time.Second
)

var (
	connect = grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: firstDelay, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
		MinConnectTimeout: 5 * time.Second,
	}
)

// fleet is a number of agents, each with a connection of its own.
type fleet struct {
	beats     [][]byte
	registers [][]byte
	interval  time.Duration
	back      atomic.Pointer[sync.WaitGroup] // of the streams that have not been answered since the restart
	restarts  atomic.Int64
	lost      atomic.Int64
	failures  atomic.Int64
	measuring atomic.Bool
	mutex     sync.Mutex
	latencies []time.Duration
}

// agents registers a fleet and keeps its leases, controlled by lines of standard input:
//
//	measure SECONDS    print the latencies of the heartbeats in this time
//	restart            print how long it takes until every stream was answered again
func agents(args []string) error {
	var addr, registers, beats, watch string
	var inFlight, watchers int
	f := &fleet{}
	flags := flag.NewFlagSet("agents", flag.ExitOnError)
	flags.StringVar(&addr, "addr", "", "HOST:PORT")
	flags.StringVar(&registers, "registers", "", "file with the registration of each agent")
	flags.StringVar(&beats, "beats", "", "file with the heartbeat of each agent")
	flags.StringVar(&watch, "watch", "", "file with the request of the watchers")
	flags.IntVar(&watchers, "watchers", 0, "number of agents that watch")
	flags.IntVar(&inFlight, "in-flight", 64, "number of agents that are set up at the same time")
	flags.DurationVar(&f.interval, "interval", 10*time.Second, "time between two heartbeats of an agent")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var err error
	var watches [][]byte
	if f.registers, err = read(registers); err != nil {
		return err
	}
	if f.beats, err = read(beats); err != nil {
		return err
	}
	if watches, err = read(watch); err != nil {
		return err
	}
	output := json.NewEncoder(os.Stdout)
	start := time.Now()
	conns := make([]*grpc.ClientConn, len(f.beats))
	errs := make(chan error, len(conns))
	var next atomic.Int64
	var group sync.WaitGroup
	for range inFlight {
		group.Go(func() {
			for {
				n := int(next.Add(1) - 1)
				if n >= len(conns) {
					return
				}
				var err error
				if conns[n], err = f.setUp(addr, n); err != nil {
					errs <- err
				}
			}
		})
	}
	group.Wait()
	seconds := time.Since(start).Seconds()
	select {
	case err := <-errs:
		return err
	default:
	}
	var open sync.WaitGroup
	for n := range watchers {
		open.Add(1)
		go f.watch(conns[n], watches[0], open.Done)
	}
	open.Wait()
	if err := output.Encode(map[string]float64{"seconds": seconds}); err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		word, argument, _ := strings.Cut(lines.Text(), " ")
		switch word {
		case "measure":
			seconds, err := strconv.ParseFloat(argument, 64)
			if err != nil {
				return err
			}
			err = output.Encode(f.measure(time.Duration(seconds * float64(time.Second))))
			if err != nil {
				return err
			}
		case "restart":
			var back sync.WaitGroup
			back.Add(len(conns) + watchers)
			f.back.Store(&back)
			start := time.Now()
			f.restarts.Add(1)
			back.Wait()
			if err := output.Encode(map[string]any{"seconds": time.Since(start).Seconds(), "lost": f.lost.Load(),
				"failures": f.failures.Load()}); err != nil {
				return err
			}
		default:
			return fmt.Errorf("unknown command: %s", word)
		}
	}
	return lines.Err()
}

func (f *fleet) measure(duration time.Duration) map[string]any {
	f.measuring.Store(true)
	time.Sleep(duration)
	f.measuring.Store(false)
	f.mutex.Lock()
	defer f.mutex.Unlock()
	all := f.latencies
	f.latencies = nil
	slices.Sort(all)
	return map[string]any{"beats": len(all), "p50": ms(all[len(all)/2]), "p99": ms(all[len(all)*99/100]),
		"longest": ms(all[len(all)-1]), "lost": f.lost.Load(), "failures": f.failures.Load()}
}

// setUp connects and registers an agent, and waits for the answer to its first heartbeat.
func (f *fleet) setUp(addr string, n int) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(connect), grpc.WithReadBufferSize(1<<10), grpc.WithWriteBufferSize(0),
		grpc.WithDisableServiceConfig())
	if err != nil {
		return nil, err
	}
	var response []byte
	if err := conn.Invoke(context.Background(), registry+"RegisterService", &f.registers[n], &response); err != nil {
		return nil, err
	}
	first := make(chan struct{})
	go f.keepAlive(conn, n, first)
	<-first
	return conn, nil
}

// keepAlive sends heartbeats, on another stream after each failure.
func (f *fleet) keepAlive(conn *grpc.ClientConn, n int, first chan<- struct{}) {
	failed := 0
	seen := f.restarts.Load() // restarts after which a heartbeat was answered
	for {
		opened := f.restarts.Load()
		f.beat(conn, n, func() {
			failed = 0
			if first != nil {
				close(first)
				first = nil
			}
			if opened > seen {
				seen = opened
				f.back.Load().Done()
			}
		})
		failed++
		f.failures.Add(1)
		time.Sleep(delay(failed))
	}
}

// beat sends heartbeats on one stream until it fails.
func (f *fleet) beat(conn *grpc.ClientConn, n int, answered func()) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	timeout := time.AfterFunc(beatTimeout, cancel)
	defer timeout.Stop()
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, registry+"KeepAlive")
	if err != nil {
		return
	}
	ended := make(chan error, 1)
	answers := make(chan []byte)
	go func() {
		for {
			var response []byte
			if err := s.RecvMsg(&response); err != nil {
				ended <- err
				return
			}
			select {
			case answers <- response:
			case <-ctx.Done():
				return
			}
		}
	}()
	pause := time.Duration(rand.Int64N(int64(f.interval))) // spreads the heartbeats of agents that started together
	for ; ; pause = f.interval {
		timeout.Reset(beatTimeout)
		start := time.Now()
		if s.SendMsg(&f.beats[n]) != nil {
			return
		}
		select {
		case response := <-answers:
			latency := time.Since(start)
			if events(response, unknownNames) > 0 {
				f.lost.Add(1)
			}
			if f.measuring.Load() {
				f.mutex.Lock()
				f.latencies = append(f.latencies, latency)
				f.mutex.Unlock()
			}
			answered()
		case <-ended:
			return
		}
		timeout.Stop()
		select {
		case <-time.After(pause):
		case <-ended:
			return
		}
	}
}

// watch receives events, and resumes after each failure from the newest cursor.
func (f *fleet) watch(conn *grpc.ClientConn, request []byte, ready func()) {
	failed := 0
	seen := f.restarts.Load()
	message := request
	for {
		opened := f.restarts.Load()
		func() {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, registry+"WatchEvents")
			if err != nil || s.SendMsg(&message) != nil || s.CloseSend() != nil {
				return
			}
			for {
				var response []byte
				if s.RecvMsg(&response) != nil {
					return
				}
				failed = 0
				if cursor := value(response, watchCursor); cursor != nil {
					message = protowire.AppendTag(slices.Clone(request), requestCursor, protowire.BytesType)
					message = protowire.AppendBytes(message, cursor)
				}
				if ready != nil {
					ready()
					ready = nil
				}
				if opened > seen {
					seen = opened
					f.back.Load().Done()
				}
			}
		}()
		failed++
		f.failures.Add(1)
		time.Sleep(delay(failed))
	}
}

func delay(failed int) time.Duration {
	return time.Duration(rand.Int64N(int64(min(longestWait, firstDelay<<min(failed-1, 10)))))
}

// value returns the last value of a field of bytes in an encoded message.
func value(message []byte, field protowire.Number) (found []byte) {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return found
		}
		message = message[n:]
		if n = protowire.ConsumeFieldValue(number, kind, message); n < 0 {
			return found
		}
		if number == field {
			found, _ = protowire.ConsumeBytes(message)
		}
		message = message[n:]
	}
	return found
}
