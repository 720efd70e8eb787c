/**
 * List and watch, as rules: nothing is missed, and the API server is not asked too often.
 */
import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { ApiError } from "../../k8s.ts";
import { VirtualWorld } from "../virtual/world.ts";
import {
  apiAnswer,
  asked,
  expiredFor,
  gaps,
  held,
  listings,
  logged,
  metric,
  rule,
  written,
} from "./rules.ts";
import { HOUR, MIN, S } from "../support/names.ts";
import { secret, uid } from "../support/secrets.ts";

const SPAN = 10 * S;
/** The most requests in any 10 s. */
function rate(world: VirtualWorld, from = 0): number {
  const times = world.cluster.requests.filter(({ verb, at }) =>
    ["list", "watch"].includes(verb) && at >= from
  ).map((
    { at },
  ) => at);
  return Math.max(
    0,
    ...times.map((start) => times.filter((at) => at >= start && at < start + SPAN).length),
  );
}

rule(
  "A watch that ends is opened again from the last version, at once and without a list",
  async (world) => {
    world.start();
    await world.clock.advance(20 * S);
    world.cluster.endWatches();
    world.cluster.create(secret("a"));
    await world.clock.advance(100);
    assertEquals([asked(world, "list").length, asked(world, "watch").length], [1, 2]);
    assertNotEquals(held(world), undefined);
  },
);

rule(
  "Watches are asked to live 60 to 90 s, and a list is never made again while they end well",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    await world.clock.advance(24 * HOUR);
    assertEquals(asked(world, "list").length, 1);
    const lives = gaps(asked(world, "watch").map(({ at }) => at));
    assert(
      Math.min(...lives) >= 60 * S && Math.max(...lives) <= 90 * S + 100,
      `${Math.min(...lives)} ${Math.max(...lives)}`,
    );
    assert(new Set(lives.map((life) => Math.round(life / S))).size > 20, "they spread");
  },
);

rule("Bookmarks carry the version on, where nothing of ours changes", async (world) => {
  world.start();
  await world.clock.advance(10 * S);
  world.cluster.create({
    ...secret("unlabelled"),
    metadata: { namespace: "apps", name: "unlabelled" },
  });
  await world.clock.advance(3 * MIN);
  world.cluster.compactedTo = 1001;
  await world.clock.advance(10 * MIN);
  assertEquals(asked(world, "list").length, 1);
});

for (const life of [0, 50, 900, 1_100, 3_000]) {
  rule(
    `Watches that end after ${life} ms each cause no more than 2 requests a second, and miss nothing`,
    async (world) => {
      world.cluster.watchLife = life;
      world.start();
      await world.clock.advance(1 * MIN);
      world.cluster.create(secret("a"));
      await world.clock.advance(11 * S);
      assertNotEquals(held(world), undefined);
      await world.clock.advance(20 * MIN);
      assert(rate(world) <= 20, `${rate(world)} in 10 s`);
    },
  );
}

rule(
  "A 410 leads to a list after 1 s at most; while it goes on, to a list each 5 s at most",
  async (world) => {
    world.cluster.create(secret("a"));
    const replica = world.start();
    await world.clock.advance(20 * S);
    world.cluster.endWatches(new ApiError("too old", { status: 410, reason: "Expired" }));
    await world.clock.advance(1_100);
    assertEquals([asked(world, "list").length, asked(world, "watch").length], [2, 2]);
    await world.clock.advance(20 * S);
    world.cluster.fault = ({ verb }) => verb === "watch" ? apiAnswer(410) : undefined;
    world.cluster.endWatches();
    await world.clock.advance(20 * MIN);
    assert(rate(world) <= 10, `${rate(world)} in 10 s`);
    assert(rate(world, world.clock.tick - 10 * MIN) <= 8, "some 2 lists and watches each 5 s");
    world.cluster.fault = () => undefined;
    await world.clock.advance(6 * S);
    assertEquals(written(world).length, 1);
    assert(metric(replica, 'watch_restarts_total{reason="gone"}')! > 10);
  },
);

rule("A 410 does not touch what is known before the new list is there", async (world) => {
  world.cluster.create(secret("a"));
  const replica = world.start();
  await world.clock.advance(20 * S);
  const before = replica.clock.pending();
  world.cluster.fault = ({ verb }) => verb === "list" ? "hang" : undefined;
  world.cluster.endWatches(new ApiError("too old", { status: 410 }));
  await world.clock.advance(1 * HOUR);
  assert(replica.clock.pending() >= before - 1);
  assert(written(world).length >= 2, "it is refreshed all the same");
});

