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
 * A subscriber: prints what is registered, then every change, and loses none when the registry is away for a while.
 *
 * <p>$REGISTRY and $OSSA_REGISTRY_TOKEN say where, $CAPABILITY narrows what is watched; see README.md. One line an event:
 *
 * <pre>REVISION KIND NAME STATUS ENDPOINT REASON</pre>
 */
public final class Subscriber {
  private final Registry registry;
  private Map<String, Service> services = new HashMap<>(); // what matches, by name
  private String cursor = ""; // where to go on; empty = begin with a snapshot
  private int failures; // in a row

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
   * Follows one stream after the other.
   *
   * @throws StatusException the registry refuses it
   */
  private void watch() throws StatusException, InterruptedException {
    while (true) {
      try {
        follow();
        System.err.println("the registry ended the stream");
      } catch (StatusException error) {
        if (Registry.reasonOf(error).equals("CURSOR_EXPIRED")) {
          System.err.println("too much has happened meanwhile: starting over with a snapshot");
          cursor = "";
        } else if (Registry.isFatal(error)) {
          throw error;
        } else {
          // UNAVAILABLE: it restarts. RESOURCE_EXHAUSTED: we read too slowly. The cursor is good in both cases.
          System.err.println("resuming after: " + error.getMessage());
        }
      }
      Thread.sleep(registry.backoffMillis(++failures));
    }
  }

  /** Follows one stream until it ends. */
  private void follow() throws StatusException, InterruptedException {
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
        message.getEventsList().forEach(this::take);
      } else {
        snapshot.addAll(message.getEventsList());
        if (!message.getSnapshotComplete()) {
          continue; // a cursor from within a snapshot is not good to resume from
        }
        replace(snapshot, message.getRevision());
        snapshot = null;
      }
      cursor = message.getCursor(); // only now: what is not handled is sent again
    }
  }

  /** Takes a whole snapshot. After a lost cursor it is all we are told: what is not in it any more is gone. */
  private void replace(List<Event> snapshot, long revision) {
    var names = snapshot.stream().map(event -> event.getService().getName()).collect(Collectors.toSet());
    var known = services;
    services = new HashMap<>();
    for (var service : known.values()) {
      if (!names.contains(service.getName())) {
        take(
            Event.newBuilder()
                .setType(EventType.EVENT_TYPE_SERVICE_UNREGISTERED)
                .setService(service)
                .setRevision(revision)
                .setReason(EventReason.EVENT_REASON_RESYNC)
                .build());
      }
    }
    snapshot.forEach(this::take);
  }

  /** Prints an event and applies it. */
  private void take(Event event) {
    var kind = event.getType().name().replaceFirst("^EVENT_TYPE_(SERVICE_)?", "");
    if (!event.hasService()) { // the registry tells of a problem of its own
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
