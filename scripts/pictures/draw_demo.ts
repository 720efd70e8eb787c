/**
 * Runs the demo on a terminal of its own, and draws what it showed there: docs/demo.svg.
 *
 *   node scripts/pictures/draw_demo.ts        (needs util-linux's `script`; takes as long as the demo)
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { animate, type Frame } from "./terminal.ts";

const ROOT = join(import.meta.dirname!, "../..");
const COLUMNS = 80;
const ROWS = 26;
/** Of the demo's 20 frames a second, one each so often (ms) is kept. */
const FRAME_MS = 500;
/** How the demo marks a frame. */
// deno-lint-ignore no-control-regex
const FRAME = /\x1b\[\?2026h\x1b\[H(.*?)\x1b\[J\x1b\[\?2026l/gs;
/** The path goes without what differs from machine to machine. */
const TITLE =
  "npm run demo: the controller fills Secrets, and replaces each token well before it ends";

const child = spawn("script", [
  "-qfec",
  `stty cols ${COLUMNS} rows ${ROWS}; npm run -s demo`,
  "/dev/null",
], {
  cwd: ROOT,
  env: { ...process.env, TERM: "xterm-256color", NO_COLOR: "" },
  stdio: ["ignore", "pipe", "inherit"],
});
const began = Date.now();
const frames: Frame[] = [];
let rest = "";
child.stdout.setEncoding("utf8").on("data", (text: string) => {
  rest += text;
  for (const [, frame = ""] of rest.matchAll(FRAME)) {
    const time = Date.now() - began;
    const isNew = time - (frames.at(-1)?.time ?? -Infinity) >= FRAME_MS;
    if (isNew) frames.push({ time, lines: frame.split(/\r?\n/) });
  }
  rest = rest.slice(rest.lastIndexOf("\x1b[?2026l") + 1);
});
const [code] = await once(child, "close");
if (code !== 0) throw new Error(`the demo ended with exit status ${code}`);
const first = frames[0]?.time ?? 0;
const svg = animate(
  frames.map(({ time, lines }) => ({ time: time - first, lines })),
  COLUMNS,
  ROWS,
  TITLE,
);
writeFileSync(join(ROOT, "docs/demo.svg"), svg);
console.log(`docs/demo.svg: ${frames.length} frames, ${svg.length} bytes`);
