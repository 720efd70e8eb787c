/**
 * Turns, as rules: exchanges and writes go round the namespaces that wait, so that nobody waits for all that
 * another namespace has, whatever is done there.
 */
import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { VirtualWorld } from "../virtual/world.ts";
import {
  annotate,
  answer,
  apiAnswer,
  asked,
  blank,
  expiredFor,
  fresh,
  held,
  largeRule,
  peak,
  rule,
  written,
} from "./rules.ts";
import { DATA_KEY, HOUR, IDENTITY, MIN, S, SERVICE_ACCOUNT } from "../support/names.ts";
import { ALICE, base64, BOB, configOf, secret, uid } from "../support/secrets.ts";

/** Secrets of one namespace, each with an identity of its own, numbered from `first` on. */
function createMany(world: VirtualWorld, namespace: string, first: number, count: number): void {
  for (let number = first; number < first + count; number++) {
    world.cluster.create(secret(`s-${number}`, { namespace, identity: uid(number) }));
  }
}
const numberOf = (identity: string) => parseInt(identity.slice(-8), 16);
/** The identities that were exchanged, as their numbers, in their order. */
const exchanged = (world: VirtualWorld) =>
  world.issuer.requests.map(({ identity }) => numberOf(identity));

// ───── Exchanges ─────

rule("At most 16 exchanges are under way, and 8 of one namespace", async (world) => {
  createMany(world, "apps", 0, 20);
  world.issuer.fault = () => 1 * S;
  world.start();
  await world.clock.advance(30 * S);
  assertEquals(peak(world.issuer.requests), 8);
  for (let number = 20; number < 80; number++) createMany(world, `n-${number % 5}`, number, 1);
  await world.clock.advance(30 * S);
  assertEquals(peak(world.issuer.requests), 16);
  assertEquals(written(world).length, 80);
});

rule(
  "A place that becomes free is one of the namespace's whose exchange has ended",
  async (world) => {
    world.issuer.fault = ({ identity }) => numberOf(identity) < 100 ? "hang" : 100;
    createMany(world, "slow", 0, 20);
    world.start();
    await world.clock.advance(1 * S);
    for (let number = 100; number < 140; number++) createMany(world, "quick", number, 1);
    await world.clock.advance(5 * S);
    assertEquals(exchanged(world).filter((number) => number < 100).length, 8);
    assertEquals(written(world).length, 40);
  },
);

rule("One namespace's hanging exchanges do not keep another's from its turn", async (world) => {
  createMany(world, "bad", 10, 50);
  world.issuer.fault = ({ identity }) => identity === ALICE ? undefined : "hang";
  world.start();
  await world.clock.advance(1 * S);
  world.cluster.create(secret("a"));
  await world.clock.advance(1 * S);
  assertNotEquals(held(world), undefined);
});

rule(
  "Two namespaces' hanging exchanges delay a third one's by one exchange at most",
  async (world) => {
    createMany(world, "bad-1", 10, 50);
    createMany(world, "bad-2", 60, 50);
    world.issuer.fault = ({ identity }) => identity === ALICE ? undefined : "hang";
    world.start();
    await world.clock.advance(1 * S);
    world.cluster.create(secret("a"));
    await world.clock.advance(10 * S);
    assertNotEquals(held(world), undefined);
  },
);

rule(
  "Turns go round the namespaces that wait; within one the oldest comes first",
  async (world) => {
    world.issuer.fault = () => 1 * S;
    world.start();
    await world.clock.advance(1 * S);
    for (let number = 0; number < 16; number++) createMany(world, `n-${number}`, number, 1);
    await world.clock.advance(100);
    // All places are taken. One after another starts to wait.
    const waiting: [string, number, number][] = [["x", 100, 6], ["y", 200, 4], ["z", 300, 2], [
      "w",
      400,
      1,
    ], ["z", 302, 1]];
    for (const [namespace, first, count] of waiting) {
      createMany(world, namespace, first, count);
      await world.clock.advance(10);
    }
    await world.clock.advance(5 * S);
    assertEquals(exchanged(world).slice(16), [
      ...[100, 200, 300, 400],
      ...[101, 201, 301],
      ...[102, 202, 302],
      ...[103, 203],
      ...[104],
      ...[105],
    ]);
  },
);

