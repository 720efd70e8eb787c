/**
 * The exchange, as rules: shared by all Secrets of an identity, made when a token is due, and
 * slower after failures.
 */
import { assert, assertEquals, assertNotEquals, assertStringIncludes } from "@std/assert";
import { withToken } from "../../main.ts";
import { StsError } from "../../sts.ts";
import type { Fault } from "../virtual/shared.ts";
import { VirtualWorld } from "../virtual/world.ts";
import {
  actorOf,
  agesAtReplacement,
  annotate,
  answer,
  apiAnswer,
  asked,
  claimsOf,
  expiredFor,
  fresh,
  gaps,
  held,
  metric,
  reported,
  rule,
  written,
} from "./rules.ts";
import {
  CONTROLLER,
  DATA_KEY,
  HOUR,
  IDENTITY,
  MIN,
  REFRESH,
  S,
  SERVICE_ACCOUNT,
  TOKEN_EXPIRES,
  TOKEN_IDENTITY,
} from "../support/names.ts";
import { ALICE, base64, BOB, configOf, secret, token, tokenOf, uid } from "../support/secrets.ts";

// ───── Sharing ─────

rule("A Secret is filled within a second, and what else it holds stays", async (world) => {
  world.start();
  await world.clock.advance(5 * S);
  const config = '{"auths":{"other.example":{"auth":"eDp5"}},"HttpHeaders":{"n":1.0}}';
  const before = world.cluster.create({
    ...secret("a", { config, annotations: { note: "mine" } }),
    data: { [DATA_KEY]: base64(config), extra: "AAEC" },
  });
  await world.clock.advance(1 * S);
  const after = world.cluster.get("apps/a");
  assertEquals(after.data, {
    [DATA_KEY]: base64(withToken(config, ["cgr.dev"], held(world)!)),
    extra: "AAEC",
  });
  const { expiresAt } = claimsOf(held(world));
  assertEquals(after.metadata.labels, before.metadata.labels);
  assertEquals(after.metadata.annotations, {
    ...before.metadata.annotations,
    [TOKEN_IDENTITY]: ALICE,
    [TOKEN_EXPIRES]: new Date(expiresAt).toISOString(),
  });
  assertEquals(written(world).length, 1);
});

rule("All Secrets of an identity share one exchange and one token", async (world) => {
  for (let number = 0; number < 200; number++) {
    world.cluster.create(secret(`s-${number}`, { namespace: `n-${number % 7}` }));
  }
  world.start();
  await world.clock.advance(1 * S);
  assertEquals(world.issuer.requests.length, 1);
  assertEquals(written(world).length, 200);
  assertEquals(
    new Set([...world.cluster.secrets.values()].map((own) => tokenOf(own.data))).size,
    1,
  );
});

rule("Each identity is exchanged once, and none is mixed up with another", async (world) => {
  for (let number = 0; number < 60; number++) {
    world.cluster.create(secret(`s-${number}`, { identity: uid(number % 20) }));
  }
  world.issuer.fault = ({ identity }) => parseInt(identity.slice(-2), 16) * 37 % 100;
  world.start();
  await world.clock.advance(2 * S);
  assertEquals(world.issuer.requests.length, 20);
  for (let number = 0; number < 60; number++) {
    assertEquals(claimsOf(held(world, `s-${number}`)).subject, uid(number % 20));
  }
});

rule(
  "Each service account is a subject of its own, by namespace and name; without one it is the controller's",
  async (world) => {
    const annotations = { [SERVICE_ACCOUNT]: "puller" };
    world.cluster.create(secret("a", { namespace: "one", annotations }));
    world.cluster.create(secret("b", { namespace: "one", annotations }));
    world.cluster.create(secret("a", { namespace: "two", annotations }));
    world.cluster.create(secret("a", { namespace: "three" }));
    world.start();
    await world.clock.advance(1 * S);
    const actorIn = (namespace: string) => actorOf(held(world, "a", namespace));
    assertEquals(actorIn("one"), "system:serviceaccount:one:puller");
    assertEquals(actorIn("two"), "system:serviceaccount:two:puller");
    assertEquals(actorIn("three"), CONTROLLER);
    assertEquals(held(world, "b", "one"), held(world, "a", "one"));
    assertEquals(world.issuer.requests.length, 3);
    const requests = asked(world, "token");
    assertEquals(requests.map(({ namespace, name }) => `${namespace}/${name}`), [
      "one/puller",
      "two/puller",
    ]);
    assertEquals(requests[0]!.body, { audience: "issuer.enforce.dev", seconds: 600 });
  },
);

