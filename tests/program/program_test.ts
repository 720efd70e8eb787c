/**
 * The real program as a process of its own, as it ships, on the runtime that runs this, against the stand-ins over
 * loopback HTTPS; the happy path also from source. Whatever a program writes is searched for tokens and control
 * characters when it has ended.
 */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { Buffer } from "node:buffer";
import { execFile, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, get } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import {
  isCounted,
  type Program,
  RUNTIME,
  type Runtime,
  startProgram,
} from "../support/program.ts";
import { type ApiRequest, startApiServer } from "../fake/apiserver.ts";
import { makeAuthority } from "../fake/certificates.ts";
import type { Fault, LoggedRequest } from "../fake/injection.ts";
import { type IssuerFault, startIssuer } from "../fake/issuer.ts";
import { basic, startProxy } from "../fake/proxy.ts";
import { readConfig } from "../../main.ts";
import { decode } from "../../sts.ts";
import { CONTROLS, findToken, HOSTILE } from "../support/leaks.ts";
import { IDENTITY, PREFIX, SECRET_TYPE } from "../support/names.ts";
import { findPort } from "../support/ports.ts";
import { makeJwt, tokenOf, uid } from "../support/secrets.ts";
import { timed, until } from "../support/until.ts";

const OWN = ["pull-secret-updater", "controller"] as const;
/** Scenarios that run at the same time: some of them mostly wait. */
const MAX_BUSY = 4;
/** Longer than anything takes, on a machine that is busy with other things. */
const LONG_MS = 90_000;
/** From the start of the first of them. */
const TIMEOUT_MS = 300_000;

const authority = makeAuthority();
const hasPromtool = !spawnSync("promtool", ["--version"]).error;

interface WorldOptions {
  /** Seconds that tokens live. */
  life?: number;
  /** The API server on plain http, as `kubectl proxy`. */
  plain?: boolean;
  /** The API server's address, which alone is in its certificate. */
  host?: string;
  /** An intermediate CA signs, and alone is trusted; the servers send it too, or do not. */
  intermediate?: "sent" | "not sent";
  settings?: Record<string, string>;
}

type World = Awaited<ReturnType<typeof makeWorld>>;

/** The source, or the program of the manifest with the rights that it has there. */
type Form = "source" | "shipped";

