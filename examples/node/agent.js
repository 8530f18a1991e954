// An example agent: serves HTTP, stays registered while it runs, and unregisters on SIGTERM or SIGINT.
//
// Configured by $REGISTRY, $AGENT_NAME, $AGENT_PORT and $OSSA_REGISTRY_TOKEN; see README.md.

import { createServer } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { backoff, call, connect, isFatal, metadata } from "./registry.js";

const NAME = process.env.AGENT_NAME || "greeter-node";
/** Lease length in seconds. */
const TTL_SECONDS = 30;

const stopping = new AbortController();
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => stopping.abort());

/** Serves `GET /greet?name=you`, and `GET /health` for the registry's probes. */
const server = createServer((request, response) => {
  const url = new URL(request.url, "http://agent");
  if (url.pathname === "/health") {
    response.setHeader("Content-Type", "application/json").end('{"status":"ok"}');
  } else if (url.pathname === "/greet") {
    response.setHeader("Content-Type", "text/plain").end(`hello, ${url.searchParams.get("name") ?? "you"}\n`);
  } else {
    response.writeHead(404).end();
  }
});

/**
 * Keeps the service registered until `stopping`, on one KeepAlive stream that is reopened when it breaks. Responses
 * list the names that the registry no longer knows, which are registered again.
 */
async function stayRegistered(client, service) {
  let registered = false;
  let failures = 0;
  while (!stopping.signal.aborted) {
    const stream = client.KeepAlive(metadata());
    stream.on("error", () => {}); // the error is thrown below, where the response is awaited
    const cancelStream = () => stream.cancel();
    stopping.signal.addEventListener("abort", cancelStream);
    try {
      const responses = stream[Symbol.asyncIterator]();
      while (!stopping.signal.aborted) {
        if (!registered) {
          await call(client, "RegisterService", { service });
          console.log(`registered ${service.name} at ${service.endpoint}`);
        }
        stream.write({ names: [service.name] });
        const { value: response, done } = await responses.next();
        if (done) break; // the registry ended the stream
        registered = response.unknownNames.length === 0;
        failures = 0;
        if (registered) await sleep((TTL_SECONDS / 3) * 1000, undefined, { signal: stopping.signal });
      }
    } catch (error) {
      if (stopping.signal.aborted) break;
      if (isFatal(error)) throw error;
      console.error(`registry unavailable: ${error.message}`);
    } finally {
      stopping.signal.removeEventListener("abort", cancelStream);
      stream.cancel();
    }
    await sleep(backoff(++failures), undefined, { signal: stopping.signal }).catch(() => {});
  }
}

await new Promise((resolve, reject) => {
  server.once("error", reject).listen(Number(process.env.AGENT_PORT || 0), "127.0.0.1", resolve);
});
const service = {
  name: NAME,
  group: "greeter", // shared by its replicas
  endpoint: `http://127.0.0.1:${server.address().port}`,
  version: "1.0.0",
  capabilities: [{ name: "greet", version: "1.0.0", description: "Says hello: GET /greet?name=you" }],
  metadata: { tags: ["example"], labels: { language: "node" } },
  healthCheck: { http: { path: "/health" } },
  ttl: { seconds: TTL_SECONDS },
};
const client = connect();
try {
  await stayRegistered(client, service);
  await call(client, "UnregisterService", { name: NAME })
    .then(() => console.log(`unregistered ${NAME}`))
    .catch((error) => console.error(`cannot unregister, the lease will expire: ${error.message}`));
} catch (error) {
  console.error(`refused: ${error.message}`);
  process.exitCode = 1;
} finally {
  client.close();
  server.close();
  server.closeAllConnections();
}
