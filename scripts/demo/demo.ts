/**
 * Shows the program at work on a machine that has nothing: the real program, an API server and an issuer that are
 * embedded here, and tokens that live seconds. Ends after half a minute, and says what was seen.
 */
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { Broken, Ledger } from "./ledger.ts";
import { draw, plainLine, type Scene } from "./screen.ts";
import { startProgram } from "./launch.ts";
import { play, summarize } from "./story.ts";
import { startApiServer } from "../../tests/fake/apiserver.ts";
import { startIssuer } from "../../tests/fake/issuer.ts";
import { ACCOUNT, NAMESPACE } from "../../tests/support/names.ts";

const HELP =
  `Shows the program at work, with an embedded API server and issuer, in about half a minute.

Usage: npm run demo -- [--keep] [--runtime deno|node]
       deno task demo [--keep] [--runtime deno|node]

  --keep     goes on until Ctrl-C
  --runtime  what runs the program; by default what runs the demo

The exit status is 0 if the promise was kept, 1 if not.
`;

const TOKEN_LIFE_S = 12;
const FRAME_MS = 50;
/** Rows that the end needs below the picture. */
const LAST_ROWS = 9;
const HIDE_CURSOR = "\x1b[?25l";
const SHOW_CURSOR = "\x1b[?25h";
/** From the top left; the outer ones have terminals that know them show a frame at once. */
const BEGIN_FRAME = "\x1b[?2026h\x1b[H";
const END_LINE = "\x1b[K";
const END_FRAME = "\x1b[J\x1b[?2026l";
const SIGNALS = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 };

const { env, stdout } = process;
const isScreen = stdout.isTTY && !env.NO_COLOR && env.TERM !== "dumb";
const { keep, help, runtime } = readArguments();
if (help) stdout.write(HELP);
else process.exit(await main());

function readArguments() {
  try {
    const args = process.argv.slice(2).filter((arg) => arg !== "--");
    const flag = { type: "boolean" } as const;
    const options = {
      keep: flag,
      help: { ...flag, short: "h" },
      runtime: { type: "string" },
    } as const;
    const { runtime = process.versions.deno ? "deno" : "node", ...flags } =
      parseArgs({ args, options }).values;
    if (runtime === "deno" || runtime === "node") return { ...flags, runtime };
    throw new Error(`--runtime "${runtime}": must be deno or node`);
  } catch (error) {
    process.stderr.write(
      `${(error as Error).message.split(". ")[0]} (--help tells what there is)\n`,
    );
    process.exit(2);
  }
}

/** Plays the demo; returns the exit status. */
async function main(): Promise<number> {
  const startedAt = Date.now();
  const api = await startApiServer();
  const issuer = await startIssuer({ keys: api.jwks, life: TOKEN_LIFE_S });
  const say = (line: string) => isScreen || stdout.write(`${line}\n`);
  const ledger = new Ledger(api, issuer, (happening) => say(plainLine(happening, startedAt)));
  const scene: Scene = { ledger, startedAt, act: "", number: "", runtime, life: TOKEN_LIFE_S };

  api.createServiceAccount(NAMESPACE, ACCOUNT);
  const subjectToken = await api.serviceAccountToken(
    NAMESPACE,
    ACCOUNT,
    issuer.audience,
    24 * 3600,
  );
  process.on("exit", () => isScreen && stdout.write(SHOW_CURSOR));
  stdout.on("error", () => process.exit(1));
  // What stood there scrolls away, and is not lost.
  if (isScreen) stdout.write(HIDE_CURSOR + "\n".repeat(stdout.rows));

  let status: number;
  let isPlayed = false;
  let message = "It was stopped before its end.";
  try {
    const program = await startProgram(runtime, subjectToken, {
      KUBERNETES_API: api.url,
      ISSUER_URL: issuer.url,
    });
    status = await Promise.race([interrupted(), program.failed, follow(), perform()]);
    await program.end();
    if (isPlayed) message = summarize(ledger, startedAt);
  } catch (error) {
    status = 1;
    message = error instanceof Broken
      ? `It went wrong: ${error.message}`
      : `${(error as Error).stack}`;
  }
  if (isScreen) show(stdout.rows - LAST_ROWS);
  (status === 0 ? stdout : process.stderr).write(`${isScreen ? "\n" : ""}\n${message}\n`);
  return status;

  async function perform(): Promise<number> {
    const announce = (act: string, number: string) => {
      Object.assign(scene, { act, number });
      say(`\n${number}  ${act}`);
    };
    await play({ api, issuer, ledger, announce });
    isPlayed = true;
    if (!keep) return 0;
    announce("That was all. Tokens go on being renewed, until Ctrl-C.", "");
    return new Promise(() => {});
  }

  async function follow(): Promise<never> {
    for (;; await sleep(FRAME_MS)) {
      ledger.look();
      if (isScreen) show(stdout.rows);
    }
  }

  function show(rows: number): void {
    const lines = draw(scene, stdout.columns, rows, Date.now());
    stdout.write(BEGIN_FRAME + lines.map((line) => line + END_LINE).join("\n") + END_FRAME);
  }
}

/** Resolves to the exit status when a signal asks for the end. */
function interrupted(): Promise<number> {
  return new Promise((resolve, reject) => {
    for (const [signal, status] of Object.entries(SIGNALS)) {
      process.on(signal, () => resolve(keep ? 0 : status));
    }
    process.on("uncaughtException", reject);
  });
}
