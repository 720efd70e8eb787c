/**
 * Secrets that come, change and go, as rules.
 */
import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { ApiError } from "../../k8s.ts";
import { VirtualWorld } from "../virtual/world.ts";
import {
  annotate,
  answer,
  apiAnswer,
  asked,
  blank,
  claimsOf,
  fresh,
  gaps,
  held,
  listings,
  metric,
  reported,
  rule,
  warnings,
  written,
} from "./rules.ts";
import {
  DATA_KEY,
  HOUR,
  IDENTITY,
  MIN,
  S,
  SERVICE_ACCOUNT,
  TOKEN_IDENTITY,
} from "../support/names.ts";
import { base64, BOB, configOf, type Parts, secret } from "../support/secrets.ts";

// ───── Secrets that come and go ─────

const GOING: [string, (world: VirtualWorld) => void][] = [
  ["is deleted", (world) => world.cluster.delete("apps/a")],
  [
    "loses its label",
    (world) => void world.cluster.update("apps/a", { metadata: { labels: { [IDENTITY]: null } } }),
  ],
];
for (const [what, go] of GOING) {
  for (const at of [2, 8, 20 * S, 41 * MIN]) {
    rule(
      `No timer is left for a Secret that ${what} after ${at} ms, and nothing is done for it`,
      async (world) => {
        const replica = world.start();
        await world.clock.advance(1 * S);
        const idle = replica.clock.pending();
        world.cluster.create(secret("a"));
        await world.clock.advance(at);
        go(world);
        await world.clock.advance(1 * S);
        const before = [world.issuer.requests.length, asked(world, "patch").length];
        // What was reported is remembered for 5 min.
        await world.clock.advance(5 * MIN);
        assertEquals(replica.clock.pending(), idle);
        await world.clock.advance(3 * HOUR);
        assertEquals([world.issuer.requests.length, asked(world, "patch").length], before);
        assertEquals(metric(replica, 'secrets{state="valid"}'), 0);
        assert(!replica.renderMetrics().includes("token_expiry_timestamp_seconds{"));
      },
    );
  }
}

rule("Nothing is done for a failing Secret once it is gone", async (world) => {
  const replica = world.start();
  await world.clock.advance(1 * S);
  const idle = replica.clock.pending();
  world.cluster.create(secret("a"));
  world.cluster.create(secret("b", { type: "Opaque" }));
  world.issuer.fault = () => answer(403);
  await world.clock.advance(10 * MIN);
  world.cluster.delete("apps/a");
  world.cluster.delete("apps/b");
  const before = world.issuer.requests.length;
  await world.clock.advance(1 * HOUR);
  assertEquals(world.issuer.requests.length, before);
  assertEquals(replica.clock.pending(), idle);
});

rule(
  "A Secret that is made anew starts afresh: it is filled at once, whatever befell the one before",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    await world.clock.advance(1 * S);
    for (let step = 0; step < 5; step++) {
      world.cluster.delete("apps/a");
      world.cluster.create(secret("a"));
      await world.clock.advance(1 * S);
      assertEquals(held(world), world.issuer.requests[0]!.token);
    }
    assertEquals(world.issuer.requests.length, 1);
  },
);

rule(
  "A Secret that was made anew while the watch was down starts afresh too: its uid is another",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    await world.clock.advance(5 * S);
    world.cluster.deafen();
    world.cluster.delete("apps/a");
    world.cluster.create(secret("a"));
    world.cluster.compactedTo = 1e9;
    world.cluster.endWatches(new ApiError("too old", { status: 410 }));
    await world.clock.advance(1 * S);
    assertEquals(held(world), world.issuer.requests[0]!.token);
    assertEquals(reported(world, "Overwritten"), []);
  },
);

rule(
  "A Secret made anew under the same name while it is patched is told from the old one",
  async (world) => {
    world.cluster.create(secret("a"));
    world.cluster.fault = ({ verb }) => verb === "patch" ? 50 : undefined;
    world.start();
    await world.clock.advance(30);
    world.cluster.delete("apps/a");
    world.cluster.create(secret("a", { identity: BOB }));
    await world.clock.advance(1 * S);
    assertEquals(claimsOf(held(world)).subject, BOB);
    assertEquals(world.cluster.get("apps/a").metadata.annotations![TOKEN_IDENTITY], BOB);
  },
);

rule(
  "A list that was made before a write makes nobody believe that the token was overwritten",
  async (world) => {
    world.cluster.create(secret("a"));
    world.cluster.fault = ({ verb }) =>
      verb === "patch" ? { ms: 500 } : verb === "list" ? { answerMs: 1 * S } : undefined;
    world.start();
    await world.clock.advance(1_200); // the patch is under way
    world.cluster.endWatches(apiAnswer(410));
    await world.clock.advance(5 * S);
    assertEquals([listings(world), written(world).length], [2, 1]);
    assertEquals(reported(world, "Overwritten"), []);
  },
);

