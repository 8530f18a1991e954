package example;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.ErrorInfo;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.time.Duration;
import java.util.EnumSet;
import java.util.Set;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import ossa.registry.v1.RegistryServiceGrpc;
import ossa.registry.v1.RegistryServiceGrpc.RegistryServiceBlockingV2Stub;

/** Shared by agent and subscriber: the client, and error handling. */
final class Registry implements AutoCloseable {
  /** Timeout of a unary call; streams have no deadline. */
  static final Duration CALL_TIMEOUT = Duration.ofSeconds(5);

  private static final long INITIAL_BACKOFF_MS = 100;
  private static final long MAX_BACKOFF_MS = 2_000;

  /** Codes that a retry cannot fix. All others are retried, in particular UNAVAILABLE while a registry restarts. */
  private static final Set<Status.Code> FATAL =
      EnumSet.of(
          Status.Code.INVALID_ARGUMENT,
          Status.Code.PERMISSION_DENIED,
          Status.Code.UNAUTHENTICATED,
          Status.Code.UNIMPLEMENTED);

  private final ManagedChannel channel;
  private final RegistryServiceBlockingV2Stub stub;

  /** Creates a client of the registry at $REGISTRY. Each call carries the token in $OSSA_REGISTRY_TOKEN, if set. */
  Registry() {
    channel =
        ManagedChannelBuilder.forTarget(setting("REGISTRY", "localhost:50051"))
            .usePlaintext()
            // Detects a peer that disappeared without closing the connection.
            .keepAliveTime(20, TimeUnit.SECONDS)
            .keepAliveTimeout(10, TimeUnit.SECONDS)
            // All events of one revision arrive in one message, which may be large.
            .maxInboundMessageSize(64 << 20)
            .build();
    var metadata = new Metadata();
    var token = setting("OSSA_REGISTRY_TOKEN", "");
    if (!token.isEmpty()) {
      metadata.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + token);
    }
    stub =
        RegistryServiceGrpc.newBlockingV2Stub(channel)
            .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(metadata));
  }

  /** Returns the stub for streams, which have no deadline. */
  RegistryServiceBlockingV2Stub streams() {
    return stub;
  }

  /** Returns the stub for one unary call. */
  RegistryServiceBlockingV2Stub calls() {
    return stub.withDeadlineAfter(CALL_TIMEOUT);
  }

  @Override
  public void close() {
    channel.shutdownNow();
  }

  /**
   * Returns the back-off after consecutive failures: exponential with full jitter, so that clients do not all reconnect
   * at once after an outage.
   */
  long backoffMillis(int failures) {
    // gRPC's default reconnect back-off grows to two minutes, during which leases would expire.
    channel.resetConnectBackoff();
    var limit = Math.min(MAX_BACKOFF_MS, INITIAL_BACKOFF_MS << Math.min(failures - 1, 10));
    return ThreadLocalRandom.current().nextLong(limit);
  }

  /** Returns whether a retry is pointless. */
  static boolean isFatal(StatusException error) {
    return FATAL.contains(error.getStatus().getCode());
  }

  /** Returns the registry's reason for an error, such as CURSOR_EXPIRED; empty if another program caused the error. */
  static String reasonOf(StatusException error) {
    var status = StatusProto.fromThrowable(error);
    if (status != null) {
      for (Any detail : status.getDetailsList()) {
        try {
          if (detail.is(ErrorInfo.class)) {
            return detail.unpack(ErrorInfo.class).getReason();
          }
        } catch (InvalidProtocolBufferException ignored) {
          return ""; // not from the registry
        }
      }
    }
    return "";
  }

  /** Returns an environment variable, or the default if it is unset or empty. */
  static String setting(String name, String defaultValue) {
    var value = System.getenv(name);
    return value == null || value.isEmpty() ? defaultValue : value;
  }
}
