/**
 * Writing the token, as rules: what a failed patch costs, and what happens where others write too.
 */
import {
  assert,
  assertEquals,
  assertMatch,
  assertNotEquals,
  assertStringIncludes,
} from "@std/assert";
import { ApiError, type Secret } from "../../k8s.ts";
import { withToken } from "../../main.ts";
import { VirtualWorld } from "../virtual/world.ts";
import {
  annotate,
  annotationOf,
  answer,
  apiAnswer,
  asked,
  blank,
  claimsOf,
  expiredFor,
  fresh,
  gaps,
  held,
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
  REFRESH,
  REFRESHED,
  S,
  SERVICE_ACCOUNT,
} from "../support/names.ts";
import { ALICE, base64, BOB, configOf, secret, tokenOf, uid } from "../support/secrets.ts";

// ───── Failures of the patch ─────

rule("A Secret that holds nothing but ours costs one PATCH and no GET", async (world) => {
  const jwt = fresh(world, { sub: BOB });
  const other = fresh(world, { exp: Math.floor(world.clock.now() / S) - 1, iat: 0 });
  const plain = ["{}", "null", '{"auths":null}', '{"auths":{}}', configOf(jwt), configOf(other)];
  for (const [index, config] of plain.entries()) {
    world.cluster.create(secret(`s-${index}`, { config }));
  }
  world.start();
  await world.clock.advance(1 * S);
  assertEquals(written(world).length, plain.length);
  assertEquals(asked(world, "patch").length, plain.length);
  assertEquals(asked(world, "get"), []);
  for (const [index] of plain.entries()) {
    const { data } = world.cluster.get(`apps/s-${index}`);
    const text = Buffer.from(data![DATA_KEY]!, "base64").toString();
    assertEquals(JSON.parse(text), JSON.parse(configOf(held(world, `s-${index}`)!)));
  }
});

rule(
  "A docker config that holds more is read first: one GET, then one PATCH of what was read",
  async (world) => {
    const others = [
      '{"auths":{"other.example":{"auth":"eDp5"}}}',
      '{"auths":{},"credsStore":""}',
      '{"HttpHeaders":{"n":1.0}}',
      '{"auths":{"https://cgr.dev":{"auth":"eDp5"}}}',
    ];
    for (const [index, config] of others.entries()) {
      world.cluster.create(secret(`s-${index}`, { config }));
    }
    world.start();
    await world.clock.advance(1 * S);
    for (const [index, config] of others.entries()) {
      const own = world.cluster.requests.filter(({ name, verb }) =>
        name === `s-${index}` && verb !== "event"
      );
      assertEquals(own.map(({ verb }) => verb), ["get", "patch"]);
      const { data } = world.cluster.get(`apps/s-${index}`);
      const expected = withToken(config, ["cgr.dev"], held(world, `s-${index}`)!);
      assertEquals(Buffer.from(data![DATA_KEY]!, "base64").toString(), expected);
    }
  },
);

rule("Each patch has the uid and the resource version of what was decided on", async (world) => {
  world.cluster.create(secret("plain"));
  world.cluster.create(secret("read", { config: '{"auths":{},"other":1}' }));
  world.start();
  await world.clock.advance(3 * HOUR);
  assert(written(world).length >= 8, `${written(world).length}`);
  for (const { body } of written(world)) {
    const { uid, resourceVersion } = (body as Secret).metadata;
    const decidedOn = world.cluster.history.find(({ version }) =>
      `${version}` === resourceVersion
    )!;
    assertEquals(decidedOn.secret.metadata.uid, uid);
  }
});

