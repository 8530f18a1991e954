// An example agent: serves HTTP, stays registered while it runs, and unregisters on SIGTERM or SIGINT.
//
// Configured by $REGISTRY, $AGENT_NAME, $AGENT_PORT and $OSSA_REGISTRY_TOKEN; see README.md.
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

// ttl is the length of the lease.
const ttl = 30 * time.Second

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatalf("refused: %v", err)
	}
}

// run serves HTTP and stays registered until the context is done.
func run(ctx context.Context) error {
	listener, err := net.Listen("tcp", "127.0.0.1:"+cmp.Or(os.Getenv("AGENT_PORT"), "0"))
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler(), ReadHeaderTimeout: registry.CallTimeout}
	go server.Serve(listener) // returns when closed; the registry's probes detect any other failure
	defer server.Close()

	client, closeConnection, err := registry.Connect()
	if err != nil {
		return err
	}
	defer closeConnection()

	agent := &agent{client: client, service: &registryv1.Service{
		Name:         cmp.Or(os.Getenv("AGENT_NAME"), "greeter-go"),
		Group:        "greeter", // shared by its replicas
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

// handler serves GET /greet?name=you, and GET /health for the registry's probes.
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
	registered bool // according to the newest response
	failures   int  // consecutive
}

// stayRegistered keeps the service registered until the context is done, across registry outages. It returns an error
// only if the registry rejects the service.
func (a *agent) stayRegistered(ctx context.Context) error {
	for ctx.Err() == nil {
		err := a.keepAlive(ctx)
		if ctx.Err() != nil {
			break
		}
		if registry.IsFatal(err) {
			return err
		}
		log.Printf("registry unavailable: %v", err)
		a.failures++
		registry.Backoff(ctx, a.failures)
	}
	return nil
}

// keepAlive renews the lease on one stream until it breaks, and returns the cause. Responses list the names that the
// registry no longer knows, which are registered again.
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
		// Send fails with io.EOF on a broken stream; Recv returns the actual error.
		_ = stream.Send(&registryv1.KeepAliveRequest{Names: []string{a.service.GetName()}})
		response, err := stream.Recv()
		if err != nil {
			return err
		}
		a.failures = 0
		if a.registered = len(response.GetUnknownNames()) == 0; a.registered {
			registry.Sleep(ctx, ttl/3)
		}
	}
	return ctx.Err()
}

func (a *agent) register(ctx context.Context) error {
	// Complete the call even while shutting down: a registration that arrived after UnregisterService would remain.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), registry.CallTimeout)
	defer cancel()
	if _, err := a.client.RegisterService(ctx, &registryv1.RegisterServiceRequest{Service: a.service}); err != nil {
		return err
	}
	fmt.Printf("registered %s at %s\n", a.service.GetName(), a.service.GetEndpoint())
	return nil
}

func (a *agent) unregister() {
	ctx, cancel := context.WithTimeout(context.Background(), registry.CallTimeout)
	defer cancel()
	if _, err := a.client.UnregisterService(ctx, &registryv1.UnregisterServiceRequest{Name: a.service.GetName()}); err != nil {
		log.Printf("cannot unregister, the lease will expire: %v", err)
		return
	}
	fmt.Println("unregistered", a.service.GetName())
}
