/**
 * The real program as a process of its own, as it ships, on the runtime that runs this, against the stand-ins over
 * loopback HTTPS; the happy path also from source. Whatever a program writes is searched for tokens and control
 * characters when it has ended.
 */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { Buffer } from "node:buffer";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, get } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { isCounted, type Program, RUNTIME, startProgram } from "../support/program.ts";
import { startApiServer } from "../fake/apiserver.ts";
import { makeAuthority } from "../fake/certificates.ts";
import type { LoggedRequest } from "../fake/injection.ts";
import { startIssuer } from "../fake/issuer.ts";
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

interface WorldOptions {
  /** Seconds that tokens live. */
  life?: number;
}

type World = Awaited<ReturnType<typeof makeWorld>>;

/** The source, or the program of the manifest with the rights that it has there. */
type Form = "source" | "shipped";

/** A cluster and an issuer, what a Pod would find, and the programs that run in it. */
async function makeWorld(form: Form, { life = 3600 }: WorldOptions) {
  const api = await startApiServer({ certificate: authority.issue(), tokens: new Map() });
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
  const env: Record<string, string> = {
    KUBERNETES_SERVICE_HOST: hostname,
    KUBERNETES_SERVICE_PORT: port,
    SERVICE_ACCOUNT_DIR: folder,
    SUBJECT_TOKEN_FILE: file("oidc-token"),
    NODE_EXTRA_CA_CERTS: file("ca.crt"),
    ISSUER_URL: issuer.url,
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
    async start(settings: Record<string, string> = {}): Promise<Program & { port: string }> {
      const openBefore = api.openWatches;
      const program = await world.launch([], settings);
      await until(() => api.openWatches > openBefore, "the program watches", LONG_MS);
      return program;
    },
    async launch(args: string[] = [], settings: Record<string, string> = {}) {
      const port = `${await findPort()}`;
      const program = await startProgram(RUNTIME, { PORT: port, ...env, ...settings }, args, {
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
function scenario(title: string, run: (form: Form) => Promise<void>): void {
  let outcome: Promise<void> | undefined;
  const start = () => outcome ??= inTurn(() => run(FORMS[0]!));
  scenarios.push(start);
  test(title, { timeout: TIMEOUT_MS }, async () => {
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
    "replaces a token before it expires, by the machine's own time",
    inWorld({ life: 8 }, async (world) => {
      await world.start();
      world.create(uid(1));
      await until(() => world.filled(1), "the Secret is filled");
      const first = world.token()!;
      lateness = 0;
      await until(() => world.token() !== first, "it holds another token");
      const { issuedAt = 0, expiresAt } = decode(first)!;
      const [share, late] = [Date.now() - issuedAt, lateness].map((ms) =>
        ms / (expiresAt - issuedAt)
      );
      assert(share! >= 0.6 && share! <= 0.9 + late!, `it was replaced at ${share} of its life`);
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
    "warns at once of token files that are missing, names them, and tries until they are there",
    inWorld({}, async (world) => {
      const { api, issuer, secretTexts: [apiToken = "", subjectToken = ""] } = world;
      for (const name of ["token", "oidc-token"]) rmSync(world.file(name));
      const program = await world.launch();
      const tells = (text: string) => () => program.warnings.some((line) => line.includes(text));
      await until(tells(world.file("token")), "the log names the API server's token file");
      await until(
        tells(`--audience=${issuer.audience} > ${world.file("oidc-token")}`),
        "and mends",
      );
      writeFileSync(world.file("token"), apiToken);
      await until(() => api.openWatches === 1, "it watches");
      world.create(uid(1));
      await until(() => api.events("team").length > 0, "an event tells");
      assertEquals(issuer.requests, []);
      writeFileSync(world.file("oidc-token"), subjectToken);
      await until(() => world.filled(1), "the Secret is filled", LONG_MS);
    }),
  );

  scenario(
    "serves /healthz, /readyz and /metrics, and nothing else",
    inWorld({}, async (world) => {
      const { api } = world;
      api.faults.add({ verb: "list", status: 500, times: Infinity });
      const { port, log } = await world.launch();
      await until(() => api.count("list") > 0, "it lists");
      await until(async () => (await fetchText(port, "/healthz")).status === 200, "it is served");
      assertEquals((await fetchText(port, "/readyz")).status, 503);
      api.faults.clear();
      await until(() => api.openWatches === 1, "it watches");
      world.create(uid(1));
      await until(() => log().some(({ msg }) => msg === "token written"), "it is filled");
      assertEquals((await fetchText(port, "/readyz")).status, 200);
      for (const query of ["?verbose", "?x=1&y", "?"]) {
        for (const path of ["/healthz", "/readyz", "/metrics"]) {
          assertEquals((await fetchText(port, path + query)).status, 200, path + query);
        }
      }
      for (const path of ["/", "/?/metrics", "/metrics/", "/metrics.txt", "/debug"]) {
        assertEquals((await fetchText(port, path)).status, 404, path);
      }
      const { status, text } = await fetchText(port, "/metrics");
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
    "ends with exit status 2 and one line where a variable, an argument or its port is bad",
    inWorld({}, async (world) => {
      const server = createServer().listen(0);
      await once(server, "listening");
      const { port } = server.address() as AddressInfo;
      const url = "https://issuer.example/?key=pass-word";
      const bad: [args: string[], settings: Record<string, string>, shown: string[]][] = [
        [[], { ISSUER_URL: url }, ["ISSUER_URL", "https://issuer.example/?"]],
        [[], { AUDIENCE: HOSTILE }, ["AUDIENCE", "red"]],
        [[], { PORT: `${port}` }, ["PORT", `${port}`]],
        [["--status=xml"], {}, ["--status=xml"]],
        [["--help", "--version"], {}, ["--version"]],
        [[HOSTILE], {}, ["forged"]],
      ];
      await Promise.all(bad.map(async ([args, settings, shown]) => {
        const program = await world.launch(args, settings);
        await assertRefused(program, shown);
        assert(!program.lines[0]!.includes("pass-word"), program.lines[0]);
      })).finally(() => server.close());
      assertEquals(world.api.requests, []);
    }),
  );

  async function assertRefused(program: Program, shown: string[]): Promise<void> {
    assertEquals([await program.exited, program.stdout()], [2, ""], program.lines.join("\n"));
    assertEquals(program.lines.length, 1, program.lines.join("\n"));
    for (const part of shown) assertStringIncludes(program.lines[0]!, part);
  }

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
      const json = await status("--status=json");
      assertEquals(json.status, 1);
      const rows: Record<string, string>[] = JSON.parse(json.stdout);
      assertEquals(rows.map(({ name, state }) => `${name} ${state}`).sort(), [
        ...["expired expired", "hostile skipped", "missing missing", "valid valid"],
      ]);
      for (const { name, problem } of rows) {
        assertEquals(problem!.includes("kubectl "), name !== "valid", `${name}: ${problem}`);
      }

      api.authorize = ({ namespace }) => namespace === "team" || `not for you ${HOSTILE}`;
      const part = await status("--status", { WATCH_NAMESPACES: "team,other" });
      assertEquals([part.status, part.stdout.split("\n").length, part.lines.length], [3, 6, 1]);
      for (const text of ["other", "not for you"]) assertStringIncludes(part.lines[0]!, text);
      const forbidden = await status();
      assertEquals([forbidden.status, forbidden.stdout, forbidden.lines.length], [3, "", 1]);
      const verbs = new Set(api.requests.map(({ verb }) => verb));
      assertEquals([[...verbs], issuer.requests.length], [["list"], 0]);
    }),
  );

  scenario(
    "reaches the issuer through its proxy unless NO_PROXY names it, and the API server without it",
    inWorld({}, async (world) => {
      const proxy = await startProxy({ user: "user:p@ss" });
      const url = proxy.url("user:p%40ss@");
      const first = await world.start({ https_proxy: url, no_proxy: "example.com" });
      world.create(uid(1));
      await until(() => world.filled(1), "the Secret is filled").finally(proxy.close);
      const line = `CONNECT ${new URL(world.issuer.url).host} HTTP/1.1`;
      assertEquals(proxy.requests, [{ line, authorization: basic("user:p@ss") }]);
      await exit(first, "SIGTERM");
      const second = await world.start({ HTTPS_PROXY: url, NO_PROXY: "127.0.0.0/8" });
      world.create(uid(2), "around");
      await until(() => world.filled(2), "the Secret is filled");
      await exit(second, "SIGTERM");
    }),
  );

  // Deno has nothing that tells.
  if (RUNTIME === "node") {
    scenario(
      "gives each address of a host 2.5 s to connect, on Node: its own 250 ms are less than many a connect takes",
      inWorld({}, async (world) => {
        const script = `import { getDefaultAutoSelectFamilyAttemptTimeout as get } from "node:net";
          process.on("exit", () => process._rawDebug(get()));`;
        const NODE_OPTIONS = `--import=data:text/javascript,${encodeURIComponent(script)}`;
        const program = await world.start({ NODE_OPTIONS });
        await exit(program, "SIGTERM");
        assertEquals(program.warnings, ["2500"]);
      }),
    );
  }

  scenario(
    "shows with --status all Secrets, be it a hundred and fifty thousand",
    inWorld({}, async (world) => {
      // So many do not fit into the arguments of a call, in V8, which is the same on both.
      const [pages, size] = [RUNTIME === "node" ? 30 : 3, 5_000];
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
      const shipped = world.form === "shipped";
      const program = await startProgram(RUNTIME, world.env, ["--status"], { shipped });
      assertEquals(await program.exited, 1, program.warnings.join());
      assertEquals(program.lines.length, 1 + pages * size);
    }),
  );
});

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