rule(
  "What was written to a Secret while it was read for a write stays: it is decided on anew",
  async (world) => {
    world.cluster.create(secret("a", { config: '{"auths":{},"other":1}' }));
    world.cluster.fault = ({ verb }) => verb === "get" ? { ms: 50, answerMs: 50 } : undefined;
    world.start();
    await world.clock.advance(30);
    world.cluster.update("apps/a", { data: { [DATA_KEY]: base64('{"auths":{},"other":2}') } });
    await world.clock.advance(50);
    world.cluster.update("apps/a", { data: { [DATA_KEY]: base64('{"auths":{},"other":3}') } });
    await world.clock.advance(10 * S);
    const { data } = world.cluster.get("apps/a");
    assertEquals(JSON.parse(Buffer.from(data![DATA_KEY]!, "base64").toString()).other, 3);
    assertNotEquals(held(world), undefined);
    assertEquals(world.issuer.requests.length, 1);
  },
);

rule(
  "A conflict is a failed try: the watch brings what is so, and the cached token is written",
  async (world) => {
    world.cluster.create(secret("a"));
    world.cluster.fault = ({ verb }) => verb === "patch" ? 50 : undefined;
    world.start();
    await world.clock.advance(30);
    world.cluster.update("apps/a", annotate({ note: "mine" }));
    await world.clock.advance(2 * S);
    assertEquals(asked(world, "patch").map(({ status }) => status), [409, 200]);
    const [first, second] = asked(world, "patch");
    assert(second!.at - first!.endedAt >= 500 && second!.at - first!.endedAt <= 1000);
    assertEquals(world.issuer.requests.length, 1);
    assertEquals(held(world), world.issuer.requests[0]!.token);
    assertEquals(world.cluster.get("apps/a").metadata.annotations!.note, "mine");
    assertEquals(world.cluster.events.map(({ reason }) => reason), ["TokenIssued"]);
    assertEquals(metric(world.replicas[0]!, 'refreshes_total{result="conflict"}'), 1);
  },
);

rule(
  "Conflicts and missing answers by turns are tried more and more slowly, as either alone",
  async (world) => {
    world.cluster.create(secret("a"));
    let tries = 0;
    world.cluster.fault = ({ verb }) => {
      if (verb !== "patch") return undefined;
      return tries++ % 2 === 0
        ? apiAnswer(409)
        : new ApiError("no answer", { reason: "UND_ERR_SOCKET" });
    };
    world.start();
    await world.clock.advance(1 * MIN);
    assert(tries <= 8, `${tries}`);
  },
);

rule(
  "Conflicts are reported from the third in a row: another client writes all the time",
  async (world) => {
    world.cluster.create(secret("a"));
    world.cluster.fault = ({ verb }) => verb === "patch" ? apiAnswer(409) : undefined;
    world.start();
    await world.clock.advance(1 * S);
    assertEquals(asked(world, "patch").length, 2);
    assertEquals(world.cluster.events, []);
    await world.clock.advance(5 * S);
    assertEquals(warnings(world).length, 1);
    assertStringIncludes(warnings(world)[0].note, "409");
  },
);

rule(
  "A Secret that another replica has renewed is no conflict worth a Warning, though its watch is dead",
  async (world) => {
    const config = (jwt: string) => JSON.stringify({ ...JSON.parse(configOf(jwt)), other: 1 });
    for (const name of ["plain", "other"]) {
      world.cluster.create(secret(name, name === "other" ? { config: '{"other":1}' } : {}));
    }
    world.issuer.life = 100 * S;
    world.start();
    await world.clock.advance(60 * S);
    // Until the next watch, up to 90 s long.
    world.cluster.deafen();
    for (const [name, of] of [["plain", configOf], ["other", config]] as const) {
      world.cluster.update(`apps/${name}`, { data: { [DATA_KEY]: base64(of(fresh(world))) } });
    }
    await world.clock.advance(25 * S);
    assert(asked(world, "get").length >= 2 * 3, "each was tried often enough for a Warning");
    world.cluster.endWatches();
    await world.clock.advance(2 * MIN);
    assertEquals([warnings(world), written(world).length], [[], 2]);
  },
);

