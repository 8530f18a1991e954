package example;

import io.grpc.StatusException;
import io.grpc.stub.BlockingClientCall;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import ossa.registry.v1.Event;
import ossa.registry.v1.EventReason;
import ossa.registry.v1.EventType;
import ossa.registry.v1.Service;
import ossa.registry.v1.ServiceFilter;
import ossa.registry.v1.WatchEventsRequest;
import ossa.registry.v1.WatchEventsResponse;

/**
 * An example subscriber: prints all services, then every change, without gaps across registry outages.
 *
 * <p>Configured by $REGISTRY, $OSSA_REGISTRY_TOKEN and the filter $CAPABILITY; see README.md. One line per event:
 *
 * <pre>REVISION KIND NAME STATUS ENDPOINT REASON</pre>
 */
public final class Subscriber {
  private final Registry registry;
  private Map<String, Service> services = new HashMap<>(); // matching services by name
  private String cursor = ""; // position to resume from; empty = start with a snapshot
  private int failures; // consecutive

  private Subscriber(Registry registry) {
    this.registry = registry;
  }

  public static void main(String[] args) throws InterruptedException {
    try (var registry = new Registry()) {
      new Subscriber(registry).watch();
    } catch (StatusException error) {
      System.err.println("refused: " + error.getMessage());
      System.exit(1);
    }
  }

  /**
   * Opens one stream after another.
   *
   * @throws StatusException the registry rejects the watch
   */
  private void watch() throws StatusException, InterruptedException {
    while (true) {
      try {
        followStream();
        System.err.println("the registry ended the stream");
      } catch (StatusException error) {
        if (Registry.reasonOf(error).equals("CURSOR_EXPIRED")) {
          System.err.println("cursor expired: starting again with a snapshot");
          cursor = "";
        } else if (Registry.isFatal(error)) {
          throw error;
        } else {
          // UNAVAILABLE: the registry restarts. RESOURCE_EXHAUSTED: this client is too slow. The cursor remains valid.
          System.err.println("resuming after: " + error.getMessage());
        }
      }
      Thread.sleep(registry.backoffMillis(++failures));
    }
  }

  /** Processes one stream until it ends. */
  private void followStream() throws StatusException, InterruptedException {
    var request =
        WatchEventsRequest.newBuilder()
            .setFilter(ServiceFilter.newBuilder().setCapability(Registry.setting("CAPABILITY", "")))
            .setCursor(cursor)
            .setIncludeSnapshot(cursor.isEmpty())
            .build();
    List<Event> snapshot = cursor.isEmpty() ? new ArrayList<>() : null;
    BlockingClientCall<?, WatchEventsResponse> stream = registry.streams().watchEvents(request);
    for (var message = stream.read(); message != null; message = stream.read()) {
      failures = 0;
      if (snapshot == null) {
        message.getEventsList().forEach(this::applyEvent);
      } else {
        snapshot.addAll(message.getEventsList());
        if (!message.getSnapshotComplete()) {
          continue; // a cursor within a snapshot cannot be resumed from
        }
        applySnapshot(snapshot, message.getRevision());
        snapshot = null;
      }
      cursor = message.getCursor(); // only after the events were handled: unhandled events are sent again
    }
  }

  /** Applies a complete snapshot. After a lost cursor, services that are missing from it have been unregistered. */
  private void applySnapshot(List<Event> snapshot, long revision) {
    var names = snapshot.stream().map(event -> event.getService().getName()).collect(Collectors.toSet());
    var known = services;
    services = new HashMap<>();
    for (var service : known.values()) {
      if (!names.contains(service.getName())) {
        applyEvent(
            Event.newBuilder()
                .setType(EventType.EVENT_TYPE_SERVICE_UNREGISTERED)
                .setService(service)
                .setRevision(revision)
                .setReason(EventReason.EVENT_REASON_RESYNC)
                .build());
      }
    }
    snapshot.forEach(this::applyEvent);
  }

  /** Prints an event and updates the known services. */
  private void applyEvent(Event event) {
    var kind = event.getType().name().replaceFirst("^EVENT_TYPE_(SERVICE_)?", "");
    if (!event.hasService()) { // the event reports a problem of the registry itself
      System.out.println(event.getRevision() + " " + kind + " " + event.getError());
      return;
    }
    var service = event.getService();
    System.out.println(
        String.join(
            " ",
            Long.toString(event.getRevision()),
            kind,
            service.getName(),
            service.getHealth().getStatus().name().replaceFirst("^HEALTH_STATUS_", ""),
            service.getEndpoint(),
            event.getReason().name().replaceFirst("^EVENT_REASON_", "")));
    switch (event.getType()) {
      case EVENT_TYPE_SERVICE_UNREGISTERED, EVENT_TYPE_SERVICE_UNMATCHED -> services.remove(service.getName());
      default -> services.put(service.getName(), service);
    }
  }
}
