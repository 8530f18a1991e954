// An example subscriber: prints all services, then every change, without gaps across registry outages.
//
// Configured by $REGISTRY, $OSSA_REGISTRY_TOKEN and the filter $CAPABILITY; see README.md. Prints one line per event:
//
//     REVISION KIND NAME STATUS ENDPOINT REASON

import { setTimeout as sleep } from "node:timers/promises";
import { backoff, connect, isFatal, metadata, reasonOf } from "./registry.js";

const REMOVAL_TYPES = new Set(["EVENT_TYPE_SERVICE_UNREGISTERED", "EVENT_TYPE_SERVICE_UNMATCHED"]);

/** Matching services by name. */
let services = new Map();
/** Position to resume from; empty = start with a snapshot. */
let cursor = "";
let failures = 0;

function printEvent({ type, service, revision, reason, error }) {
  const kind = type.replace(/^EVENT_TYPE_(SERVICE_)?/, "");
  if (!service) return console.log(revision, kind, error);
  const status = service.health.status.replace("HEALTH_STATUS_", "");
  console.log(revision, kind, service.name, status, service.endpoint, reason.replace("EVENT_REASON_", ""));
}

function applyEvent(event) {
  if (!event.service) return; // the event reports a problem of the registry itself
  if (REMOVAL_TYPES.has(event.type)) services.delete(event.service.name);
  else services.set(event.service.name, event.service);
}

/** Applies a complete snapshot. After a lost cursor, services that are missing from it have been unregistered. */
function applySnapshot(snapshot, revision) {
  const names = new Set(snapshot.map(({ service }) => service.name));
  for (const service of services.values()) {
    if (names.has(service.name)) continue;
    printEvent({ type: "EVENT_TYPE_SERVICE_UNREGISTERED", service, revision, reason: "EVENT_REASON_RESYNC" });
  }
  services = new Map();
  for (const event of snapshot) {
    printEvent(event);
    applyEvent(event);
  }
}

/** Processes one stream until it ends; throws the error that ended it. */
async function followStream(client) {
  const filter = { capability: process.env.CAPABILITY || "" };
  const stream = client.WatchEvents({ filter, cursor, includeSnapshot: !cursor }, metadata());
  let snapshot = cursor ? null : [];
  for await (const message of stream) {
    failures = 0;
    if (snapshot) {
      snapshot.push(...message.events);
      if (!message.snapshotComplete) continue; // a cursor within a snapshot cannot be resumed from
      applySnapshot(snapshot, message.revision);
      snapshot = null;
    } else {
      for (const event of message.events) {
        printEvent(event);
        applyEvent(event);
      }
    }
    cursor = message.cursor; // only after the events were handled: unhandled events are sent again
  }
}

const client = connect();
for (;;) {
  try {
    await followStream(client);
    console.error("the registry ended the stream");
  } catch (error) {
    if (reasonOf(error) === "CURSOR_EXPIRED") {
      console.error("cursor expired: starting again with a snapshot");
      cursor = "";
    } else if (isFatal(error)) {
      console.error(`refused: ${error.message}`);
      process.exit(1);
    } else {
      // UNAVAILABLE: the registry restarts. RESOURCE_EXHAUSTED: this client read too slowly. The cursor remains valid.
      console.error(`resuming after: ${error.message}`);
    }
  }
  await sleep(backoff(++failures));
}