rule("Of one namespace what failed before comes after what did not", async (world) => {
  world.issuer.fault = () => answer(503);
  createMany(world, "x", 2, 1);
  world.start();
  await world.clock.advance(100);
  world.issuer.fault = () => 5 * S;
  createMany(world, "x", 10, 8);
  createMany(world, "y", 20, 8);
  await world.clock.advance(2 * S);
  createMany(world, "x", 1, 1);
  await world.clock.advance(20 * S);
  assertEquals(exchanged(world).slice(17), [1, 2]);
});

rule("What failed in one namespace does not come after what did not in another", async (world) => {
  world.issuer.fault = () => answer(503);
  createMany(world, "x", 2, 1);
  world.start();
  await world.clock.advance(100);
  world.issuer.fault = () => 5 * S;
  createMany(world, "y", 10, 8);
  createMany(world, "z", 20, 16);
  await world.clock.advance(2 * S);
  createMany(world, "y", 30, 8);
  await world.clock.advance(5 * S);
  assert(exchanged(world).slice(17, 20).includes(2), `${exchanged(world)}`);
});

rule(
  "A shared exchange starts as soon as any of the namespaces that wait for it has its turn",
  async (world) => {
    world.issuer.fault = () => 1 * S;
    createMany(world, "busy", 100, 80);
    world.start();
    await world.clock.advance(100);
    world.cluster.create(secret("a", { namespace: "busy" }));
    await world.clock.advance(100);
    assertEquals(exchanged(world).includes(1), false);
    world.cluster.create(secret("a", { namespace: "idle" }));
    await world.clock.advance(1_100);
    assertNotEquals(held(world, "a", "idle"), undefined);
    await world.clock.advance(20 * S);
    assertEquals(held(world, "a", "busy"), held(world, "a", "idle"));
    assertEquals(exchanged(world).filter((number) => number === 1).length, 1);
  },
);

rule(
  "The namespace that asked first may go: the exchange is made for those that still want it",
  async (world) => {
    world.issuer.fault = () => 1 * S;
    createMany(world, "busy", 100, 80);
    world.start();
    await world.clock.advance(100);
    world.cluster.create(secret("a", { namespace: "busy" }));
    await world.clock.advance(10);
    world.cluster.create(secret("b", { namespace: "busy" }));
    await world.clock.advance(10);
    world.cluster.delete("busy/a");
    await world.clock.advance(20 * S);
    assertNotEquals(held(world, "b", "busy"), undefined);
    assertEquals(exchanged(world).filter((number) => number === 1).length, 1);
  },
);

const LEAVING: [string, (world: VirtualWorld, key: string) => void][] = [
  ["is deleted", (world, key) => world.cluster.delete(key)],
  [
    "loses its label",
    (world, key) => void world.cluster.update(key, { metadata: { labels: { [IDENTITY]: null } } }),
  ],
  [
    "gets another identity",
    (world, key) => void world.cluster.update(key, annotate({ [IDENTITY]: uid(99) })),
  ],
  ["gets a valid token", (world, key) => {
    const config = configOf(fresh(world));
    world.cluster.update(key, { data: { [DATA_KEY]: base64(config) } });
  }],
];
for (const [what, leave] of LEAVING) {
  rule(`An exchange for a Secret that ${what} before its turn is not made`, async (world) => {
    world.issuer.fault = () => 1 * S;
    createMany(world, "busy", 100, 24);
    world.start();
    await world.clock.advance(100);
    world.cluster.create(secret("a", { namespace: "busy" }));
    await world.clock.advance(100);
    leave(world, "busy/a");
    await world.clock.advance(10 * S);
    assertEquals(exchanged(world).includes(1), false);
    assertEquals(written(world).length >= 24, true);
    // Asked for again, it is made.
    world.cluster.create(secret("b", { namespace: "busy" }));
    await world.clock.advance(2 * S);
    assertNotEquals(held(world, "b", "busy"), undefined);
  });
}