rule("Conflicts without end do not spin, and end by themselves", async (world) => {
  world.cluster.create(secret("a"));
  world.cluster.fault = ({ verb }) => verb === "patch" ? apiAnswer(409) : undefined;
  world.start();
  await world.clock.advance(10 * MIN);
  const tries = asked(world, "patch").length;
  assert(tries > 5 && tries < 25, `${tries}`);
  world.cluster.fault = () => undefined;
  await world.clock.advance(1 * MIN);
  assertNotEquals(held(world), undefined);
  assertEquals(world.issuer.requests.length, 1);
});

const lost = new ApiError("patch: no response from the API server: other side closed", {
  reason: "UND_ERR_SOCKET",
});
for (
  const [what, fault] of [
    ["404", apiAnswer(404)],
    ["429", apiAnswer(429)],
    ["500", apiAnswer(500)],
    ["401", apiAnswer(401)],
    ["lost", lost],
    ["hanging", "hang"],
  ] as const
) {
  rule(
    `After a patch that failed (${what}) the cached token is written, without a second exchange`,
    async (world) => {
      let fails = 3;
      world.cluster.create(secret("a"));
      world.cluster.fault = ({ verb }) => verb === "patch" && fails-- > 0 ? fault : undefined;
      world.start();
      await world.clock.advance(5 * MIN);
      assertEquals(asked(world, "patch").length, 4);
      assertEquals(world.issuer.requests.length, 1);
      assertEquals(held(world), world.issuer.requests[0]!.token);
    },
  );
}

rule("A patch whose response was lost is not made again", async (world) => {
  let fails = 1;
  world.cluster.create(secret("a"));
  world.cluster.fault = ({ verb }) => verb === "patch" && fails-- > 0 ? { after: lost } : undefined;
  world.start();
  await world.clock.advance(10 * MIN);
  assertEquals(asked(world, "patch").length, 1);
  assertEquals(world.issuer.requests.length, 1);
});

rule(
  "A Secret that is gone when it is patched is reported to nobody; made anew it gets the cached token",
  async (world) => {
    const replica = world.start();
    await world.clock.advance(1 * S);
    const idle = replica.clock.pending();
    world.cluster.create(secret("a"));
    world.cluster.fault = ({ verb }) => verb === "patch" ? 50 : undefined;
    await world.clock.advance(30);
    // The patch comes before the news.
    world.cluster.deafen();
    world.cluster.delete("apps/a");
    await world.clock.advance(2 * S);
    assertEquals(new Set(asked(world, "patch").map(({ status }) => status)), new Set([404]));
    assertEquals(world.cluster.events, []);
    assertEquals(metric(replica, 'refreshes_total{result="failed"}'), 0);
    world.cluster.endWatches();
    await world.clock.advance(100);
    assertEquals(replica.clock.pending(), idle);
    const tries = asked(world, "patch").length;
    await world.clock.advance(1 * S);
    assertEquals(asked(world, "patch").length, tries);
    world.cluster.create(secret("a"));
    await world.clock.advance(1 * S);
    assertEquals(held(world), world.issuer.requests[0]!.token);
    assertEquals(world.issuer.requests.length, 1);
  },
);

rule(
  "A Secret that something in between says is not there is tried again, until it is",
  async (world) => {
    const replica = world.start();
    world.cluster.create(secret("a"));
    world.cluster.create(secret("b", { config: '{"auths":{},"other":1}' }));
    world.cluster.fault = ({ verb }) =>
      verb === "patch" || verb === "get" ? apiAnswer(404) : undefined;
    await world.clock.advance(10 * MIN);
    for (const name of ["a", "b"]) {
      const tries = [...asked(world, "patch", name), ...asked(world, "get", name)];
      assert(tries.length < 25, `${tries.length}`);
    }
    world.cluster.fault = () => undefined;
    assertEquals(written(world).length, 0);
    await world.clock.advance(61 * S);
    assertEquals(written(world).map(({ name }) => name).sort(), ["a", "b"]);
    assertEquals(metric(replica, 'secrets{state="valid"}'), 2);
  },
);

