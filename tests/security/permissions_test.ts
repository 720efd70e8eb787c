/**
 * What Deno grants the program in its Pod. Programs run here with deploy.yaml's flags as they stand, but for what
 * `Pod.flags` replaces: the real one does all its work with them, and others do nothing else.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer, type RequestListener, type Server } from "node:http";
import { type AddressInfo, connect } from "node:net";
import { networkInterfaces, tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import process from "node:process";
import { after, before, describe, test } from "node:test";
import { pathToFileURL } from "node:url";
import { parse } from "yaml";
import { type ApiServer, startApiServer } from "../fake/apiserver.ts";
import { selfContained } from "../../scripts/manifest.ts";
import { readSettings } from "../../scripts/manifest_flags.ts";
import { objectsOf } from "../support/yaml.ts";
import { makeAuthority } from "../fake/certificates.ts";
import { type Issuer, startIssuer } from "../fake/issuer.ts";
import { ROOT } from "../support/paths.ts";
import { until } from "../support/until.ts";
import { PREFIX } from "../support/names.ts";

const BIN = join(ROOT, "node_modules/.bin");
const PATH = BIN + delimiter + process.env.PATH;
const DENO = join(BIN, "deno");
const UID = `${"0a".repeat(20)}/${"1b".repeat(8)}`;
const UNTIL_MS = 10_000;
/** Deno asks its update server within 0.2 s: long enough to tell that it does not. */
const SILENCE_MS = 1_500;
const hasIPv6 = Object.values(networkInterfaces()).flat().some((address) =>
  address?.address === "::1"
);

const work = mkdtempSync(join(tmpdir(), "permissions-"));
const accountDir = join(work, "serviceaccount");
const oidcDir = join(work, "oidc");
const caFile = join(work, "ca.crt");
const home = join(work, "home");
const bundle = join(work, "out/main.js");
const authority = makeAuthority();
/** What ends when the tests do, however they went. */
const toEnd: (() => unknown)[] = [];

interface Container {
  args: string[];
  env: { name: string; value: string }[];
}
/** The variables of a proxy that the program reads. Deno reads them, too. */
const PROXIES = ["HTTPS_PROXY", "NO_PROXY", "https_proxy", "no_proxy"];
const DEPLOY = readFileSync(join(ROOT, "deploy.yaml"), "utf8");
const { args, env } = readContainer(DEPLOY);
const variables = listOf("--allow-env");

before(() => {
  for (const dir of [accountDir, oidcDir, home]) mkdirSync(dir);
  writeFileSync(caFile, authority.certificate);
  writeFileSync(join(accountDir, "ca.crt"), authority.certificate);
  writeFileSync(join(accountDir, "namespace"), "pull-secret-updater");
  // The bundle's paths are relative to the working folder.
  symlinkSync(join(ROOT, "main.ts"), join(work, "main.ts"));
  execFileSync("node", [join(ROOT, "scripts/bundle.ts")], {
    cwd: work,
    env: { ...process.env, PATH },
  });
});

after(() => {
  for (const end of toEnd) end();
  rmSync(work, { recursive: true });
});

// ───── The Pod ─────

function readContainer(manifest: string): Container {
  const [deployment, ...others] = objectsOf(manifest).filter(({ kind }) => kind === "Deployment");
  assertEquals(others, []);
  const [container] = deployment.spec.template.spec.containers;
  return container;
}

/** What `npm run manifest` makes of the arguments. */
function argumentsWith(...flags: string[]): string[] {
  const options = { runtime: "deno", image: "IMAGE", settings: readSettings(flags) } as const;
  return readContainer(selfContained(DEPLOY, "", options)).args;
}

/** What a component of kustomize makes of them, by its JSON patch. */
function argumentsOfComponent(name: string): string[] {
  const file = readFileSync(join(ROOT, "kustomize", name, "kustomization.yaml"), "utf8");
  const changed = [...args];
  for (const { op, path, value } of parse(parse(file).patches[0].patch)) {
    const index = Number(/\/args\/(\d+)$/.exec(path)![1]);
    if (op === "test") assertEquals(changed[index], value);
    else changed.splice(index, op === "replace" ? 1 : 0, value);
  }
  return changed;
}

/** The values of a flag. */
function listOf(flag: string, flags = args): string[] {
  const found = flags.filter((arg) => arg.startsWith(`${flag}=`));
  assertEquals(found.length, 1, `${flag} stands once`);
  return found[0]!.slice(flag.length + 1).split(",");
}

