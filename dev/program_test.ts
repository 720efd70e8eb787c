/**
 * The real program as a process of its own, on the runtime that runs this, against the stand-ins over loopback HTTPS. Whatever a program writes, at any level, is searched for tokens and control characters when it has ended.
 */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { Buffer } from "node:buffer";
import { execFile, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, get } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import {
  CONTROLS,
  findPort,
  findToken,
  HOSTILE,
  type Program,
  RUNTIME,
  type Runtime,
  startProgram,
  tokenOf,
  until,
} from "./program.ts";
import { type ApiRequest, errorEvent, startApiServer } from "./server/apiserver.ts";
import { makeAuthority } from "./server/certificates.ts";
import type { Fault, LoggedRequest } from "./server/faults.ts";
import { type IssuerFault, startIssuer } from "./server/issuer.ts";
import { decode } from "../sts.ts";

const PREFIX = "pull-secret-updater.chainguard.dev";
const IDENTITY = `${PREFIX}/identity`;
const OWN = ["pull-secret-updater", "controller"] as const;
const ORG = "0123456789abcdef0123456789abcdef01234567";
const TYPE = "kubernetes.io/dockerconfigjson";
const MIB = 1024 * 1024;
/** Scenarios that run at the same time, beside those that mostly wait. */
const MAX_BUSY = 4;

const authority = makeAuthority();
const uid = (index: number) => `${ORG}/${index.toString(16).padStart(16, "0")}`;
const hasPromtool = !spawnSync("promtool", ["--version"]).error;

interface WorldOptions {
  /** Seconds that tokens live. */
  life?: number;
  /** The API server on plain http, as `kubectl proxy`. */
  plain?: boolean;
  settings?: Record<string, string>;
}

type World = Awaited<ReturnType<typeof makeWorld>>;

/** A cluster and an issuer, what a Pod would find, and the programs that run in it. */
async function makeWorld(
  runtime: Runtime,
  { life = 3600, plain = false, settings = {} }: WorldOptions = {},
) {
  const certificate = plain ? undefined : authority.issue();
  const api = await startApiServer({ certificate, tokens: plain ? undefined : new Map() });
  const issuer = await startIssuer({ certificate: authority.issue(), keys: api.jwks, life });
  api.createServiceAccount(...OWN);
  const folder = mkdtempSync(join(tmpdir(), "program-test-"));
  const file = (name: string) => join(folder, name);
  const apiToken = await api.serviceAccountToken(...OWN, api.issuer);
  const subjectToken = await api.serviceAccountToken(...OWN, issuer.audience);
  writeFileSync(file("token"), apiToken);
  writeFileSync(file("ca.crt"), authority.certificate);
  writeFileSync(file("oidc-token"), subjectToken);
  const { hostname, port } = new URL(api.url);
  const address: Record<string, string> = plain
    ? { KUBERNETES_API: api.url }
    : { KUBERNETES_SERVICE_HOST: hostname, KUBERNETES_SERVICE_PORT: port };
  const env: Record<string, string> = {
    ...address,
    SERVICE_ACCOUNT_DIR: folder,
    SUBJECT_TOKEN_FILE: file("oidc-token"),
    NODE_EXTRA_CA_CERTS: file("ca.crt"),
    ISSUER_URL: issuer.url,
    LOG_LEVEL: "debug",
    ...settings,
  };
  const programs: Program[] = [];
  const secretTexts = [apiToken, subjectToken];

  const world = {
    runtime,
    api,
    issuer,
    env,
    file,
    /** More tokens that no log may show. */
    secretTexts,
    /** Starts the program, and waits until it watches. */
    async start(
      on = runtime,
      settings: Record<string, string> = {},
    ): Promise<Program & { port: string }> {
      const openBefore = api.openWatches;
      const program = await world.launch([], settings, on);
      await until(() => api.openWatches > openBefore, "the program watches", 30_000);
      return program;
    },
    async launch(args: string[] = [], settings: Record<string, string> = {}, on = runtime) {
      const port = `${await findPort()}`;
      const program = await startProgram(on, { PORT: port, ...env, ...settings }, args);
      programs.push(program);
      return { ...program, port };
    },
    /** Makes a Secret for an identity, bound to the controller, as users do. */
    create(
      identity: string,
      name = "pull",
      namespace = "team",
      annotations: Record<string, string> = {},
    ): void {
      if (!issuer.bindings.has(identity)) issuer.bind(identity, api.issuer, ...OWN);
      const metadata = { namespace, name, labels: { [IDENTITY]: "" } };
      const stringData = { ".dockerconfigjson": '{"auths":{}}' };
      const all = { [IDENTITY]: identity, ...annotations };
      api.createSecret({ metadata: { ...metadata, annotations: all }, type: TYPE, stringData });
    },
    /** The token in a Secret. */
    token(name = "pull", namespace = "team"): string | undefined {
      return tokenOf(api.secret(namespace, name)?.data);
    },
    filled: (count: number) => api.secrets().filter(({ data }) => tokenOf(data)).length === count,
    /** Ends everything, and looks through what was told. */
    async end(): Promise<void> {
      for (const program of programs) program.kill("SIGKILL");
      await Promise.all(programs.map(({ exited }) => exited));
      await api.close();
      await issuer.close();
      rmSync(folder, { recursive: true });
      const tokens = [...secretTexts, ...issuer.exchanges.flatMap(({ token }) => token ?? [])];
      const told = programs.flatMap(({ lines, stdout }) => [...lines, ...stdout().split("\n")]);
      const events = api.events().map((event) => JSON.stringify(event));
      const found = findToken([...told, ...events].join("\n"), tokens);
      assertEquals(found, undefined, `a part of a token is told: ${found}`);
      for (const line of told) {
        assert(!CONTROLS.test(line), `a control character is told: ${JSON.stringify(line)}`);
      }
    },
  };
  return world;
}

