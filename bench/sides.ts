/** What is measured side by side: each is a process of its own, with the same account, and told when it has written. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { cpSync, rmSync, writeFileSync } from "node:fs";
import { get } from "node:http";
import { join } from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { run } from "../tests/support/processes.ts";
import {
  commandFor,
  readManifest,
  type Runtime,
  shippedCommandOf,
  shippedV8Flags,
  sourceCommandOf,
} from "../tests/support/program.ts";
import { giveTokens, type Ground, ISSUER_HOST } from "./ground.ts";
import { type Usage, usageOf } from "../tests/support/usage.ts";
import { ROOT } from "../tests/support/paths.ts";
import { NAMESPACE } from "../tests/support/names.ts";
import { findPort } from "../tests/support/ports.ts";

/** Beside a start of some 100 ms it is little, and it costs the machine little. */
const READY_POLL_MS = 5;
const FILLED_POLL_MS = 20;
/** Upstream's writes are some five a second; nothing else takes so long. */
const WAIT_MS = 15 * 60_000;
/** What a side said last, in a failure. */
const TAIL = 5;

interface Command {
  args: string[];
  env: Record<string, string>;
}

export interface Side {
  name: string;
  command(ground: Ground, port: number): Command | Promise<Command>;
  /** Stands in a line of its output for each Secret that it wrote. */
  written: string;
  /** Whether it serves /readyz. */
  hasReadyz: boolean;
}

/** Those that run end with the bench, however it ends. */
const children = new Set<ChildProcess>();
process.on("exit", () => children.forEach((child) => child.kill("SIGKILL")));

export type Running = Awaited<ReturnType<typeof startSide>>;

/** Starts a side, with tokens that are new, and counts what it writes. */
export async function startSide(ground: Ground, side: Side, settings: Record<string, string> = {}) {
  await giveTokens(ground);
  const port = await findPort();
  const { args: [program = "", ...args], env } = await side.command(ground, port);
  const startedAt = performance.now();
  const child = spawn(program, args, {
    cwd: ROOT,
    env: { PATH: process.env.PATH ?? "", HOME: ground.work, NO_COLOR: "1", ...env, ...settings },
    stdio: ["ignore", "pipe", "pipe"],
  });
  children.add(child);
  const exited = once(child, "close").then(() => children.delete(child));
  const tail: string[] = [];
  let written = 0;
  let firstAt = NaN;
  let lastAt = NaN;
  const read = (line: string) => {
    if (line.includes(side.written)) {
      written++;
      lastAt = performance.now();
      if (written === 1) firstAt = lastAt;
    }
    tail.push(line);
    if (tail.length > TAIL) tail.shift();
  };
  createInterface(child.stdout).on("line", read);
  createInterface(child.stderr).on("line", read);
  async function waitFor(
    what: string,
    check: () => boolean | Promise<boolean>,
    pollMs: number,
  ): Promise<number> {
    const deadline = performance.now() + WAIT_MS;
    while (!await check()) {
      const isOver = child.exitCode !== null || performance.now() > deadline;
      if (isOver) {
        throw new Error(`${side.name}: never ${what}; it wrote ${written}\n${tail.join("\n")}`);
      }
      await sleep(pollMs);
    }
    return performance.now() - startedAt;
  }
  const isReady = () =>
    new Promise<boolean>((done) => {
      get({ host: "127.0.0.1", port, path: "/readyz", agent: false }, (answer) => {
        answer.resume();
        done(answer.statusCode === 200);
      }).on("error", () => done(false));
    });
  return {
    side,
    port,
    usage: (): Usage => usageOf(child.pid!),
    /** How many it has written. */
    written: () => written,
    /** Waits for /readyz; returns how long after the start (ms) it was. */
    ready: () => waitFor("ready", isReady, READY_POLL_MS),
    /** Waits until it has written so many; returns how long (ms) they took, from the start and from the first. */
    async filled(secrets: number): Promise<{ totalMs: number; writingMs: number }> {
      await waitFor(`wrote ${secrets}`, () => written >= secrets, FILLED_POLL_MS);
      return { totalMs: lastAt - startedAt, writingMs: lastAt - firstAt };
    },
    async stop(): Promise<void> {
      if (child.exitCode !== null || child.signalCode !== null) return;
      child.kill("SIGTERM");
      await exited;
    },
  };
}

/** A file that may do everything. */
const freely = (runtime: Runtime, ...file: string[]) => [
  commandFor(runtime),
  ...runtime === "deno" ? ["run", "--allow-all"] : [],
  ...file,
];

/** As in a Pod, but for the places. */
const podEnvironment = ({ cluster, account, issuer, issuerCaFile }: Ground, port: number) => ({
  ...account.settings,
  KUBERNETES_SERVICE_HOST: new URL(cluster.server).hostname,
  KUBERNETES_SERVICE_PORT: new URL(cluster.server).port,
  ISSUER_URL: issuer.url,
  NODE_EXTRA_CA_CERTS: issuerCaFile,
  DENO_NO_UPDATE_CHECK: "1",
  PORT: `${port}`,
});