for (const status of [403, 404, 500]) {
  rule(
    `A service account whose token is not given (${status}) is reported, and never another subject used`,
    async (world) => {
      world.cluster.create(secret("a", { annotations: { [SERVICE_ACCOUNT]: "puller" } }));
      world.cluster.create(secret("b", { identity: BOB }));
      world.cluster.fault = ({ verb }) => verb === "token" ? apiAnswer(status) : undefined;
      world.start();
      await world.clock.advance(10 * MIN);
      assertEquals(world.issuer.requests.map(({ identity }) => identity), [BOB]);
      assertEquals(held(world), undefined);
      const failures = reported(world, "ExchangeFailed");
      assertEquals(new Set(failures.map(({ regarding }) => regarding.name)), new Set(["a"]));
      assert(failures.length <= 2, `${failures.length}`);
      world.cluster.fault = () => undefined;
      await world.clock.advance(61 * S);
      assertEquals(actorOf(held(world)), "system:serviceaccount:apps:puller");
    },
  );
}

rule(
  "A service account that is named, changed or taken off counts from the next renewal on, or by a refresh",
  async (world) => {
    world.cluster.create(secret("a"));
    world.cluster.create(secret("b"));
    world.start();
    const steps: [string | null, string][] = [
      ["one", "system:serviceaccount:apps:one"],
      ["two", "system:serviceaccount:apps:two"],
      [null, CONTROLLER],
    ];
    for (const [index, [account, subject]] of steps.entries()) {
      await world.clock.advance(1 * MIN);
      const before = [held(world, "a"), held(world, "b")];
      for (const name of ["a", "b"]) {
        world.cluster.update(`apps/${name}`, annotate({ [SERVICE_ACCOUNT]: account }));
      }
      await world.clock.advance(1 * MIN);
      assertEquals([held(world, "a"), held(world, "b")], before);
      world.cluster.update("apps/a", annotate({ [REFRESH]: `${index}` }));
      await world.clock.advance(1 * S);
      assertEquals(actorOf(held(world, "a")), subject);
      assertEquals(held(world, "b"), before[1]);
      await world.clock.advance(47 * MIN);
      assertEquals(actorOf(held(world, "b")), subject);
    }
  },
);

rule("A token that is found in a Secret is never copied into another", async (world) => {
  const iat = Math.floor(world.clock.now() / S);
  const found = world.jwt({ aud: "cgr.dev", sub: ALICE, iat, exp: iat + 3600 });
  world.cluster.create(secret("a", { config: configOf(found) }));
  world.cluster.create(secret("b"));
  world.start();
  await world.clock.advance(10 * MIN);
  assertEquals(world.issuer.requests.length, 1);
  assertEquals(held(world, "a"), found);
  assertNotEquals(held(world, "b"), found);
});

rule(
  "A failed exchange is shared as well: one attempt at a time for all that wait",
  async (world) => {
    for (let number = 0; number < 50; number++) world.cluster.create(secret(`s-${number}`));
    world.issuer.fault = () => answer(503);
    world.start();
    await world.clock.advance(30 * S);
    assert(world.issuer.requests.length <= 7, `${world.issuer.requests.length}`);
    world.issuer.fault = () => undefined;
    await world.clock.advance(1 * MIN);
    assertEquals(written(world).length, 50);
  },
);

// ───── Lives ─────