/** How late timers came here, in ms: what a busy machine adds to each time that is measured. */
let lateness = 0;
let tickedAt = performance.now();
setInterval(() => {
  const at = performance.now();
  lateness += Math.max(0, at - tickedAt - 30);
  tickedAt = at;
}, 20).unref();

async function exit(program: Program, signal: NodeJS.Signals, ms = 2_000): Promise<void> {
  const startedAt = performance.now();
  program.kill(signal);
  const status = await Promise.race([program.exited, sleep(ms, "nothing", { ref: false })]);
  assertEquals(status, 0, `${signal}: ${status} after ${performance.now() - startedAt} ms`);
}

/** At most two requests a second, over any ten seconds. */
function assertRate(times: number[], what: string): void {
  const sorted = times.toSorted((a, b) => a - b);
  for (let index = 0; index + 20 < sorted.length; index++) {
    const span = sorted[index + 20]! - sorted[index]!;
    assert(span >= 10_000, `${what}: 21 within ${span} ms`);
  }
}

function assertWatchRate({ api }: World, program: Program): void {
  const watching = api.requests.filter(({ verb }) => verb === "list" || verb === "watch");
  assertRate(watching.map(({ time }) => time), "lists and watches");
  const failures = program.log().filter(({ msg }) => msg === "watch failed");
  assertRate(failures.map(({ time }) => Date.parse(time)), "failed lists and watches");
}

async function fetchText(port: string, path: string): Promise<{ status?: number; text: string }> {
  const [response] = await once(get(`http://127.0.0.1:${port}${path}`), "response");
  let text = "";
  for await (const chunk of response) text += chunk;
  return { status: response.statusCode, text };
}

// Scenarios run side by side, those that measure a time first and alone. Deno runs the tests one after the other: there
// the first of them starts all scenarios.

type Kind = "alone" | "waiting" | "busy";

const scenarios: (() => Promise<void>)[] = [];
const alone: Promise<unknown>[] = [];
const queue: (() => void)[] = [];
let busy = 0;

function scenario(
  title: string,
  kind: Kind,
  run: (runtime: Runtime) => Promise<void>,
  skip?: string,
): void {
  add(title, kind, () => run(RUNTIME), skip);
}

function add(title: string, kind: Kind, run: () => Promise<void>, skip?: string): void {
  let outcome: Promise<void> | undefined;
  const start = () => outcome ??= enqueue(kind, run);
  if (!skip) scenarios.push(start);
  test(title, { timeout: 100_000, skip: skip ?? false }, async () => {
    if (process.versions.deno) { for (const each of scenarios) each().catch(() => {}); }
    await start();
  });
}

async function enqueue(kind: Kind, run: () => Promise<void>): Promise<void> {
  const before = [...alone];
  if (kind === "alone") {
    const turn = Promise.allSettled(before).then(run);
    alone.push(turn);
    return await turn;
  }
  await Promise.allSettled(before);
  if (kind === "waiting") return await run();
  if (busy >= MAX_BUSY) await new Promise<void>((done) => queue.push(done));
  else busy++;
  try {
    await run();
  } finally {
    const next = queue.shift();
    if (next) next();
    else busy--;
  }
}

/** A scenario within a world of its own. */
function inWorld(
  options: WorldOptions,
  run: (world: World) => Promise<void>,
): (runtime: Runtime) => Promise<void> {
  return async (runtime) => {
    const world = await makeWorld(runtime, options);
    try {
      await run(world);
    } finally {
      await world.end();
    }
  };
}

