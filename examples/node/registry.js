// What agent and subscriber share: the client, and what to do when a call fails.

import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const definition = protoLoader.loadSync(
  ["ossa/registry/v1/registry_service.proto", "google/rpc/error_details.proto"],
  {
    includeDirs: [fileURLToPath(new URL("../../protos", import.meta.url))],
    defaults: true, // fields that are not set read as in other languages: "" and [], not undefined
    enums: String,
    longs: String,
  },
);
const { RegistryService } = grpc.loadPackageDefinition(definition).ossa.registry.v1;

/** Milliseconds that a call may take; streams have no deadline. */
const DEADLINE = 5_000;

/** Codes that do not change by trying again. All others may: above all UNAVAILABLE, while a registry restarts. */
const FATAL = new Set([
  grpc.status.INVALID_ARGUMENT,
  grpc.status.PERMISSION_DENIED,
  grpc.status.UNAUTHENTICATED,
  grpc.status.UNIMPLEMENTED,
]);

/** A client of the registry at $REGISTRY. */
export function connect() {
  return new RegistryService(process.env.REGISTRY || "localhost:50051", grpc.credentials.createInsecure(), {
    // By default gRPC waits up to two minutes before it connects again; leases would run out.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 2_000,
    // Finds a peer that is gone without a word.
    "grpc.keepalive_time_ms": 20_000,
    "grpc.keepalive_timeout_ms": 10_000,
    // All events of one revision come in one message.
    "grpc.max_receive_message_length": 64 * 1024 * 1024,
  });
}

/** What goes with each call: the token in $OSSA_REGISTRY_TOKEN, if there is one. */
export function metadata() {
  const made = new grpc.Metadata();
  const token = process.env.OSSA_REGISTRY_TOKEN;
  if (token) made.set("authorization", `Bearer ${token}`);
  return made;
}

/**
 * Makes a unary call.
 *
 * @param {object} client made by `connect`
 * @param {string} method such as "RegisterService"
 * @param {object} request
 * @returns {Promise<object>} the answer; rejects with a grpc.ServiceError
 */
export function call(client, method, request) {
  return new Promise((resolve, reject) => {
    client[method](request, metadata(), { deadline: Date.now() + DEADLINE }, (error, answer) =>
      error ? reject(error) : resolve(answer),
    );
  });
}

/**
 * The registry's own word for an error, such as "CURSOR_EXPIRED": the `reason` of the ErrorInfo in its details.
 *
 * @param {grpc.ServiceError} error
 * @returns {string} empty if there is none, as for errors that the registry did not make
 */
export function reasonOf(error) {
  const [bytes] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (!bytes) return "";
  const { details } = definition["google.rpc.Status"].deserialize(bytes);
  const info = details.find(({ type_url, typeUrl = type_url }) => typeUrl.endsWith("/google.rpc.ErrorInfo"));
  return info ? definition["google.rpc.ErrorInfo"].deserialize(info.value).reason : "";
}

/** Whether it is no use to try again. What is not an error of gRPC is a bug of ours. */
export function isFatal(error) {
  return typeof error.code !== "number" || FATAL.has(error.code);
}

/**
 * Milliseconds to wait after so many failures in a row: exponential with full jitter, since after an outage all
 * clients come back and should not come at once.
 *
 * @param {number} failures 1 or more
 */
export function backoff(failures) {
  return Math.random() * Math.min(2_000, 100 * 2 ** Math.min(failures - 1, 10));
}
