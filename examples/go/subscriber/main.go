// An example subscriber: prints all services, then every change, without gaps across registry outages.
//
// Configured by $REGISTRY, $OSSA_REGISTRY_TOKEN and the filter $CAPABILITY; see README.md. Prints one line per event:
//
//	REVISION KIND NAME STATUS ENDPOINT REASON
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strings"

	registryv1 "example.com/ossa-registry-example/gen/ossa/registry/v1"
	"example.com/ossa-registry-example/registry"
)

func main() {
	log.SetFlags(0)
	client, closeConnection, err := registry.Connect()
	if err != nil {
		log.Fatal(err)
	}
	defer closeConnection()
	subscriber := &subscriber{client: client, services: map[string]*registryv1.Service{}}
	if err := subscriber.watch(context.Background()); err != nil {
		log.Fatalf("refused: %v", err)
	}
}

type subscriber struct {
	client   registryv1.RegistryServiceClient
	services map[string]*registryv1.Service // matching services by name
	cursor   string                         // position to resume from; empty = start with a snapshot
	failures int                            // consecutive
}

// watch opens one stream after another until the registry rejects it.
func (s *subscriber) watch(ctx context.Context) error {
	for {
		err := s.followStream(ctx)
		switch {
		case registry.Reason(err) == "CURSOR_EXPIRED":
			log.Print("cursor expired: starting again with a snapshot")
			s.cursor = ""
		case registry.IsFatal(err):
			return err
		default:
			// Unavailable: the registry restarts. ResourceExhausted: this client read too slowly. The cursor remains valid.
			log.Printf("resuming after: %v", err)
		}
		s.failures++
		registry.Backoff(ctx, s.failures)
	}
}

// followStream processes one stream until it ends, and returns the error that ended it.
func (s *subscriber) followStream(ctx context.Context) error {
	stream, err := s.client.WatchEvents(ctx, &registryv1.WatchEventsRequest{
		Filter:          &registryv1.ServiceFilter{Capability: os.Getenv("CAPABILITY")},
		Cursor:          s.cursor,
		IncludeSnapshot: s.cursor == "",
	})
	if err != nil {
		return err
	}
	inSnapshot := s.cursor == ""
	var snapshot []*registryv1.Event
	for {
		message, err := stream.Recv()
		if err != nil {
			return err
		}
		s.failures = 0
		if inSnapshot {
			snapshot = append(snapshot, message.GetEvents()...)
			if !message.GetSnapshotComplete() {
				continue // a cursor within a snapshot cannot be resumed from
			}
			s.applySnapshot(snapshot, message.GetRevision())
			inSnapshot, snapshot = false, nil
		} else {
			for _, event := range message.GetEvents() {
				s.applyEvent(event)
			}
		}
		s.cursor = message.GetCursor() // only after the events were handled: unhandled events are sent again
	}
}

// applySnapshot applies a complete snapshot. After a lost cursor, services that are missing from it have been unregistered.
func (s *subscriber) applySnapshot(snapshot []*registryv1.Event, revision int64) {
	removed := s.services
	s.services = make(map[string]*registryv1.Service, len(snapshot))
	for _, event := range snapshot {
		delete(removed, event.GetService().GetName())
	}
	for _, service := range removed {
		s.applyEvent(&registryv1.Event{
			Type:     registryv1.EventType_EVENT_TYPE_SERVICE_UNREGISTERED,
			Service:  service,
			Revision: revision,
			Reason:   registryv1.EventReason_EVENT_REASON_RESYNC,
		})
	}
	for _, event := range snapshot {
		s.applyEvent(event)
	}
}

// applyEvent prints an event and updates the known services.
func (s *subscriber) applyEvent(event *registryv1.Event) {
	kind := strings.TrimPrefix(strings.TrimPrefix(event.GetType().String(), "EVENT_TYPE_"), "SERVICE_")
	service := event.GetService()
	if service == nil { // the event reports a problem of the registry itself
		fmt.Println(event.GetRevision(), kind, event.GetError())
		return
	}
	fmt.Println(event.GetRevision(), kind, service.GetName(),
		strings.TrimPrefix(service.GetHealth().GetStatus().String(), "HEALTH_STATUS_"), service.GetEndpoint(),
		strings.TrimPrefix(event.GetReason().String(), "EVENT_REASON_"))
	switch event.GetType() {
	case registryv1.EventType_EVENT_TYPE_SERVICE_UNREGISTERED, registryv1.EventType_EVENT_TYPE_SERVICE_UNMATCHED:
		delete(s.services, service.GetName())
	default:
		s.services[service.GetName()] = service
	}
}