for (
  const [what, error] of [
    ["ERROR 500", new ApiError("boom", { status: 500 })],
    ["ERROR 404", new ApiError("boom", { status: 404 })],
    ["ERROR 429", new ApiError("slow down", { status: 429 })],
    ["a line that is not JSON", new ApiError("no JSON", { reason: "InvalidResponse" })],
    ["a cut connection", new ApiError("cut", { reason: "UND_ERR_SOCKET" })],
    ["401", new ApiError("no", { status: 401 })],
    ["403", new ApiError("no", { status: 403 })],
  ] as const
) {
  rule(`After a watch that ended by ${what} it backs off, and lists anew`, async (world) => {
    world.start();
    await world.clock.advance(20 * S);
    world.cluster.endWatches(error);
    await world.clock.advance(490);
    assertEquals([listings(world), asked(world, "watch").length], [1, 1]);
    world.cluster.create(secret("a"));
    await world.clock.advance(600);
    assertEquals([listings(world), asked(world, "watch").length], [2, 2]);
    assertNotEquals(held(world), undefined);
  });
}

rule("Watches that end after half a second each are failures, and back off", async (world) => {
  world.cluster.watchLife = 500;
  world.start();
  await world.clock.advance(1 * MIN);
  const { length } = asked(world, "watch");
  assert(length >= 8 && length <= 30, `${length} watches`);
});

for (
  const [what, fault] of [
    ["end at once", "end"],
    ["are cut", new ApiError("cut", { reason: "UND_ERR_SOCKET" })],
    ["are answered 403", apiAnswer(403)],
    ["are answered 404", apiAnswer(404)],
    ["are answered 429", apiAnswer(429)],
    ["are answered 500", apiAnswer(500)],
  ] as const
) {
  rule(
    `While all watches ${what} and lists work, Secrets are found by the lists, within seconds`,
    async (world) => {
      if (fault === "end") world.cluster.watchLife = 0;
      else world.cluster.fault = ({ verb }) => verb === "watch" ? fault : undefined;
      const replica = world.start();
      await world.clock.advance(1 * MIN);
      for (const name of ["a", "b", "c"]) {
        world.cluster.create(secret(name));
        await world.clock.advance(6 * S);
        assertNotEquals(held(world, name), undefined);
      }
      world.cluster.delete("apps/a");
      await world.clock.advance(6 * S);
      assertEquals(metric(replica, 'secrets{state="valid"}'), 2);
      await world.clock.advance(1 * HOUR);
      assert(rate(world) <= 10, `${rate(world)} in 10 s`);
      assertEquals(expiredFor(world), 0);
      assertEquals(replica.readinessError(), undefined);
    },
  );
}

for (
  const [what, end] of [
    ["end at once", undefined],
    ["are cut", new ApiError("cut", { reason: "UND_ERR_SOCKET" })],
    ["are refused", apiAnswer(403)],
    ["are throttled", apiAnswer(429)],
  ] as const
) {
  rule(
    `Where watches from the versions up to one ${what} for ever, and later ones are well, a list leads past it`,
    async (world) => {
      world.cluster.create(secret("a"));
      await world.clock.advance(0);
      const { version } = world.cluster;
      const client = world.cluster.client("replica-1");
      world.cluster.client = () => ({
        ...client,
        async *watch(namespace, from, ...others) {
          if (+from > version + 1) return yield* client.watch(namespace, from, ...others);
          if (end) throw end;
        },
      });
      world.start();
      await world.clock.advance(1 * MIN);
      for (const name of ["b", "c"]) {
        world.cluster.create(secret(name));
        await world.clock.advance(6 * S);
        assertNotEquals(held(world, name), undefined);
      }
      await world.clock.advance(10 * S);
      const before = listings(world);
      await world.clock.advance(1 * HOUR);
      assertEquals(listings(world), before);
    },
  );
}