rule("A Secret that is labelled again is managed again", async (world) => {
  world.cluster.create(secret("a"));
  world.start();
  await world.clock.advance(1 * MIN);
  world.cluster.update("apps/a", { metadata: { labels: { [IDENTITY]: null } } });
  await world.clock.advance(2 * HOUR);
  world.cluster.update("apps/a", { metadata: { labels: { [IDENTITY]: "" } } });
  await world.clock.advance(1 * S);
  assert(claimsOf(held(world)).expiresAt > world.clock.now());
});

rule("Of a Secret that is being deleted nothing more is done", async (world) => {
  world.cluster.create(secret("a"));
  world.start();
  await world.clock.advance(1 * MIN);
  world.cluster.update("apps/a", {
    ...blank,
    metadata: { deletionTimestamp: "2027-01-01T00:00:00Z" },
  });
  await world.clock.advance(2 * HOUR);
  assertEquals(written(world).length, 1);
  assertEquals(world.cluster.events.length, 1);
});

for (
  const parts of [{ type: "Opaque" }, { immutable: true }, { identity: "x" }, { config: "[]" }, {
    annotations: { [SERVICE_ACCOUNT]: "" },
  }] as Parts[]
) {
  rule(
    `A Secret that cannot be served (${
      JSON.stringify(parts)
    }) costs no exchange, no write and one Warning each 5 min; once fixed it is filled`,
    async (world) => {
      world.cluster.create(secret("a", parts));
      world.cluster.create(secret("b", { identity: BOB }));
      world.start();
      await world.clock.advance(25 * MIN);
      assertEquals(world.issuer.requests.map(({ identity }) => identity), [BOB]);
      assertEquals(asked(world, "patch", "a"), []);
      const times = warnings(world).map(({ at }) => at);
      assert(times.length >= 4 && times.length <= 5, `${times}`);
      assert(gaps(times).every((gap) => gap >= 5 * MIN && gap <= 6 * MIN + S), `${gaps(times)}`);
      world.cluster.delete("apps/a");
      world.cluster.create(secret("a"));
      await world.clock.advance(1 * S);
      assertNotEquals(held(world), undefined);
    },
  );
}

rule(
  "A docker config too deep to be written again is reported, never written, and keeps nobody from theirs",
  async (world) => {
    world.cluster.create(
      secret("a", { config: '{"a":'.repeat(100_000) + "1" + "}".repeat(100_000) }),
    );
    world.cluster.create(secret("b"));
    world.start();
    for (let step = 0; step < 30; step++) {
      await world.clock.advance(500);
      world.cluster.update("apps/a", annotate({ note: `${step}` }));
    }
    assertEquals(reported(world, "InvalidDockerConfig").length, 1);
    assertEquals(asked(world, "patch").map(({ name }) => name), ["b"]);
    assert(asked(world, "get").length < 8, `${asked(world, "get").length} reads`);
    assertEquals(world.issuer.requests.length, 1);
  },
);

rule(
  "A token too short to be of use is not written, and the issuer is asked again by the spacing, until it has a better one",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    await world.clock.advance(1 * S);
    const { expiresAt } = claimsOf(held(world));
    world.issuer.claims = () => ({ exp: Math.floor(world.clock.now() / 1000) + 6 });
    await world.clock.advance(48 * MIN);
    world.issuer.claims = () => ({});
    const times = world.issuer.requests.map(({ at }) => at);
    // Such a token is renewed itself after two thirds of its 6 s.
    assert(times.length > 1 && gaps(times).every((gap) => gap >= 2.5 * S), `${gaps(times)}`);
    assertEquals([claimsOf(held(world)).expiresAt, written(world).length], [expiresAt, 1]);
    await world.clock.advance(61 * S);
    assert(claimsOf(held(world)).expiresAt > expiresAt);
    assertEquals(world.issuer.requests.length, times.length + 1);
    assertEquals(warnings(world), []);
  },
);

