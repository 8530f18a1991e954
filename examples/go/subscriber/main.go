// A subscriber: prints what is registered, then every change, and loses none when the registry is away for a while.
//
// $REGISTRY and $OSSA_REGISTRY_TOKEN say where, $CAPABILITY narrows what is watched; see README.md. One line an event:
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
	client, hangUp, err := registry.Connect()
	if err != nil {
		log.Fatal(err)
	}
	defer hangUp()
	subscriber := &subscriber{client: client, services: map[string]*registryv1.Service{}}
	if err := subscriber.watch(context.Background()); err != nil {
		log.Fatalf("refused: %v", err)
	}
}

type subscriber struct {
	client   registryv1.RegistryServiceClient
	services map[string]*registryv1.Service // what matches, by name
	cursor   string                         // where to go on; empty = begin with a snapshot
	failures int                            // in a row
}

// watch follows one stream after the other until the registry refuses it.
func (s *subscriber) watch(ctx context.Context) error {
	for {
		err := s.follow(ctx)
		switch {
		case registry.Reason(err) == "CURSOR_EXPIRED":
			log.Print("too much has happened meanwhile: starting over with a snapshot")
			s.cursor = ""
		case registry.IsFatal(err):
			return err
		default:
			// Unavailable: it restarts. ResourceExhausted: we read too slowly. The cursor is good in both cases.
			log.Printf("resuming after: %v", err)
		}
		s.failures++
		registry.Wait(ctx, s.failures)
	}
}

// follow follows one stream until it ends, and tells how it ended.
func (s *subscriber) follow(ctx context.Context) error {
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
				continue // a cursor from within a snapshot is not good to resume from
			}
			s.replace(snapshot, message.GetRevision())
			inSnapshot, snapshot = false, nil
		} else {
			for _, event := range message.GetEvents() {
				s.take(event)
			}
		}
		s.cursor = message.GetCursor() // only now: what is not handled is sent again
	}
}

// replace takes a whole snapshot. After a lost cursor it is all we are told: what is not in it any more is gone.
func (s *subscriber) replace(snapshot []*registryv1.Event, revision int64) {
	gone := s.services
	s.services = make(map[string]*registryv1.Service, len(snapshot))
	for _, event := range snapshot {
		delete(gone, event.GetService().GetName())
	}
	for _, service := range gone {
		s.take(&registryv1.Event{
			Type:     registryv1.EventType_EVENT_TYPE_SERVICE_UNREGISTERED,
			Service:  service,
			Revision: revision,
			Reason:   registryv1.EventReason_EVENT_REASON_RESYNC,
		})
	}
	for _, event := range snapshot {
		s.take(event)
	}
}

// take prints an event and applies it.
func (s *subscriber) take(event *registryv1.Event) {
	kind := strings.TrimPrefix(strings.TrimPrefix(event.GetType().String(), "EVENT_TYPE_"), "SERVICE_")
	service := event.GetService()
	if service == nil { // the registry tells of a problem of its own
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
