// A subscriber: prints what is registered, then every change, and loses none when the registry is away for a while.
//
// $REGISTRY and $OSSA_REGISTRY_TOKEN say where, $CAPABILITY narrows what is watched; see README.md. One line an event:
//
//     REVISION KIND NAME STATUS ENDPOINT REASON

import { setTimeout as sleep } from "node:timers/promises";
import { backoff, connect, isFatal, metadata, reasonOf } from "./registry.js";

const GONE = new Set(["EVENT_TYPE_SERVICE_UNREGISTERED", "EVENT_TYPE_SERVICE_UNMATCHED"]);

/** What matches, by name. */
let services = new Map();
/** Where to go on; empty = begin with a snapshot. */
let cursor = "";
let failures = 0;

function print({ type, service, revision, reason, error }) {
  const kind = type.replace(/^EVENT_TYPE_(SERVICE_)?/, "");
  if (!service) return console.log(revision, kind, error);
  const status = service.health.status.replace("HEALTH_STATUS_", "");
  console.log(revision, kind, service.name, status, service.endpoint, reason.replace("EVENT_REASON_", ""));
}

function apply(event) {
  if (!event.service) return; // the registry tells of a problem of its own
  if (GONE.has(event.type)) services.delete(event.service.name);
  else services.set(event.service.name, event.service);
}

/** Takes a whole snapshot. After a lost cursor it is all we are told: what is not in it any more is gone. */
function replace(snapshot, revision) {
  const names = new Set(snapshot.map(({ service }) => service.name));
  for (const service of services.values()) {
    if (names.has(service.name)) continue;
    print({ type: "EVENT_TYPE_SERVICE_UNREGISTERED", service, revision, reason: "EVENT_REASON_RESYNC" });
  }
  services = new Map();
  for (const event of snapshot) {
    print(event);
    apply(event);
  }
}

/** Follows one stream until it ends; throws what it ended with. */
async function follow(client) {
  const filter = { capability: process.env.CAPABILITY || "" };
  const stream = client.WatchEvents({ filter, cursor, includeSnapshot: !cursor }, metadata());
  let snapshot = cursor ? null : [];
  for await (const message of stream) {
    failures = 0;
    if (snapshot) {
      snapshot.push(...message.events);
      if (!message.snapshotComplete) continue; // a cursor from within a snapshot is not good to resume from
      replace(snapshot, message.revision);
      snapshot = null;
    } else {
      for (const event of message.events) {
        print(event);
        apply(event);
      }
    }
    cursor = message.cursor; // only now: what is not handled is sent again
  }
}

const client = connect();
for (;;) {
  try {
    await follow(client);
    console.error("the registry ended the stream");
  } catch (error) {
    if (reasonOf(error) === "CURSOR_EXPIRED") {
      console.error("too much has happened meanwhile: starting over with a snapshot");
      cursor = "";
    } else if (isFatal(error)) {
      console.error(`refused: ${error.message}`);
      process.exit(1);
    } else {
      // UNAVAILABLE: it restarts. RESOURCE_EXHAUSTED: we read too slowly. The cursor is good in both cases.
      console.error(`resuming after: ${error.message}`);
    }
  }
  await sleep(backoff(++failures));
}