for (
  const [life, during] of [[10 * S, 10 * MIN], [12 * S, 10 * MIN], [60 * S, 1 * HOUR], [
    1 * HOUR,
    24 * HOUR,
  ], [
    24 * HOUR,
    3 * 24 * HOUR,
  ]] as const
) {
  rule(
    `Tokens that live ${life / S} s are replaced between 60 and 90 % of their life, one patch each`,
    async (world) => {
      world.issuer.life = life;
      for (const name of ["a", "b", "c"]) world.cluster.create(secret(name));
      world.start();
      await world.clock.advance(during);
      for (const name of ["a", "b", "c"]) {
        const ages = agesAtReplacement(world, name);
        assert(ages.length > during / life, `${ages.length} lives`);
        assert(ages.every((age) => age > 0.6 && age < 0.9), `${ages}`);
      }
      assertEquals(expiredFor(world), 0);
      assert(
        // Tokens say when they were issued in whole seconds.
        world.issuer.requests.length <= during / (0.67 * life - S) + 2,
        `${world.issuer.requests.length} exchanges`,
      );
      assertEquals(world.cluster.events.map(({ reason }) => reason), [
        "TokenIssued",
        "TokenIssued",
        "TokenIssued",
      ]);
    },
  );
}

rule(
  "A shared token is exchanged at 0.67 of its life, and its Secrets are written spread over the tenth after",
  async (world) => {
    for (let number = 0; number < 200; number++) world.cluster.create(secret(`s-${number}`));
    world.start();
    await world.clock.advance(50 * MIN);
    const [first, second] = world.issuer.requests;
    const share = (at: number) => (at - first!.at) / HOUR;
    assert(share(second!.at) >= 0.669 && share(second!.at) < 0.68, `${share(second!.at)}`);
    assertEquals(world.issuer.requests.length, 2);
    const shares = written(world).slice(200).map(({ at }) => share(at));
    assertEquals(shares.length, 200);
    for (let step = 0; step < 5; step++) {
      const own = shares.filter((share) =>
        share >= 0.669 + step * 0.02 && share < 0.669 + (step + 1) * 0.02
      );
      assert(own.length > 20 && own.length < 60, `${own.length} of 200 in one fifth`);
    }
    assert(Math.max(...shares) <= 0.771);
  },
);

rule(
  "A Secret that is made with an old token in it has that replaced by its time of issue",
  async (world) => {
    world.start();
    await world.clock.advance(1 * S);
    const now = Math.floor(world.clock.now() / S);
    world.cluster.create(
      secret("a", { config: configOf(token({ iat: now - 2900, exp: now + 700 })) }),
    );
    world.cluster.create(
      secret("b", { config: configOf(token({ iat: now - 2200, exp: now + 1400 })) }),
    );
    await world.clock.advance(1 * S);
    assertEquals(written(world).map(({ name }) => name), ["a"]);
    await world.clock.advance(10 * MIN);
    assertEquals(written(world).map(({ name }) => name), ["a", "b"]);
  },
);

rule(
  "A restart with valid tokens makes no exchange and no patch; each is replaced when it is due",
  async (world) => {
    for (let number = 0; number < 20; number++) {
      world.cluster.create(secret(`s-${number}`, { identity: uid(number) }));
    }
    const first = world.start();
    await world.clock.advance(20 * MIN);
    first.stop();
    const [exchanges, patches] = [world.issuer.requests.length, written(world).length];
    const events = reported(world, "TokenIssued").length;
    world.start();
    await world.clock.advance(20 * MIN - S);
    assertEquals([world.issuer.requests.length, written(world).length], [exchanges, patches]);
    await world.clock.advance(7 * MIN);
    assertEquals([world.issuer.requests.length, written(world).length], [
      2 * exchanges,
      2 * patches,
    ]);
    assertEquals(reported(world, "TokenIssued").length, events);
  },
);

