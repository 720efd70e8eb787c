/** Runs the real program as a process of its own, on either runtime, and keeps all that it says. */
import { Buffer } from "node:buffer";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import { bundle } from "../../scripts/bundle.ts";
import { defaultImage, selfContained } from "../../scripts/manifest.ts";
import type { Settings } from "../../scripts/manifest_flags.ts";
import { ofKind, podOf } from "./yaml.ts";
import { ROOT } from "./paths.ts";

export type Runtime = "node" | "deno";
/** The one that runs this. */
export const RUNTIME: Runtime = process.versions.deno ? "deno" : "node";

/** What the tests reach is counted of the source; otherwise they try what ships. */
export const isCounted = ["NODE_V8_COVERAGE", "DENO_COVERAGE_DIR"].some((name) =>
  process.env[name] !== undefined
);

/** Programs that start at the same time: more would only make each other slow. */
const MAX_STARTING = 2;

export interface LogRecord {
  time: string;
  level: string;
  msg: string;
  [field: string]: unknown;
}

export type Program = Awaited<ReturnType<typeof startProgram>>;

/** None outlives this process. */
const running = new Set<number>();
process.on("exit", () => running.forEach((pid) => process.kill(pid, "SIGKILL")));

const waiting: (() => void)[] = [];
let starting = 0;

async function takeTurn(): Promise<() => void> {
  if (starting >= MAX_STARTING) await new Promise<void>((done) => waiting.push(done));
  else starting++;
  let isOver = false;
  return () => {
    if (isOver) return;
    isOver = true;
    const next = waiting.shift();
    if (next) next();
    else starting--;
  };
}

/** How it is run. */
export interface Launch {
  /** A command that runs the one it is given, as `env` does. */
  through?: string[];
  /** Runs the program of the manifest, with the rights that a Pod gives it. Default: the source. */
  shipped?: boolean;
}

/** The settings of V8 that the program ships with, on either runtime. */
export function shippedV8Flags(): string[] {
  const [, flags] = /--v8-flags=(\S+)/.exec(readRoot("deploy.yaml"))!;
  return flags!.split(",");
}

/** The source, on Deno with the rights that `deno task start` gives. */
export function sourceCommandOf(runtime: Runtime): string[] {
  const words: string[] = JSON.parse(readRoot("deno.json")).tasks.start.split(" ");
  const args = runtime === "node" ? words.slice(-1) : words.slice(words.indexOf("deno") + 1);
  return [commandFor(runtime), ...args];
}

export function commandFor(runtime: Runtime): string {
  const own = join(ROOT, "node_modules", ".bin", runtime);
  return existsSync(own) ? own : runtime;
}

/** The container of the manifest of a runtime, as far as it tells how the program runs. */
interface Container {
  args: string[];
  env: Record<string, string>;
}
interface Shipped extends Container {
  program: string;
}

const manifests = new Map<Runtime, Promise<Shipped>>();
let shippedFile: string | undefined;

/** Makes the manifest, as `npm run manifest` does, and cuts the program out of it. */
export function readManifest(runtime: Runtime): Promise<Shipped> {
  const known = manifests.get(runtime) ?? makeManifest(runtime);
  manifests.set(runtime, known);
  return known;
}

async function makeManifest(runtime: Runtime): Promise<Shipped> {
  const options = { runtime, image: defaultImage(readRoot("Containerfile"), runtime) };
  const manifest = selfContained(readRoot("deploy.yaml"), await bundle("main.ts"), options);
  return { program: ofKind("ConfigMap", manifest).data["main.js"], ...readContainer(manifest) };
}

const readRoot = (name: string) => readFileSync(join(ROOT, name), "utf8");

/** The arguments and the variables of the container. */
export function readContainer(manifest: string): Container {
  const [{ args, env }] = podOf(manifest).containers;
  type Variable = { name: string; value: string };
  return { args, env: Object.fromEntries(env.map(({ name, value }: Variable) => [name, value])) };
}

/** As a Pod runs it, but for the places: its folders, its port and the servers' addresses are here. */
export async function shippedCommandOf(runtime: Runtime, settings: Record<string, string>) {
  const { program, env } = await readManifest(runtime);
  const { SERVICE_ACCOUNT_DIR = "", SUBJECT_TOKEN_FILE = "", PORT = "" } = settings;
  const port = isPort(PORT) ? PORT : "8080";
  const places: Record<string, string> = {
    "/main.js": shippedFile ??= writeProgram(program),
    ...SERVICE_ACCOUNT_DIR && {
      "/var/run/secrets/kubernetes.io/serviceaccount": SERVICE_ACCOUNT_DIR,
    },
    ...SUBJECT_TOKEN_FILE && { "/var/run/chainguard/oidc": dirname(SUBJECT_TOKEN_FILE) },
    "$(KUBERNETES_SERVICE_HOST):$(KUBERNETES_SERVICE_PORT)": apiAddress(settings),
    "0.0.0.0:8080": `0.0.0.0:${port}`,
    "[::]:8080": `[::]:${port}`,
  };
  // The manifest hides a proxy's variables, unless --proxy is given one, and the names in lower case always; the
  // Containerfile's image, which runs the same program, shows them.
  const granted = ["HTTPS_PROXY", "https_proxy", "no_proxy"].filter((name) => name in settings);
  const here = argumentsFor(runtime, settings).map((arg) => {
    const [flag = "", value = ""] = arg.split(/=(.*)/s);
    const list = value.split(",");
    if (flag === "--allow-env") return `${flag}=${[...new Set([...list, ...granted])].join()}`;
    if (flag === "--ignore-env") {
      return `${flag}=${list.filter((name) => !granted.includes(name)).join()}`;
    }
    return value === ""
      ? places[arg] ?? arg
      : `${flag}=${list.map((each) => places[each] ?? each)}`;
  });
  return { words: [commandFor(runtime), ...here], env };
}

