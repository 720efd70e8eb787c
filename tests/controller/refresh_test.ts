/**
 * Requested refreshes, as rules: a new `refresh` value gets a new token, once.
 */
import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { type Secret } from "../../k8s.ts";
import type { Fault } from "../virtual/shared.ts";
import { VirtualWorld } from "../virtual/world.ts";
import {
  annotate,
  annotationOf,
  answer,
  asked,
  expiredFor,
  fresh,
  gaps,
  held,
  reported,
  rule,
  written,
} from "./rules.ts";
import { DATA_KEY, MIN, REFRESH, REFRESHED, S } from "../support/names.ts";
import { base64, configOf, secret } from "../support/secrets.ts";

rule(
  "A refresh gets a new token at once; in the same patch `refreshed` says which value was served, `refresh` stays",
  async (world) => {
    world.cluster.create(secret("a"));
    world.cluster.create(secret("b"));
    world.start();
    await world.clock.advance(10 * MIN);
    const before = held(world, "b");
    world.cluster.update("apps/a", annotate({ [REFRESH]: "1" }));
    await world.clock.advance(1 * S);
    assertNotEquals(held(world), before);
    assertEquals(held(world, "b"), before);
    assertEquals([annotationOf(world, REFRESH), annotationOf(world, REFRESHED)], ["1", "1"]);
    assertEquals(annotationOf(world, REFRESHED, "b"), undefined);
    const [patch] = written(world).slice(2);
    const { metadata, data } = patch!.body as Secret;
    assertEquals(metadata.annotations![REFRESHED], "1");
    assert(!(REFRESH in metadata.annotations!));
    assert(data![DATA_KEY]);
    await world.clock.advance(20 * MIN);
    assertEquals([world.issuer.requests.length, written(world).length], [2, 3]);
    await world.clock.advance(30 * MIN);
    assertEquals(expiredFor(world), 0);
    assertEquals(annotationOf(world, REFRESHED), "1");
  },
);

rule("A Secret that is made with a refresh value is served at its first write", async (world) => {
  world.cluster.create(secret("a", { annotations: { [REFRESH]: "in Git" } }));
  world.start();
  await world.clock.advance(1 * MIN);
  assertEquals(annotationOf(world, REFRESHED), "in Git");
  assertEquals([world.issuer.requests.length, written(world).length], [1, 1]);
});

for (const replicas of [1, 2]) {
  rule(
    `A refresh that was served is not served again after a restart, nor after its value is set again (${replicas})`,
    async (world) => {
      world.cluster.create(secret("a", { annotations: { [REFRESH]: "1" } }));
      const running = Array.from({ length: replicas }, () => world.start());
      await world.clock.advance(5 * MIN);
      const before = [world.issuer.requests.length, written(world).length];
      for (const replica of running) replica.stop();
      world.start();
      await world.clock.advance(5 * MIN);
      world.cluster.update("apps/a", annotate({ [REFRESH]: "1", note: "applied again" }));
      await world.clock.advance(5 * MIN);
      assertEquals([world.issuer.requests.length, written(world).length], before);
      assertEquals(before[1], 1);
    },
  );
}

rule(
  "The refresh value that is served last counts, though others were set meanwhile",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    await world.clock.advance(1 * MIN);
    world.issuer.fault = () => 3 * S;
    for (const value of ["1", "2", "3", "2"]) {
      world.cluster.update("apps/a", annotate({ [REFRESH]: value }));
      await world.clock.advance(1 * S);
    }
    await world.clock.advance(30 * S);
    assertEquals(annotationOf(world, REFRESHED), "2");
    assert(written(world).length <= 4, `${written(world).length}`);
    const before = written(world).length;
    await world.clock.advance(10 * MIN);
    assertEquals(written(world).length, before);
  },
);