// ───── Writes ─────

rule("At most 16 writes are under way, and 8 of one namespace", async (world) => {
  for (let number = 0; number < 40; number++) world.cluster.create(secret(`s-${number}`));
  world.cluster.fault = ({ verb }) => verb === "patch" ? 1 * S : undefined;
  world.start();
  await world.clock.advance(10 * S);
  assertEquals(peak(asked(world, "patch")), 8);
  assertEquals(written(world).length, 40);
  for (let number = 0; number < 80; number++) {
    world.cluster.create(secret(`t-${number}`, { namespace: `n-${number % 5}` }));
  }
  await world.clock.advance(10 * S);
  assertEquals(peak(asked(world, "patch")), 16);
  assertEquals(written(world).length, 120);
});

rule("Reading a Secret for a write takes its place as well", async (world) => {
  for (let number = 0; number < 40; number++) {
    world.cluster.create(secret(`s-${number}`, { config: '{"auths":{},"other":1}' }));
  }
  world.cluster.fault = ({ verb }) => verb === "patch" || verb === "get" ? 1 * S : undefined;
  world.start();
  await world.clock.advance(20 * S);
  assertEquals(peak([...asked(world, "patch"), ...asked(world, "get")]), 8);
  assertEquals(written(world).length, 40);
});

rule("One namespace's slow writes do not keep another's from its turn", async (world) => {
  for (let number = 0; number < 320; number++) {
    world.cluster.create(secret(`s-${number}`, { namespace: "slow" }));
  }
  world.cluster.fault = ({ verb, namespace }) =>
    verb === "patch" && namespace === "slow" ? 10 * S : undefined;
  world.start();
  await world.clock.advance(1 * S);
  world.cluster.create(secret("a"));
  await world.clock.advance(100);
  assertNotEquals(held(world), undefined);
});

rule(
  "Turns of writes go round the namespaces that wait, too, and what failed before comes last in its own",
  async (world) => {
    world.cluster.create(secret("first"));
    let fails = 1;
    world.cluster.fault = ({ verb, name }) => {
      if (verb !== "patch") return undefined;
      return name === "failed" && fails-- > 0 ? apiAnswer(500) : 1 * S;
    };
    world.start();
    await world.clock.advance(2 * S);
    world.cluster.create(secret("failed", { namespace: "x" }));
    await world.clock.advance(100);
    for (let number = 0; number < 12; number++) {
      world.cluster.create(secret(`s-${number}`, { namespace: "x" }));
      world.cluster.create(secret(`s-${number}`, { namespace: "y" }));
    }
    await world.clock.advance(600);
    world.cluster.create(secret("s-0", { namespace: "z" }));
    await world.clock.advance(10 * S);
    const order = asked(world, "patch").map(({ namespace, name }) => `${namespace}/${name}`).slice(
      2,
    );
    assertEquals(order.indexOf("z/s-0") >= 16 && order.indexOf("z/s-0") <= 18, true, `${order}`);
    assert(order.indexOf("x/failed") > order.indexOf("x/s-11"), `${order}`);
    assertEquals(written(world).length, 27);
  },
);

rule(
  "A write for a Secret that needs none any more when its turn comes is not made",
  async (world) => {
    for (let number = 0; number < 20; number++) world.cluster.create(secret(`s-${number}`));
    world.cluster.fault = ({ verb }) => verb === "patch" ? 1 * S : undefined;
    world.start();
    await world.clock.advance(100);
    world.cluster.delete("apps/s-18");
    world.cluster.update("apps/s-19", {
      data: { [DATA_KEY]: base64(configOf(fresh(world))) },
    });
    await world.clock.advance(10 * S);
    assertEquals(asked(world, "patch").length, 18);
  },
);

// ───── One tenant against all others ─────