for (const [status, result] of [[403, "refused"], [422, "refused"], [500, "failed"]] as const) {
  rule(
    `A patch that is answered ${status} is tried again after 1 s doubling to 60 s, a random half to the whole`,
    async (world) => {
      world.cluster.create(secret("a"));
      world.cluster.fault = ({ verb }) => verb === "patch" ? apiAnswer(status) : undefined;
      world.start();
      await world.clock.advance(1 * HOUR);
      const waits = gaps(asked(world, "patch").map(({ at }) => at)).map((gap) => gap / S);
      for (const [index, wait] of waits.entries()) {
        const whole = [1, 2, 4, 8, 16, 32][index] ?? 60;
        assert(wait >= whole / 2 - 0.01 && wait <= whole + 0.02, `${index}: ${wait}`);
      }
      assert(waits.length > 60, `${waits.length}`);
      assertEquals(new Set(reported(world, "ExchangeFailed").map(({ note }) => note)).size, 1);
      assert(world.issuer.requests.length <= 2);
      const counted = metric(world.replicas[0]!, `refreshes_total{result="${result}"}`)!;
      assertEquals(counted, asked(world, "patch").length);
    },
  );
}

for (
  const [what, annotations] of [
    ["a refresh", { [REFRESH]: "now" }],
    ["another identity", { [IDENTITY]: BOB }],
    ["a service account", { [SERVICE_ACCOUNT]: "puller" }],
  ] as const
) {
  rule(
    `A Secret that is read with ${what} that a silent watch does not tell of is read at the back-off's pace`,
    async (world) => {
      world.cluster.create(secret("a", { config: '{"auths":{},"other":1}' }));
      world.cluster.fault = ({ verb }) => verb === "patch" ? apiAnswer(503) : undefined;
      world.start();
      // The token in hand is too old by then for a request.
      await world.clock.advance(12 * S);
      world.cluster.deafen();
      world.cluster.update("apps/a", annotate(annotations));
      world.cluster.fault = () => undefined;
      const before = asked(world, "get").length;
      await world.clock.advance(40 * S);
      const tries = asked(world, "get").length - before;
      assert(tries > 0 && tries <= 3, `${tries} in 40 s`);
      await world.clock.advance(2 * MIN);
      assertNotEquals(held(world), undefined);
      assertEquals(annotationOf(world, REFRESHED), REFRESH in annotations ? "now" : undefined);
    },
  );
}

rule("A refusal that quotes the whole Secret gives nothing of it away", async (world) => {
  world.cluster.create(secret("a"));
  world.cluster.fault = ({ verb, body }) => {
    const value = (body as { data?: Record<string, string> } | undefined)?.data?.[DATA_KEY];
    const message =
      `patch: the API server answered 422: Secret "a" is invalid: data: Invalid value: "${value}" {"auths":{"cgr.dev":{"auth":"${value}"}}}`;
    return verb === "patch" ? new ApiError(message, { status: 422 }) : undefined;
  };
  world.start();
  await world.clock.advance(1 * MIN);
  assertEquals(reported(world, "ExchangeFailed").length, 1);
  const data = base64(configOf(world.issuer.requests[0]!.token!));
  const all = world.lines.join("") + JSON.stringify(world.cluster.events);
  for (let start = 0; start < 400; start += 8) {
    assert(!all.includes(data.slice(start, start + 16)), data.slice(start, start + 16));
  }
});

rule(
  "A docker config that broke between the decision and the write is not quoted",
  async (world) => {
    world.cluster.create(secret("a", { config: '{"auths":{},"other":1}' }));
    world.cluster.fault = ({ verb }) => verb === "get" ? 100 : undefined;
    world.start();
    await world.clock.advance(50);
    world.cluster.update("apps/a", {
      data: { [DATA_KEY]: base64('{"auths":{"x":{"password": hunter2}}}') },
    });
    await world.clock.advance(10 * S);
    const all = world.lines.join("") + JSON.stringify(world.cluster.events);
    assert(!all.includes("hunter2"), all);
    assertEquals(reported(world, "InvalidDockerConfig").length, 1);
  },
);