for (
  const [what, end, during] of [
    [
      "and the API server was away meanwhile",
      new ApiError("cut", { reason: "UND_ERR_SOCKET" }),
      new Error("connect ECONNREFUSED"),
    ],
    ["and the API server throttled meanwhile", "end", apiAnswer(429)],
    ["and every version was too old meanwhile", "end", apiAnswer(410)],
  ] as const
) {
  rule(`An etcd that was restored from a backup is followed, ${what}`, async (world) => {
    world.cluster.create(secret("a"));
    world.cluster.create(secret("b"));
    world.start();
    await world.clock.advance(2 * HOUR);
    const restore = world.cluster.backUp();
    // Its token has expired by then.
    await world.clock.advance(65 * MIN);
    for (let step = 0; step < 50; step++) {
      world.cluster.update("apps/b", annotate({ note: `${step}` }));
    }
    await world.clock.advance(1 * S);

    world.cluster.fault = () => during;
    world.cluster.endWatches(end);
    await world.clock.advance(1 * MIN);
    restore();
    world.cluster.fault = () => undefined;
    await world.clock.advance(6 * S);
    for (const name of ["a", "b"]) {
      assert(claimsOf(held(world, name)).expiresAt > world.clock.now(), name);
    }
    world.cluster.create(secret("c", { identity: BOB }));
    await world.clock.advance(1 * S);
    assertNotEquals(held(world, "c"), undefined);
  });
}

rule(
  "A restored etcd that has counted on past what is known is noticed by the next conflict",
  async (world) => {
    world.cluster.create(secret("a"));
    world.cluster.create({ ...secret("other"), metadata: { namespace: "apps", name: "other" } });
    world.start();
    await world.clock.advance(1 * MIN);
    const restore = world.cluster.backUp(0);
    await world.clock.advance(50 * MIN);
    restore();
    for (let step = 0; step < 50; step++) {
      world.cluster.update(
        "apps/other",
        annotate({ note: `${step}` }),
      );
    }
    world.cluster.endWatches();
    await world.clock.advance(45 * MIN);
    assert(claimsOf(held(world)).expiresAt > world.clock.now());
  },
);

const CHANGES: [what: string, change: object, reasons: string[]][] = [
  ["gets another identity", annotate({ [IDENTITY]: BOB }), []],
  ["gets a broken config", { data: { [DATA_KEY]: base64("{") } }, ["InvalidDockerConfig"]],
];
for (const [what, change, reasons] of CHANGES) {
  rule(
    `A Secret that ${what} soon after a write counts as overwritten by nobody`,
    async (world) => {
      world.cluster.create(secret("a"));
      world.start();
      await world.clock.advance(2 * S);
      world.cluster.update("apps/a", change);
      await world.clock.advance(1 * S);
      assertEquals(warnings(world).map(({ reason }) => reason), reasons);
    },
  );
}

rule("A Secret that waits has one timer, however often it is changed meanwhile", async (world) => {
  world.cluster.create(secret("a"));
  world.issuer.fault = () => answer(403);
  const replica = world.start();
  await world.clock.advance(2 * MIN);
  const before = replica.clock.pending();
  for (let step = 0; step < 20; step++) {
    world.cluster.update("apps/a", annotate({ note: `${step}` }));
    await world.clock.advance(50);
  }
  assert(replica.clock.pending() <= before + 1, `${replica.clock.pending()}`);
});

rule("Another's write ends the back-off for good as well", async (world) => {
  world.cluster.create(secret("a"));
  world.cluster.fault = ({ verb }) => verb === "patch" ? apiAnswer(500) : undefined;
  world.start();
  await world.clock.advance(10 * MIN);
  world.cluster.update("apps/a", { data: { [DATA_KEY]: base64(configOf(fresh(world))) } });
  await world.clock.advance(2 * MIN);
  const tried = asked(world, "patch").length;
  world.cluster.update("apps/a", blank);
  await world.clock.advance(2 * S);
  assert(asked(world, "patch").length >= tried + 2, `${asked(world, "patch").length - tried}`);
});

rule(
  "A token that becomes due while a Secret is read for a write is renewed, which is no conflict",
  async (world) => {
    world.cluster.create(secret("b"));
    const replica = world.start();
    await world.clock.advance(1 * S);
    const { issuedAt = 0, expiresAt } = claimsOf(held(world, "b"));
    const dueAt = issuedAt + 0.67 * (expiresAt - issuedAt);
    await world.clock.advance(dueAt - world.clock.now() - 5 * S);
    world.cluster.fault = ({ verb }) => verb === "get" ? 10 * S : undefined;
    world.cluster.create(secret("a", { config: '{"auths":{},"other":1}' }));
    await world.clock.advance(30 * S);
    assertEquals(metric(replica, 'refreshes_total{result="conflict"}'), 0);
    assert(claimsOf(held(world)).expiresAt > expiresAt);
  },
);

rule("A write that the watch does not tell of is not made again at once", async (world) => {
  world.cluster.isDeaf = true;
  world.cluster.create(secret("a"));
  world.start();
  await world.clock.advance(9 * S);
  assertEquals(asked(world, "patch").length, 1);
});