/** A cluster and an issuer, what a Pod would find, and the programs that run in it. */
async function makeWorld(
  form: Form,
  { life = 3600, plain = false, host, intermediate, settings = {} }: WorldOptions = {},
) {
  const signer = intermediate ? authority.makeIntermediate() : authority;
  const issue = (hosts?: string[]) => {
    const { key, cert } = signer.issue(hosts);
    return { key, cert: intermediate === "sent" ? cert + signer.certificate : cert };
  };
  const certificate = plain ? undefined : issue(host === undefined ? undefined : [host]);
  const tokens = plain ? undefined : new Map<string, string>();
  const api = await startApiServer({ certificate, tokens, host });
  const issuer = await startIssuer({ certificate: issue(), keys: api.jwks, life });
  api.createServiceAccount(...OWN);
  const folder = mkdtempSync(join(tmpdir(), "program-test-"));
  const file = (name: string) => join(folder, name);
  const apiToken = await api.serviceAccountToken(...OWN, api.issuer);
  const subjectToken = await api.serviceAccountToken(...OWN, issuer.audience);
  writeFileSync(file("token"), apiToken);
  writeFileSync(file("ca.crt"), signer.certificate);
  writeFileSync(file("oidc-token"), subjectToken);
  const { hostname, port } = new URL(api.url);
  const address: Record<string, string> = plain || host !== undefined
    ? { KUBERNETES_API: api.url }
    : { KUBERNETES_SERVICE_HOST: hostname, KUBERNETES_SERVICE_PORT: port };
  const env: Record<string, string> = {
    ...address,
    SERVICE_ACCOUNT_DIR: folder,
    SUBJECT_TOKEN_FILE: file("oidc-token"),
    NODE_EXTRA_CA_CERTS: file("ca.crt"),
    ISSUER_URL: issuer.url,
    ...settings,
  };
  const programs: Program[] = [];
  /** Those of them that log. */
  const controllers: Program[] = [];
  const secretTexts = [apiToken, subjectToken];

  const world = {
    form,
    api,
    issuer,
    env,
    file,
    /** More tokens that no log may show. */
    secretTexts,
    /** Starts the program, and waits until it watches. */
    async start(
      on: Runtime = RUNTIME,
      settings: Record<string, string> = {},
    ): Promise<Program & { port: string }> {
      const openBefore = api.openWatches;
      const program = await world.launch([], settings, on);
      await until(() => api.openWatches > openBefore, "the program watches", LONG_MS);
      return program;
    },
    async launch(
      args: string[] = [],
      settings: Record<string, string> = {},
      on: Runtime = RUNTIME,
    ) {
      const port = `${await findPort()}`;
      const program = await startProgram(on, { PORT: port, ...env, ...settings }, args, {
        shipped: form === "shipped",
      });
      programs.push(program);
      if (args.length === 0) controllers.push(program);
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
      api.createSecret({
        metadata: { ...metadata, annotations: all },
        type: SECRET_TYPE,
        stringData,
      });
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
      const told = programs.flatMap(({ lines }) => lines);
      const events = api.events().map((event) => JSON.stringify(event));
      const found = findToken([...told, ...events].join("\n"), tokens);
      assertEquals(found, undefined, `a part of a token is told: ${found}`);
      for (const line of told) {
        assert(!CONTROLS.test(line), `a control character is told: ${JSON.stringify(line)}`);
      }
      for (const { lines, warnings } of controllers) {
        for (const line of lines.filter((line) => line.startsWith("{"))) {
          const { level } = JSON.parse(line);
          assertEquals([level, line], [warnings.includes(line) ? "warn" : "info", line]);
        }
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
  const failures = program.log().filter(({ msg }) => msg === "list or watch failed");
  assertRate(failures.map(({ time }) => Date.parse(time)), "failed lists and watches");
}

async function fetchText(port: string, path: string): Promise<{ status?: number; text: string }> {
  const [response] = await once(get(`http://127.0.0.1:${port}${path}`), "response");
  let text = "";
  for await (const chunk of response) text += chunk;
  return { status: response.statusCode, text };
}

const FORMS: Form[] = isCounted ? ["source"] : ["shipped", "source"];

const scenarios: (() => Promise<void>)[] = [];
const queue: (() => void)[] = [];
let busy = 0;

/**
 * Of the program as it ships. Scenarios run side by side; Deno has the tests run one after the other:
 * there the first of them starts all scenarios.
 */
function scenario(
  title: string,
  run: (form: Form) => Promise<void>,
  skip?: string,
): void {
  let outcome: Promise<void> | undefined;
  const start = () => outcome ??= inTurn(() => run(FORMS[0]!));
  if (!skip) scenarios.push(start);
  test(title, { timeout: TIMEOUT_MS, skip: skip ?? false }, async () => {
    if (RUNTIME === "deno") { for (const each of scenarios) each().catch(() => {}); }
    await start();
  });
}

async function inTurn(run: () => Promise<void>): Promise<void> {
  if (busy < MAX_BUSY) busy++;
  else await new Promise<void>((done) => queue.push(done));
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
): (form: Form) => Promise<void> {
  return async (form) => {
    const world = await makeWorld(form, options);
    try {
      await run(world);
    } finally {
      await world.end();
    }
  };
}

// By itself, as it measures a time; what ships and the source.
for (const form of FORMS) {
  test(
    `fills a labelled Secret within a second of its creation, with one exchange and one patch (${form})`,
    { timeout: TIMEOUT_MS },
    () =>
      inWorld({}, async (world) => {
        const { api, issuer } = world;
        const program = await world.start();
        world.create(uid(1));
        lateness = 0;
        const took = await timed(until(() => world.filled(1), "the Secret is filled"));
        assert(took <= 1_000 + lateness, `it took ${took} ms`);
        assertEquals(issuer.exchanges.map(({ token }) => token), [world.token()]);
        const { annotations, uid: secretUid } = api.secret("team", "pull")!.metadata;
        const { expiresAt = 0 } = decode(world.token()!) ?? {};
        assertEquals(annotations?.[`${PREFIX}token-identity`], uid(1));
        assertEquals(Date.parse(`${annotations?.[`${PREFIX}token-expires`]}`), expiresAt);
        await until(() => api.events("team").length === 1, "there is an event");
        const [{ reason, type, regarding, reportingController, action } = {}] = api.events(
          "team",
        ) as {
          [field: string]: unknown;
        }[];
        assertEquals([reason, type, action], ["TokenIssued", "Normal", "Refresh"]);
        assertEquals(reportingController, `${PREFIX}controller`);
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
        assertEquals(program.log().map(({ msg }) => msg), [
          ...["started", "listed", "token written", "stopped"],
        ]);
        assertEquals([program.warnings, program.log()[2]?.name], [[], "pull"]);
      })(form),
  );
}

describe("the program", { concurrency: 1_000 }, () => {
  scenario(
    "never lets a token expire with a replica on each runtime, of which one is killed",
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
    }),
    RUNTIME === "node" ? undefined : "it is the same one, whoever starts it",
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

  scenario(
    "sees within seconds what happened while the API server was gone for ten seconds",
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
      const latenessBefore = lateness;
      const took = await timed(until(() => world.filled(2), "the new one is filled", LONG_MS));
      assert(took <= 6_500 + lateness - latenessBefore, `it took ${took} ms`);
      assertEquals([api.count("patch"), issuer.count("exchange")], [3, 1]);
      assertWatchRate(world, program);
      const valid = async () =>
        (await fetchText(program.port, "/metrics")).text.includes('secrets{state="valid"} 2\n');
      for (let tries = 0; !await valid(); tries++) {
        assert(tries < 100, "the metrics never say so");
        await sleep(50);
      }
      assertEquals((await fetchText(program.port, "/healthz")).status, 200);
    }),
  );

  scenario(
    "keeps the old token while the issuer refuses, says what to do, and recovers by itself",
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
        "block-401": { status: 401, body: "<html>a proxy's page</html>" },
        "block-403": { status: 403, body: "<html>a proxy's page</html>" },
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
        LONG_MS,
      );
      await sleep(2_000);
      for (const [name, token] of held) {
        const index = names.indexOf(name);
        assertEquals(world.token(name, `team-${index}`), token, name);
        const tries = issuer.requests.filter(isFor(uid(index))).length;
        assert(tries <= 4, `${name}: ${tries} tries`);
        const note = noteOf(world, `team-${index}`, "ExchangeFailed");
        assert(note !== undefined, `${name} is told`);
        assert(!CONTROLS.test(note), JSON.stringify(note));
        const isOfSts = ["unauthenticated", "forbidden"].includes(name);
        // Advice to bind the identity belongs to an answer of the STS alone.
        assertEquals(
          note.includes("chainctl iam identities"),
          isOfSts || name === "not-found" || name === "echo",
          note,
        );
        if (/^(block|html)-/.test(name)) assertStringIncludes(note, `ISSUER_URL=${issuer.url}`);
        if (!isOfSts) continue;
        for (
          const part of [
            `sub=system:serviceaccount:${OWN.join(":")}`,
            `aud=${issuer.audience}`,
            `iss=${api.issuer}`,
          ]
        ) {
          assertStringIncludes(note, part);
        }
        const command = name === "forbidden" ? "create" : "describe";
        assertStringIncludes(note, `chainctl iam identities ${command}`);
      }
      issuer.faults.clear();
      await until(
        () => names.every((name) => token(name) !== held.get(name)),
        "all have recovered",
        LONG_MS,
      );
    }),
  );

  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    scenario(
      `ends with exit status 0 within two seconds of ${signal}, during a watch and a hanging exchange`,
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
      const exchanges = async () =>
        +/exchange_duration_seconds_count (\d+)/.exec(
          (await fetchText(program.port, "/metrics")).text,
        )![1]!;
      const before = await exchanges();
      for (let tries = 0; await exchanges() === before; tries++) {
        assert(tries < 1_000, "it never tried again");
        await sleep(100);
      }
      assertEquals(issuer.requests.length, 0);
      writeFileSync(world.file("oidc-token"), subjectToken);
      await until(() => world.filled(1), "the Secret is filled", LONG_MS);
      await until(
        () => noteOf(world, "team", "TokenIssued") !== undefined,
        "an event tells of the recovery",
      );
    }),
  );

  scenario(
    "lists again when `continue` has expired, and after a 401 goes on with the token as it is now",
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
      world.create(uid(1));
      await until(() => world.filled(1), "the new one is filled");
    }),
  );

  scenario(
    "sends no token to KUBERNETES_API on plain http",
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
    inWorld({}, async (world) => {
      const { api } = world;
      await world.start(RUNTIME, {
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
        type: SECRET_TYPE,
        stringData: config(),
      });
      api.createSecret({ metadata: { ...metadata, name: "opaque" }, type: `x/y${HOSTILE}` });
      api.createSecret({
        metadata: { ...metadata, name: "immutable" },
        type: SECRET_TYPE,
        stringData: config(),
        immutable: true,
      });
      api.createSecret({
        metadata: { ...metadata, name: "broken" },
        type: SECRET_TYPE,
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
      await until(() => other.log().some(({ msg }) => msg === "token written"), "it is filled");
      assertEquals((await fetchText(other.port, "/readyz")).status, 200);
      for (const query of ["?verbose", "?x=1&y", "?"]) {
        for (const path of ["/healthz", "/readyz", "/metrics"]) {
          assertEquals((await fetchText(other.port, path + query)).status, 200, path + query);
        }
      }
      for (const path of ["/", "/?/metrics", "/metrics/", "/metrics.txt", "/debug"]) {
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
        [
          { ISSUER_URL: "https://issuer.example/?key=pass-word" },
          ["ISSUER_URL", "https://issuer.example/?"],
          "pass-word",
        ],
        [{ HTTPS_PROXY: "socks5://proxy.example" }, ["HTTPS_PROXY", "socks5://proxy.example"]],
        [{ AUDIENCE: "a b" }, ["AUDIENCE", "a b"]],
        [{ REGISTRIES: "cgr.dev,https://cgr.dev" }, ["REGISTRIES", "cgr.dev,https://cgr.dev"]],
        [{ WATCH_NAMESPACES: "team,Team" }, ["WATCH_NAMESPACES", "team,Team"]],
        [{ PORT: "0" }, ["PORT", '"0"']],
        [{ AUDIENCE: HOSTILE }, ["AUDIENCE", "red"]],
        [{ HTTPS_PROXY: "http://user:50%off@127.0.0.1:3128" }, [
          "HTTPS_PROXY",
          "127.0.0.1:3128",
          "percent-encoded",
        ], "50%off"],
        [
          { https_proxy: "http://user:pass-word@[x" },
          ["https_proxy", "http or https"],
          "pass-word",
        ],
        [{ HTTPS_PROXY: "127.0.0.1:3128" }, ["HTTPS_PROXY", "127.0.0.1:3128"]],
        [{ HTTPS_PROXY: "user:pass-word@proxy.example:3128" }, ["HTTPS_PROXY"], "pass-word"],
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
    inWorld({}, async (world) => {
      const settings = { KUBERNETES_SERVICE_HOST: "", PORT: "0" };
      const [help, version] = [
        await world.launch(["--help"], settings),
        await world.launch(["--version"], settings),
      ];
      assertEquals([await help.exited, await version.exited], [0, 0]);
      assertMatch(version.stdout(), /^\d+\.\d+\.\d+\n$/);
      for (const flag of ["--status", "--status=json", "--help", "--version"]) {
        assertStringIncludes(help.stdout(), flag);
      }
      assertEquals([...help.warnings, ...version.warnings], []);
      const asked = new Set<string>();
      for (const api of [undefined, "http://127.0.0.1:8001"]) {
        const address = { KUBERNETES_SERVICE_HOST: "10.0.0.1", KUBERNETES_SERVICE_PORT: "443" };
        const env: Record<string, string | undefined> = { ...address, KUBERNETES_API: api };
        readConfig(
          new Proxy(env, {
            get: (_env, name: string) => {
              asked.add(name);
              return env[name];
            },
          }),
        );
      }
      assert(asked.size >= 14, [...asked].join());
      // A proxy's names in lower case are described with the others.
      for (const name of asked) assertStringIncludes(help.stdout(), name.toUpperCase());
      assertStringIncludes(help.stdout(), "NODE_EXTRA_CA_CERTS");
    }),
  );

  scenario(
    "shows with --status how all Secrets are, without an exchange or a write",
    inWorld({}, async (world) => {
      const { api, issuer } = world;
      async function status(flag = "--status", settings: Record<string, string> = {}) {
        const program = await world.launch([flag], settings);
        return { status: await program.exited, stdout: program.stdout(), lines: program.warnings };
      }
      const none = await status();
      assertEquals(none.status, 0);
      assertMatch(none.stdout, /no Secret/i);
      assertEquals([(await status("--status=json")).stdout.trim()], ["[]"]);

      const token = makeJwt({ sub: uid(1), aud: "cgr.dev", iat: now() - 60, exp: now() + 600 });
      world.secretTexts.push(token);
      createHolding(world, "valid", uid(1), token);
      const valid = await status();
      assertEquals(valid.status, 0, valid.stdout);
      assertMatch(valid.stdout, /^NAMESPACE +NAME +IDENTITY +STATE +EXPIRES IN +PROBLEM\n/);
      assertMatch(valid.stdout, new RegExp(`\nteam +valid +${uid(1)} +valid +(600|59\\d)s\n$`));

      const old = makeJwt({ sub: uid(2), aud: "cgr.dev", iat: now() - 600, exp: now() - 60 });
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
        if (name !== "valid") assertStringIncludes(problem!, "kubectl ");
      }
      assertEquals(table.stdout.split("\n").length, rows.length + 2);

      api.authorize = () => "not for you";
      const forbidden = await status();
      assertEquals([forbidden.status, forbidden.stdout, forbidden.lines.length], [3, "", 1]);
      await api.refuse();
      const gone = await status();
      assertEquals([gone.status, gone.stdout, gone.lines.length], [3, "", 1]);
      assertEquals((await status("--status", { PORT: "0" })).status, 2);
      const methods = new Set(api.requests.map(({ verb }) => verb));
      assertEquals([[...methods], issuer.requests.length], [["list"], 0]);
    }),
  );

  scenario(
    "shows with --status nothing hostile of names that the API server sends",
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
        // What has no name of a Secret's form is no list.
        assertEquals(await program.exited, 3);
        for (const line of program.lines) {
          assert(!CONTROLS.test(line), JSON.stringify(line));
        }
      }
      world.api.faults.add({ status: 500, body: { message: HOSTILE } });
      const failed = await world.launch(["--status"]);
      assertEquals([await failed.exited, failed.warnings.length], [3, 1]);
    }),
  );

  for (const intermediate of ["sent", "not sent"] as const) {
    scenario(
      `trusts an intermediate CA that it is given alone, which the servers have ${intermediate}`,
      inWorld({ intermediate }, async (world) => {
        await world.start();
        world.create(uid(1));
        await until(() => world.filled(1), "the Secret is filled");
      }),
    );
  }

  scenario(
    "goes to KUBERNETES_API by an address of IPv6 that alone is in the certificate",
    inWorld({ host: "::1" }, async (world) => {
      await world.start();
      world.create(uid(1));
      await until(() => world.filled(1), "the Secret is filled");
    }),
  );

  const proxies: [
    what: string,
    settingsOf: (url: string, host: string) => Record<string, string>,
  ][] = [
    ["HTTPS_PROXY", (url) => ({ HTTPS_PROXY: url, NO_PROXY: "10.0.0.0/8,.example" })],
    [
      "https_proxy, its name in lower case",
      (url) => ({ https_proxy: url, no_proxy: "example.com" }),
    ],
  ];
  for (const [what, settingsOf] of proxies) {
    scenario(
      `reaches the issuer through the proxy of ${what}, and the API server without it`,
      inWorld({}, async (world) => {
        const proxy = await startProxy({ user: "user:p@ss" });
        const { host, hostname } = new URL(world.issuer.url);
        await world.start(RUNTIME, settingsOf(proxy.url("user:p%40ss@"), hostname));
        world.create(uid(1));
        await until(() => world.filled(1), "the Secret is filled").finally(proxy.close);
        const authorization = basic("user:p@ss");
        assertEquals(proxy.requests, [{ line: `CONNECT ${host} HTTP/1.1`, authorization }]);
      }),
    );
  }

  scenario(
    "goes around the proxy where NO_PROXY, in either case, names the issuer",
    inWorld({}, async (world) => {
      const proxy = await startProxy();
      const settings = { HTTPS_PROXY: proxy.url(), no_proxy: "127.0.0.0/8" };
      await world.start(RUNTIME, settings);
      world.create(uid(1));
      await until(() => world.filled(1), "the Secret is filled").finally(proxy.close);
      assertEquals(proxy.requests, []);
    }),
  );

  scenario(
    "gives each address of a host 2.5 s to connect, on Node: its own 250 ms are less than many a connect takes",
    inWorld({}, async (world) => {
      const script = `import { getDefaultAutoSelectFamilyAttemptTimeout as get } from "node:net";
        process.on("exit", () => process._rawDebug(get()));`;
      const NODE_OPTIONS = `--import=data:text/javascript,${encodeURIComponent(script)}`;
      const program = await world.start("node", { NODE_OPTIONS });
      await exit(program, "SIGTERM");
      assertEquals(program.warnings, ["2500"]);
    }),
    RUNTIME === "node" ? undefined : "Deno has nothing that tells",
  );

  const subjectTokens: [
    what: string,
    make: (file: string, tokens: string[]) => void,
    flaw: string,
  ][] = [
    ["is missing", () => {}, "ENOENT"],
    ["is a folder", (file) => mkdirSync(file), "irectory"],
    ["is empty", (file) => writeFileSync(file, "\n"), "is empty"],
    ["is text", (file) => writeFileSync(file, "error: You must be logged in"), "is not a JWT"],
    ["has two lines", (file, [token]) => writeFileSync(file, `${token}\n${token}`), "is not a JWT"],
    ["has expired", (file, [, old]) => writeFileSync(file, old!), "expired at "],
    [
      "is for another audience",
      (file, [, , other]) => writeFileSync(file, other!),
      "has the audience",
    ],
  ];
  scenario(
    "warns at once of a subject token that cannot be exchanged, names file, variable and command, and sends none",
    inWorld({}, async (world) => {
      const { api, issuer } = world;
      world.create(uid(1));
      const tokens = [
        await api.serviceAccountToken(...OWN, issuer.audience),
        await api.serviceAccountToken(...OWN, issuer.audience, -10),
        await api.serviceAccountToken(...OWN, "other.example"),
      ];
      world.secretTexts.push(...tokens);
      mkdirSync(world.file("subject"));
      for (const [index, [what, make, flaw]] of subjectTokens.entries()) {
        const file = world.file(`subject/${index}`);
        make(file, tokens);
        const program = await world.launch([], { SUBJECT_TOKEN_FILE: file });
        await until(() => program.warnings.length > 0, what);
        const [warning = ""] = program.warnings;
        const command =
          `kubectl create token controller -n pull-secret-updater --audience=${issuer.audience} > ${file}`;
        for (const part of ["SUBJECT_TOKEN_FILE", file, flaw, command]) {
          assertStringIncludes(warning, part, what);
        }
        await exit(program, "SIGTERM");
      }
      assertEquals(issuer.requests, []);
    }),
  );

  scenario(
    "is ready though a namespace of WATCH_NAMESPACES is forbidden: it says so, and looks after the others",
    inWorld({ settings: { WATCH_NAMESPACES: "team,other" } }, async (world) => {
      const { api } = world;
      api.authorize = ({ namespace }) => namespace !== "other" || "not for you";
      const program = await world.start();
      world.create(uid(1));
      await until(() => world.filled(1), "the Secret is filled");
      assertEquals((await fetchText(program.port, "/readyz")).status, 200);
      await until(() => api.count("list", /other/) >= 3, "it tries again", LONG_MS);
      const warnings = program.log().filter(({ level }) => level === "warn");
      // Of the same failure over and over ever fewer are logged.
      const what = JSON.stringify(warnings);
      assertEquals(new Set(warnings.map(({ namespace }) => namespace)), new Set(["other"]), what);
      assert(warnings.length < api.count("list", /other/), what);
      const { text } = await fetchText(program.port, "/metrics");
      assertMatch(text, /watch_restarts_total\{reason="forbidden"\} [1-9]/);
      const status = await world.launch(["--status"]);
      assertEquals(await status.exited, 3);
      assertMatch(status.stdout(), /\nteam +pull +\S+ +valid +\d+s\n$/);
      assertEquals(status.warnings.length, 1);
      for (const part of ["other", "not for you"]) assertStringIncludes(status.warnings[0]!, part);
      const json = await world.launch(["--status=json"]);
      assertEquals(await json.exited, 3);
      assertEquals(JSON.parse(json.stdout()).map(({ name }: { name: string }) => name), ["pull"]);
    }),
  );

  scenario(
    "shows with --status a hundred and fifty thousand Secrets",
    inWorld({ plain: true }, async (world) => {
      const [pages, size] = [30, 5_000];
      const labels = { [IDENTITY]: uid(1).replace("/", ".") };
      const body = ({ query }: LoggedRequest) => {
        const page = +(query.get("continue") ?? 0);
        const items = Array.from({ length: size }, (_, index) => ({
          metadata: {
            namespace: "team",
            name: `s-${page}-${index}`,
            uid: "u",
            resourceVersion: "1",
            labels,
          },
        }));
        const next = page + 1 < pages ? `${page + 1}` : undefined;
        return { metadata: { resourceVersion: "1", continue: next }, items };
      };
      world.api.faults.add({ verb: "list", times: Infinity, status: 200, body });
      // Too much to be looked through for tokens, of which there are none.
      for (
        const [flag, linesAround, lines] of [["--status", 1, 1], ["--status=json", 2, 8]] as const
      ) {
        const shipped = world.form === "shipped";
        const program = await startProgram(RUNTIME, world.env, [flag], { shipped });
        assertEquals(await program.exited, 1, program.warnings.join());
        assertEquals(program.lines.length, linesAround + lines * pages * size);
      }
    }),
  );
});

const isFor = (identity: string) => ({ body }: { body: string }) =>
  new URLSearchParams(body).get("identity") === identity;
const now = () => Math.floor(Date.now() / 1000);
const config = (text = '{"auths":{}}') => ({ ".dockerconfigjson": text });

function createHolding({ api }: World, name: string, identity: string, token: string): void {
  const auth = Buffer.from(`_token:${token}`).toString("base64");
  const metadata = {
    namespace: "team",
    name,
    labels: { [IDENTITY]: "" },
    annotations: { [IDENTITY]: identity },
  };
  const text = JSON.stringify({ auths: { "cgr.dev": { auth } } });
  api.createSecret({ metadata, type: SECRET_TYPE, stringData: config(text) });
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