rule(
  "A load balancer that cuts idle watches each 20 s causes no warning, and nothing is missed",
  async (world) => {
    const replica = world.start();
    const cut = new ApiError("other side closed", { reason: "UND_ERR_SOCKET" });
    for (let step = 0; step < 90; step++) {
      await world.clock.advance(20 * S);
      world.cluster.endWatches(cut);
    }
    assertEquals(metric(replica, 'watch_restarts_total{reason="error"}'), 0);
    assert(metric(replica, 'watch_restarts_total{reason="ended"}')! >= 80);
    assertEquals(world.lines.filter((line) => line.includes('"level":"warn"')), []);
    world.cluster.create(secret("a"));
    await world.clock.advance(2 * S);
    assertNotEquals(held(world), undefined);
  },
);

rule(
  "A watch that is cut within 10 s over and over is reported, once in the log",
  async (world) => {
    const replica = world.start();
    const cut = new ApiError("other side closed", { reason: "UND_ERR_SOCKET" });
    for (let step = 0; step < 60; step++) {
      await world.clock.advance(6 * S);
      world.cluster.endWatches(cut);
    }
    assert(metric(replica, 'watch_restarts_total{reason="error"}')! >= 30);
    const lines = logged(world, "list or watch failed").length;
    assertEquals(lines, 1);
  },
);

rule("The same failure over and over is logged once, another one anew", async (world) => {
  world.cluster.fault = () => new ApiError("connect ECONNREFUSED", { reason: "ECONNREFUSED" });
  world.start();
  await world.clock.advance(10 * MIN);
  assertEquals(logged(world, "list or watch failed").length, 1);
  world.cluster.fault = () => apiAnswer(403);
  await world.clock.advance(10 * MIN);
  const failures = logged(world, "list or watch failed");
  assertEquals(failures.map(({ error }) => error), ["connect ECONNREFUSED", "answered 403"]);
});

rule(
  "Each outage is logged once, also one that begins with a cut",
  async (world) => {
    world.start();
    let before = 0;
    for (const status of [500, 403, 429]) {
      await world.clock.advance(20 * S);
      world.cluster.fault = () => apiAnswer(status);
      world.cluster.endWatches(new ApiError("cut", { reason: "UND_ERR_SOCKET" }));
      await world.clock.advance(10 * MIN);
      const lines = logged(world, "list or watch failed");
      assertEquals(lines.length, before + 1);
      assert(lines.slice(before).every(({ error }) => error === `answered ${status}`));
      assert(lines.every(({ level }) => level === "warn"));
      before = lines.length;
      world.cluster.fault = () => undefined;
      await world.clock.advance(10 * S);
    }
  },
);

rule("Retry-After of a watch or a list is waited for, 5 min at most", async (world) => {
  world.start();
  await world.clock.advance(20 * S);
  for (
    const [status, retryAfter, seconds] of [[429, "60", 60], [503, "60", 60], [
      429,
      "3600",
      300,
    ]] as const
  ) {
    const before = asked(world, "watch").length;
    world.cluster.fault = ({ verb }) =>
      verb === "watch" ? apiAnswer(status, retryAfter) : undefined;
    world.cluster.endWatches();
    await world.clock.advance(1 * S);
    const failed = asked(world, "watch").slice(before);
    assertEquals(failed.length, 1);
    world.cluster.fault = () => undefined;
    await world.clock.advance(305 * S);
    const next = world.cluster.requests.find(({ verb, at }) =>
      ["list", "watch"].includes(verb) && at > failed[0]!.at
    )!;
    assert(
      next.at - failed[0]!.at >= seconds * S && next.at - failed[0]!.at < seconds * S + 100,
      `${next.at - failed[0]!.at}`,
    );
  }
});

rule(
  "While it fails the waits double from 1 s, a random half to the whole, up to 5 s",
  async (world) => {
    world.start();
    await world.clock.advance(20 * S);
    world.cluster.fault = () => new ApiError("no answer", { reason: "ECONNREFUSED" });
    world.cluster.endWatches();
    await world.clock.advance(5 * MIN);
    const tries = world.cluster.requests.filter(({ verb }) => verb === "watch" || verb === "list")
      .slice(2);
    const waits = gaps(tries.map(({ at }) => at)).map((gap) => gap / S);
    for (const [index, wait] of waits.entries()) {
      const whole = Math.min(5, 1 * 2 ** index);
      assert(wait >= whole / 2 && wait <= whole + 0.01, `${index}: ${wait}`);
    }
    assert(waits.length > 40);
    world.cluster.create(secret("a"));
    world.cluster.fault = () => undefined;
    await world.clock.advance(5 * S + 100);
    assertNotEquals(held(world), undefined);
  },
);

