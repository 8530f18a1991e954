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
 * An agent: answers over HTTP, is registered for as long as it runs, and unregisters when it is told to end.
 *
 * <p>$REGISTRY, $AGENT_NAME, $AGENT_PORT and $OSSA_REGISTRY_TOKEN say where and as what; see README.md.
 */
public final class Agent {
  /** Seconds that the lease lasts without a heartbeat. */
  private static final long TTL = 15;

  private final Registry registry;
  private final Service service;
  private final CountDownLatch stopping;
  private boolean registered; // as far as the registry has told us
  private int failures; // in a row

  private Agent(Registry registry, Service service, CountDownLatch stopping) {
    this.registry = registry;
    this.service = service;
    this.stopping = stopping;
  }

  public static void main(String[] args) throws IOException, InterruptedException {
    var port = Integer.parseInt(Registry.setting("AGENT_PORT", "0"));
    var server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), port), 0);
    server.createContext("/health", exchange -> answer(exchange, "application/json", "{\"status\":\"ok\"}"));
    server.createContext("/greet", exchange -> answer(exchange, "text/plain", "hello, " + nameIn(exchange) + "\n"));
    server.start();

    var stopping = new CountDownLatch(1);
    var ended = new CountDownLatch(1);
    var status = new AtomicInteger(1);
    Runtime.getRuntime().addShutdownHook(new Thread(() -> {
      stopping.countDown();
      try {
        ended.await();
      } catch (InterruptedException interrupted) {
        Thread.currentThread().interrupt();
      }
      Runtime.getRuntime().halt(status.get()); // Java would end with 143, as if SIGTERM had not been heard
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
      ended.countDown();
    }
  }

  private static Service service(int port) {
    return Service.newBuilder()
        .setName(Registry.setting("AGENT_NAME", "greeter-java"))
        .setGroup("greeter") // what its replicas share
        .setEndpoint("http://127.0.0.1:" + port)
        .setVersion("1.0.0")
        .addCapabilities(
            Capability.newBuilder()
                .setName("greet")
                .setVersion("1.0.0")
                .setDescription("Says hello: GET /greet?name=you"))
        .setMetadata(Metadata.newBuilder().addTags("example").putLabels("language", "java"))
        .setHealthCheck(HealthCheck.newBuilder().setHttp(HealthCheck.HttpProbe.newBuilder().setPath("/health")))
        .setTtl(com.google.protobuf.Duration.newBuilder().setSeconds(TTL))
        .build();
  }

  /**
   * Keeps the service registered until we are told to stop, whatever becomes of the registry meanwhile.
   *
   * @throws StatusException the registry does not take the service
   */
  private void stayRegistered() throws StatusException, InterruptedException {
    while (stopping.getCount() > 0) {
      try {
        keepAlive();
      } catch (StatusException error) {
        if (Registry.isFatal(error)) {
          throw error;
        }
        System.err.println("the registry is away: " + error.getMessage());
      } catch (TimeoutException error) {
        System.err.println("the registry is away: a heartbeat was not answered");
      }
      stopping.await(registry.backoffMillis(++failures), TimeUnit.MILLISECONDS);
    }
  }

  /** Renews the lease on one stream until it breaks. The registry says itself what it does not know any more. */
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
            Registry.DEADLINE.toMillis(),
            TimeUnit.MILLISECONDS);
        var answer = stream.read(Registry.DEADLINE.toMillis(), TimeUnit.MILLISECONDS);
        if (answer == null) {
          throw Status.UNAVAILABLE.withDescription("the registry ended the stream").asException();
        }
        failures = 0;
        registered = answer.getUnknownNamesCount() == 0;
        if (registered) {
          stopping.await(TTL * 1_000 / 3, TimeUnit.MILLISECONDS);
        }
      }
    } finally {
      stream.cancel("done with it", null);
    }
  }

  private void unregister() throws InterruptedException {
    try {
      registry.calls().unregisterService(UnregisterServiceRequest.newBuilder().setName(service.getName()).build());
      System.out.println("unregistered " + service.getName());
    } catch (StatusException error) {
      System.err.println("left to its lease: " + error.getMessage());
    }
  }

  private static String nameIn(HttpExchange exchange) {
    var query = exchange.getRequestURI().getQuery();
    return query != null && query.startsWith("name=") ? query.substring("name=".length()) : "you";
  }

  private static void answer(HttpExchange exchange, String type, String text) throws IOException {
    var body = text.getBytes(StandardCharsets.UTF_8);
    exchange.getResponseHeaders().set("Content-Type", type);
    exchange.sendResponseHeaders(200, body.length);
    exchange.getResponseBody().write(body);
    exchange.close();
  }
}
