/**
 * Events and the log, as rules: what is reported, how often, and that nobody can silence it.
 */
import {
  assert,
  assertEquals,
  assertMatch,
  assertNotEquals,
  assertStringIncludes,
} from "@std/assert";
import type { Fault } from "../virtual/shared.ts";
import { VirtualWorld } from "../virtual/world.ts";
import {
  annotate,
  answer,
  apiAnswer,
  asked,
  claimsOf,
  gaps,
  held,
  logged,
  metric,
  reported,
  rule,
  warnings,
  written,
} from "./rules.ts";
import { HOUR, IDENTITY, MIN, REFRESH, S } from "../support/names.ts";
import { ALICE, BOB, secret } from "../support/secrets.ts";

rule("An event has the form of events.k8s.io/v1, on the Secret", async (world) => {
  world.cluster.create(secret("a"));
  world.start();
  await world.clock.advance(1 * S);
  const [{ at: _, ...event }] = world.cluster.events;
  assertMatch(event.eventTime, /^2027-01-01T00:00:00\.\d{6}Z$/);
  assertMatch(event.reportingInstance, /^controller-\w+$/);
  const { expiresAt } = claimsOf(held(world));
  assertEquals(event, {
    metadata: { generateName: "pull-secret-updater-", namespace: "apps" },
    eventTime: event.eventTime,
    reportingController: "pull-secret-updater.chainguard.dev/controller",
    reportingInstance: event.reportingInstance,
    action: "Refresh",
    regarding: { apiVersion: "v1", kind: "Secret", namespace: "apps", name: "a", uid: "uid-1" },
    reason: "TokenIssued",
    type: "Normal",
    note: `the Secret holds a token of ${ALICE} until ${new Date(expiresAt).toISOString()}`,
  });
});

rule(
  "TokenIssued is reported of a first token, of another identity, a recovery and a refresh, never of a renewal",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    await world.clock.advance(24 * HOUR);
    assertEquals(reported(world, "TokenIssued").length, 1);
    world.cluster.update("apps/a", annotate({ [REFRESH]: "1" }));
    await world.clock.advance(1 * HOUR);
    assertEquals(reported(world, "TokenIssued").length, 2);
    world.cluster.update("apps/a", annotate({ [IDENTITY]: BOB }));
    await world.clock.advance(1 * HOUR);
    assertEquals(reported(world, "TokenIssued").length, 3);
    assertStringIncludes(reported(world, "TokenIssued")[2].note, BOB);
    world.issuer.fault = () => answer(503);
    await world.clock.advance(1 * HOUR);
    world.issuer.fault = () => undefined;
    await world.clock.advance(1 * HOUR);
    assertEquals(reported(world, "TokenIssued").length, 4);
    assert(reported(world, "ExchangeFailed").length >= 1);
    assertEquals(world.cluster.events.length, 4 + reported(world, "ExchangeFailed").length);
  },
);

rule(
  "A problem that stands is reported again every 5 min, whatever else happens",
  async (world) => {
    for (const parts of [{ identity: "x" }, { type: "Opaque" }, { config: "[]" }]) {
      world.cluster.create(secret(`s-${Object.keys(parts)}`, parts));
    }
    world.cluster.create(secret("a"));
    world.issuer.fault = () => answer(403);
    world.start();
    for (let step = 0; step < 3 * 60; step++) {
      await world.clock.advance(1 * MIN);
      for (const key of world.cluster.secrets.keys()) {
        world.cluster.update(key, annotate({ note: `${step}` }));
      }
    }
    for (
      const reason of [
        "InvalidIdentity",
        "UnsupportedSecret",
        "InvalidDockerConfig",
        "ExchangeFailed",
      ]
    ) {
      const times = reported(world, reason).map(({ at }) => at);
      assert(times.length >= 30 && times.length <= 36, `${reason}: ${times.length}`);
      assert(
        gaps(times).every((gap) => gap >= 5 * MIN && gap < 6 * MIN + 5 * S),
        `${reason}: ${gaps(times)}`,
      );
    }
  },
);

