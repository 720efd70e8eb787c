/**
 * Metrics and probes, as rules.
 */
import {
  assert,
  assertEquals,
  assertMatch,
  assertNotEquals,
  assertStringIncludes,
} from "@std/assert";
import { type Replica, VirtualWorld } from "../virtual/world.ts";
import { answer, apiAnswer, claimsOf, held, logged, metric, rule } from "./rules.ts";
import { HOUR, MIN, S, SECRET_TYPE, SERVICE_ACCOUNT, TOKEN_IDENTITY } from "../support/names.ts";
import { ALICE, BOB, configOf, type Parts, secret, uid } from "../support/secrets.ts";

// ───── Metrics ─────

rule(
  "The metrics count Secrets by state, refreshes by result, exchanges, and dropped events",
  async (world) => {
    world.issuer.fault = ({ identity }) =>
      identity === BOB ? answer(403) : identity === uid(3) ? answer(503) : 250;
    world.cluster.create(secret("a"));
    world.cluster.create(secret("b", { identity: BOB }));
    world.cluster.create(secret("c", { type: "Opaque" }));
    world.cluster.create(secret("d", { identity: "x" }));
    const now = Math.floor(world.clock.now() / S);
    const expired = world.jwt({
      aud: "cgr.dev",
      sub: uid(3),
      iat: now - 3600,
      exp: now - 1,
    });
    world.cluster.create(secret("e", { identity: uid(3), config: configOf(expired) }));
    const replica = world.start();
    await world.clock.advance(400);
    const expected = {
      'build_info{version="0.2.0"}': 1,
      'secrets{state="valid"}': 1,
      'secrets{state="missing"}': 1,
      'secrets{state="expired"}': 1,
      'secrets{state="skipped"}': 2,
      'token_expiry_timestamp_seconds{namespace="apps",name="a"}': claimsOf(held(world)).expiresAt /
        S,
      'token_expiry_timestamp_seconds{namespace="apps",name="e"}': now - 1,
      'refreshes_total{result="success"}': 1,
      'refreshes_total{result="refused"}': 1,
      'refreshes_total{result="failed"}': 1,
      exchange_duration_seconds_count: 3,
      exchange_duration_seconds_sum: 0.26,
    };
    for (const [series, value] of Object.entries(expected)) {
      assertEquals(
        metric(replica, series),
        value,
        series,
      );
    }
    replica.countResponse("patch", "200");
    replica.countResponse("patch", "200");
    assertEquals(metric(replica, 'api_requests_total{verb="patch",code="200"}'), 2);
    world.cluster.endWatches();
    await world.clock.advance(2 * S);
    assertEquals(metric(replica, 'watch_restarts_total{reason="error"}'), 1);
    await world.clock.advance(2 * MIN);
    assertEquals(metric(replica, 'watch_restarts_total{reason="ended"}'), 1);
  },
);