describe("the program", { concurrency: 1_000 }, () => {
  scenario(
    "fills a labelled Secret within a second of its creation, with one exchange and one patch",
    "alone",
    inWorld({}, async (world) => {
      const { api, issuer } = world;
      const program = await world.start();
      world.create(uid(1));
      lateness = 0;
      const took = await until(() => world.filled(1), "the Secret is filled");
      assert(took <= 1_000 + lateness, `it took ${took} ms`);
      assertEquals(issuer.exchanges.map(({ token }) => token), [world.token()]);
      const { annotations, uid: secretUid } = api.secret("team", "pull")!.metadata;
      const { expiresAt = 0 } = decode(world.token()!) ?? {};
      assertEquals(annotations?.[`${PREFIX}/token-identity`], uid(1));
      assertEquals(Date.parse(`${annotations?.[`${PREFIX}/token-expires`]}`), expiresAt);
      await until(() => api.events("team").length === 1, "there is an event");
      const [{ reason, type, regarding, reportingController, action } = {}] = api.events(
        "team",
      ) as {
        [field: string]: unknown;
      }[];
      assertEquals([reason, type, action], ["TokenIssued", "Normal", "Refresh"]);
      assertEquals(reportingController, `${PREFIX}/controller`);
      assertEquals(regarding, {
        apiVersion: "v1",
        kind: "Secret",
        namespace: "team",
        name: "pull",
        uid: secretUid,
      });
      assertEquals([api.count("patch"), issuer.count("exchange")], [1, 1]);
      for (const { headers } of [...api.requests, ...issuer.requests]) {
        assertMatch(`${headers["user-agent"]}`, /^pull-secret-updater\/\d/);
      }
      await exit(program, "SIGTERM");
      assert(
        program.log().some(({ msg, level, name }) =>
          msg === "token written" && level === "info" && name === "pull"
        ),
      );
    }),
  );

  scenario(
    "never lets a token of 12 s expire, and writes once for each of their lives",
    "waiting",
    inWorld({ life: 12 }, async (world) => {
      await world.start();
      await followLives(world, 30_000);
      const patches = world.api.count("patch");
      assertEquals(
        patches,
        world.api.requests.filter(({ verb, status }) => verb === "patch" && status === 200).length,
      );
      assertEquals(
        world.issuer.count("exchange"),
        new Set(world.issuer.exchanges.map(({ token }) => token)).size,
      );
    }),
  );

  add(
    "never lets a token expire with a replica on each runtime, of which one is killed",
    "waiting",
    () =>
      inWorld({ life: 12 }, async (world) => {
        const [first] = await Promise.all([world.start("node"), world.start("deno")]);
        const lives = followLives(world, 30_000);
        await sleep(14_000);
        first.kill("SIGKILL");
        await lives;
        const accepted = world.api.requests.filter(({ verb, status }) =>
          verb === "patch" && status === 200
        ).length;
        const all = world.api.count("patch");
        assert(all <= accepted * 1.5, `${all} patches, of which ${accepted} were accepted`);
      })("node"),
  );

  /** Looks at six Secrets of three identities all the time. */
  async function followLives(world: World, ms: number): Promise<void> {
    const names = [0, 1, 2, 3, 4, 5].map((index) => `pull-${index}`);
    for (const [index, name] of names.entries()) world.create(uid(index % 3), name);
    await until(() => world.filled(names.length), "all are filled");
    const held = new Map(names.map((name) => [name, [] as string[]]));
    const latenessBefore = new Map(names.map((name) => [name, lateness]));
    const end = performance.now() + ms;
    while (performance.now() < end) {
      for (const [name, tokens] of held) {
        const token = world.token(name);
        assert(token, `${name} is empty`);
        const claims = decode(token)!;
        assert(claims.expiresAt > Date.now(), `${name} holds an expired token`);
        const last = tokens.at(-1);
        if (token === last) continue;
        tokens.push(token);
        if (last === undefined) continue;
        const { issuedAt = 0, expiresAt } = decode(last)!;
        const share = (Date.now() - issuedAt) / (expiresAt - issuedAt);
        const late = (lateness - latenessBefore.get(name)!) / (expiresAt - issuedAt);
        latenessBefore.set(name, lateness);
        assert(share >= 0.6 && share <= 0.9 + late, `${name} was refreshed at ${share} of a life`);
      }
      await sleep(20);
    }
    for (const [name, tokens] of held) {
      assert(tokens.length >= 3, `${name} held ${tokens.length} tokens`);
      const path = new RegExp(`/${name}$`);
      const accepted = world.api.requests.filter((each) =>
        path.test(each.path) && each.status === 200
      );
      assertEquals(accepted.filter(({ verb }) => verb === "patch").length, tokens.length, name);
    }
  }

  const watchFaults: [what: string, inject: (world: World) => void][] = [
    [
      "is cut in the midst of a line",
      ({ api }) => api.faults.add({ verb: "watch", times: Infinity, cut: 0.5 }),
    ],
    [
      "closes after 50 ms each time",
      ({ api }) => api.faults.add({ verb: "watch", times: Infinity, close: 50 }),
    ],
    [
      "sends garbage",
      ({ api }) => api.faults.add({ verb: "watch", times: Infinity, lines: ["{garbage\n"] }),
    ],
    ["answers 410", ({ api }) => api.faults.add({ verb: "watch", times: Infinity, status: 410 })],
    ["answers 403", ({ api }) => api.faults.add({ verb: "watch", times: Infinity, status: 403 })],
    ...([410, 429, 500] as const).map((code): [string, (world: World) => void] => [
      `sends an ERROR of ${code}`,
      ({ api }) =>
        api.faults.add({ verb: "watch", times: Infinity, lines: [errorEvent(code)], close: 0 }),
    ]),
  ];
  for (const [what, inject] of watchFaults) {
    scenario(
      `misses no Secret and does not spin while the watch ${what}`,
      "waiting",
      inWorld({}, async (world) => {
        const { api, issuer } = world;
        const program = await world.start();
        world.create(uid(1), "before");
        await until(() => world.filled(1), "the first is filled");
        inject(world);
        api.cutWatches();
        for (const name of ["one", "two", "three"]) {
          await sleep(3_500);
          world.create(uid(1), name);
        }
        api.faults.clear();
        await until(() => world.filled(4), "all are filled", 12_000);
        assertEquals([api.count("patch"), issuer.count("exchange")], [4, 1]);
        assertWatchRate(world, program);
        const deleted = "no timer is left";
        api.deleteSecret("team", "one");
        await until(() => api.openWatches === 1, "it watches again", 12_000);
        world.create(uid(2), deleted.replaceAll(" ", "-"));
        await until(() => world.filled(4), "a watch that works is quick");
      }),
    );
  }

  scenario(
    "sees within seconds what happened while the API server was gone for ten seconds",
    "waiting",
    inWorld({}, async (world) => {
      const { api, issuer } = world;
      const program = await world.start();
      world.create(uid(1), "before");
      world.create(uid(1), "deleted-meanwhile");
      await until(() => world.filled(2), "they are filled");
      await api.refuse();
      world.create(uid(1), "meanwhile");
      api.deleteSecret("team", "deleted-meanwhile");
      await sleep(10_000);
      await api.accept();
      const took = await until(() => world.filled(2), "the new one is filled", 8_000);
      assert(took <= 6_500, `it took ${took} ms`);
      assertEquals([api.count("patch"), issuer.count("exchange")], [3, 1]);
      assertWatchRate(world, program);
      const { text } = await fetchText(program.port, "/metrics");
      assertStringIncludes(text, 'pull_secret_updater_secrets{state="valid"} 2');
      assertEquals((await fetchText(program.port, "/healthz")).status, 200);
    }),
  );

  scenario(
    "keeps the old token while the issuer fails for a time, and recovers by itself",
    "waiting",
    inWorld({ life: 14 }, async (world) => {
      const { api, issuer } = world;
      const elsewhere = await startElsewhere();
      const faults: Record<string, IssuerFault> = {
        internal: { status: 500 },
        unavailable: { status: 503 },
        html: { status: 502, body: "<html>a proxy's page</html>" },
        redirect: { status: 307, headers: { location: `${elsewhere.url}/sts/exchange` } },
        reset: { reset: true },
        large: { body: "x".repeat(5 * MIB) },
        hang: { hang: true },
      };
      await world.start();
      const names = Object.keys(faults);
      for (const [index, name] of names.entries()) world.create(uid(index), name);
      await until(() => world.filled(names.length), "all are filled");
      const held = new Map(names.map((name) => [name, world.token(name)]));
      for (const [index, name] of names.entries()) {
        issuer.faults.add({ ...faults[name], match: isFor(uid(index)), times: Infinity });
      }
      issuer.requests.length = 0;
      // They are due at 0.67 of 14 s.
      await until(
        () => names.every((_, index) => issuer.requests.some(isFor(uid(index)))),
        "all were due",
        12_000,
      );
      await sleep(2_000);
      for (const [name, token] of held) assertEquals(world.token(name), token, name);
      for (const index of names.keys()) {
        const tries = issuer.requests.filter(isFor(uid(index))).length;
        assert(tries <= 5, `${names[index]}: ${tries} tries`);
      }
      issuer.faults.clear();
      const isNew = () => names.every((name) => world.token(name) !== held.get(name));
      await until(isNew, "all have recovered", 12_000);
      await until(() => {
        const told = api.events("team").map((event) =>
          (event as { regarding?: { name?: string } }).regarding?.name
        );
        return told.length > names.length;
      }, "failures are told");
      assertEquals(elsewhere.requests, []);
      elsewhere.close();
    }),
  );

  scenario(
    "keeps the old token while the issuer refuses, says what to do, and recovers when asked to",
    "waiting",
    inWorld({ life: 14 }, async (world) => {
      const { api, issuer } = world;
      const now = Math.floor(Date.now() / 1000);
      const echo = ({ headers }: LoggedRequest) => ({
        code: 16,
        message: `no: ${headers.authorization}`,
      });
      const faults: Record<string, IssuerFault> = {
        unauthenticated: { status: 401 },
        forbidden: { status: 403 },
        "not-found": { status: 404 },
        hostile: { status: 400, body: { code: 3, message: HOSTILE } },
        echo: { status: 401, body: echo },
        "empty-token": { token: "" },
        "html-200": { status: 200, body: "<html>a proxy's page</html>" },
        audience: { claims: { aud: "other" } },
        expired: { claims: { iat: now - 7200, exp: now - 3600 } },
        another: { claims: { sub: uid(99) } },
      };
      await world.start();
      const names = Object.keys(faults);
      for (const [index, name] of names.entries()) world.create(uid(index), name, `team-${index}`);
      await until(() => world.filled(names.length), "all are filled");
      const token = (name: string) => world.token(name, `team-${names.indexOf(name)}`);
      const held = new Map(names.map((name) => [name, token(name)]));
      for (const [index, name] of names.entries()) {
        issuer.faults.add({ ...faults[name], match: isFor(uid(index)), times: Infinity });
      }
      issuer.requests.length = 0;
      await until(
        () => names.every((_, index) => issuer.requests.some(isFor(uid(index)))),
        "all were due",
        12_000,
      );
      await sleep(2_000);
      for (const [name, token] of held) {
        const index = names.indexOf(name);
        assertEquals(world.token(name, `team-${index}`), token, name);
        assertEquals(
          issuer.requests.filter(isFor(uid(index))).length,
          1,
          `${name} is left alone for a while`,
        );
        const note = noteOf(world, `team-${index}`, "ExchangeFailed");
        assert(note !== undefined, `${name} is told`);
        assert(!CONTROLS.test(note), JSON.stringify(note));
        if (!["unauthenticated", "forbidden"].includes(name)) continue;
        for (
          const part of [
            `sub=system:serviceaccount:${OWN.join(":")}`,
            `aud=${issuer.audience}`,
            `iss=${api.issuer}`,
          ]
        ) {
          assertStringIncludes(note, part);
        }
        assertStringIncludes(note, "chainctl iam identities create");
      }
      issuer.faults.clear();
      for (const [index, name] of names.entries()) {
        api.patchSecret(`team-${index}`, name, {
          metadata: { annotations: { [`${PREFIX}/refresh`]: "1" } },
        });
      }
      await until(
        () => names.every((name) => token(name) !== held.get(name)),
        "all have recovered",
      );
      for (const [index, name] of names.entries()) {
        assertEquals(
          api.secret(`team-${index}`, name)?.metadata.annotations?.[`${PREFIX}/refresh`],
          undefined,
        );
      }
    }),
  );

  scenario(
    "asks the issuer for nothing at all until Retry-After is over",
    "busy",
    inWorld({}, async (world) => {
      const { issuer } = world;
      const program = await world.start();
      issuer.faults.add({ status: 429, headers: { "retry-after": "3" } });
      world.create(uid(1), "one");
      await until(() => program.lines.some((line) => line.includes("429")), "it was told to wait");
      world.create(uid(2), "two");
      await until(() => world.filled(2), "both are filled", 8_000);
      const [first, ...others] = issuer.requests.map(({ time }) => time);
      assertEquals(others.length, 2);
      for (const time of others) {
        assert(time - first! >= 2_950, `asked again after ${time - first!} ms`);
      }
    }),
  );

  scenario(
    "exchanges once for 200 Secrets of one identity, which all get the same token",
    "busy",
    inWorld({}, async (world) => {
      const { api, issuer } = world;
      await world.start();
      for (let index = 0; index < 200; index++) {
        world.create(uid(1), `pull-${index}`, `team-${index % 7}`);
      }
      await until(() => world.filled(200), "all are filled", 20_000);
      assertEquals(new Set(api.secrets().map(({ data }) => tokenOf(data))).size, 1);
      assertEquals([issuer.count("exchange"), api.count("patch")], [1, 200]);
    }),
  );

  scenario(
    "exchanges once for each of 20 identities, and mixes none up",
    "busy",
    inWorld({}, async (world) => {
      const { api, issuer } = world;
      await world.start();
      for (let index = 0; index < 40; index++) world.create(uid(index % 20), `pull-${index}`);
      await until(() => world.filled(40), "all are filled", 30_000);
      assertEquals([issuer.count("exchange"), api.count("patch")], [20, 40]);
      for (const { data, metadata } of api.secrets()) {
        assertEquals(decode(tokenOf(data)!)?.subject, metadata.annotations?.[IDENTITY]);
      }
    }),
  );

  scenario(
    "neither exchanges nor writes when it starts anew among valid tokens",
    "busy",
    inWorld({}, async (world) => {
      const { api, issuer } = world;
      const first = await world.start();
      for (let index = 0; index < 20; index++) world.create(uid(index), `pull-${index}`);
      await until(() => world.filled(20), "all are filled", 30_000);
      await exit(first, "SIGTERM");
      api.requests.length = issuer.requests.length = 0;
      await until(() => api.openWatches === 0, "the watch is closed");
      const second = await world.start();
      await sleep(1_500);
      assertEquals([issuer.requests.length, api.count("patch"), api.count("create")], [0, 0, 0]);
      await exit(second, "SIGTERM");
    }),
  );

  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    scenario(
      `ends with exit status 0 within two seconds of ${signal}, during a watch and a hanging exchange`,
      "busy",
      inWorld({}, async (world) => {
        const { api, issuer } = world;
        const program = await world.start();
        issuer.faults.add({ hang: true });
        world.create(uid(1));
        await until(() => issuer.count("exchange") === 1, "the exchange is under way");
        await exit(program, signal);
        await until(() => api.openWatches === 0, "the watch is closed");
        assertEquals(api.count("patch"), 0);
      }),
    );
  }

  scenario(
    "retries while token files are missing or expired, says so, and recovers",
    "busy",
    inWorld({}, async (world) => {
      const { api, issuer } = world;
      const [apiToken = "", subjectToken = ""] = world.secretTexts;
      rmSync(world.file("token"));
      rmSync(world.file("oidc-token"));
      const program = await world.launch();
      const tells = (text: string) => () => program.lines.some((line) => line.includes(text));
      await until(tells(world.file("token")), "the log names the API server's token file");
      writeFileSync(world.file("token"), apiToken);
      await until(() => api.openWatches === 1, "it watches");
      world.create(uid(1));
      await until(tells(world.file("oidc-token")), "the log names the subject token's file");
      await until(() => noteOf(world, "team", "ExchangeFailed") !== undefined, "an event tells");
      const expired = await api.serviceAccountToken(...OWN, issuer.audience, -10);
      world.secretTexts.push(expired);
      writeFileSync(world.file("oidc-token"), expired);
      await until(tells("kubelet has not renewed it"), "the log tells of the expiry");
      assertEquals(issuer.requests.length, 0);
      writeFileSync(world.file("oidc-token"), subjectToken);
      await until(() => world.filled(1), "the Secret is filled", 9_000);
      await until(
        () => noteOf(world, "team", "TokenIssued") !== undefined,
        "an event tells of the recovery",
      );
    }),
  );

  scenario(
    "lists again when `continue` has expired, and reads its token anew on a 401",
    "busy",
    inWorld({}, async (world) => {
      const { api } = world;
      for (let index = 0; index < 252; index++) {
        const metadata = { namespace: "many", name: `opaque-${index}`, labels: { [IDENTITY]: "" } };
        api.createSecret({ metadata });
      }
      const match = ({ query }: ApiRequest) => query.has("continue");
      api.faults.add({ verb: "list", match: match as Fault["match"], status: 410 });
      const program = await world.start();
      const { text } = await fetchText(program.port, "/metrics");
      assertStringIncludes(text, 'pull_secret_updater_secrets{state="skipped"} 252');
      assertEquals(api.count("list"), 4);
      api.requests.length = 0;
      api.faults.add({ verb: "watch", status: 401 });
      const next = await api.serviceAccountToken(...OWN, api.issuer, 3000);
      world.secretTexts.push(next);
      writeFileSync(world.file("token"), next);
      api.endWatches();
      await until(() => api.count("watch") === 2 && api.openWatches === 1, "it watches again");
      assertEquals(api.requests.at(-1)?.headers.authorization, `Bearer ${next}`);
      // At most a look whether etcd was restored meanwhile: nothing is listed anew.
      const limits = api.requests.filter(({ verb }) => verb === "list").map(({ query }) =>
        query.get("limit")
      );
      assert(limits.every((limit) => limit === "1"), limits.join());
      world.create(uid(1));
      await until(() => world.filled(1), "the new one is filled");
    }),
  );

  scenario(
    "writes the token in hand after a patch has failed, and never exchanges again for it",
    "busy",
    inWorld({}, async (world) => {
      const { api, issuer } = world;
      await world.start();
      const faults: Record<string, Fault> = {
        conflict: { status: 409, times: 2 },
        "too-many": { status: 429, headers: { "retry-after": "2" } },
        internal: { status: 500, times: 2 },
        reset: { reset: true },
        "lost-answer": { cut: 0 },
        forbidden: { status: 403 },
        "not-found": { status: 404 },
        invalid: {
          status: 422,
          body: ({ body }) => ({ kind: "Status", code: 422, message: `patch: ${body}` }),
        },
        hostile: {
          status: 500,
          body: { kind: "Status", code: 500, message: HOSTILE, reason: HOSTILE },
        },
      };
      const names = Object.keys(faults);
      const patches = (name: string) =>
        api.requests.filter((each) => each.verb === "patch" && each.name === name);
      for (const [name, fault] of Object.entries(faults)) {
        api.faults.add({ verb: "patch", path: new RegExp(`/${name}$`), ...fault });
      }
      for (const name of names) world.create(uid(1), name);
      const lasting = ["forbidden", "invalid"];
      await until(
        () => world.filled(names.length - lasting.length),
        "what passes has passed",
        8_000,
      );
      assertEquals(lasting.map((name) => patches(name).length), [1, 1]);
      const [first, second] = patches("too-many").map(({ time }) => time);
      assert(second! - first! >= 1_950, `patched again after ${second! - first!} ms`);
      // Refusals are left alone for long, unless a user asks.
      for (const name of lasting) {
        api.patchSecret("team", name, {
          metadata: { annotations: { [`${PREFIX}/refresh`]: "now" } },
        });
      }
      await until(() => world.filled(names.length), "all are filled");
      assertEquals(new Set(names.map((name) => world.token(name))).size, 1);
      assertEquals(issuer.count("exchange"), 1);
      assertEquals([
        patches("conflict").length,
        patches("internal").length,
        patches("lost-answer").length,
      ], [3, 3, 1]);
      api.faults.add({ verb: "patch", path: /deleted$/, delay: 300 });
      world.create(uid(1), "deleted");
      await until(() => patches("deleted").length === 1, "the patch is under way");
      api.deleteSecret("team", "deleted");
      await sleep(2_500);
      assertEquals([patches("deleted").length, issuer.count("exchange")], [1, 1]);
    }),
  );

  scenario(
    "uses the service account that a Secret names, and no other in its place",
    "busy",
    inWorld({}, async (world) => {
      const { api, issuer } = world;
      for (const account of ["puller", "forbidden"]) api.createServiceAccount("team", account);
      for (const index of [1, 2, 3]) issuer.bind(uid(index), api.issuer, "team", "puller");
      api.authorize = ({ subresource, name }) => subresource !== "token" || name !== "forbidden";
      await world.start();
      const accounts = { right: "puller", denied: "forbidden", none: "nobody" };
      for (const [index, [name, account]] of Object.entries(accounts).entries()) {
        world.create(uid(index + 1), name, "team", { [`${PREFIX}/service-account`]: account });
      }
      await until(() => world.filled(1), "the one is filled");
      assertEquals(decode(world.token("right")!)?.actor, "system:serviceaccount:team:puller");
      await until(() => api.events("team").length === 3, "all is told");
      assertEquals(issuer.exchanges.map(({ identity, subject }) => [identity, subject?.sub]), [
        [uid(1), "system:serviceaccount:team:puller"],
      ]);
      const [request] = api.requests.filter(({ subresource, name }) =>
        subresource === "token" && name === "puller"
      );
      assertEquals(JSON.parse(request!.body).spec, {
        audiences: [issuer.audience],
        expirationSeconds: 600,
      });
    }),
  );

  scenario(
    "asks only for the namespaces that WATCH_NAMESPACES names",
    "busy",
    inWorld({ settings: { WATCH_NAMESPACES: "one, two" } }, async (world) => {
      const { api } = world;
      await world.start();
      await until(() => api.openWatches === 2, "it watches both");
      for (const namespace of ["one", "two", "three"]) world.create(uid(1), "pull", namespace);
      await until(() => world.filled(2), "two are filled");
      for (const { path } of api.requests) assertMatch(path, /\/namespaces\/(one|two)\//);
      assertEquals(world.token("pull", "three"), undefined);
    }),
  );

  scenario(
    "sends no token to KUBERNETES_API on plain http",
    "busy",
    inWorld({ plain: true }, async (world) => {
      const { api, issuer } = world;
      await world.start();
      world.create(uid(1));
      await until(() => world.filled(1), "the Secret is filled");
      for (const { headers } of api.requests) assertEquals(headers.authorization, undefined);
      assertEquals(issuer.count("exchange"), 1);
    }),
  );

  scenario(
    "sends its token to KUBERNETES_API on https, and verifies it by the CA beside it",
    "busy",
    inWorld({}, async (world) => {
      const { api } = world;
      await world.start(world.runtime, {
        KUBERNETES_API: api.url,
        KUBERNETES_SERVICE_HOST: "192.0.2.1",
      });
      world.create(uid(1));
      await until(() => world.filled(1), "the Secret is filled");
      for (const { headers } of api.requests) {
        assertEquals(headers.authorization, `Bearer ${world.secretTexts[0]}`);
      }
    }),
  );

  scenario(
    "shows nothing hostile of what Secrets hold in its log and events, and leaves them alone",
    "busy",
    inWorld({}, async (world) => {
      const { api, issuer } = world;
      const program = await world.start();
      const metadata = {
        namespace: "team",
        labels: { [IDENTITY]: "" },
        annotations: { [IDENTITY]: uid(1) },
      };
      const text = JSON.stringify({ auths: [HOSTILE] });
      const annotations = { [IDENTITY]: HOSTILE };
      api.createSecret({
        metadata: { ...metadata, name: "identity", annotations },
        type: TYPE,
        stringData: config(),
      });
      api.createSecret({ metadata: { ...metadata, name: "opaque" }, type: `x/y${HOSTILE}` });
      api.createSecret({
        metadata: { ...metadata, name: "immutable" },
        type: TYPE,
        stringData: config(),
        immutable: true,
      });
      api.createSecret({
        metadata: { ...metadata, name: "broken" },
        type: TYPE,
        stringData: config(text),
      });
      const record = {
        type: "ADDED",
        object: {
          metadata: { ...metadata, name: HOSTILE, uid: "u", resourceVersion: api.resourceVersion },
        },
      };
      api.sendToWatches(record);
      await until(
        () => program.lines.filter((line) => line.includes('"warn"')).length >= 5,
        "all is logged",
      );
      await until(() => api.events("team").length >= 4, "all is told");
      assertEquals([issuer.requests.length, api.count("patch")], [0, 0]);
      const reasons = Object.fromEntries(
        api.events("team").map((event) => {
          const { regarding: { name } = {}, reason } = event as {
            regarding?: { name?: string };
            reason?: string;
          };
          return [name, reason];
        }),
      );
      assertEquals(reasons.identity, "InvalidIdentity");
      assertEquals([reasons.opaque, reasons.immutable], ["UnsupportedSecret", "UnsupportedSecret"]);
      assertEquals(reasons.broken, "InvalidDockerConfig");
      for (const event of api.events("team")) {
        assert(!CONTROLS.test(`${(event as { note?: string }).note}`));
      }
      for (const line of program.lines) JSON.parse(line);
    }),
  );

  scenario(
    "serves /healthz, /readyz and /metrics, and nothing else",
    "busy",
    inWorld({}, async (world) => {
      const { api } = world;
      api.faults.add({ verb: "list", hang: true });
      const program = await world.launch();
      await until(() => api.count("list") === 1, "it lists");
      await untilServed(program.port);
      assertEquals((await fetchText(program.port, "/healthz")).status, 200);
      assertEquals((await fetchText(program.port, "/readyz")).status, 503);
      const other = await world.start();
      world.create(uid(1));
      await until(() => world.filled(1), "the Secret is filled");
      assertEquals((await fetchText(other.port, "/readyz")).status, 200);
      for (const path of ["/", "/metrics/", "/metrics.txt", "/debug"]) {
        assertEquals((await fetchText(other.port, path)).status, 404, path);
      }
      const { status, text } = await fetchText(other.port, "/metrics");
      assertEquals(status, 200);
      const samples = [
        'secrets{state="valid"} 1',
        'token_expiry_timestamp_seconds{namespace="team",name="pull"} ',
        'refreshes_total{result="success"} 1',
        "exchange_duration_seconds_sum ",
        "exchange_duration_seconds_count 1",
        'api_requests_total{verb="patch",code="200"} 1',
        "build_info{",
      ];
      for (const sample of samples) assertStringIncludes(text, `\npull_secret_updater_${sample}`);
    }),
  );

  scenario(
    "has metrics that promtool has nothing against",
    "busy",
    inWorld({}, async (world) => {
      const { api, issuer } = world;
      const program = await world.start();
      issuer.faults.add({ status: 500 });
      issuer.faults.add({ status: 403 });
      api.faults.add({ verb: "patch", status: 409 });
      api.faults.add({ verb: "watch", status: 410 });
      for (let index = 0; index < 30; index++) {
        world.create(index === 7 ? "none" : uid(index % 4), `pull-${index}`);
      }
      api.cutWatches();
      await until(() => api.openWatches === 1, "it watches again");
      await until(() => api.count("patch") > 10, "it has written");
      const { text } = await fetchText(program.port, "/metrics");
      const answer = await new Promise<string>((done) => {
        const child = execFile("promtool", ["check", "metrics"], (error, stdout, stderr) => {
          done(`${error?.code ?? 0} ${stdout}${stderr}`.trim());
        });
        child.stdin?.end(text);
      });
      assertEquals(answer, "0", text);
    }),
    hasPromtool ? undefined : "promtool is not installed",
  );

  scenario(
    "ends with exit status 2 and one line that names variable and value where the configuration is bad",
    "busy",
    inWorld({}, async (world) => {
      const bad: [settings: Record<string, string>, shown: string[], hidden?: string][] = [
        [{ KUBERNETES_SERVICE_HOST: "" }, ["KUBERNETES_SERVICE_HOST"]],
        [{ KUBERNETES_SERVICE_PORT: "70000" }, ["KUBERNETES_SERVICE_PORT", "70000"]],
        [{ KUBERNETES_API: "http://cluster.example" }, [
          "KUBERNETES_API",
          "http://cluster.example",
        ]],
        [
          { KUBERNETES_API: "https://user:pass-word@cluster.example" },
          ["KUBERNETES_API"],
          "pass-word",
        ],
        [{ ISSUER_URL: "http://issuer.example" }, ["ISSUER_URL", "http://issuer.example"]],
        [{ ISSUER_URL: "https://issuer.example/?a=b" }, [
          "ISSUER_URL",
          "https://issuer.example/?a=b",
        ]],
        [{ HTTPS_PROXY: "socks5://proxy.example" }, ["HTTPS_PROXY", "socks5://proxy.example"]],
        [{ AUDIENCE: "a b" }, ["AUDIENCE", "a b"]],
        [{ REGISTRIES: "cgr.dev,https://cgr.dev" }, ["REGISTRIES", "cgr.dev,https://cgr.dev"]],
        [{ WATCH_NAMESPACES: "team,Team" }, ["WATCH_NAMESPACES", "team,Team"]],
        [{ PORT: "0" }, ["PORT", '"0"']],
        [{ LOG_LEVEL: "verbose" }, ["LOG_LEVEL", "verbose", "debug"]],
        [{ LOG_LEVEL: HOSTILE }, ["LOG_LEVEL", "red"]],
      ];
      await Promise.all(bad.map(async ([settings, shown, hidden]) => {
        const program = await world.launch([], settings);
        await assertRefused(program, shown);
        if (hidden) assert(!program.lines[0]!.includes(hidden), program.lines[0]);
      }));
      const flags: [args: string[], shown: string][] = [
        [["--unknown"], "--unknown"],
        [["--status=xml"], "--status=xml"],
        [["--help", "--version"], "--version"],
        [["status"], "status"],
        [[HOSTILE], "forged"],
      ];
      await Promise.all(
        flags.map(async ([args, shown]) => assertRefused(await world.launch(args), [shown])),
      );
      assertEquals(world.api.requests, []);
    }),
  );

  async function assertRefused(program: Program, shown: string[]): Promise<void> {
    assertEquals([await program.exited, program.stdout()], [2, ""], program.lines.join("\n"));
    assertEquals(program.lines.length, 1, program.lines.join("\n"));
    for (const part of shown) assertStringIncludes(program.lines[0]!, part);
  }

  scenario(
    "ends with exit status 2 and one line where its port is in use",
    "busy",
    inWorld({}, async (world) => {
      const server = createServer().listen(0);
      await once(server, "listening");
      const { port } = server.address() as AddressInfo;
      const program = await world.launch([], { PORT: `${port}` });
      await assertRefused(program, ["PORT", `${port}`]).finally(() => server.close());
    }),
  );

  scenario(
    "prints its help and its version, whatever the environment",
    "busy",
    inWorld({}, async (world) => {
      const settings = { KUBERNETES_SERVICE_HOST: "", LOG_LEVEL: "verbose" };
      const [help, version] = [
        await world.launch(["--help"], settings),
        await world.launch(["--version"], settings),
      ];
      assertEquals([await help.exited, await version.exited], [0, 0]);
      assertMatch(version.stdout(), /^\d+\.\d+\.\d+\n$/);
      for (const flag of ["--status", "--status=json", "--help", "--version"]) {
        assertStringIncludes(help.stdout(), flag);
      }
      assertEquals([...help.lines, ...version.lines], []);
    }),
  );

  scenario(
    "shows with --status how all Secrets are, without an exchange or a write",
    "busy",
    inWorld({}, async (world) => {
      const { api, issuer } = world;
      async function status(flag = "--status", settings: Record<string, string> = {}) {
        const program = await world.launch([flag], settings);
        return { status: await program.exited, stdout: program.stdout(), lines: program.lines };
      }
      const none = await status();
      assertEquals(none.status, 0);
      assertMatch(none.stdout, /no Secret/i);
      assertEquals([(await status("--status=json")).stdout.trim()], ["[]"]);

      const token = jwt({ sub: uid(1), aud: "cgr.dev", iat: now() - 60, exp: now() + 600 });
      world.secretTexts.push(token);
      createHolding(world, "valid", uid(1), token);
      const valid = await status();
      assertEquals(valid.status, 0, valid.stdout);
      assertMatch(valid.stdout, /^NAMESPACE +NAME +IDENTITY +STATE +EXPIRES IN +PROBLEM\n/);
      assertMatch(valid.stdout, new RegExp(`\nteam +valid +${uid(1)} +valid +(600|59\\d)s\n$`));

      const old = jwt({ sub: uid(2), aud: "cgr.dev", iat: now() - 600, exp: now() - 60 });
      createHolding(world, "expired", uid(2), old);
      world.create(uid(3), "missing");
      world.create(HOSTILE, "hostile");
      api.createSecret({
        metadata: {
          namespace: "team",
          name: "opaque",
          labels: { [IDENTITY]: uid(4).replace("/", ".") },
        },
      });
      const table = await status();
      assertEquals(table.status, 1);
      const json = await status("--status=json");
      assertEquals(json.status, 1);
      const rows: Record<string, string>[] = JSON.parse(json.stdout);
      const states = Object.fromEntries(rows.map(({ name, state }) => [name, state]));
      const expected = {
        valid: "valid",
        expired: "expired",
        missing: "missing",
        hostile: "skipped",
        opaque: "skipped",
      };
      assertEquals({ ...expected, ...states }, expected);
      for (const { name, problem } of rows) {
        assertEquals(problem !== "", name !== "valid", `${name}: ${problem}`);
      }
      assertEquals(table.stdout.split("\n").length, rows.length + 2);

      api.authorize = () => "not for you";
      const forbidden = await status();
      assertEquals([forbidden.status, forbidden.stdout, forbidden.lines.length], [3, "", 1]);
      await api.refuse();
      const gone = await status();
      assertEquals([gone.status, gone.stdout, gone.lines.length], [3, "", 1]);
      assertEquals((await status("--status", { LOG_LEVEL: "verbose" })).status, 2);
      const methods = new Set(api.requests.map(({ verb }) => verb));
      assertEquals([[...methods], issuer.requests.length], [["list"], 0]);
    }),
  );

  scenario(
    "shows with --status nothing hostile of names that the API server sends",
    "busy",
    inWorld({}, async (world) => {
      const metadata = {
        namespace: "team",
        name: HOSTILE,
        uid: "u",
        resourceVersion: "1",
        labels: { [IDENTITY]: "" },
      };
      const body = { metadata: { resourceVersion: "1" }, items: [{ metadata }] };
      for (const flag of ["--status", "--status=json"]) {
        world.api.faults.add({ status: 200, body });
        const program = await world.launch([flag]);
        assertEquals(await program.exited, 1);
        for (const line of program.stdout().split("\n")) {
          assert(!CONTROLS.test(line), JSON.stringify(line));
        }
      }
      world.api.faults.add({ status: 500, body: { message: HOSTILE } });
      const failed = await world.launch(["--status"]);
      assertEquals([await failed.exited, failed.lines.length], [3, 1]);
    }),
  );
});

