/** Runs the real program as a process of its own, on either runtime, and keeps all that it says. */
import { Buffer } from "node:buffer";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";
import { bundle } from "../../scripts/bundle.ts";
import { defaultImage, selfContained } from "../../scripts/manifest.ts";
import { ofKind, podOf } from "./yaml.ts";
import { ROOT } from "./paths.ts";

export type Runtime = "node" | "deno";
/** The one that runs this. */
export const RUNTIME: Runtime = process.versions.deno ? "deno" : "node";

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

/** Where it is run from, and how. */
export interface Launch {
  /** The program's file. Default: the source. */
  file?: string;
  /** A command that runs the one it is given, as `env` does. */
  through?: string[];
  /** Settings of V8. Default: none. */
  v8Flags?: string[];
  /** Runs the program of the manifest, with the rights that a Pod gives it. Default: the source. */
  shipped?: boolean;
}

/** The settings of V8 that the program ships with, on either runtime. */
export function shippedV8Flags(): string[] {
  const [, flags] = /--v8-flags=(\S+)/.exec(readFileSync(join(ROOT, "deploy.yaml"), "utf8"))!;
  return flags!.split(",");
}

/** On Deno with the rights that `deno task start` gives. */
function commandOf(runtime: Runtime, file: string, v8Flags: string[]): string[] {
  const command = commandFor(runtime);
  if (runtime === "node") return [command, ...v8Flags, file];
  const words: string[] = JSON.parse(readFileSync(join(ROOT, "deno.json"), "utf8")).tasks.start
    .split(" ");
  const flags = v8Flags.length > 0 ? [`--v8-flags=${v8Flags.join()}`] : [];
  return [command, ...words.slice(words.indexOf("deno") + 1, -1), ...flags, file];
}

function commandFor(runtime: Runtime): string {
  const own = join(ROOT, "node_modules", ".bin", runtime);
  return existsSync(own) ? own : runtime;
}

/** The program and the arguments of the container, as the manifest of a runtime has them. */
interface Shipped {
  program: string;
  args: string[];
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
  const read = (name: string) => readFileSync(join(ROOT, name), "utf8");
  const options = { runtime, image: defaultImage(read("Containerfile"), runtime) };
  const manifest = selfContained(read("deploy.yaml"), await bundle("main.ts"), options);
  const [{ args }] = podOf(manifest).containers;
  return { program: ofKind("ConfigMap", manifest).data["main.js"], args };
}

/** As a Pod runs it, but for the places: its folders, and the hosts that it may reach, are here. */
async function shippedCommandOf(
  runtime: Runtime,
  { SERVICE_ACCOUNT_DIR = "", SUBJECT_TOKEN_FILE = "", ...settings }: Record<string, string>,
): Promise<string[]> {
  const { program, args } = await readManifest(runtime);
  const places: Record<string, string> = {
    "/main.js": shippedFile ??= writeProgram(program),
    "/var/run/secrets/kubernetes.io/serviceaccount": SERVICE_ACCOUNT_DIR || ROOT,
    "/var/run/chainguard/oidc": SUBJECT_TOKEN_FILE ? dirname(SUBJECT_TOKEN_FILE) : ROOT,
  };
  // What the manifest's component for proxies grants, too.
  const proxies = ["HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"];
  const granted = proxies.filter((name) => name in settings);
  const here = args.map((arg) => {
    const [flag = "", value = ""] = arg.split(/=(.*)/s);
    const list = value.split(",");
    if (flag === "--allow-net") return "--allow-net=127.0.0.1,[::1],localhost,0.0.0.0,[::]";
    if (flag === "--allow-env") return `${flag}=${[...new Set([...list, ...granted])].join()}`;
    if (flag === "--ignore-env") {
      return `${flag}=${list.filter((name) => !granted.includes(name)).join()}`;
    }
    return value === ""
      ? places[arg] ?? arg
      : `${flag}=${list.map((each) => places[each] ?? each)}`;
  });
  return [commandFor(runtime), ...here];
}

function writeProgram(program: string): string {
  const folder = mkdtempSync(join(tmpdir(), "shipped-"));
  process.on("exit", () => rmSync(folder, { recursive: true }));
  const file = join(folder, "main.js");
  writeFileSync(file, program);
  return file;
}

/** Bundles one of the modules that the program consists of, as the program is; returns the file. */
export async function bundleModule(entry: "k8s.ts" | "sts.ts"): Promise<string> {
  return writeProgram(await bundle(entry));
}

/** Starts the program; `settings` is its whole environment. */
export async function startProgram(
  runtime: Runtime,
  settings: Record<string, string>,
  args: string[] = [],
  { file = "main.ts", through = [], v8Flags = [], shipped = false }: Launch = {},
) {
  const words = shipped
    ? await shippedCommandOf(runtime, settings)
    : commandOf(runtime, file, v8Flags);
  const [command = "", ...rest] = [...through, ...words];
  const { PATH = "", HOME = "", DENO_COVERAGE_DIR } = process.env;
  // Node hands its own variable on by itself.
  const measured = DENO_COVERAGE_DIR === undefined ? {} : { DENO_COVERAGE_DIR };
  const env = { PATH, HOME, DENO_NO_UPDATE_CHECK: "1", NO_COLOR: "1", ...measured, ...settings };
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