rule(
  "An issuer that caches its tokens is no failure: asked rarely, no Warning, never expired",
  async (world) => {
    world.issuer.life = 10 * MIN;
    world.issuer.renewBefore = 6 * S;
    for (const name of ["a", "b", "c"]) world.cluster.create(secret(name));
    world.start();
    await world.clock.advance(2 * HOUR);
    assertEquals(expiredFor(world), 0);
    assert(world.issuer.requests.length <= 8 * 13, `${world.issuer.requests.length} exchanges`);
    assert(written(world).length <= 3 * 13, `${written(world).length} patches`);
    assertEquals(world.cluster.events.map(({ reason }) => reason), [
      "TokenIssued",
      "TokenIssued",
      "TokenIssued",
    ]);
    assertEquals(metric(world.replicas[0]!, 'refreshes_total{result="failed"}'), 0);
  },
);

rule("A token that expires no later than the Secret's own is kept in hand", async (world) => {
  world.cluster.create(secret("a"));
  const replica = world.start();
  await world.clock.advance(1 * MIN);
  const { expiresAt } = claimsOf(held(world));
  world.issuer.claims = () => ({ exp: expiresAt / S });
  const { armed } = replica.clock;
  await world.clock.advance(expiresAt - world.clock.now() - 20 * S);
  assertEquals(written(world).length, 1);
  assert(world.issuer.requests.length > 1);
  assert(replica.clock.armed < armed + 1_000, `${replica.clock.armed - armed} timers`);
  world.issuer.claims = () => ({});
  await world.clock.advance(20 * S);
  assertEquals(written(world).length, 2);
  assertEquals(expiredFor(world), 0);
  assertEquals(world.cluster.events.map(({ type }) => type), ["Normal"]);
});

rule(
  "An issuer whose tokens get shorter and shorter never has an expired one in the Secret",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    for (const life of [60, 30, 10, 5, 2, 1, 1]) {
      world.issuer.life = life * MIN;
      await world.clock.advance(1 * HOUR);
    }
    assertEquals(expiredFor(world), 0);
    assertEquals(world.cluster.events.map(({ type }) => type), ["Normal"]);
  },
);

rule("A token without a time of issue is not written again in its last seconds", async (world) => {
  world.issuer.claims = () => ({ iat: undefined });
  world.issuer.life = 60 * S;
  world.cluster.create(secret("a"));
  world.start();
  await world.clock.advance(1 * S);
  assertNotEquals(held(world), undefined);
  world.issuer.fault = () => answer(503);
  for (let step = 0; step < 120; step++) {
    world.cluster.update("apps/a", annotate({ note: `${step}` }));
    await world.clock.advance(500);
  }
  assertEquals(asked(world, "patch").length, 1);
  await world.clock.advance(5 * MIN);
  world.issuer.fault = () => undefined;
  await world.clock.advance(61 * S);
  assert(claimsOf(held(world)).expiresAt > world.clock.now());
});

// ───── Back-off ─────

const FAILURES: [what: string, fault: (world: VirtualWorld) => Fault | string, result: string][] = [
  ["a 503", () => answer(503), "failed"],
  ["no response", () => new StsError("no response from the issuer"), "failed"],
  ["a 429 without Retry-After", () => answer(429), "failed"],
  ["a refusal (401)", () => answer(401), "refused"],
  ["a refusal (403)", () => answer(403), "refused"],
  ["a refusal (400)", () => answer(400), "refused"],
  ["a redirect (302)", () => answer(302), "refused"],
  ["a 200 without a token", () => answer(200), "refused"],
  ["another identity's token", (world) => fresh(world, { sub: BOB }), "refused"],
];
const WAITS_S = [1, 2, 4, 8, 16, 32, 60, 60, 60];
for (const [what, fault, result] of FAILURES) {
  for (const seed of [1, 2]) {
    rule(
      `After ${what} the exchange is tried again after 1 s doubling to 60 s, a random half to the whole (seed ${seed})`,
      async (world) => {
        world.cluster.create(secret("a"));
        world.issuer.fault = () => fault(world);
        world.start();
        await world.clock.advance(30 * MIN);
        const waits = gaps(world.issuer.requests.map(({ at }) => at)).map((gap) => gap / S);
        for (const [index, wait] of waits.entries()) {
          const whole = WAITS_S[index] ?? 60;
          assert(wait >= whole / 2 - 0.01 && wait <= whole + 0.02, `${index}: ${wait}`);
        }
        assert(waits.length >= 30, `${waits.length}`);
        assert(new Set(waits.slice(7).map((wait) => Math.round(wait))).size > 10, "they spread");
        const counted = metric(world.replicas[0]!, `refreshes_total{result="${result}"}`)!;
        assertEquals(counted, world.issuer.requests.length);
        world.issuer.fault = () => undefined;
        await world.clock.advance(61 * S);
        assertNotEquals(held(world), undefined);
      },
      seed,
    );
  }
}