rule(
  "Every counter is there from the start, with 0, and each of them is counted in what is there",
  async (world) => {
    const seriesOf = (replica: Replica) =>
      replica.renderMetrics().split("\n").filter((line) => /^\w+_(total|count|sum)[ {]/.test(line))
        .map(
          (
            line,
          ) => line.slice("pull_secret_updater_".length).split(" ")[0]!,
        );
    const replica = world.start();
    const before = seriesOf(replica);
    for (const series of before) assertEquals(metric(replica, series), 0, series);
    for (
      const series of [
        'refreshes_total{result="success"}',
        'refreshes_total{result="failed"}',
        'refreshes_total{result="refused"}',
        'refreshes_total{result="conflict"}',
        "exchange_duration_seconds_count",
        "exchange_duration_seconds_sum",
        'api_requests_total{verb="list",code="200"}',
        'api_requests_total{verb="watch",code="403"}',
        'api_requests_total{verb="get",code="200"}',
        'api_requests_total{verb="patch",code="409"}',
        'api_requests_total{verb="create",code="201"}',
        'api_requests_total{verb="list",code="error"}',
        'watch_restarts_total{reason="ended"}',
        'watch_restarts_total{reason="error"}',
        'watch_restarts_total{reason="gone"}',
        'watch_restarts_total{reason="forbidden"}',
        "events_dropped_total",
      ]
    ) {
      assert(before.includes(series), series);
    }
    // Failures of each kind bring no series but those.
    for (let number = 0; number < 40; number++) {
      world.cluster.create(
        secret(`s-${number}`, {
          identity: uid(number),
          type: number % 5 ? SECRET_TYPE : "Opaque",
        }),
      );
    }
    world.issuer.fault = ({ identity }) => identity.endsWith("1") ? answer(403) : undefined;
    for (const status of [403, 404, 409, 410, 429, 500]) {
      world.cluster.fault = ({ verb }) => verb === "list" ? undefined : apiAnswer(status);
      world.cluster.endWatches(apiAnswer(status));
      await world.clock.advance(1 * MIN);
    }
    assertEquals(seriesOf(replica), before);
  },
);

rule("States, also those of which there is no Secret, are there from the start", async (world) => {
  const replica = world.start();
  for (const state of ["valid", "missing", "expired", "skipped"]) {
    assertEquals(metric(replica, `secrets{state="${state}"}`), 0);
  }
  await world.clock.advance(0);
});

rule(
  "Each metric has its help and type before its samples, and nothing stands twice",
  async (world) => {
    world.cluster.create(secret("a"));
    const replica = world.start();
    await world.clock.advance(1 * S);
    const seen = new Set<string>();
    let family = "";
    for (const line of replica.renderMetrics().trimEnd().split("\n")) {
      const [, kind, name] = /^# (HELP|TYPE) (\w+) /.exec(line) ?? [];
      if (kind === "HELP") family = name!;
      else if (kind === "TYPE") assertEquals(name, family);
      else assertMatch(line, new RegExp(`^${family}(_sum|_count)?(\\{[^{}]*\\})? [0-9.e+]+$`));
      const series = kind ? `${kind} ${name}` : line.split(" ")[0]!;
      assert(!seen.has(series), series);
      seen.add(series);
    }
    assert(seen.size > 20);
  },
);

rule("The expiry has 10,000 series at most, the states count all", async (world) => {
  const iat = Math.floor(world.clock.now() / S);
  const config = configOf(world.jwt({ aud: "cgr.dev", sub: ALICE, iat, exp: iat + 3600 }));
  for (let number = 0; number < 10_050; number++) {
    world.cluster.create(secret(`s-${number}`, { config }));
  }
  const replica = world.start();
  await world.clock.advance(1 * S);
  assertEquals(metric(replica, 'secrets{state="valid"}'), 10_050);
  const series = replica.renderMetrics().split("token_expiry_timestamp_seconds{").length - 1;
  assert(series > 9_900 && series <= 10_000, `${series}`);
});

rule("A Secret that is skipped has no series, whatever token it holds", async (world) => {
  const iat = Math.floor(world.clock.now() / S);
  const forged = configOf(world.jwt({ aud: "cgr.dev", sub: "nobody", iat, exp: iat + 3600 }));
  const { metadata, ...rest } = secret("forged", { identity: "", config: forged });
  const annotations = { ...metadata.annotations, [TOKEN_IDENTITY]: "" };
  world.cluster.create({ ...rest, metadata: { ...metadata, annotations } });
  const replica = world.start();
  await world.clock.advance(1 * S);
  assertEquals(metric(replica, 'secrets{state="skipped"}'), 1);
  assert(!replica.renderMetrics().includes('name="forged"'));
});

// ───── Probes ─────

const OUTAGES: [string, (world: VirtualWorld) => void][] = [
  ["the issuer hangs", (world) => world.issuer.fault = () => "hang"],
  ["the issuer is down", (world) => world.issuer.fault = () => answer(503, "no", "300")],
  ["the issuer refuses", (world) => world.issuer.fault = () => answer(403)],
  ["the API server hangs", (world) => world.cluster.fault = () => "hang"],
  ["the API server is slow", (world) => world.cluster.fault = () => 25 * S],
  [
    "the API server's writes hang",
    (world) =>
      world.cluster.fault = ({ verb }) => verb === "patch" || verb === "get" ? "hang" : undefined,
  ],
  ["the API server throttles", (world) => world.cluster.fault = () => apiAnswer(429, "3000")],
  ["the API server throttles slowly", (world) => {
    const slowly = { after: apiAnswer(503, "3000"), ms: 25 * S };
    world.cluster.fault = ({ verb }) => verb === "list" || verb === "watch" ? slowly : undefined;
  }],
  ["the watches are deaf", (world) => world.cluster.isDeaf = true],
];
for (const [what, begin] of OUTAGES) {
  rule(`/healthz does not fail while ${what}`, async (world) => {
    for (let number = 0; number < 24; number++) {
      const config = number % 3 ? "{}" : '{"auths":{},"other":1}';
      world.cluster.create(secret(`s-${number}`, { identity: uid(number % 20), config }));
    }
    world.issuer.life = 5 * MIN;
    const replica = world.start();
    await world.clock.advance(1 * MIN);
    begin(world);
    world.cluster.endWatches();
    for (let step = 0; step < 120; step++) {
      await world.clock.advance(15 * S);
      assertEquals(replica.livenessError(), undefined);
    }
  });
}

rule(
  "/healthz does not fail while the API server hangs from the start; /readyz does",
  async (world) => {
    world.cluster.fault = () => "hang";
    const replica = world.start();
    for (let step = 0; step < 60; step++) {
      await world.clock.advance(20 * S);
      assertEquals(replica.livenessError(), undefined);
      assertStringIncludes(replica.readinessError()!, "list");
    }
  },
);

rule(
  "/healthz fails when a watch goes on a minute after it was given up, two minutes after its beginning",
  async (world) => {
    const client = world.cluster.client("replica-1");
    world.cluster.client = () => ({
      ...client,
      async *watch() {
        yield await new Promise<never>(() => {});
      },
    });
    const replica = world.start();
    await world.clock.advance(179 * S);
    assertEquals(replica.livenessError(), undefined);
    await world.clock.advance(2 * S);
    assertStringIncludes(replica.livenessError()!, "a minute after its abort");
  },
);

rule(
  "A watch that hangs in spite of its time-out is given up after two minutes, and opened again",
  async (world) => {
    const replica = world.start();
    await world.clock.advance(1 * S);
    world.cluster.fault = ({ verb }) => verb === "watch" ? Infinity : undefined;
    world.cluster.endWatches();
    await world.clock.advance(10 * S);
    world.cluster.fault = () => undefined;
    world.cluster.create(secret("a"));
    await world.clock.advance(2 * MIN);
    assertEquals(replica.livenessError(), undefined);
    assertNotEquals(held(world), undefined);
  },
);

rule("/healthz fails when an exchange goes on a minute after its 10 s", async (world) => {
  world.issuer.client = () => () => new Promise(() => {});
  world.cluster.create(secret("a"));
  const replica = world.start();
  await world.clock.advance(69 * S);
  assertEquals(replica.livenessError(), undefined);
  await world.clock.advance(2 * S);
  assertStringIncludes(replica.livenessError()!, "a minute after its abort");
});

for (const verb of ["patch", "get", "createEvent", "requestToken"] as const) {
  rule(`/healthz fails when a request (${verb}) goes on a minute after its 30 s`, async (world) => {
    const client = world.cluster.client("replica-1");
    world.cluster.client = () => ({ ...client, [verb]: () => new Promise(() => {}) });
    const config = verb === "get" ? '{"auths":{},"other":1}' : "{}";
    const annotations: Parts["annotations"] = verb === "requestToken"
      ? { [SERVICE_ACCOUNT]: "x" }
      : {};
    world.cluster.create(secret("a", { config, annotations }));
    const replica = world.start();
    // A token request is a part of an exchange, which has 10 s.
    const after = verb === "requestToken" ? 70 * S : 90 * S;
    await world.clock.advance(after - 1 * S);
    assertEquals(replica.livenessError(), undefined);
    await world.clock.advance(2 * S);
    assertStringIncludes(replica.livenessError()!, "a minute after its abort");
  });
}

rule("/healthz is well when nothing has been due for days", async (world) => {
  world.cluster.create(secret("b", { identity: "x" }));
  const replica = world.start();
  for (let step = 0; step < 24; step++) {
    await world.clock.advance(2 * HOUR);
    assertEquals(replica.livenessError(), undefined);
  }
});

rule(
  "/readyz waits until every first list was answered, and stays ready in an outage",
  async (world) => {
    world.cluster.fault = ({ verb, namespace }) =>
      verb === "list" && namespace === "two" ? apiAnswer(500) : undefined;
    const replica = world.start({ env: { WATCH_NAMESPACES: "one,two" } });
    assertStringIncludes(replica.readinessError()!, "list");
    for (let step = 0; step < 60; step++) {
      await world.clock.advance(10 * S);
      assertStringIncludes(replica.readinessError()!, "list");
    }
    world.cluster.fault = () => undefined;
    await world.clock.advance(6 * S);
    assertEquals(replica.readinessError(), undefined);
    world.cluster.fault = () => apiAnswer(500);
    world.cluster.endWatches();
    await world.clock.advance(10 * MIN);
    assertEquals(replica.readinessError(), undefined);
  },
);

for (const status of [403, 404]) {
  rule(
    `A namespace that is gone or forbidden (${status}) does not hold up /readyz: it is told by one log line and a metric`,
    async (world) => {
      world.cluster.fault = ({ verb, namespace }) =>
        verb === "list" && namespace === "two" ? apiAnswer(status) : undefined;
      world.cluster.create(secret("a", { namespace: "one" }));
      const replica = world.start({ env: { WATCH_NAMESPACES: "one,two" } });
      await world.clock.advance(1 * S);
      assertEquals(replica.readinessError(), undefined);
      assertNotEquals(held(world, "a", "one"), undefined);
      await world.clock.advance(1 * HOUR);
      const lines = logged(world, "list or watch failed");
      assertEquals(lines.map(({ namespace }) => namespace), ["two"]);
      assertEquals(lines[0].level, "warn");
      assert(metric(replica, 'watch_restarts_total{reason="forbidden"}')! > 100);
      assertEquals(metric(replica, 'watch_restarts_total{reason="error"}'), 0);

      world.cluster.fault = () => undefined;
      world.cluster.create(secret("a", { namespace: "two" }));
      await world.clock.advance(6 * S);
      assertNotEquals(held(world, "a", "two"), undefined);
    },
  );
}

rule("Where the whole cluster may not be listed, /readyz says so", async (world) => {
  world.cluster.fault = () => apiAnswer(403);
  const replica = world.start();
  await world.clock.advance(10 * MIN);
  assertStringIncludes(replica.readinessError()!, "list");
  world.cluster.fault = () => undefined;
  await world.clock.advance(6 * S);
  assertEquals(replica.readinessError(), undefined);
});