/** Where things are here that are elsewhere in a Pod. */
interface Pod {
  /** Of the API server, as Kubernetes injects them. */
  apiHost: string;
  apiPort: number;
  /** Of the issuer, `localhost` here: a name, as the real one's. */
  issuerPort: number;
  /** Of the probes. */
  port: number;
  program: string;
}

/** The manifest's arguments, expanded as the kubelet does it. Each replacement must be found. */
function argumentsOf(
  { apiHost, apiPort, issuerPort, port, program }: Pod,
  manifest = args,
): string[] {
  const replacements = {
    "$(KUBERNETES_SERVICE_HOST)": apiHost,
    "$(KUBERNETES_SERVICE_PORT)": `${apiPort}`,
    "issuer.enforce.dev:443": `localhost:${issuerPort}`,
    "0.0.0.0:8080": `0.0.0.0:${port}`,
    "[::]:8080": `[::]:${port}`,
    "/var/run/secrets/kubernetes.io/serviceaccount": accountDir,
    "/var/run/chainguard/oidc": oidcDir,
    "/main.js": program,
  };
  let text = manifest.join("\n");
  for (const [from, to] of Object.entries(replacements)) {
    assertEquals(text.split(from).length, 2, `${from} stands once in the arguments`);
    text = text.replace(from, to);
  }
  return text.split("\n");
}

function environmentOf({ apiHost, apiPort, issuerPort, port }: Pod): Record<string, string> {
  return {
    // Deno can keep nothing, as on a Pod's read-only root.
    DENO_DIR: "/dev/null/deno",
    HOME: home,
    ...Object.fromEntries(env.map(({ name, value }) => [name, value])),
    KUBERNETES_SERVICE_HOST: apiHost,
    KUBERNETES_SERVICE_PORT: `${apiPort}`,
    // These are what is elsewhere.
    ISSUER_URL: `https://localhost:${issuerPort}`,
    PORT: `${port}`,
    SERVICE_ACCOUNT_DIR: accountDir,
    SUBJECT_TOKEN_FILE: join(oidcDir, "oidc-token"),
    NODE_EXTRA_CA_CERTS: caFile,
    NO_COLOR: "1",
  };
}

/** A program that runs, or has ended. */
interface Running {
  child: ChildProcess;
  output: { stdout: string; stderr: string };
  /** The exit status, or the signal. */
  ended: Promise<number | string>;
}

function start(args: string[], environment: Record<string, string>): Running {
  const child = spawn(DENO, args, { env: environment, stdio: ["ignore", "pipe", "pipe"] });
  toEnd.push(() => child.kill("SIGKILL"));
  const output = { stdout: "", stderr: "" };
  child.stdout.setEncoding("utf8").on("data", (text) => output.stdout += text);
  child.stderr.setEncoding("utf8").on("data", (text) => output.stderr += text);
  const ended = new Promise<number | string>((resolve, reject) => {
    child.on("error", reject).on("close", (code, signal) => resolve(code ?? signal!));
  });
  return { child, output, ended };
}

const startIn = (pod: Pod, args = argumentsOf(pod), settings: Record<string, string> = {}) =>
  start(args, { ...environmentOf(pod), ...settings });

/** The rights to those variables, which flags for a proxy grant. */
function withProxyVariables(args: string[]): string[] {
  const hidden = listOf("--ignore-env", args).filter((name) => !PROXIES.includes(name));
  const granted = [...listOf("--allow-env", args), ...PROXIES];
  return args.map((arg) =>
    arg.startsWith("--allow-env=")
      ? `--allow-env=${granted}`
      : arg.startsWith("--ignore-env=")
      ? `--ignore-env=${hidden}`
      : arg
  );
}

/** What did not come, with all that the program wrote. */
const saying = (what: string, { output }: Running) => () =>
  `${what}\n${output.stdout}${output.stderr}`;

function portOf(server: Server): number {
  return (server.address() as AddressInfo).port;
}

async function listen(handler: RequestListener): Promise<Server> {
  const server = createServer(handler);
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  toEnd.push(() => server.close());
  return server;
}

async function freePort(): Promise<number> {
  const server = await listen(() => {});
  const port = portOf(server);
  await new Promise((done) => server.close(done));
  return port;
}

// ───── The program itself ─────