/** Victims: Secrets of 20 namespaces, with tokens that they keep. */
function createVictims(world: VirtualWorld, identity: (number: number) => string): void {
  for (let number = 0; number < 20; number++) {
    world.cluster.create(
      secret("victim", { namespace: `victim-${number}`, identity: identity(number) }),
    );
  }
}
/** For how long victims held tokens that had expired. */
function victimsExpiredFor(world: VirtualWorld): number {
  const { history } = world.cluster;
  const own = history.filter(({ secret }) => secret.metadata.name === "victim");
  return expiredFor({ ...world, cluster: { history: own }, clock: world.clock } as VirtualWorld);
}

for (
  const [what, namespaces, count, isShared] of [
    ["one namespace, and an identity that it asked for first", 1, 60, true],
    ["two namespaces", 2, 60, false],
  ] as const
) {
  largeRule(
    `Service accounts with ever new identities (${what}) make nobody's token expire`,
    async (world) => {
      world.issuer.life = 5 * MIN;
      // More are asked for in 12 s than there are turns.
      world.issuer.fault = () => 2 * S;
      const annotations = { [SERVICE_ACCOUNT]: "puller" };
      for (let number = 0; number < count; number++) {
        for (let bad = 0; bad < namespaces; bad++) {
          world.cluster.create(secret(`s-${number}`, { namespace: `bad-${bad}`, annotations }));
        }
      }
      if (isShared) world.cluster.create(secret("shared", { namespace: "bad-0" }));
      world.start();
      createVictims(world, (number) => isShared ? ALICE : uid(number + 1));
      let identity = 1000;
      for (let step = 0; step < 26; step++) {
        for (let number = 0; number < count; number++) {
          for (let bad = 0; bad < namespaces; bad++) {
            const key = `bad-${bad}/s-${number}`;
            world.cluster.update(key, annotate({ [IDENTITY]: uid(identity++) }));
          }
        }
        await world.clock.advance(12 * S);
      }
      assertEquals(victimsExpiredFor(world), 0);
      for (let number = 0; number < 20; number++) {
        assertNotEquals(held(world, "victim", `victim-${number}`), undefined);
      }
      const ofBad = world.issuer.requests.filter(({ subject }) => subject.includes(":bad-"));
      assertEquals(peak(ofBad), 8 * namespaces);
    },
  );
}

largeRule(
  "60 Secrets that are blanked over and over and take 10 s to write make nobody's token expire",
  async (world) => {
    world.issuer.life = 5 * MIN;
    world.cluster.fault = ({ verb, namespace }) =>
      verb === "patch" && namespace === "bad" ? 10 * S : undefined;
    for (let number = 0; number < 60; number++) {
      world.cluster.create(secret(`s-${number}`, { namespace: "bad", identity: BOB }));
    }
    world.start();
    createVictims(world, (number) => uid(number + 10));
    for (let step = 0; step < 26; step++) {
      for (let number = 0; number < 60; number++) world.cluster.update(`bad/s-${number}`, blank);
      await world.clock.advance(12 * S);
    }
    assertEquals(victimsExpiredFor(world), 0);
  },
);

for (const namespace of ["apps", "bad"]) {
  largeRule(
    `100 identities that are refused (in ${namespace}) delay 100 good ones in apps hardly, and their renewals not`,
    async (world) => {
      world.issuer.life = 5 * MIN;
      world.issuer.fault = ({ identity }) =>
        numberOf(identity) >= 10_000 ? { ms: 400, after: answer(403) } : { ms: 400 };
      createMany(world, namespace, 10_000, 100);
      createMany(world, "apps", 100, 100);
      world.start();
      // At 400 ms each and 8 at a time 100 take 5 s.
      await world.clock.advance(12 * S);
      assertEquals(written(world).length, 100);
      await world.clock.advance(9 * MIN);
      assertEquals(expiredFor(world), 0);
    },
  );
}

largeRule(
  "An identity that was refused for long and is then bound has its Secret filled within a minute",
  async (world) => {
    world.cluster.create(secret("a"));
    createMany(world, "apps", 100, 5);
    world.issuer.fault = () => answer(403);
    world.start();
    await world.clock.advance(3 * HOUR);
    world.issuer.fault = ({ identity }) => identity === ALICE ? undefined : answer(403);
    await world.clock.advance(61 * S);
    assertNotEquals(held(world), undefined);
  },
);