rule("The back-off starts anew after a watch that lived 10 s", async (world) => {
  world.start();
  await world.clock.advance(1 * S);
  world.cluster.fault = () => new ApiError("no answer", { reason: "ECONNRESET" });
  world.cluster.endWatches();
  await world.clock.advance(2 * MIN);
  world.cluster.fault = () => undefined;
  await world.clock.advance(21 * S);
  const before = asked(world, "watch").length;
  world.cluster.endWatches(new ApiError("cut", { reason: "ECONNRESET" }));
  await world.clock.advance(1_010);
  assertEquals(asked(world, "watch").length, before + 1);
});

rule(
  "Secrets that came and went during an outage are found by the list after it",
  async (world) => {
    const replica = world.start();
    await world.clock.advance(1 * S);
    const idle = replica.clock.pending();
    world.cluster.create(secret("a"));
    await world.clock.advance(20 * S);
    world.cluster.fault = () => new ApiError("no answer", { reason: "ECONNREFUSED" });
    world.cluster.endWatches();
    await world.clock.advance(1);
    world.cluster.delete("apps/a");
    world.cluster.create(secret("b"));
    world.cluster.delete("apps/b");
    world.cluster.create(secret("c"));
    world.cluster.compactedTo = 1e9;
    await world.clock.advance(10 * S);
    world.cluster.fault = () => undefined;
    await world.clock.advance(6 * S);
    assertNotEquals(held(world, "c"), undefined);
    await world.clock.advance(6 * S);
    assertEquals(metric(replica, 'secrets{state="valid"}'), 1);
    world.cluster.delete("apps/c");
    world.cluster.compactedTo = 0;
    // What was reported is remembered for 5 min.
    await world.clock.advance(5 * MIN + 11 * S);
    assertEquals(replica.clock.pending(), idle);
  },
);

rule("A stalled watch connection is detected within two minutes", async (world) => {
  world.start();
  await world.clock.advance(1 * S);
  world.cluster.deafen();
  world.cluster.create(secret("a"));
  await world.clock.advance(59 * S);
  assertEquals(held(world), undefined);
  await world.clock.advance(61 * S);
  assertNotEquals(held(world), undefined);
});

rule(
  "Secrets that are made while the API server is away are filled within 6 s of its return",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    await world.clock.advance(1 * MIN);
    for (const [index, seconds] of [10, 10, 60, 600].entries()) {
      world.cluster.fault = () => new ApiError("connect ECONNREFUSED", { reason: "ECONNREFUSED" });
      world.cluster.endWatches(new ApiError("cut", { reason: "UND_ERR_SOCKET" }));
      await world.clock.advance(1);
      world.cluster.create(secret(`known-${index}`));
      world.cluster.create(secret(`new-${index}`, { identity: uid(index + 10) }));
      await world.clock.advance(seconds * S);
      world.cluster.fault = () => undefined;
      await world.clock.advance(6 * S);
      assertNotEquals(held(world, `known-${index}`), undefined);
      assertNotEquals(held(world, `new-${index}`), undefined);
    }
  },
);

rule("A list is taken page by page", async (world) => {
  world.cluster.pageSize = 7;
  for (let number = 0; number < 50; number++) world.cluster.create(secret(`s-${number}`));
  world.start();
  await world.clock.advance(1 * S);
  assertEquals(asked(world, "list").length, 8);
  assertEquals(written(world).length, 50);
});

rule(
  "Each watched namespace has a list and a watch of its own, and no other is asked for",
  async (world) => {
    for (const namespace of ["one", "two", "three"]) {
      world.cluster.create(
        secret("a", { namespace }),
      );
    }
    world.start({ env: { WATCH_NAMESPACES: "one,two" } });
    await world.clock.advance(20 * S);
    assertEquals(written(world).map(({ namespace }) => namespace).sort(), ["one", "two"]);
    assertEquals(asked(world, "list").map(({ namespace }) => namespace), ["one", "two"]);
    world.cluster.fault = ({ verb, namespace }) =>
      verb === "watch" && namespace === "one" ? apiAnswer(500) : undefined;
    world.cluster.endWatches(new ApiError("too old", { status: 410 }));
    await world.clock.advance(10 * S);
    world.cluster.create(secret("b", { namespace: "two" }));
    await world.clock.advance(1 * S);
    assertNotEquals(held(world, "b", "two"), undefined);
    assertNotEquals(held(world, "a", "one"), undefined);
    assertEquals(written(world).length, 3);
  },
);
