// Shared by agent and subscriber: the client, and error handling.

import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const definition = protoLoader.loadSync(
  ["ossa/registry/v1/registry_service.proto", "google/rpc/error_details.proto"],
  {
    includeDirs: [fileURLToPath(new URL("../../protos", import.meta.url))],
    defaults: true, // unset fields are "" and [], as in other languages, not undefined
    enums: String,
    longs: String,
  },
);
const { RegistryService } = grpc.loadPackageDefinition(definition).ossa.registry.v1;

/** Timeout of a unary call; streams have no deadline. */
const CALL_TIMEOUT_MS = 5_000;

/** Codes that a retry cannot fix. All others are retried, in particular UNAVAILABLE while a registry restarts. */
const FATAL = new Set([
  grpc.status.INVALID_ARGUMENT,
  grpc.status.PERMISSION_DENIED,
  grpc.status.UNAUTHENTICATED,
  grpc.status.UNIMPLEMENTED,
]);

/** Returns a client of the registry at $REGISTRY. */
export function connect() {
  return new RegistryService(process.env.REGISTRY || "localhost:50051", grpc.credentials.createInsecure(), {
    // gRPC's default reconnect back-off grows to two minutes, during which leases would expire.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 2_000,
    // Detects a peer that disappeared without closing the connection.
    "grpc.keepalive_time_ms": 20_000,
    "grpc.keepalive_timeout_ms": 10_000,
    // All events of one revision arrive in one message, which may be large.
    "grpc.max_receive_message_length": 64 * 1024 * 1024,
  });
}

/** Returns the metadata of each call: the token in $OSSA_REGISTRY_TOKEN, if set. */
export function metadata() {
  const result = new grpc.Metadata();
  const token = process.env.OSSA_REGISTRY_TOKEN;
  if (token) result.set("authorization", `Bearer ${token}`);
  return result;
}

/**
 * Makes a unary call.
 *
 * @param {object} client returned by `connect`
 * @param {string} method such as "RegisterService"
 * @param {object} request
 * @returns {Promise<object>} the response; rejects with a grpc.ServiceError
 */
export function call(client, method, request) {
  return new Promise((resolve, reject) => {
    client[method](request, metadata(), { deadline: Date.now() + CALL_TIMEOUT_MS }, (error, response) =>
      error ? reject(error) : resolve(response),
    );
  });
}

/**
 * Returns the registry's reason for an error, such as "CURSOR_EXPIRED": the `reason` of the ErrorInfo in its details.
 *
 * @param {grpc.ServiceError} error
 * @returns {string} empty for errors that do not come from the registry
 */
export function reasonOf(error) {
  const [bytes] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (!bytes) return "";
  const { details } = definition["google.rpc.Status"].deserialize(bytes);
  const info = details.find(({ type_url, typeUrl = type_url }) => typeUrl.endsWith("/google.rpc.ErrorInfo"));
  return info ? definition["google.rpc.ErrorInfo"].deserialize(info.value).reason : "";
}

/** Returns whether a retry is pointless. An error that is not a gRPC error is a bug in this program. */
export function isFatal(error) {
  return typeof error.code !== "number" || FATAL.has(error.code);
}

/**
 * Returns the back-off in milliseconds after consecutive failures: exponential with full jitter, so that clients do not
 * all reconnect at once after an outage.
 *
 * @param {number} failures 1 or more
 */
export function backoff(failures) {
  return Math.random() * Math.min(2_000, 100 * 2 ** Math.min(failures - 1, 10));
}