rule(
  "The same reason for the same name is reported every 5 min at most, though its message changes or it is made anew",
  async (world) => {
    world.cluster.create(secret("a", { identity: "0" }));
    world.start();
    for (let step = 1; step <= 60; step++) {
      await world.clock.advance(20 * S);
      if (step % 2) {
        world.cluster.update("apps/a", annotate({ [IDENTITY]: `x${step}` }));
      } else {
        world.cluster.delete("apps/a");
        world.cluster.create(secret("a", { identity: `y${step}` }));
      }
    }
    const times = reported(world, "InvalidIdentity").map(({ at }) => at);
    assert(times.length >= 3 && times.length <= 5, `${times.length}`);
    assert(gaps(times).every((gap) => gap >= 5 * MIN), `${gaps(times)}`);
  },
);

// ───── How many ─────

/** How long after its line in the log each Warning was written, of Secrets whose names match. */
function delays(world: VirtualWorld, names: RegExp): number[] {
  const epoch = world.clock.now() - world.clock.tick;
  return world.lines.map((line) => JSON.parse(line)).filter(({ level, name }) =>
    level === "warn" && names.test(name ?? "")
  ).map(({ msg, name, time }) => reported(world, msg, name)[0].at + epoch - Date.parse(time));
}

/** The most events in any 5 s. */
function burst(events: { at: number }[]): number {
  return Math.max(
    0,
    ...events.map(({ at: from }) =>
      events.filter(({ at }) => at >= from && at < from + 5 * S).length
    ),
  );
}

const wrong = (world: VirtualWorld, name: string, namespace = "apps") =>
  world.cluster.create(secret(name, { identity: "nonsense", namespace }));

for (const [number, seconds] of [[6, 1], [12, 6], [50, 45]] as const) {
  rule(
    `Of ${number} wrong Secrets of one namespace all are reported within ${seconds} s, 6 in any 5 s at most`,
    async (world) => {
      const replica = world.start();
      await world.clock.advance(1 * S);
      for (let index = 0; index < number; index++) wrong(world, `s-${index}`);
      await world.clock.advance(1 * S);
      assertEquals(logged(world, "InvalidIdentity").length, number);
      await world.clock.advance((seconds - 1) * S);
      assertEquals(reported(world, "InvalidIdentity").length, number);
      assertEquals(
        new Set(world.cluster.events.map(({ regarding }) => regarding.name)).size,
        number,
      );
      assert(burst(world.cluster.events) <= 6, `${burst(world.cluster.events)}`);
      assertEquals(metric(replica, "events_dropped_total"), 0);
    },
  );
}

rule(
  "A start with 12 wrong Secrets reports all of them as well, again and again",
  async (world) => {
    for (let index = 0; index < 12; index++) wrong(world, `s-${index}`);
    world.start();
    world.start();
    await world.clock.advance(1 * HOUR);
    for (let index = 0; index < 12; index++) {
      const own = reported(world, "InvalidIdentity", `s-${index}`);
      assert(own.length >= 18 && own.length <= 24, `${own.length}`);
    }
  },
);

rule(
  "All namespaces together have 25 events in any 5 s; further Warnings wait for their turn",
  async (world) => {
    for (let number = 0; number < 100; number++) wrong(world, "a", `n-${number}`);
    const replica = world.start();
    await world.clock.advance(4 * S);
    assertEquals(world.cluster.events.length, 25);
    assertEquals(logged(world, "InvalidIdentity").length, 100);
    await world.clock.advance(16 * S);
    assertEquals(world.cluster.events.length, 100);
    assertEquals(burst(world.cluster.events), 25);
    assertEquals(metric(replica, "events_dropped_total"), 0);
  },
);