for (
  const [what, value] of [["ASCII", "x"], ["two bytes", "€"], ["four bytes", "\u{1f980}"]] as const
) {
  rule(
    `A refresh value of 250 KiB (${what}) is served once: what was kept of it is what \`refreshed\` says`,
    async (world) => {
      const text = value.repeat(250 * 1024 / Buffer.byteLength(value));
      world.cluster.create(secret("a", { annotations: { [REFRESH]: text } }));
      world.start();
      await world.clock.advance(10 * MIN);
      assertEquals([world.issuer.requests.length, written(world).length], [1, 1]);
      assertEquals(annotationOf(world, REFRESH), text);
      const refreshed = annotationOf(world, REFRESHED)!;
      assert(refreshed.length <= 301 && text.startsWith(refreshed.slice(0, 290)), refreshed);
      world.replicas[0]!.stop();
      world.start();
      await world.clock.advance(30 * MIN);
      assertEquals([world.issuer.requests.length, written(world).length], [1, 1]);
    },
  );
}

rule(
  "A refresh value that could pass for a token, or is full of control characters, is served once",
  async (world) => {
    const values = [fresh(world), "\u0000\u001b[2J\u202e", " ", "\n", "\ud83e"];
    for (const [index, value] of values.entries()) {
      world.cluster.create(secret(`s-${index}`, { annotations: { [REFRESH]: value } }));
    }
    world.start();
    await world.clock.advance(10 * MIN);
    assertEquals(written(world).length, values.length);
  },
);

rule(
  "A refresh within the 10 s after a success is served by that token, when the Secret may be written again",
  async (world) => {
    world.cluster.create(secret("a"));
    world.cluster.create(secret("b"));
    world.start();
    await world.clock.advance(3 * S);
    world.cluster.create(secret("c", { annotations: { [REFRESH]: "1" } }));
    await world.clock.advance(1 * S);
    assertEquals(held(world, "c"), held(world, "a"));
    assertEquals(annotationOf(world, REFRESHED, "c"), "1");
    world.cluster.update("apps/a", annotate({ [REFRESH]: "1" }));
    await world.clock.advance(1 * MIN);
    assertEquals(annotationOf(world, REFRESHED), "1");
    const [, , , fourth, ...rest] = written(world);
    assert(fourth!.at >= 10 * S && fourth!.at <= 11 * S, `${fourth!.at}`);
    assertEquals(rest, []);
    assert(world.issuer.requests.length <= 2);
  },
);

rule(
  "A refresh soon after a token was got gets that one, though its exchange began long ago",
  async (world) => {
    world.cluster.create(secret("a"));
    world.cluster.create(secret("b", { config: configOf(fresh(world)) }));
    world.issuer.fault = () => 9 * S;
    world.start();
    await world.clock.advance(15 * S);
    world.cluster.update("apps/b", annotate({ [REFRESH]: "1" }));
    await world.clock.advance(1 * S);
    assertEquals(held(world, "b"), held(world, "a"));
    await world.clock.advance(10 * MIN);
    assertEquals(world.issuer.requests.length, 1);
  },
);

rule(
  "Two Secrets that ask for a refresh soon after each other share one exchange",
  async (world) => {
    world.cluster.create(secret("a"));
    world.cluster.create(secret("b"));
    world.start();
    await world.clock.advance(10 * MIN);
    world.cluster.update("apps/a", annotate({ [REFRESH]: "1" }));
    await world.clock.advance(5 * S);
    world.cluster.update("apps/b", annotate({ [REFRESH]: "1" }));
    await world.clock.advance(1 * S);
    assertEquals(world.issuer.requests.length, 2);
    assertEquals(held(world, "b"), held(world, "a"));
  },
);

rule("A refresh waits for the back-off as all others do, a minute at most", async (world) => {
  world.cluster.create(secret("a"));
  world.issuer.fault = () => answer(403);
  world.start();
  await world.clock.advance(20 * MIN);
  for (let step = 0; step < 600; step++) {
    world.cluster.update("apps/a", annotate({ [REFRESH]: `${step}` }));
    await world.clock.advance(1 * S);
  }
  const waits = gaps(world.issuer.requests.map(({ at }) => at)).slice(6);
  assert(waits.every((wait) => wait >= 30 * S && wait <= 60 * S + 20), `${waits}`);
  world.issuer.fault = () => undefined;
  await world.clock.advance(61 * S);
  assertEquals(annotationOf(world, REFRESHED), "599");
});