rule(
  "A docker config that was fixed while its write was under way is not taken for the broken one",
  async (world) => {
    world.cluster.create(secret("a", { config: '{"auths":{},"other":1}' }));
    world.cluster.fault = ({ verb }) => verb === "get" ? { ms: 50, answerMs: 100 } : undefined;
    world.start();
    await world.clock.advance(20);
    world.cluster.update("apps/a", { data: { [DATA_KEY]: base64("{") } });
    await world.clock.advance(80);
    world.cluster.update("apps/a", { data: { [DATA_KEY]: base64('{"auths":{},"other":2}') } });
    await world.clock.advance(10 * S);
    assertEquals(held(world), world.issuer.requests[0]!.token);
  },
);

// ───── Spacing, and other writers ─────

rule(
  "A user's new identity is written within a second or so, though the last write was only 12 s ago",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    await world.clock.advance(12 * S);
    world.cluster.update("apps/a", annotate({ [IDENTITY]: BOB }));
    await world.clock.advance(1.1 * S);
    assertEquals(claimsOf(held(world)).subject, BOB);
    assertEquals(reported(world, "Overwritten"), []);
  },
);

rule(
  "A requested refresh is written at once, though the last write was only 12 s ago",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    await world.clock.advance(12 * S);
    const before = held(world);
    world.cluster.update("apps/a", annotate({ [REFRESH]: "1" }));
    await world.clock.advance(1 * S);
    assertNotEquals(held(world), before);
    assertEquals(annotationOf(world, REFRESHED), "1");
  },
);

rule(
  "A Secret that comes late in a shared token's life never holds an expired one",
  async (world) => {
    world.issuer.life = 12 * S;
    world.start();
    for (let number = 0; number < 40; number++) {
      world.cluster.create(secret(`late-${number}`));
      await world.clock.advance(1_300);
    }
    await world.clock.advance(1 * MIN);
    assertEquals(expiredFor(world), 0);
  },
);

/** Blanks a Secret every 500 ms for so long. */
async function fight(world: VirtualWorld, ms: number): Promise<void> {
  for (let step = 0; step < ms / 500; step++) {
    await world.clock.advance(500);
    world.cluster.update("apps/a", blank);
  }
}

for (const replicas of [1, 2]) {
  rule(
    `Of a Secret that is blanked every 500 ms ${replicas} replica(s) make writes 10 s apart, one exchange each and one Warning each 5 min, and fill it 10 s after the end`,
    async (world) => {
      world.cluster.create(secret("a"));
      for (let number = 0; number < replicas; number++) world.start();
      await world.clock.advance(15 * S);
      await fight(world, 15 * S);
      const of = (name: string) =>
        reported(world, "Overwritten").filter(({ reportingInstance }) =>
          reportingInstance === name
        );
      const first = reported(world, "Overwritten");
      assert(first.length >= 1 && first.length <= replicas, `${first.length} within 15 s`);
      assertMatch(first[0].note, /^the token was overwritten by another client .* in \d+ s\./);

      await fight(world, 25 * MIN);
      const writes = written(world).map(({ endedAt }) => endedAt);
      assert(gaps(writes).every((gap) => gap >= 10 * S), `${gaps(writes)}`);
      assert(writes.length >= 25 * 60 / 15, `${writes.length}: it is filled again and again`);
      assertEquals(world.issuer.requests.length, replicas);
      for (const { reportingInstance } of first) {
        const times = of(reportingInstance).map(({ at }) => at);
        assert(times.length >= 4 && times.length <= 6, `${times}`);
        assert(gaps(times).every((gap) => gap >= 5 * MIN), `${gaps(times)}`);
      }

      await world.clock.advance(10 * S);
      assertNotEquals(held(world), undefined);
    },
  );
}