rule("Retry-After holds an exchange, in seconds or as a date, for 5 min at most", async (world) => {
  const inAWhile = (ms: number) => new Date(world.clock.now() + ms).toUTCString();
  const cases: [string, number][] = [
    ["100", 100],
    [inAWhile(100 * S), 100],
    ["86400", 300],
    [inAWhile(86_400 * S), 300],
    ["-5", 0],
    ["soon", 0],
    ["", 0],
  ];
  for (const index of cases.keys()) {
    world.cluster.create(secret(`s-${index}`, { identity: uid(index + 50) }));
  }
  world.issuer.fault = ({ identity }) =>
    answer(503, "no", cases[parseInt(identity.slice(-2), 16) - 50]![0]);
  world.start();
  await world.clock.advance(20 * MIN);
  for (const [index, [retryAfter, seconds]] of cases.entries()) {
    const [first, second] = world.issuer.requests.filter(({ identity }) =>
      identity === uid(index + 50)
    );
    const wait = (second!.at - first!.at) / S;
    assert(wait >= Math.max(seconds - 2, 0.5) && wait <= seconds + 1.1, `${retryAfter}: ${wait}`);
  }
});

rule(
  "Retry-After of a refusal holds nothing: only what may pass by itself has one",
  async (world) => {
    world.cluster.create(secret("a"));
    world.issuer.fault = () => answer(403, "no", "120");
    world.start();
    await world.clock.advance(2 * S);
    assert(world.issuer.requests.length >= 2);
  },
);

rule("Retry-After holds only the identity that met it, and nothing skips it", async (world) => {
  world.cluster.create(secret("a"));
  world.cluster.create(secret("c"));
  world.issuer.fault = ({ identity }) =>
    identity === ALICE ? answer(429, "slow down", "120") : undefined;
  world.start();
  await world.clock.advance(1 * S);
  world.cluster.create(secret("b", { identity: BOB }));
  world.cluster.update("apps/a", annotate({ [REFRESH]: "1" }));
  await world.clock.advance(1 * S);
  assertNotEquals(held(world, "b"), undefined);
  world.issuer.fault = () => undefined;
  await world.clock.advance(117 * S);
  assertEquals(world.issuer.requests.map(({ identity }) => identity), [ALICE, BOB]);
  await world.clock.advance(3 * S);
  assertEquals(world.issuer.requests.map(({ identity }) => identity), [ALICE, BOB, ALICE]);
  for (const name of ["a", "c"]) assertNotEquals(held(world, name), undefined);
});

rule("The token of an identity that no Secret has any more is kept no longer", async (world) => {
  world.cluster.create(secret("a"));
  world.start();
  await world.clock.advance(1 * S);
  world.cluster.delete("apps/a");
  await world.clock.advance(2 * MIN);
  world.cluster.create(secret("a"));
  await world.clock.advance(1 * S);
  assertEquals(world.issuer.requests.length, 2);
});

rule(
  "A Secret that gets another identity while it is read for a write gets no token of the former one",
  async (world) => {
    // The read is all that tells of it.
    world.cluster.isDeaf = true;
    world.cluster.create(secret("a", { config: '{"auths":{},"other":1}' }));
    world.cluster.create(secret("b", { identity: BOB }));
    let reads = 0;
    world.cluster.fault = ({ verb }) => {
      if (verb !== "get") return undefined;
      if (reads++ === 0) world.cluster.update("apps/a", annotate({ [IDENTITY]: BOB }));
      return 100;
    };
    world.start();
    await world.clock.advance(5 * S);
    assertEquals(written(world, "a").length, 1);
    assertEquals(claimsOf(held(world)).subject, BOB);
  },
);

