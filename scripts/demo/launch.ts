/** Runs the real program as a process of its own. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { join } from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { Broken } from "./ledger.ts";

const ROOT = join(import.meta.dirname!, "..", "..");
const STOP_MS = 3_000;
const LOG_LINES_SHOWN = 5;
/** How a token begins: as it is, and as a docker config has it. */
const TOKEN_START = /eyJ|X3Rva2Vu/;

/** Starts main.ts as it is, on `deno` or `node`. */
export async function startProgram(
  runtime: string,
  subjectToken: string,
  settings: Record<string, string>,
) {
  mkdirSync(join(ROOT, "out"), { recursive: true });
  const dir = mkdtempSync(join(ROOT, "out", "demo-"));
  process.on("exit", () => rmSync(dir, { recursive: true }));
  const file = join(dir, "subject-token");
  writeFileSync(file, subjectToken);

  const { tasks } = JSON.parse(readFileSync(join(ROOT, "deno.json"), "utf8"));
  // With the very rights that `deno task start` gives it.
  const args = runtime === "deno"
    ? tasks.start.slice(tasks.start.indexOf("run ")).split(" ")
    : ["main.ts"];
  const command = runtime === "node" && !process.versions.deno ? process.execPath : runtime;
  const { PATH = "", HOME = "" } = process.env;
  const env = {
    PATH,
    HOME,
    DENO_NO_UPDATE_CHECK: "1",
    ...settings,
    SUBJECT_TOKEN_FILE: file,
    PORT: await findPort(),
  };
  // In a group of its own, so that Ctrl-C reaches the demo alone, which then ends it.
  const detached = process.platform !== "win32";
  const child = spawn(command, args, {
    cwd: ROOT,
    env,
    detached,
    stdio: ["ignore", "pipe", "pipe"],
  });
  process.on("exit", () => kill("SIGKILL"));

  let isEnding = false;
  const closed = once(child, "close");
  const log: string[] = [];
  const failed = new Promise<never>((_, reject) => {
    // What went wrong is on stderr, the rest on stdout.
    for (const output of [child.stdout!, child.stderr!]) {
      createInterface(output).on("line", (line) => {
        log.push(line);
        if (log.length > LOG_LINES_SHOWN) log.shift();
        if (TOKEN_START.test(line)) reject(new Broken("there is a token in the program's log"));
      });
    }
    child.on("error", ({ message }) => reject(new Broken(`${runtime} did not start: ${message}`)));
    child.on("close", (code, signal) => {
      if (isEnding) return;
      reject(
        new Broken(
          `the program ended by itself (${signal ?? code}); the last it logged:\n${log.join("\n")}`,
        ),
      );
    });
  });

  /** The group, because npm's `deno` may be a wrapper; where there is none, or no right to it, the process. */
  function kill(signal: NodeJS.Signals): void {
    try {
      process.kill(-child.pid!, signal);
    } catch {
      child.kill(signal);
    }
  }

  return {
    /** Rejects if the program does what it should not. */
    failed,
    async end(): Promise<void> {
      isEnding = true;
      kill("SIGTERM");
      const isClosed = await Promise.race([closed, sleep(STOP_MS, false)]);
      // The exit status says less: on Deno, and through npm's wrapper, the signal hides it.
      const isWell = isClosed && log.some((line) => line.includes('"msg":"stopped"'));
      if (!isWell) throw new Broken(`the program did not end well within ${STOP_MS / 1000} s`);
    },
  };
}

async function findPort(): Promise<string> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  return `${port}`;
}