/** Of the manifest that is told which servers the program is to reach. */
function argumentsFor(runtime: Runtime, settings: Record<string, string>): string[] {
  const { ISSUER_URL, HTTPS_PROXY, NO_PROXY, https_proxy } = settings;
  const proxy = HTTPS_PROXY || https_proxy || "";
  const flags = {
    ...ISSUER_URL && { issuer: ISSUER_URL },
    ...proxy.startsWith("http") && { proxy },
    ...NO_PROXY && { "no-proxy": NO_PROXY },
  };
  const make = (settings: Settings) =>
    selfContained(readRoot("deploy.yaml"), "", { runtime, image: "IMAGE", settings });
  try {
    return readContainer(make(flags)).args;
  } catch {
    // What the manifest does not take, the program refuses too, before it reaches anything.
    return readContainer(make({})).args;
  }
}

/** As --allow-net has it. Where there is none, the program says so before it connects. */
function apiAddress(settings: Record<string, string>): string {
  const { KUBERNETES_API = "", KUBERNETES_SERVICE_HOST: host = "" } = settings;
  if (URL.canParse(KUBERNETES_API)) {
    const { hostname, port, protocol } = new URL(KUBERNETES_API);
    return `${hostname}:${port || (protocol === "http:" ? 80 : 443)}`;
  }
  const { KUBERNETES_SERVICE_PORT = "" } = settings;
  const port = isPort(KUBERNETES_SERVICE_PORT) ? KUBERNETES_SERVICE_PORT : 443;
  return `${host.includes(":") ? `[${host}]` : host || "localhost"}:${port}`;
}

const isPort = (text: string) => /^[1-9]\d*$/.test(text) && +text < 2 ** 16;

function writeProgram(program: string): string {
  const folder = mkdtempSync(join(tmpdir(), "shipped-"));
  process.on("exit", () => rmSync(folder, { recursive: true }));
  const file = join(folder, "main.js");
  writeFileSync(file, program);
  return file;
}

/** Where one of the modules is as it ships, bundled with less of undici; coverage counts that of the source. */
export async function urlOfShipped(name: "k8s.ts" | "sts.ts"): Promise<string> {
  return pathToFileURL(isCounted ? join(ROOT, name) : writeProgram(await bundle(name))).href;
}

/** Starts the program; `settings` is its whole environment. */
export async function startProgram(
  runtime: Runtime,
  settings: Record<string, string>,
  args: string[] = [],
  { through = [], shipped = false }: Launch = {},
) {
  const { words, env: given } = shipped
    ? await shippedCommandOf(runtime, settings)
    : { words: sourceCommandOf(runtime), env: { DENO_NO_UPDATE_CHECK: "1" } };
  const [command = "", ...rest] = [...through, ...words];
  const { PATH = "", HOME = "", DENO_COVERAGE_DIR } = process.env;
  // Node hands its own variable on by itself.
  const measured = DENO_COVERAGE_DIR === undefined ? {} : { DENO_COVERAGE_DIR };
  const env = { PATH, HOME, NO_COLOR: "1", ...measured, ...given, ...settings };
  const endTurn = await takeTurn();
  const child = spawn(command, [...rest, ...args], {
    cwd: ROOT,
    env,
    stdio: ["ignore", "pipe", "pipe"],
  });
  const lines: string[] = [];
  const warnings: string[] = [];
  const output: Buffer[] = [];
  child.stdout.on("data", (chunk) => output.push(chunk));
  for (const stream of [child.stdout, child.stderr]) {
    createInterface(stream).on("line", (line) => {
      lines.push(line);
      if (stream === child.stderr) warnings.push(line);
      endTurn();
    });
  }
  child.on("spawn", () => running.add(child.pid!)).on("exit", () => running.delete(child.pid!));
  const exited = once(child, "close").then(([code, signal]) => {
    endTurn();
    return (code ?? signal) as number | string;
  });
  return {
    /** What it wrote on both of its outputs, in the order in which it came. */
    lines,
    /** What it wrote on stderr: what went wrong. */
    warnings,
    /** All that it wrote, read; fails at a line that is not a record. */
    log: (): LogRecord[] => lines.map((line) => JSON.parse(line)),
    stdout: () => Buffer.concat(output).toString(),
    pid: child.pid!,
    isAlive: () => child.exitCode === null && child.signalCode === null,
    /** The exit status, or the signal that ended it, once both of its outputs are read. */
    exited,
    kill(signal: NodeJS.Signals): void {
      // Deno's `child.kill` has the signal reported where the program ended by itself, upon it.
      if (child.exitCode === null && child.signalCode === null) process.kill(child.pid!, signal);
    },
  };
}
