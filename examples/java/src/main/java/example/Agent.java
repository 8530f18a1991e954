package example;

import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import io.grpc.Status;
import io.grpc.StatusException;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicInteger;
import ossa.registry.v1.Capability;
import ossa.registry.v1.HealthCheck;
import ossa.registry.v1.KeepAliveRequest;
import ossa.registry.v1.Metadata;
import ossa.registry.v1.RegisterServiceRequest;
import ossa.registry.v1.Service;
import ossa.registry.v1.UnregisterServiceRequest;

/**
 * An example agent: serves HTTP, stays registered while it runs, and unregisters on SIGTERM or SIGINT.
 *
 * <p>Configured by $REGISTRY, $AGENT_NAME, $AGENT_PORT and $OSSA_REGISTRY_TOKEN; see README.md.
 */
public final class Agent {
  /** Lease length in seconds. */
  private static final long TTL_SECONDS = 30;

  private final Registry registry;
  private final Service service;
  private final CountDownLatch stopping;
  private boolean registered; // according to the newest response
  private int failures; // consecutive

  private Agent(Registry registry, Service service, CountDownLatch stopping) {
    this.registry = registry;
    this.service = service;
    this.stopping = stopping;
  }

  public static void main(String[] args) throws IOException, InterruptedException {
    var port = Integer.parseInt(Registry.setting("AGENT_PORT", "0"));
    var server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), port), 0);
    server.createContext("/health", exchange -> respond(exchange, "application/json", "{\"status\":\"ok\"}"));
    server.createContext("/greet", exchange -> respond(exchange, "text/plain", "hello, " + callerOf(exchange) + "\n"));
    server.start();

    var stopping = new CountDownLatch(1);
    var finished = new CountDownLatch(1);
    var status = new AtomicInteger(1);
    Runtime.getRuntime().addShutdownHook(new Thread(() -> {
      stopping.countDown();
      try {
        finished.await();
      } catch (InterruptedException interrupted) {
        Thread.currentThread().interrupt();
      }
      Runtime.getRuntime().halt(status.get()); // without this, Java exits with 143 after SIGTERM
    }));
    try (var registry = new Registry()) {
      var agent = new Agent(registry, service(server.getAddress().getPort()), stopping);
      agent.stayRegistered();
      agent.unregister();
      status.set(0);
    } catch (StatusException error) {
      System.err.println("refused: " + error.getMessage());
    } finally {
      server.stop(0);
      finished.countDown();
    }
  }

  private static Service service(int port) {
    return Service.newBuilder()
        .setName(Registry.setting("AGENT_NAME", "greeter-java"))
        .setGroup("greeter") // shared by its replicas
        .setEndpoint("http://127.0.0.1:" + port)
        .setVersion("1.0.0")
        .addCapabilities(
            Capability.newBuilder()
                .setName("greet")
                .setVersion("1.0.0")
                .setDescription("Says hello: GET /greet?name=you"))
        .setMetadata(Metadata.newBuilder().addTags("example").putLabels("language", "java"))
        .setHealthCheck(HealthCheck.newBuilder().setHttp(HealthCheck.HttpProbe.newBuilder().setPath("/health")))
        .setTtl(com.google.protobuf.Duration.newBuilder().setSeconds(TTL_SECONDS))
        .build();
  }

  /**
   * Keeps the service registered until `stopping` is counted down, across registry outages.
   *
   * @throws StatusException the registry rejects the service
   */
  private void stayRegistered() throws StatusException, InterruptedException {
    while (stopping.getCount() > 0) {
      try {
        keepAlive();
      } catch (StatusException error) {
        if (Registry.isFatal(error)) {
          throw error;
        }
        System.err.println("registry unavailable: " + error.getMessage());
      } catch (TimeoutException error) {
        System.err.println("registry unavailable: no response to a heartbeat");
      }
      stopping.await(registry.backoffMillis(++failures), TimeUnit.MILLISECONDS);
    }
  }

  /** Renews the lease on one stream until it breaks. Responses list names that the registry no longer knows. */
  private void keepAlive() throws StatusException, InterruptedException, TimeoutException {
    var stream = registry.streams().keepAlive();
    try {
      while (stopping.getCount() > 0) {
        if (!registered) {
          registry.calls().registerService(RegisterServiceRequest.newBuilder().setService(service).build());
          System.out.println("registered " + service.getName() + " at " + service.getEndpoint());
        }
        stream.write(
            KeepAliveRequest.newBuilder().addNames(service.getName()).build(),
            Registry.CALL_TIMEOUT.toMillis(),
            TimeUnit.MILLISECONDS);
        var response = stream.read(Registry.CALL_TIMEOUT.toMillis(), TimeUnit.MILLISECONDS);
        if (response == null) {
          throw Status.UNAVAILABLE.withDescription("the registry ended the stream").asException();
        }
        failures = 0;
        registered = response.getUnknownNamesCount() == 0;
        if (registered) {
          stopping.await(TTL_SECONDS * 1_000 / 3, TimeUnit.MILLISECONDS);
        }
      }
    } finally {
      stream.cancel("finished", null);
    }
  }

  private void unregister() throws InterruptedException {
    try {
      registry.calls().unregisterService(UnregisterServiceRequest.newBuilder().setName(service.getName()).build());
      System.out.println("unregistered " + service.getName());
    } catch (StatusException error) {
      System.err.println("cannot unregister, the lease will expire: " + error.getMessage());
    }
  }

  private static String callerOf(HttpExchange exchange) {
    var query = exchange.getRequestURI().getQuery();
    return query != null && query.startsWith("name=") ? query.substring("name=".length()) : "you";
  }

  private static void respond(HttpExchange exchange, String type, String text) throws IOException {
    var body = text.getBytes(StandardCharsets.UTF_8);
    exchange.getResponseHeaders().set("Content-Type", type);
    exchange.sendResponseHeaders(200, body.length);
    exchange.getResponseBody().write(body);
    exchange.close();
  }
}
