/**
 * Clocks and replicas, as rules: neither a wrong clock nor another replica leaves an expired token
 * in a Secret.
 */
import { assert, assertEquals, assertNotEquals, assertStringIncludes } from "@std/assert";
import { VirtualWorld } from "../virtual/world.ts";
import {
  agesAtReplacement,
  apiAnswer,
  asked,
  claimsOf,
  expiredFor,
  held,
  metric,
  reported,
  rule,
  written,
} from "./rules.ts";
import { HOUR, MIN, S } from "../support/names.ts";
import { secret, uid } from "../support/secrets.ts";

// ───── Clocks ─────

for (const skew of [-290 * S, -62 * S, -20 * S, 20 * S, 40 * S]) {
  rule(`A clock that is off by ${skew / S} s changes nothing but a little`, async (world) => {
    world.cluster.create(secret("a"));
    world.start({ skew });
    await world.clock.advance(24 * HOUR);
    const ages = agesAtReplacement(world);
    assert(ages.length > 25 && ages.every((age) => age > 0.6 && age < 0.9), `${ages}`);
    assertEquals(expiredFor(world), 0);
    assertEquals(world.cluster.events.length, 1);
  });
}

rule(
  "A clock that is behind by more than 5 min gets no token, and the message says to compare the clocks",
  async (world) => {
    world.cluster.create(secret("a"));
    const replica = world.start({ skew: -310 * S });
    await world.clock.advance(10 * S);
    assertEquals(written(world), []);
    assertStringIncludes(reported(world, "ExchangeFailed")[0].note, "compare the clocks");
    replica.clock.skew = 0;
    await world.clock.advance(30 * S);
    assertNotEquals(held(world), undefined);
  },
);

rule(
  "A machine that slept for two hours replaces the expired token within a minute",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    await world.clock.advance(10 * MIN);
    world.clock.slept += 2 * HOUR;
    await world.clock.advance(61 * S);
    assert(claimsOf(held(world)).expiresAt > world.clock.now());
    assertEquals([world.issuer.requests.length, written(world).length], [2, 2]);
  },
);

rule("A machine that slept until a token was due replaces it before it expires", async (world) => {
  world.cluster.create(secret("a"));
  world.start();
  await world.clock.advance(10 * MIN);
  world.clock.slept += 45 * MIN;
  await world.clock.advance(61 * S);
  assertEquals([world.issuer.requests.length, written(world).length], [2, 2]);
  await world.clock.advance(5 * HOUR);
  assertEquals(expiredFor(world), 0);
});

rule(
  "A wall clock that is set forward or back and right again leaves a valid token in the Secret, and spins never",
  async (world) => {
    world.cluster.create(secret("a"));
    const replica = world.start();
    for (const jump of [30 * MIN, -30 * S, -2 * HOUR, 5 * HOUR, -30 * 24 * HOUR]) {
      await world.clock.advance(20 * MIN);
      replica.clock.skew = jump;
      await world.clock.advance(3 * MIN);
      replica.clock.skew = 0;
    }
    await world.clock.advance(2 * HOUR);
    assertEquals(expiredFor(world), 0);
    assert(world.issuer.requests.length < 40, `${world.issuer.requests.length} exchanges`);
    assert(written(world).length < 20, `${written(world).length} patches`);
  },
);

rule(
  "A token that a clock set back takes for one of the future is not written, over and over",
  async (world) => {
    world.cluster.create(secret("a"));
    const replica = world.start();
    await world.clock.advance(1 * MIN);
    replica.clock.skew = -10 * MIN;
    world.cluster.create(secret("b"));
    await world.clock.advance(3 * MIN);
    assertEquals(written(world, "b"), []);
    replica.clock.skew = 0;
    await world.clock.advance(1 * MIN);
    assertEquals(written(world, "b").length, 1);
  },
);

// ───── Several replicas ─────

const TWO = { identities: 5, secrets: 20, life: 60 * S, during: 15 * MIN };

async function run(world: VirtualWorld, replicas: number): Promise<number> {
  world.issuer.life = TWO.life;
  for (let number = 0; number < TWO.secrets; number++) {
    world.cluster.create(secret(`s-${number}`, { identity: uid(number % TWO.identities) }));
  }
  for (let number = 0; number < replicas; number++) world.start();
  await world.clock.advance(TWO.during);
  assertEquals(expiredFor(world), 0);
  return written(world).length;
}

rule(
  "Two replicas never leave an expired token, and make hardly more patches than one",
  async (world) => {
    const alone = await run(new VirtualWorld(2), 1);
    const two = await run(world, 2);
    assert(two <= 1.15 * alone, `${two} patches of two, ${alone} of one`);
    assert(
      world.issuer.requests.length <= 2 * TWO.identities * (TWO.during / (0.67 * TWO.life) + 1),
    );
    const tries = asked(world, "patch").length;
    assert(tries <= 1.1 * two + 20, `${tries} tries for ${two} patches`);
  },
);

rule(
  "A replica that always came too late is no slower when the other one is gone",
  async (world) => {
    world.issuer.life = 12 * S;
    for (let number = 0; number < 8; number++) world.cluster.create(secret(`s-${number}`));
    world.start();
    const second = world.start();
    world.cluster.fault = ({ verb, replica }) =>
      verb === "patch" && replica === second.name ? apiAnswer(409) : undefined;
    await world.clock.advance(5 * MIN);
    assert(metric(second, 'refreshes_total{result="conflict"}')! > 40);
    world.cluster.fault = () => undefined;
    world.replicas[0]!.stop();
    await world.clock.advance(1 * MIN);
    assertEquals(expiredFor(world), 0);
  },
);

for (const seed of [1, 2, 3]) {
  rule(
    `Either of two replicas may be stopped and started at any time (seed ${seed})`,
    async (world) => {
      world.issuer.life = TWO.life;
      for (let number = 0; number < TWO.secrets; number++) {
        world.cluster.create(
          secret(`s-${number}`, { identity: uid(number % TWO.identities) }),
        );
      }
      let running = [world.start(), world.start()];
      for (let step = 0; step < 30; step++) {
        await world.clock.advance(world.random() * 40 * S);
        const [victim, other] = world.random() < 0.5 ? running : running.toReversed();
        victim!.stop();
        await world.clock.advance(world.random() * 20 * S);
        running = [other!, world.start()];
      }
      assertEquals(expiredFor(world), 0);
    },
    seed,
  );
}

rule(
  "Replicas that tie at the first write cost one conflict, not a second token in the Secret",
  async (world) => {
    world.start();
    world.start();
    await world.clock.advance(1 * S);
    world.cluster.create(secret("a"));
    await world.clock.advance(1 * MIN);
    assertEquals(asked(world, "patch").map(({ status }) => status).toSorted(), [200, 409]);
    assertEquals(reported(world, "ExchangeFailed"), []);
  },
);
