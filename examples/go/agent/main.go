// An agent: answers over HTTP, is registered for as long as it runs, and unregisters when it is told to end.
//
// $REGISTRY, $AGENT_NAME, $AGENT_PORT and $OSSA_REGISTRY_TOKEN say where and as what; see README.md.
package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	registryv1 "example.com/ossa-registry-example/gen/ossa/registry/v1"
	"example.com/ossa-registry-example/registry"
)

// ttl is how long the lease lasts without a heartbeat.
const ttl = 15 * time.Second

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatalf("refused: %v", err)
	}
}

// run serves and is registered until the context is done.
func run(ctx context.Context) error {
	listener, err := net.Listen("tcp", "127.0.0.1:"+cmp.Or(os.Getenv("AGENT_PORT"), "0"))
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler(), ReadHeaderTimeout: registry.Deadline}
	go server.Serve(listener) // until it is closed; what else may go wrong, the registry's probes will see
	defer server.Close()

	client, hangUp, err := registry.Connect()
	if err != nil {
		return err
	}
	defer hangUp()

	agent := &agent{client: client, service: &registryv1.Service{
		Name:         cmp.Or(os.Getenv("AGENT_NAME"), "greeter-go"),
		Group:        "greeter", // what its replicas share
		Endpoint:     "http://" + listener.Addr().String(),
		Version:      "1.0.0",
		Capabilities: []*registryv1.Capability{{Name: "greet", Version: "1.0.0", Description: "Says hello: GET /greet?name=you"}},
		Metadata:     &registryv1.Metadata{Tags: []string{"example"}, Labels: map[string]string{"language": "go"}},
		HealthCheck:  &registryv1.HealthCheck{Probe: &registryv1.HealthCheck_Http{Http: &registryv1.HealthCheck_HttpProbe{Path: "/health"}}},
		Ttl:          durationpb.New(ttl),
	}}
	if err := agent.stayRegistered(ctx); err != nil {
		return err
	}
	agent.unregister()
	return nil
}

// handler is what the agent does: GET /greet?name=you, and GET /health for the registry's probes.
func handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"status":"ok"}`)
	})
	mux.HandleFunc("GET /greet", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		fmt.Fprintf(w, "hello, %s\n", cmp.Or(r.FormValue("name"), "you"))
	})
	return mux
}

type agent struct {
	client     registryv1.RegistryServiceClient
	service    *registryv1.Service
	registered bool // as far as the registry has told us
	failures   int  // in a row
}

// stayRegistered keeps the service registered until the context is done, whatever becomes of the registry meanwhile. It
// returns an error only if the registry does not take the service.
func (a *agent) stayRegistered(ctx context.Context) error {
	for ctx.Err() == nil {
		err := a.keepAlive(ctx)
		if ctx.Err() != nil {
			break
		}
		if registry.IsFatal(err) {
			return err
		}
		log.Printf("the registry is away: %v", err)
		a.failures++
		registry.Wait(ctx, a.failures)
	}
	return nil
}

// keepAlive renews the lease on one stream until it breaks, and tells how it broke. The registry says itself what it does
// not know any more.
func (a *agent) keepAlive(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := a.client.KeepAlive(ctx)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		if !a.registered {
			if err := a.register(ctx); err != nil {
				return err
			}
		}
		// Send fails with io.EOF on a stream that is broken: Recv knows why.
		_ = stream.Send(&registryv1.KeepAliveRequest{Names: []string{a.service.GetName()}})
		answer, err := stream.Recv()
		if err != nil {
			return err
		}
		a.failures = 0
		if a.registered = len(answer.GetUnknownNames()) == 0; a.registered {
			registry.Sleep(ctx, ttl/3)
		}
	}
	return ctx.Err()
}

func (a *agent) register(ctx context.Context) error {
	// Once begun it is waited for, also while we end: a registration that overtook unregistering would stay.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), registry.Deadline)
	defer cancel()
	if _, err := a.client.RegisterService(ctx, &registryv1.RegisterServiceRequest{Service: a.service}); err != nil {
		return err
	}
	fmt.Printf("registered %s at %s\n", a.service.GetName(), a.service.GetEndpoint())
	return nil
}

func (a *agent) unregister() {
	ctx, cancel := context.WithTimeout(context.Background(), registry.Deadline)
	defer cancel()
	if _, err := a.client.UnregisterService(ctx, &registryv1.UnregisterServiceRequest{Name: a.service.GetName()}); err != nil {
		log.Printf("left to its lease: %v", err)
		return
	}
	fmt.Println("unregistered", a.service.GetName())
}