/** The stand-ins, with one Secret to fill. */
async function startCluster(
  apiHost: string,
): Promise<{ api: ApiServer; issuer: Issuer; pod: Pod }> {
  const api = await startApiServer({
    host: apiHost,
    certificate: authority.issue(),
    tokens: new Map(),
  });
  const issuer = await startIssuer({
    host: "localhost",
    certificate: authority.issue(),
    keys: api.jwks,
  });
  toEnd.push(() => api.close(), () => issuer.close());
  const account = ["pull-secret-updater", "controller"] as const;
  api.createServiceAccount(...account);
  issuer.bind(UID, api.issuer, ...account);
  writeFileSync(join(accountDir, "token"), await api.serviceAccountToken(...account, api.issuer));
  writeFileSync(
    join(oidcDir, "oidc-token"),
    await api.serviceAccountToken(...account, "localhost"),
  );
  api.createSecret({
    metadata: {
      namespace: "team",
      name: "pull-secret",
      labels: { [`${PREFIX}identity`]: UID.replace("/", ".") },
    },
    type: "kubernetes.io/dockerconfigjson",
    stringData: { ".dockerconfigjson": "{}" },
  });
  const [apiPort, issuerPort] = [+new URL(api.url).port, +new URL(issuer.url).port];
  return {
    api,
    issuer,
    pod: { apiHost, apiPort, issuerPort, port: await freePort(), program: bundle },
  };
}

async function worksIn(
  { api, issuer, pod }: Awaited<ReturnType<typeof startCluster>>,
  args?: string[],
  settings?: Record<string, string>,
): Promise<void> {
  const program = startIn(pod, args, settings);
  const isFilled = () =>
    api.secret("team", "pull-secret")?.metadata.annotations?.[`${PREFIX}token-expires`];
  await until(isFilled, saying("the Secret is filled", program), UNTIL_MS);
  for (const host of hasIPv6 ? ["127.0.0.1", "[::1]"] : ["127.0.0.1"]) {
    for (const path of ["/healthz", "/readyz", "/metrics"]) {
      const { status, body } = await fetch(`http://${host}:${pod.port}${path}`);
      await body?.cancel();
      assertEquals(status, 200, `${host} ${path}`);
    }
  }
  await until(
    () => api.events("team").length > 0,
    saying("the event is written", program),
    UNTIL_MS,
  );
  assert(issuer.count("exchange") > 0);
  // Deno's child.kill() would take the signal for the end.
  process.kill(program.child.pid!, "SIGTERM");
  assertEquals(await program.ended, 0);
  assertEquals(program.output.stderr, "", "it warns of nothing");
}

test("the program does all its work with the manifest's rights, on IPv4 and IPv6", async () => {
  await worksIn(await startCluster("127.0.0.1"));
});

test("on an IPv6 cluster Deno refuses the manifest's flags", async () => {
  const program = startIn({
    apiHost: "fd00::1",
    apiPort: 443,
    issuerPort: 1,
    port: await freePort(),
    program: bundle,
  });
  assertEquals(await program.ended, 1);
  assertMatch(
    program.output.stderr,
    /ipv6 addresses must be enclosed in square brackets: 'fd00::1:443'/,
  );
});

test(
  "on an IPv6 cluster the program works with what --ipv6 changes",
  { skip: !hasIPv6 },
  async () => {
    const cluster = await startCluster("::1");
    await worksIn(
      cluster,
      argumentsOf(cluster.pod, argumentsWith("--ipv6")),
    );
  },
);

test("the program works through a proxy with what --proxy changes, and with kustomize's component", async () => {
  const asked: string[] = [];
  const proxy = await listen((_, response) => response.writeHead(502).end());
  proxy.on("connect", ({ url = "" }, socket) => {
    asked.push(url);
    const upstream = connect(+new URL(`http://${url}`).port, "localhost", () => {
      socket.write("HTTP/1.1 200 OK\r\n\r\n");
      socket.pipe(upstream).pipe(socket);
    });
    for (const end of [socket, upstream]) end.on("error", () => {});
    toEnd.push(() => socket.destroy());
  });
  const [address, url] = [`127.0.0.1:${portOf(proxy)}`, `http://127.0.0.1:${portOf(proxy)}`];
  for (const changed of [argumentsWith("--proxy", url), argumentsOfComponent("proxy")]) {
    const cluster = await startCluster("127.0.0.1");
    const issuer = `localhost:${cluster.pod.issuerPort}`;
    // It cannot go there straight.
    const proxied = argumentsOf(cluster.pod, changed)
      .map((arg) => arg.replace(`${issuer},`, "").replace("$(PROXY_ADDRESS)", address));
    await worksIn(cluster, proxied, { HTTPS_PROXY: url });
    assertEquals([...new Set(asked.splice(0))], [issuer]);
  }
});