rule(
  "While a requested token cannot be had, the cached one serves those who have none, and the request stands",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    await world.clock.advance(10 * MIN);
    const before = held(world);
    world.issuer.fault = () => answer(503);
    world.cluster.update("apps/a", annotate({ [REFRESH]: "1" }));
    world.cluster.create(secret("b"));
    await world.clock.advance(2 * MIN);
    assertEquals([held(world), held(world, "b")], [before, before]);
    assertEquals(annotationOf(world, REFRESHED), undefined);
    world.issuer.fault = () => undefined;
    await world.clock.advance(61 * S);
    assertNotEquals(held(world), before);
    assertEquals(annotationOf(world, REFRESHED), "1");
  },
);

/** Requests a refresh; while its exchange is under way, for 2 s, somebody writes to the Secret. */
async function disturbRefresh(world: VirtualWorld, exchange: Fault): Promise<void> {
  world.cluster.create(secret("a"));
  world.start();
  await world.clock.advance(1 * MIN);
  world.issuer.fault = () => exchange;
  world.cluster.update("apps/a", annotate({ [REFRESH]: "1" }));
  await world.clock.advance(1 * S);
  world.cluster.update("apps/a", annotate({ other: "1" }));
  await world.clock.advance(2 * S);
}

rule(
  "A refresh waits for the exchange that it asked for, whatever is written to the Secret meanwhile",
  async (world) => {
    await disturbRefresh(world, 2 * S);
    assertEquals([world.issuer.requests.length, written(world).length], [2, 2]);
  },
);

rule(
  "A refresh whose exchange fails is reported, whatever is written to the Secret meanwhile",
  async (world) => {
    await disturbRefresh(world, { ms: 2 * S, after: answer(503) });
    assertEquals(reported(world, "ExchangeFailed").length, 1);
  },
);

rule(
  "A refresh that another replica served makes no second exchange and no second write",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    await world.clock.advance(1 * MIN);
    world.issuer.fault = () => 2 * S;
    world.cluster.update("apps/a", annotate({ [REFRESH]: "1" }));
    await world.clock.advance(1 * S);
    world.cluster.update("apps/a", {
      ...annotate({ [REFRESHED]: "1" }),
      data: { [DATA_KEY]: base64(configOf(fresh(world))) },
    });
    await world.clock.advance(30 * MIN);
    assertEquals([world.issuer.requests.length, written(world).length], [2, 1]);
  },
);

rule(
  "The same refresh value asks no second time; another does, and so does a new uid",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    const set = async (value: string) => {
      world.cluster.update("apps/a", annotate({ [REFRESH]: value }));
      await world.clock.advance(1 * MIN);
      return world.issuer.requests.length;
    };
    await world.clock.advance(1 * MIN);
    assertEquals(await set("1"), 2);
    assertEquals(await set("1"), 2);
    assertEquals(await set("2"), 3);
    world.cluster.delete("apps/a");
    world.cluster.create(secret("a", { annotations: { [REFRESH]: "2" } }));
    await world.clock.advance(1 * MIN);
    assertEquals(world.issuer.requests.length, 4);
  },
);

for (
  const [what, fault] of [["works", () => undefined], ["refuses", () => answer(403)], [
    "fails",
    () => answer(503),
  ]] as [
    string,
    () => Fault,
  ][]
) {
  rule(
    `A flood of refresh values does not spin: no more than six exchanges and writes a minute, when the issuer ${what}`,
    async (world) => {
      for (const name of ["a", "b", "c"]) world.cluster.create(secret(name));
      world.issuer.fault = fault;
      world.start();
      for (let step = 0; step < 3000; step++) {
        world.cluster.update(
          `apps/${["a", "b", "c"][step % 3]}`,
          annotate({ [REFRESH]: `${step}` }),
        );
        await world.clock.advance(100);
      }
      assert(
        world.issuer.requests.length <= 5 * 6 + 8,
        `${world.issuer.requests.length} exchanges`,
      );
      for (const name of ["a", "b", "c"]) {
        // A value that is set while one is written is a conflict, which is tried again.
        const tries = asked(world, "patch", name);
        assert(tries.length <= 5 * 6 * 3, `${tries.length} tries`);
        assert(written(world, name).length <= 5 * 6 + 2, `${written(world, name).length} writes`);
      }
    },
  );
}
