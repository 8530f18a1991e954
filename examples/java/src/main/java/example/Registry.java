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

/** What agent and subscriber share: the client, and what to do when a call fails. */
final class Registry implements AutoCloseable {
  /** How long a call may take; streams have no deadline. */
  static final Duration DEADLINE = Duration.ofSeconds(5);

  private static final long FIRST_BACKOFF_MS = 100;
  private static final long MOST_BACKOFF_MS = 2_000;

  /** Codes that do not change by trying again. All others may: above all UNAVAILABLE, while a registry restarts. */
  private static final Set<Status.Code> FATAL =
      EnumSet.of(
          Status.Code.INVALID_ARGUMENT,
          Status.Code.PERMISSION_DENIED,
          Status.Code.UNAUTHENTICATED,
          Status.Code.UNIMPLEMENTED);

  private final ManagedChannel channel;
  private final RegistryServiceBlockingV2Stub stub;

  /** Makes a client of the registry at $REGISTRY. Each call carries the token in $OSSA_REGISTRY_TOKEN, if there is one. */
  Registry() {
    channel =
        ManagedChannelBuilder.forTarget(setting("REGISTRY", "localhost:50051"))
            .usePlaintext()
            // Finds a peer that is gone without a word.
            .keepAliveTime(20, TimeUnit.SECONDS)
            .keepAliveTimeout(10, TimeUnit.SECONDS)
            // All events of one revision come in one message.
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

  /** For streams, which last. */
  RegistryServiceBlockingV2Stub streams() {
    return stub;
  }

  /** For one call. */
  RegistryServiceBlockingV2Stub calls() {
    return stub.withDeadlineAfter(DEADLINE);
  }

  @Override
  public void close() {
    channel.shutdownNow();
  }

  /**
   * How long to wait after so many failures in a row, 1 or more: exponential with full jitter, since after an outage all
   * clients come back and should not come at once.
   */
  long backoffMillis(int failures) {
    // By itself gRPC waits up to two minutes before it connects again; leases would run out.
    channel.resetConnectBackoff();
    var longest = Math.min(MOST_BACKOFF_MS, FIRST_BACKOFF_MS << Math.min(failures - 1, 10));
    return ThreadLocalRandom.current().nextLong(longest);
  }

  /** Whether it is no use to try again. */
  static boolean isFatal(StatusException error) {
    return FATAL.contains(error.getStatus().getCode());
  }

  /** The registry's own word for an error, such as CURSOR_EXPIRED; empty for errors that it did not make. */
  static String reasonOf(StatusException error) {
    var status = StatusProto.fromThrowable(error);
    if (status != null) {
      for (Any detail : status.getDetailsList()) {
        try {
          if (detail.is(ErrorInfo.class)) {
            return detail.unpack(ErrorInfo.class).getReason();
          }
        } catch (InvalidProtocolBufferException ignored) {
          return ""; // not the registry's
        }
      }
    }
    return "";
  }

  /** An environment variable, or what stands for it if it is not set. */
  static String setting(String name, String standard) {
    var value = System.getenv(name);
    return value == null || value.isEmpty() ? standard : value;
  }
}