/** What undici would read. */
const UNDICI = ["JEST_WORKER_ID", "UNDICI_NO_WASM_SIMD", "UNDICI_USE_MILO"];

test("the manifest grants the variables that the program reads, and hides those of a proxy; deno.json and the image grant them too", () => {
  const source = readFileSync(join(ROOT, "main.ts"), "utf8");
  const found = source.matchAll(/\benv\.(\w+)|\bread\w*\(\s*"(\w+)"|"(https_proxy)"/g);
  const read = [...new Set([...found].map((match) => match.slice(1).find(Boolean)!))].sort();
  assertEquals(PROXIES.filter((name) => !read.includes(name)), []);
  assertEquals(variables, read.filter((name) => !PROXIES.includes(name)));
  assertEquals(listOf("--ignore-env"), [...PROXIES, ...UNDICI].sort());
  const { tasks } = JSON.parse(readFileSync(join(ROOT, "deno.json"), "utf8"));
  const image = readFileSync(join(ROOT, "Containerfile"), "utf8").matchAll(/"(--[^"]+)"/g);
  for (const flags of [tasks.start.split(" "), [...image].map(([, flag]) => flag!)]) {
    assertEquals(listOf("--allow-env", flags), read);
    assertEquals(listOf("--ignore-env", flags), UNDICI);
  }
});

test("the program's text names nothing to import but Node's own modules", () => {
  // What it names, though it be in a literal import() only, Deno loads beforehand and without a right.
  const graph = JSON.parse(execFileSync(DENO, ["info", "--json", bundle], { encoding: "utf8" }));
  const url = pathToFileURL(bundle).href;
  const { dependencies }: GraphModule = graph.modules.find(({ specifier }: GraphModule) =>
    specifier === url
  );
  // Those without code are of types, in comments.
  const named = dependencies.filter(({ code }) => code).map(({ specifier }) => specifier);
  assert(named.includes("node:fs"));
  assertEquals(named.filter((name) => !name.startsWith("node:")), []);
});

interface GraphModule {
  specifier: string;
  dependencies: { specifier: string; code?: object }[];
}

// ───── Other programs with its rights ─────

/**
 * What is tried, as JavaScript, and how it ends. `other` is the URL of a server that is none of those granted. `at` hides
 * a specifier from Deno, which loads what it finds in a program's text beforehand and without a right.
 */