const isFor = (identity: string) => ({ body }: { body: string }) =>
  new URLSearchParams(body).get("identity") === identity;
const now = () => Math.floor(Date.now() / 1000);
const config = (text = '{"auths":{}}') => ({ ".dockerconfigjson": text });

function jwt(claims: object): string {
  const part = (value: object) => Buffer.from(JSON.stringify(value)).toString("base64url");
  return `${part({ alg: "RS256" })}.${part(claims)}.c2lnbmF0dXJlLW9mLW5vYm9keQ`;
}

function createHolding({ api }: World, name: string, identity: string, token: string): void {
  const auth = Buffer.from(`_token:${token}`).toString("base64");
  const metadata = {
    namespace: "team",
    name,
    labels: { [IDENTITY]: "" },
    annotations: { [IDENTITY]: identity },
  };
  const text = JSON.stringify({ auths: { "cgr.dev": { auth } } });
  api.createSecret({ metadata, type: TYPE, stringData: config(text) });
}

/** The note of an event on any Secret of a namespace. */
function noteOf({ api }: World, namespace: string, reason: string): string | undefined {
  const events = api.events(namespace) as { reason?: string; note?: string }[];
  return events.find((event) => event.reason === reason)?.note;
}

async function untilServed(port: string): Promise<void> {
  for (let tries = 0; tries < 100; tries++) {
    if (await fetchText(port, "/healthz").then(() => true, () => false)) return;
    await sleep(20);
  }
}

/** Where a redirect points to. */
async function startElsewhere() {
  const requests: string[] = [];
  const server = createServer((request, response) => {
    requests.push(`${request.headers.authorization}`);
    response.end();
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  return { url: `http://127.0.0.1:${port}`, requests, close: () => server.close() };
}