rule("Retry-After outlives the Secret that met it: made anew, it waits as well", async (world) => {
  world.cluster.create(secret("a"));
  world.issuer.fault = () => answer(429, "slow down", "240");
  world.start();
  await world.clock.advance(1 * S);
  world.cluster.delete("apps/a");
  await world.clock.advance(2 * MIN);
  world.cluster.create(secret("a"));
  await world.clock.advance(1 * MIN);
  assertEquals(world.issuer.requests.length, 1);
});

rule(
  "A Retry-After to one tenant's identities, answered for ever, delays nobody else",
  async (world) => {
    for (let number = 0; number < 16; number++) {
      const namespace = `aaa-${number % 2}`;
      world.cluster.create(
        secret(`s-${number}`, { identity: uid(number + 100), namespace }),
      );
    }
    for (let number = 0; number < 30; number++) {
      world.cluster.create(secret(`v-${number}`, { identity: uid(number + 200) }));
    }
    world.issuer.fault = ({ identity }) =>
      parseInt(identity.slice(-3), 16) < 200 ? answer(429, "slow down", "300") : undefined;
    world.issuer.life = 10 * MIN;
    world.start();
    await world.clock.advance(2 * S);
    for (let number = 0; number < 30; number++) {
      assertNotEquals(
        held(world, `v-${number}`),
        undefined,
      );
    }
    await world.clock.advance(2 * HOUR);
    assertEquals(expiredFor(world), 0);
  },
);

rule("Only exchanges that took place are counted", async (world) => {
  for (let number = 0; number < 60; number++) {
    world.cluster.create(
      secret(`s-${number}`, { identity: uid(number), namespace: `n-${number}` }),
    );
  }
  let isThrottled = false;
  world.issuer.fault = () => {
    if (isThrottled) return answer(429, "slow down", "30");
    isThrottled = true;
    return 1 * S;
  };
  const replica = world.start();
  await world.clock.advance(5 * MIN);
  world.issuer.fault = () => undefined;
  await world.clock.advance(5 * MIN);
  assertEquals(written(world).length, 60);
  assertEquals(metric(replica, "exchange_duration_seconds_count"), world.issuer.requests.length);
});

rule("A 429 of the API server to a token request holds no other exchange", async (world) => {
  world.cluster.create(secret("a", { annotations: { [SERVICE_ACCOUNT]: "puller" } }));
  world.cluster.fault = ({ verb }) => verb === "token" ? apiAnswer(429, "200") : undefined;
  world.start();
  await world.clock.advance(1 * S);
  world.cluster.create(secret("b", { identity: BOB }));
  await world.clock.advance(1 * S);
  assertNotEquals(held(world, "b"), undefined);
});

rule("Retry-After of the API server holds the patch, and nothing skips it", async (world) => {
  world.cluster.create(secret("a"));
  world.cluster.fault = ({ verb }) => verb === "patch" ? apiAnswer(429, "60") : undefined;
  world.start();
  await world.clock.advance(1 * S);
  world.cluster.fault = () => undefined;
  world.cluster.update("apps/a", annotate({ [REFRESH]: "1" }));
  await world.clock.advance(58 * S);
  assertEquals(asked(world, "patch").length, 1);
  await world.clock.advance(2 * S);
  assertEquals(asked(world, "patch").length, 2);
});

rule("Success ends the back-off for good: the next failure begins anew", async (world) => {
  world.issuer.life = 60 * S;
  world.cluster.create(secret("a"));
  world.issuer.fault = () => answer(503);
  world.start();
  await world.clock.advance(5 * MIN);
  world.issuer.fault = () => undefined;
  await world.clock.advance(70 * S);
  const before = world.issuer.requests.length;
  world.issuer.fault = () => answer(503);
  await world.clock.advance(70 * S);
  const [first, second] = world.issuer.requests.slice(before);
  assert(second!.at - first!.at <= 1.1 * S, `${second!.at - first!.at}`);
});