rule(
  "A Secret that is blanked for the first time is filled at once, from the cached token",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    await world.clock.advance(1 * MIN);
    world.cluster.update("apps/a", blank);
    await world.clock.advance(1 * S);
    assertEquals(held(world), world.issuer.requests[0]!.token);
    assertEquals([world.issuer.requests.length, world.cluster.events.length], [1, 1]);
  },
);

rule(
  "Another client's wrong tokens are treated like blanks: spaced writes, one Warning each 5 min",
  async (world) => {
    const iat = Math.floor(world.clock.now() / S);
    const forged = [
      world.jwt({ aud: "cgr.dev", sub: BOB, iat, exp: iat + 80_000 }),
      world.jwt({ aud: "cgr.dev", sub: ALICE, exp: iat + 1e9 }),
      world.jwt({ aud: "cgr.dev", sub: ALICE, iat: iat - 7200, exp: iat - 3600 }),
      "x",
    ];
    world.cluster.create(secret("a"));
    world.start();
    for (let step = 0; step < 1200; step++) {
      await world.clock.advance(500);
      world.cluster.update("apps/a", { data: { [DATA_KEY]: base64(configOf(forged[step % 4]!)) } });
    }
    const writes = written(world).map(({ endedAt }) => endedAt);
    assert(writes.length > 45 && gaps(writes).every((gap) => gap >= 10 * S), `${gaps(writes)}`);
    assertEquals(world.issuer.requests.length, 1);
    assert(warnings(world).length <= 2, `${warnings(world).length}`);
    assertEquals(new Set(warnings(world).map(({ reason }) => reason)), new Set(["Overwritten"]));
  },
);

rule(
  "A forged token with a day to live blocks no refresh, and is gone within the day",
  async (world) => {
    const iat = Math.floor(world.clock.now() / S);
    const forged = world.jwt({ aud: "cgr.dev", sub: ALICE, iat, exp: iat + 86_400 });
    world.cluster.create(secret("a", { config: configOf(forged) }));
    world.start();
    await world.clock.advance(1 * MIN);
    world.cluster.update("apps/a", annotate({ [REFRESH]: "1" }));
    await world.clock.advance(1 * S);
    assertEquals(held(world), world.issuer.requests[0]!.token);
    world.cluster.update("apps/a", { data: { [DATA_KEY]: base64(configOf(forged)) } });
    await world.clock.advance(24 * HOUR);
    assertNotEquals(held(world), forged);
    assertEquals(expiredFor(world), 0);
  },
);

for (const [life, least] of [[20 * S, 5 * S], [6 * S, 1 * S]] as const) {
  rule(
    `With tokens that live ${
      life / S
    } s the next write comes half of what the last token had left later, ${least / S} s at least`,
    async (world) => {
      world.issuer.life = life;
      world.cluster.create(secret("a"));
      world.start();
      for (let step = 0; step < 200; step++) {
        await world.clock.advance(300);
        world.cluster.update("apps/a", blank);
      }
      const writes = written(world).map(({ endedAt, body }) => {
        const { expiresAt } = claimsOf(tokenOf((body as Secret).data));
        const leftMs = expiresAt - (world.clock.now() - world.clock.tick + endedAt);
        return { at: endedAt, spacing: Math.min(Math.max(leftMs / 2, 1 * S), 10 * S) };
      });
      assert(writes.length >= 6, `${writes.length}`);
      for (const [index, gap] of gaps(writes.map(({ at }) => at)).entries()) {
        const { spacing } = writes[index]!;
        assert(gap >= spacing - 10 && gap < spacing + 1 * S, `${gap} after ${spacing}`);
        assert(gap >= least - 30, `${gap}`);
      }
    },
  );
}