const ATTEMPTS: Record<string, [code: string, end: RegExp][]> = {
  "read a file that is not granted": [
    ["Deno.readTextFileSync('/etc/passwd')", /read access to "\/etc\/passwd"/],
    ["fs.readFileSync(import.meta.filename)", /read access to ".*probe.js"/],
    ["fs.readFileSync('/proc/self/environ')", /read access to/],
    ["fs.readdirSync('/')", /read access to "\/"/],
    ["fs.statSync('/etc')", /read access to "\/etc"/],
    ["fs.readFileSync(`${granted}/../other`)", /read access to ".*\/other"/],
    ["fetch('file:///etc/passwd')", /read access to/],
    ["import(at('file:///etc/passwd'))", /read access to/],
    ["import(at('file:///etc/hostname'), { with: { type: 'text' } })", /read access to/],
    ["import(at('file:///etc/x.json'), { with: { type: 'json' } })", /read access to/],
    ["createRequire(import.meta.url)(at('/etc/passwd'))", /read access to/],
    ["new DatabaseSync('/etc/x.db')", /read access to/],
    ["process.loadEnvFile('/etc/environment')", /env access|read access/],
    ["fs.readFileSync('/proc/self/root/etc/passwd')", /read access to/],
    ["fs.readFileSync('/dev/fd/0')", /read access to/],
    ["fs.readlinkSync(`${granted}/../link`)", /read access to/],
    ["new DatabaseSync('file:/etc/x.db?mode=ro')", /read access to/],
    ["new DatabaseSync(':memory:').exec(`ATTACH '/etc/passwd' AS x`)", /too many attached/],
    ["thread(`require('node:fs').readFileSync('/etc/passwd')`)", /read access to/],
    ["fs.readFileSync(`${granted}/token`, 'utf8')", /^done: /],
  ],
  "reach another host": [
    ["connection(port, '127.0.0.1')", /net access to "127\.0\.0\.1:\d+"/],
    ["connection(port, '0.0.0.0')", /net access to "0\.0\.0\.0:\d+"/],
    ["connection(port, '::ffff:127.0.0.1')", /net access to "127\.0\.0\.1:\d+"/],
    ["connection(port, 'localhost')", /getaddrinfo EPERM localhost/],
    ["connection(443, 'example.com')", /getaddrinfo EPERM example\.com/],
    ["connection('/var/run/docker.sock')", /read access to/],
    ["Deno.connect({ hostname: '127.0.0.1', port })", /net access to/],
    ["Deno.connectTls({ hostname: '127.0.0.1', port })", /net access to/],
    ["dns.lookup('example.com')", /getaddrinfo EPERM/],
    ["Deno.resolveDns('example.com', 'A')", /net access to/],
    ["fetch(other)", /net access to/],
    ["fetch(other.replace('http:', 'https:'))", /net access to/],
    ["fetch(redirecting)", /net access to/],
    ["request(other)", /net access to/],
    ["request(other.replace('http:', 'https:'))", /net access to/],
    ["request(other, { dispatcher: new ProxyAgent(other) })", /net access to/],
    ["new Promise((_, no) => http2.connect(other).on('error', no))", /net access to/],
    ["connection({ port, host: 'localhost', lookup })", /net access to "127\.0\.0\.2:/],
    ["connection({ port: apiPort, host: 'localhost', lookup })", /net access to "127\.0\.0\.2:/],
    ["connection({ port: apiPort, host: '127.0.0.2' })", /net access to/],
    ["sending(port, '127.0.0.1')", /net access to/],
    ["dns.resolve4('example.com')", /UNKNOWN example\.com/],
    ["resolving(`127.0.0.1:${port}`)", /sys access to "networkInterfaces"/],
    // This one does not say why.
    ["new Promise((_, no) => new EventSource(other).onerror = () => no(new Error()))", /$/],
    ["thread(`require('node:net').connect(${port}, '127.0.0.1')`)", /net access to/],
    ["thread(`fetch('${other}').then(() => {}, (e) => { throw e; })`)", /net access to/],
    ["new Promise((_, no) => new WebSocket(other).onerror = (e) => no(e.error))", /net access to/],
  ],
  "go through a proxy": [
    // Those that are hidden can be set, which does nothing: it is the granted hosts that are asked.
    ...PROXIES.flatMap((name): [code: string, end: RegExp][] => [
      [`process.env.${name} = other`, /^done: /],
      [`Deno.env.set('${name}', other)`, /^done: /],
      [`process.env.${name} ?? 'nothing'`, /^done: "nothing"/],
    ]),
    ...["ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy", "NODE_USE_ENV_PROXY"].map((
      name,
    ): [code: string, end: RegExp] => [`process.env.${name} = other`, /env access to/]),
    ["fetch(redirecting, { redirect: 'manual' }).then(({ status }) => status)", /^done: 302/],
    ["fetch(redirecting.replace('http:', 'https:'))", /fetch failed/],
    ["request(redirecting).then(({ statusCode }) => statusCode)", /^done: 302/],
    [
      "request(redirecting, { dispatcher: new EnvHttpProxyAgent({ httpProxy: other }) })",
      /net access/,
    ],
    [
      "fetch(redirecting, { client: Deno.createHttpClient({ proxy: { url: other } }) })",
      /net access/,
    ],
    [
      "Deno.createHttpClient({ proxy: { transport: 'tcp', hostname: '127.0.0.1', port } })",
      /net access to/,
    ],
    ["Deno.createHttpClient({ proxy: { transport: 'unix', path: '/run/x.sock' } })", /read access/],
    ["got(redirecting, { agent: new Agent({ proxyEnv: { http_proxy: other } }) })", /net access/],
    ["got(redirecting, { localAddress: '127.0.0.2' })", /net access to/],
  ],
  "import code from elsewhere": [
    ["import(at(`${other}x.js`))", /--no-remote is specified/],
    ["import(at(`${other.replace('http:', 'https:')}x.js`))", /--no-remote is specified/],
    ["import(at('https://raw.githubusercontent.com/x.js'))", /--no-remote is specified/],
    ["import(at(`${redirecting}x.js`))", /--no-remote is specified/],
    ["import(at('jsr:@std/path'))", /--no-remote is specified/],
    ["import(at('npm:left-pad'))", /Failed loading/],
    // What is in memory anyway gets no other rights.
    ["import(at(data(`import '${other}x.js'`)))", /--no-remote is specified/],
    ["import(at(data(`Deno.readTextFileSync('/etc/passwd')`)))", /read access to/],
    ["import(at(blob(`import '${other}x.js'`)))", /--no-remote is specified/],
    ["import(at(blob(`import 'file:///etc/x.json' with { type: 'json' }`)))", /read access to/],
    ["worker(data(`Deno.readTextFileSync('/etc/passwd')`))", /read access to/],
    [
      "worker(data(`postMessage(Deno.permissions.requestSync({ name: 'read' }).state)`))",
      /^done: "denied"/,
    ],
  ],
  "listen on another port": [
    ["listening(0)", /net access to ".*:0"/],
    ["listening(port)", /net access to/],
    ["listening(own, '127.0.0.1')", /net access to/],
    ["Deno.serve({ port: 0 }, () => new Response())", /net access to/],
    ["listening(own)", /^done: "(::|0\.0\.0\.0)"/],
  ],
  "run a program": [
    ["new Deno.Command('/bin/true').output()", /run access to/],
    ["new Deno.Command(Deno.execPath()).output()", /run access to/],
    ["execFileSync('/bin/true')", /Requires \w+ access/],
    ["Deno.kill(process.ppid, 'SIGCONT')", /run access/],
    ["Deno.dlopen('libc.so.6', {})", /ffi access/],
    ["process.dlopen({}, '/x.node')", /ffi access|read access/],
  ],
  "read another variable": [
    ["process.env.HOME", /env access to "HOME"/],
    ["Deno.env.get('NODE_EXTRA_CA_CERTS')", /env access to/],
    ["process.env.OTHER = 'x'", /env access to/],
    ["Deno.env.get('PORT')", /^done: "\d+"/],
  ],
  "write a file": [
    ["fs.writeFileSync('/tmp/x', '')", /write access to/],
    ["fs.writeFileSync(`${granted}/token`, '')", /write access to/],
    ["Deno.makeTempFile()", /write access to/],
    ["fs.rmSync(`${granted}/token`)", /write access to/],
    ["v8.writeHeapSnapshot('/tmp/x')", /write access to/],
    ["fs.symlinkSync('/etc/passwd', `${granted}/link`)", /requires unscoped .*--allow-write/],
    ["new DatabaseSync(':memory:').exec(`VACUUM INTO '/tmp/x.db'`)", /too many attached/],
    ["new DatabaseSync(':memory:').exec(`ATTACH '/tmp/x.db' AS x`)", /too many attached/],
    ["backup(new DatabaseSync(':memory:'), '/tmp/x.db')", /write access to/],
    // Deno's own storage asks for no right: it is the read-only root that stops these.
    ["localStorage.setItem('x', 'y')", /Not a directory/],
    ["caches.open('x')", /Failed to create cache storage directory/],
  ],
  "ask the system": [
    ["Deno.hostname()", /sys access to "hostname"/],
    ["os.userInfo()", /sys access to/],
    ["os.networkInterfaces()", /sys access to/],
    ["os.cpus()", /sys access to/],
    ["Deno.osRelease()", /sys access to/],
    ["inspector.open(0)", /sys access to "inspector"/],
  ],
  "ask for more": [
    ["Deno.permissions.requestSync({ name: 'read' }).state", /^done: "denied"/],
    ["Deno.permissions.requestSync({ name: 'net' }).state", /^done: "denied"/],
  ],
};

const PROBE = `
import { execFileSync } from "node:child_process";
import * as dgram from "node:dgram";
import * as dns from "node:dns/promises";
import * as fs from "node:fs";
import { Agent, createServer, get } from "node:http";
import * as http2 from "node:http2";
import * as inspector from "node:inspector";
import { createRequire } from "node:module";
import { connect } from "node:net";
import * as os from "node:os";
import { backup, DatabaseSync } from "node:sqlite";
import * as v8 from "node:v8";
import { Worker as Thread } from "node:worker_threads";
import { EnvHttpProxyAgent, ProxyAgent, request } from "undici";

// REGISTRIES has the URL of the other server, being granted and of no other use here.
const { REGISTRIES: other, KUBERNETES_SERVICE_HOST: host, KUBERNETES_SERVICE_PORT: apiPort } = process.env;
const port = +new URL(other).port, own = +process.env.PORT, granted = process.env.SERVICE_ACCOUNT_DIR;
const redirecting = "http://" + host + ":" + apiPort + "/";
const at = (specifier) => specifier;
const data = (code) => "data:text/javascript," + encodeURIComponent(code);
const blob = (code) => URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
const connection = (...to) => new Promise((ok, no) => connect(...to, () => ok("connected")).on("error", no));
const listening = (...on) => new Promise((ok, no) => {
  const server = createServer().listen(...on, () => (ok(server.address().address), server.close())).on("error", no);
});
const worker = (url) => new Promise((ok, no) => {
  const worker = new Worker(url, { type: "module" });
  worker.onmessage = ({ data }) => ok(data);
  worker.onerror = (event) => (event.preventDefault(), no(new Error(event.message)));
});

const thread = (code) => new Promise((ok, no) => new Thread(code, { eval: true }).on("error", no).on("exit", ok));
const lookup = (_host, { all }, found) => all ? found(null, [{ address: "127.0.0.2", family: 4 }]) : found(null, "127.0.0.2", 4);
const sending = (...to) => new Promise((ok, no) => {
  const socket = dgram.createSocket("udp4").on("error", no);
  socket.send("x", ...to, (error) => (error ? no(error) : ok("sent"), socket.close()));
});
const resolving = (server) => {
  const resolver = new dns.Resolver();
  resolver.setServers([server]);
  return resolver.resolve4("example.com");
};
const got = (url, options) => new Promise((ok, no) => get(url, options, ({ statusCode }) => ok(statusCode)).on("error", no));

// What Deno refuses below the surface of Node's modules is not always caught there.
let refuse;
process.on("uncaughtException", (error) => refuse(error));
const ends = [];
async function attempt(run) {
  try {
    const late = new Promise((_, no) => refuse = no);
    const timer = setTimeout(() => refuse(new Error("nothing for 2 s")), 2000);
    const result = await Promise.race([run(), late]).finally(() => clearTimeout(timer));
    ends.push("done: " + JSON.stringify(result));
  } catch (error) {
    ends.push("refused: " + error.message);
  }
}
`;

describe("a program with the manifest's rights", () => {
  const seen: string[] = [];
  let others: Server;
  let granted: Server;
  let ends: string[] = [];
  let environment: Record<string, string>;
  let pod: Pod;

  before(async () => {
    others = await listen((request, response) =>
      response.end(seen.push(`${request.method} ${request.url}`))
    );
    others.on("connection", () => seen.push("connection"));
    const other = `http://127.0.0.1:${portOf(others)}/`;
    granted = await listen((_, response) => response.writeHead(302, { location: other }).end());
    const program = join(work, "probe.js");
    pod = {
      apiHost: "127.0.0.1",
      apiPort: portOf(granted),
      issuerPort: 1,
      port: await freePort(),
      program,
    };
    const lines = Object.values(ATTEMPTS).flat().map(([code]) =>
      `await attempt(async () => (${code}));\n`
    );
    const rest =
      `console.log(JSON.stringify({ ends, variables: Deno.env.toObject() }));\nprocess.exit(0);\n`;
    writeProbe(PROBE + lines.join("") + rest, program);
    writeFileSync(join(accountDir, "token"), "a token");
    const probe = start(argumentsOf(pod), {
      ...environmentOf(pod),
      REGISTRIES: other,
      OTHER: "x",
    });
    assertEquals(await probe.ended, 0, probe.output.stderr);
    ({ ends, variables: environment } = JSON.parse(probe.output.stdout));
  });

  let first = 0;
  for (const [title, attempts] of Object.entries(ATTEMPTS)) {
    const from = first;
    first += attempts.length;
    test(`cannot ${title}`, () => {
      for (const [index, [code, end]] of attempts.entries()) {
        const was = ends[from + index] ?? "not tried";
        const expected = end.source.startsWith("^done")
          ? end
          : new RegExp(`^refused: .*(${end.source})`, "s");
        assertMatch(was, expected, `${code} ended otherwise: ${was}`);
      }
    });
  }

  test("sees those variables alone that it is granted", () => {
    assert(Object.keys(environment).length > 0);
    assertEquals(Object.keys(environment).filter((name) => !variables.includes(name)), []);
  });

  test("has sent nothing to another host", () => {
    assertEquals(seen, []);
  });
});

/** Bundles undici into the probe, as the program has it. */
function writeProbe(code: string, path: string): void {
  const require =
    "import { createRequire as r } from 'node:module'; const require = r(import.meta.url);";
  const flags = [
    "--bundle",
    "--platform=node",
    "--format=esm",
    `--banner:js=${require}`,
    `--outfile=${path}`,
  ];
  execFileSync(join(BIN, "esbuild"), [...flags, "--log-level=error"], { cwd: ROOT, input: code });
}

// ───── Deno itself ─────

/** Nobody is there; fetch() blocks many of the lower ones. */
const ISSUER_PORT = 8443;

/**
 * Runs a program with the manifest's rights behind a proxy, and gives what was asked of that until `isDone`. A control is
 * `without` some of the arguments and variables.
 */
async function askedOfProxy(
  code: string,
  isDone: (asked: string[]) => unknown,
  without: string[] = [],
  change = (args: string[]) => args,
): Promise<string[]> {
  const asked: string[] = [];
  const proxy = await listen((request, response) =>
    response.writeHead(502).end(asked.push(`${request.url}`))
  );
  proxy.on("connect", ({ url }, socket) => {
    // The program is killed as soon as it has asked.
    socket.on("error", () => {});
    socket.end("HTTP/1.1 502 Bad Gateway\r\n\r\n", () => asked.push(`${url}`));
  });
  const fresh = mkdtempSync(join(work, "fresh-"));
  const program = join(fresh, "program.js");
  writeFileSync(program, code);
  const pod: Pod = {
    apiHost: "127.0.0.1",
    apiPort: 1,
    issuerPort: ISSUER_PORT,
    port: await freePort(),
    program,
  };
  const url = `http://127.0.0.1:${portOf(proxy)}`;
  const proxies = { HTTPS_PROXY: url, HTTP_PROXY: url, REGISTRIES: url };
  const own = { HOME: fresh, DENO_DIR: join(fresh, "deno"), ...proxies };
  const environment = Object.entries({ ...environmentOf(pod), ...own }).filter(([name]) =>
    !without.includes(name)
  );
  const args = change(argumentsOf(pod)).filter((arg) => !without.includes(arg));
  const running = start(args, Object.fromEntries(environment));
  await until(() => !!isDone(asked), saying("the proxy was asked", running), UNTIL_MS);
  running.child.kill("SIGKILL");
  await running.ended;
  return asked;
}

const isAnything = (asked: string[]) => asked.length > 0;
const hasTime = (began: number) => () => Date.now() > began + SILENCE_MS;

test("Deno asks no update server, which it would without the manifest's variable", async () => {
  const code = "setTimeout(() => {}, 60_000);";
  const [asked, control] = await Promise.all([
    askedOfProxy(code, hasTime(Date.now())),
    askedOfProxy(code, isAnything, ["DENO_NO_UPDATE_CHECK"]),
  ]);
  assertEquals(asked, []);
  assertEquals(control, ["dl.deno.land:443"]);
});

test("import() of a URL or a package asks no other host, which it would without the manifest's flags", async () => {
  // Deno imports from a few hosts without being asked, of which this is one.
  const load = (specifier: string) =>
    `await import([${JSON.stringify(specifier)}][0]).catch(() => {});`;
  const [url, registry] = ["https://raw.githubusercontent.com/x.js", "npm:left-pad"].map(load);
  const waits = "setTimeout(() => {}, 60_000);";
  const [asked, ...controls] = await Promise.all([
    askedOfProxy(url! + registry! + waits, hasTime(Date.now())),
    askedOfProxy(url! + waits, isAnything, ["--cached-only", "--no-remote"]),
    askedOfProxy(registry! + waits, isAnything, ["--cached-only"]),
  ]);
  assertEquals(asked, []);
  const [ofUrl, ofRegistry] = controls.map(([first = ""]) => first);
  assertEquals(ofUrl, "raw.githubusercontent.com:443");
  assertMatch(ofRegistry ?? "", /:443$/);
});

test("Deno connects to no proxy that a program names, which it would if the manifest granted those variables", async () => {
  const tries = PROXIES.map((name) => `Deno.env.set("${name}", Deno.env.get("REGISTRIES"));\n`);
  // The issuer is granted, but nobody is there.
  const asks =
    `fetch("https://localhost:${ISSUER_PORT}/").catch(() => {});\nsetTimeout(() => {}, 60_000);`;
  const code = tries.filter((line) => !/no_proxy/i.test(line)).join("") + asks;
  const without = ["HTTPS_PROXY", "HTTP_PROXY"];
  const [asked, control] = await Promise.all([
    askedOfProxy(code, hasTime(Date.now()), without),
    askedOfProxy(code, isAnything, without, withProxyVariables),
  ]);
  assertEquals(asked, []);
  assertEquals(control, [`localhost:${ISSUER_PORT}`]);
});
