/** The tools of the fault matrix. */
import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { createServer } from "node:http";
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { after, describe, test } from "node:test";
import { Agent, request } from "undici";
import { identityOf, secretOf, standingOf } from "../objects.ts";
import { peakRise, total } from "./observe.ts";
import { writeMarkdown } from "./matrix.ts";
import type { Row } from "./rows.ts";
import type { Outcome } from "./outcome.ts";
import { startWire } from "./wire.ts";
import { parseMetrics } from "../../support/metrics.ts";
import { DATA_KEY } from "../../support/names.ts";
import { base64, configOf, makeJwt } from "../../support/secrets.ts";

const identity = identityOf("acme");

async function ask(url: string, options: Parameters<typeof request>[1] = {}) {
  // No connection is kept, so that each test makes its own.
  const dispatcher = new Agent({ pipelining: 0 });
  const { statusCode, body } = await request(url, { dispatcher, ...options });
  const text = await body.text();
  await dispatcher.close();
  return { status: statusCode, text };
}

describe("a wire", async () => {
  const server = createServer((_, response) => void response.end("here")).listen(0, "127.0.0.1");
  await once(server, "listening");
  const wire = await startWire("127.0.0.1", (server.address() as AddressInfo).port);
  const url = `http://127.0.0.1:${wire.port}/`;

  after(async () => {
    await wire.refuse();
    server.close();
  });

  test("carries what is sent, later by its delay in each direction", async () => {
    wire.delay = 50;
    const began = performance.now();
    assertEquals((await ask(url)).text, "here");
    assert(performance.now() - began >= 2 * wire.delay);
    wire.delay = 0;
  });

  test("refuses connections until it accepts them again", async () => {
    await wire.refuse();
    await assertRejects(() => ask(url), Error, "ECONNREFUSED");
    await wire.accept();
    assertEquals((await ask(url)).status, 200);
  });
});

test("a Secret's standing goes by its token alone", () => {
  const claims = { sub: identity, iat: 1000, exp: 1015 };
  const secret = secretOf("run", "team", "one", identity);
  const holding = (payload: object) => {
    return { ...secret, data: { [DATA_KEY]: base64(configOf(makeJwt(payload))) } };
  };
  const stateAt = (held: object, at: number) => standingOf(held, identity, at).state;
  assertEquals(stateAt(secret, 0), "missing");
  assertEquals(stateAt(holding(claims), 1_014_999), "valid");
  assertEquals(stateAt(holding(claims), 1_015_000), "expired");
  assertEquals(stateAt(holding({ ...claims, sub: identityOf("another") }), 1_000_000), "another's");
});

test("a peak is the greatest rise within any window, and not beyond it", () => {
  const readings = [[0, 0], [5, 10], [10, 11], [16, 30], [40, 100]].map(([at = 0, value = 0]) => ({
    at,
    value,
  }));
  assertEquals(peakRise(readings, 10), 19);
  assertEquals(peakRise(readings, 11), 20);
  assertEquals(peakRise([], 10), 0);
});

test("metrics are summed over their labels, and not with those of a longer name", () => {
  const metrics = parseMetrics(
    '# HELP a\na_total{x="1"} 2\na_total{x="2"} 3\na_total_more 7\nb 1\n',
  );
  assertEquals(total(metrics, "a_total"), 5);
  assertEquals(total(metrics, "b"), 1);
});

test("an item of the list has the worse runtime's figures, and what a user sees first", () => {
  const row: Row = {
    name: "one",
    fault: "issuer: 500",
    inject: () => Promise.resolve(() => {}),
    suffers: "all",
    backS: 1,
  };
  const node: Outcome = {
    row,
    runtime: "node",
    secrets: 3,
    expired: 1,
    expiredMs: 900,
    backMs: 50,
    requests: 0,
    exchanges: 0,
    events: [],
    warnings: 1,
    log: ["exchange failed: 500"],
    metrics: [],
    broken: [],
  };
  const event = `ExchangeFailed: ${identity} at 127.0.0.1:80`;
  const deno: Outcome = { ...node, runtime: "deno", expired: 2, expiredMs: 1100, events: [event] };
  const seen = "event `ExchangeFailed: IDENTITY at ADDRESS`";
  assertEquals(
    writeMarkdown([node, deno]),
    `- **issuer: 500**: ${seen}. 2 of 3 tokens expired, for up to 2 s; back to normal within 1 s.\n`,
  );
  const { backMs: _, ...lost } = node;
  assertStringIncludes(
    writeMarkdown([lost]),
    "log `exchange failed: 500`. 1 of 3 tokens expired, for up to 1 s; back to normal within never",
  );
});