/** The program as it ships: the manifest's, with its flags. */
export function bundle(runtime: Runtime): Side {
  return product(`${runtime} bundle`, (settings) => shippedCommandOf(runtime, settings));
}

/** The program from source, with the V8 flags that it ships with. */
export function source(runtime: Runtime): Side {
  return product(`${runtime} source`, async () => {
    const [command = "", ...args] = sourceCommandOf(runtime);
    const v8Flags = shippedV8Flags();
    const { env } = await readManifest(runtime);
    const words = runtime === "node"
      ? [command, ...v8Flags, ...args]
      : [command, "run", `--v8-flags=${v8Flags}`, ...args.slice(1)];
    return { words, env };
  });
}

function product(
  name: string,
  commandOf: (
    settings: Record<string, string>,
  ) => Promise<{ words: string[]; env: Record<string, string> }>,
): Side {
  return {
    name,
    written: '"msg":"token written"',
    hasReadyz: true,
    async command(ground, port) {
      const settings = podEnvironment(ground, port);
      const { words, env } = await commandOf(settings);
      return { args: words, env: { ...env, ...settings } };
    },
  };
}

/** A bare program of limit.ts: no more than what it takes, on the same runtime with the same client. */
export function limit(
  runtime: Runtime,
  mode: "patch" | "watched" | "list" | "reflex",
  tokenFile = "",
): Side {
  return {
    name: mode === "watched" ? `${runtime} limit, watched` : `${runtime} limit`,
    written: "written",
    hasReadyz: mode === "list" || mode === "reflex",
    command: (ground, port) => ({
      args: freely(runtime, "bench/limit.ts", mode),
      env: { ...podEnvironment(ground, port), TOKEN_FILE: tokenFile },
    }),
  };
}

/** The runtime itself: what no program on it can do without. */
export function bare(runtime: Runtime): Side {
  return {
    name: `bare ${runtime}`,
    written: "never",
    hasReadyz: true,
    command: (_ground, port) => ({
      args: freely(runtime, "bench/bare.ts"),
      env: { PORT: `${port}` },
    }),
  };
}

/** Where the SDK is installed to. */
const SDK = join(ROOT, "out", "sdk");

/** Installs what bench/sdk/package-lock.json pins, beside the checkout's own packages. */
export function installSdk(): Promise<unknown> {
  rmSync(SDK, { recursive: true, force: true });
  cpSync(join(ROOT, "bench/sdk"), SDK, { recursive: true });
  return run("npm", ["ci", "--no-fund", "--no-audit"], { cwd: SDK });
}

/** The controller of equal duty on the SDK. */
export function sdk(runtime: Runtime): Side {
  return {
    name: `${runtime} SDK`,
    written: "token written",
    hasReadyz: true,
    command: (ground, port) => ({
      args: freely(runtime, join(SDK, "controller.ts")),
      env: { ...podEnvironment(ground, port), KUBECONFIG: ground.kubeconfig },
    }),
  };
}

/** What upstream says when it has found a Secret's token valid. */
export const FOUND_VALID = "Enqueueing future refresh";

/**
 * The Go controller of the same name, without leader election, so that several can run at a time. It knows the issuer by its public name and its subject token by a path, so it
 * runs in a mount namespace where both are ours.
 */
export function peer(binaryPath: string, name: string, written = "Updated secret"): Side {
  const script = `
    mount -t tmpfs tmpfs /run && mkdir -p /run/chainguard/oidc && cp "$1" /run/chainguard/oidc/oidc-token
    mount --bind "$2" /etc/hosts
    exec "$3" -disable-ha`;
  return {
    name,
    written,
    hasReadyz: false,
    command(ground, port) {
      const hosts = join(ground.work, "hosts");
      writeFileSync(
        hosts,
        `127.0.0.1 localhost\n${new URL(ground.issuer.url).hostname} ${ISSUER_HOST}\n`,
      );
      const inside = [
        "sh",
        "-ec",
        script,
        "peer",
        ground.account.settings.SUBJECT_TOKEN_FILE,
        hosts,
        binaryPath,
      ];
      return {
        args: ["unshare", "--mount", ...inside],
        env: {
          KUBECONFIG: ground.kubeconfig,
          SSL_CERT_FILE: ground.issuerCaFile,
          SYSTEM_NAMESPACE: NAMESPACE,
          METRICS_PROMETHEUS_PORT: `${port}`,
          CONFIG_LOGGING_NAME: "config-logging",
          CONFIG_OBSERVABILITY_NAME: "config-observability",
        },
      };
    },
  };
}