for (const filled of [6, 12, 100]) {
  rule(
    `After ${filled} Secrets were filled in one namespace, a wrong one has its Warning within a second`,
    async (world) => {
      world.start();
      await world.clock.advance(1 * S);
      for (let index = 0; index < filled; index++) world.cluster.create(secret(`s-${index}`));
      await world.clock.advance(500);
      wrong(world, "wrong");
      await world.clock.advance(1 * S);
      assertEquals(written(world).length, filled);
      assertEquals(warnings(world).map(({ regarding }) => regarding.name), ["wrong"]);
      assertEquals(logged(world, "InvalidIdentity").map(({ name }) => name), ["wrong"]);
    },
  );
}

rule(
  "Of one batch the Secret that the issuer refuses has its Warning within a second, by its name",
  async (world) => {
    for (let index = 0; index < 11; index++) world.cluster.create(secret(`s-${index}`));
    world.cluster.create(secret("refused", { identity: BOB }));
    world.issuer.fault = ({ identity }) => identity === BOB ? answer(403) : undefined;
    world.start();
    await world.clock.advance(1 * S);
    assertEquals(warnings(world).map(({ regarding }) => regarding.name), ["refused"]);
    assertEquals(logged(world, "ExchangeFailed").map(({ name }) => name), ["refused"]);
  },
);

rule(
  "Normal events beyond half of the places are dropped and counted, in a namespace and in all",
  async (world) => {
    for (let number = 0; number < 20; number++) world.cluster.create(secret(`s-${number}`));
    const replica = world.start();
    await world.clock.advance(1 * S);
    assertEquals(reported(world, "TokenIssued").length, 3);
    assertEquals(metric(replica, "events_dropped_total"), 17);
    await world.clock.advance(10 * S);
    for (let number = 0; number < 40; number++) {
      world.cluster.create(secret("a", { namespace: `n-${number}` }));
    }
    await world.clock.advance(1 * S);
    const issued = reported(world, "TokenIssued").length;
    assert(issued >= 3 + 12 && issued <= 3 + 13, `${issued}`);
    assertEquals(metric(replica, "events_dropped_total"), 60 - issued);
    assertEquals(written(world).length, 60);
  },
);

rule(
  "Normal events never take a Warning's place, however many Secrets are filled",
  async (world) => {
    world.start();
    await world.clock.advance(1 * S);
    for (let step = 0; step < 120; step++) {
      for (let number = 0; number < 5; number++) {
        world.cluster.create(secret(`s-${step}-${number}`, { namespace: `n-${number}` }));
      }
      if (step % 10 === 5) wrong(world, `wrong-${step}`, "n-0");
      await world.clock.advance(500);
    }
    assertEquals(reported(world, "InvalidIdentity").length, 12);
    const waits = delays(world, /^wrong/);
    assert(waits.length === 12 && waits.every((wait) => wait <= 1 * S), `${waits}`);
  },
);

rule(
  "A flood of wrong Secrets in other namespaces delays nobody's Warning by more than seconds",
  async (world) => {
    world.start();
    await world.clock.advance(1 * S);
    for (let step = 0; step < 10 * 60; step++) {
      for (let number = 0; number < 5; number++) wrong(world, `flood-${step}`, `bad-${number}`);
      if (step % 30 === 15) {
        wrong(world, `victim-${step}`, `good-${step % 4}`);
        world.cluster.create(secret(`refused-${step}`, { identity: BOB, namespace: "good" }));
        world.issuer.fault = ({ identity }) => identity === BOB ? answer(403) : undefined;
      }
      await world.clock.advance(100);
    }
    await world.clock.advance(5 * S);
    const waits = delays(world, /^(victim|refused)/);
    assert(waits.length === 40 && waits.every((wait) => wait <= 5 * S), `${waits}`);
    assert(burst(world.cluster.events) <= 25, `${burst(world.cluster.events)}`);
  },
);