rule("A changed identity ends the back-off, but for a second", async (world) => {
  world.cluster.create(secret("a"));
  world.issuer.fault = ({ identity }) => identity === ALICE ? answer(403) : undefined;
  world.start();
  await world.clock.advance(10 * MIN);
  world.cluster.update("apps/a", annotate({ [IDENTITY]: BOB }));
  await world.clock.advance(1.1 * S);
  assertEquals(claimsOf(held(world)).subject, BOB);
});

rule(
  "After a success all others that wait for the same token get that one, within a minute",
  async (world) => {
    for (const name of ["a", "b", "c", "d"]) world.cluster.create(secret(name));
    world.issuer.fault = () => answer(403);
    world.start();
    await world.clock.advance(20 * MIN);
    world.issuer.fault = () => undefined;
    const before = world.issuer.requests.length;
    await world.clock.advance(61 * S);
    assertEquals(world.issuer.requests.length, before + 1);
    assertEquals(
      new Set(["a", "b", "c", "d"].map((name) => held(world, name))),
      new Set([world.issuer.requests.at(-1)!.token]),
    );
  },
);

rule("The subject token is read at the start, and anew at every exchange", async (world) => {
  world.issuer.life = 60 * S;
  let reads = 0;
  const read = world.readSubjectToken;
  world.readSubjectToken = () => (reads++, read());
  world.cluster.create(secret("a"));
  world.start();
  await world.clock.advance(10 * MIN);
  assert(world.issuer.requests.length > 10);
  assertEquals(reads, 1 + world.issuer.requests.length);
});

rule("An exchange takes 10 s at most", async (world) => {
  world.cluster.create(secret("a"));
  world.issuer.fault = () => "hang";
  world.start();
  await world.clock.advance(5 * MIN);
  assert(world.issuer.requests.length > 5);
  assert(
    world.issuer.requests.filter(({ endedAt }) => endedAt < Infinity).every(({ at, endedAt }) =>
      endedAt - at === 10 * S
    ),
  );
  assertStringIncludes(reported(world, "ExchangeFailed")[0].note, "no response within 10 s");
  world.issuer.fault = () => undefined;
  await world.clock.advance(71 * S);
  assertNotEquals(held(world), undefined);
});

rule("An API server that hangs is waited for, and everything is well soon after", async (world) => {
  for (let number = 0; number < 30; number++) world.cluster.create(secret(`s-${number}`));
  world.cluster.fault = () => "hang";
  world.start();
  await world.clock.advance(10 * MIN);
  world.cluster.fault = () => undefined;
  await world.clock.advance(50 * S);
  assertEquals(written(world).length, 30);
  world.cluster.fault = ({ verb }) => verb === "list" || verb === "watch" ? undefined : "hang";
  world.cluster.create(secret("a"));
  await world.clock.advance(10 * MIN);
  world.cluster.fault = () => undefined;
  await world.clock.advance(2 * MIN);
  assertNotEquals(held(world), undefined);
  assertEquals(world.issuer.requests.length, 1);
});

rule("While the issuer is down, the token in hand serves a Secret that has none", async (world) => {
  world.cluster.create(secret("a"));
  world.start();
  await world.clock.advance(30 * MIN);
  world.issuer.fault = () => answer(503);
  for (const name of ["early", "late"]) {
    world.cluster.create(secret(name));
    await world.clock.advance(1 * S);
    assertEquals(held(world, name), held(world));
    await world.clock.advance(25 * MIN);
  }
});

rule(
  "No token is lost to an issuer that is down for less than a fifth of a life",
  async (world) => {
    for (const name of ["a", "b", "c"]) world.cluster.create(secret(name));
    world.start();
    for (let hour = 0; hour < 12; hour++) {
      world.issuer.fault = () => hour % 2 ? "hang" : answer(503);
      await world.clock.advance(12 * MIN);
      world.issuer.fault = () => undefined;
      await world.clock.advance(48 * MIN);
    }
    assertEquals(expiredFor(world), 0);
  },
);