rule(
  "Cycling identities does not spin: no more than six exchanges and writes a minute",
  async (world) => {
    world.cluster.create(secret("a"));
    world.start();
    for (let step = 0; step < 1200; step++) {
      world.cluster.update("apps/a", annotate({ [IDENTITY]: uid(step + 1) }));
      await world.clock.advance(250);
    }
    assert(world.issuer.requests.length <= 5 * 6 + 2, `${world.issuer.requests.length} exchanges`);
    assert(written(world).length <= 5 * 6 + 2, `${written(world).length} writes`);
    await world.clock.advance(15 * S);
    assertEquals(claimsOf(held(world)).subject, uid(1200));
  },
);

/** Annotates a Secret anew in each step, four times a second and then less often, while all is refused. */
async function cycleRefused(
  world: VirtualWorld,
  annotationsAt: (step: number) => Record<string, string>,
): Promise<void> {
  world.cluster.create(secret("a"));
  world.issuer.fault = () => answer(403);
  world.start();
  for (let step = 0; step < 240; step++) {
    world.cluster.update("apps/a", annotate(annotationsAt(step)));
    await world.clock.advance(step < 120 ? 250 : 600);
  }
}

rule(
  "Cycling identities that are refused brings about an exchange a second at most",
  async (world) => {
    await cycleRefused(world, (step) => ({ [IDENTITY]: uid(step + 2) }));
    const { length } = world.issuer.requests;
    assert(length <= 102, `${length} exchanges`);
  },
);

rule("Cycling service accounts does not spin either", async (world) => {
  world.cluster.create(secret("a"));
  world.start();
  for (let step = 0; step < 1200; step++) {
    world.cluster.update("apps/a", annotate({ [SERVICE_ACCOUNT]: `account-${step}` }));
    await world.clock.advance(250);
  }
  assert(
    asked(world, "token").length <= 5 * 6 + 2,
    `${asked(world, "token").length} token requests`,
  );
  assert(world.issuer.requests.length <= 5 * 6 + 2, `${world.issuer.requests.length} exchanges`);
});

rule(
  "Cycling service accounts that are refused brings about a token request a second at most",
  async (world) => {
    await cycleRefused(world, (step) => ({ [SERVICE_ACCOUNT]: `account-${step}` }));
    const { length } = asked(world, "token");
    assert(length <= 102, `${length} token requests`);
    assert(world.issuer.requests.length <= 102, `${world.issuer.requests.length} exchanges`);
  },
);

rule(
  "An issuer whose every token is for somebody else, or no good, brings about no write and few exchanges",
  async (world) => {
    world.cluster.create(secret("a"));
    world.issuer.fault = () => {
      const now = Math.floor(world.clock.now() / S);
      const bad = [
        fresh(world, { sub: BOB }),
        fresh(world, { aud: "x" }),
        "",
        "a.b.c",
        fresh(world, { exp: now + 4 }),
        fresh(world, { iat: now + 400 }),
        fresh(world, { exp: now + 90_000 }),
        fresh(world, { pad: "x".repeat(16 * 1024) }),
      ];
      return bad[world.issuer.requests.length % bad.length]!;
    };
    world.start();
    await world.clock.advance(1 * HOUR);
    assertEquals(asked(world, "patch"), []);
    assert(world.issuer.requests.length < 130, `${world.issuer.requests.length}`);
    assert(gaps(world.issuer.requests.map(({ at }) => at)).slice(7).every((gap) => gap >= 30 * S));
  },
);

rule(
  "Tokens that say another account than the one asked for are written once a life, not over and over",
  async (world) => {
    world.issuer.claims = () => ({ act: { sub: "system:serviceaccount:apps:other" } });
    world.cluster.create(secret("a", { annotations: { [SERVICE_ACCOUNT]: "puller" } }));
    world.start();
    await world.clock.advance(2 * HOUR);
    assert(written(world).length <= 5, `${written(world).length}`);
    assert(world.issuer.requests.length <= 5, `${world.issuer.requests.length}`);
  },
);