rule(
  "What waits in a namespace that floods is bounded; beyond it Warnings are logged, dropped and counted",
  async (world) => {
    for (let number = 0; number < 2_020; number++) wrong(world, `s-${number}`);
    const replica = world.start();
    await world.clock.advance(1 * S);
    assertEquals(logged(world, "InvalidIdentity").length, 2_020);
    const dropped = metric(replica, "events_dropped_total")!;
    assertEquals(dropped, 2_020 - 2_000 - 6);
    assertEquals(world.cluster.events.length, 6);
  },
);

rule(
  "The namespaces that wait share the room for Warnings: many hold little more than one",
  async (world) => {
    const [namespaces, secrets] = [20, 500];
    for (let number = 0; number < namespaces * secrets; number++) {
      wrong(world, `s-${number}`, `flood-${number % namespaces}`);
    }
    wrong(world, "last", "last");
    const replica = world.start();
    await world.clock.advance(1 * S);
    const waiting = namespaces * secrets - metric(replica, "events_dropped_total")!;
    assert(waiting < 3_000, `${waiting} wait`);
    // The last to come has its share, too.
    await world.clock.advance(10 * S);
    assert(world.cluster.events.some(({ regarding }) => regarding.name === "last"));
  },
);

rule(
  "A Warning that was dropped is made up for when there is room: each of 2,020 is reported",
  async (world) => {
    for (let number = 0; number < 2_020; number++) wrong(world, `s-${number}`);
    world.start();
    await world.clock.advance(40 * MIN);
    const names = new Set(world.cluster.events.map(({ regarding }) => regarding.name));
    assertEquals(names.size, 2_020);
  },
);

for (const fault of [apiAnswer(403), apiAnswer(500), "hang"] as Fault[]) {
  rule(
    `An event that cannot be written (${fault}) slows nothing down, and is logged`,
    async (world) => {
      world.cluster.create(secret("a"));
      world.cluster.create(secret("b", { identity: "x" }));
      world.cluster.fault = ({ verb }) => verb === "event" ? fault : undefined;
      world.start();
      await world.clock.advance(100);
      assertNotEquals(held(world), undefined);
      await world.clock.advance(4 * MIN);
      assertEquals(asked(world, "event").length, 2);
      assertEquals(logged(world, "event not written").length, 2);
      assertEquals(logged(world, "InvalidIdentity").length, 1);
    },
  );
}

// ───── The log ─────

rule(
  "Info is logged as info and what is wrong as warn, so that the program can send them apart",
  async (world) => {
    world.cluster.create(secret("a"));
    world.cluster.create(secret("b", { identity: "x" }));
    world.cluster.create(secret("c", { identity: BOB }));
    world.issuer.fault = ({ identity }) => identity === BOB ? answer(403) : undefined;
    world.start();
    await world.clock.advance(1 * S);
    world.cluster.endWatches(apiAnswer(500));
    await world.clock.advance(1 * S);
    const levels = new Map(
      world.lines.map((line) => JSON.parse(line)).map(({ msg, level }) => [
        msg,
        level,
      ]),
    );
    assertEquals(Object.fromEntries(levels), {
      started: "info",
      listed: "info",
      "token written": "info",
      InvalidIdentity: "warn",
      ExchangeFailed: "warn",
      "list or watch failed": "warn",
    });
  },
);

rule(
  "Each line about a Secret has its namespace and name; a written token its identity, reason and expiry",
  async (world) => {
    world.cluster.create(secret("a"));
    world.cluster.create(secret("b", { identity: "x" }));
    world.start();
    await world.clock.advance(1 * S);
    const [line] = logged(world, "token written");
    const expires = new Date(claimsOf(held(world)).expiresAt).toISOString();
    assertEquals(
      { ...line, time: 0 },
      {
        time: 0,
        level: "info",
        msg: "token written",
        namespace: "apps",
        name: "a",
        identity: ALICE,
        reason: "missing",
        expires,
      },
    );
    const [warning] = logged(world, "InvalidIdentity");
    assertEquals([warning.namespace, warning.name], ["apps", "b"]);
    assertEquals(warning.message, reported(world, "InvalidIdentity")[0].note);
  },
);
