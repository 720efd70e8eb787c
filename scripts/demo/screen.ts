/** Draws the demo on a terminal. */
import { styleText } from "node:util";
import type { Happening, Kind, Ledger, Watched } from "./ledger.ts";

type Style = Parameters<typeof styleText>[0];
type Span = string | [text: string, style: Style];

export interface Scene {
  ledger: Pick<Ledger, "happenings" | "secrets" | "counts" | "lastExchangeAt" | "lastPatchAt">;
  startedAt: number;
  /** What is going on, in a sentence. */
  act: string;
  /** Such as `3/8`. */
  number: string;
  runtime: string;
  /** Seconds that a token lives. */
  life: number;
}

const PURPOSE = "keeps pull Secrets filled with tokens that live ";
/** Everything fits into this width; a wider terminal gets longer bars. */
const COLUMNS = 80;
const BAR_MIN = 20;
const BAR_MAX = 40;
const LIT_MS = 500;
/** Less than what is left of a token when it should be replaced. */
const LOW = 0.2;
const EIGHTHS = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
const STYLES: Record<Kind, Style> = {
  someone: "magenta",
  watch: "blue",
  exchange: "yellow",
  refusal: "red",
  patch: "green",
  event: "cyan",
  warning: "red",
};

/** The whole picture at the instant `now`, for a terminal of this size. */
export function draw(scene: Scene, columns: number, rows: number, now: number): string[] {
  const { ledger, act, number, startedAt } = scene;
  const { secrets, happenings, counts: { exchanges, patches, events } } = ledger;
  const width = Math.min(BAR_MAX, Math.max(BAR_MIN, columns - COLUMNS + BAR_MIN));
  const time = `${Math.floor((now - startedAt) / 1000)} s`;
  const above: Span[][] = [
    [[" pull-secret-updater ", "bold"], [PURPOSE.padEnd(columns - 22 - time.length), "dim"], time],
    [],
    ...drawParts(scene, now),
    [],
    [[` ${number}  `, "magenta"], [act, "bold"]],
    [],
    [[
      ` ${"SECRET".padEnd(19)}IDENTITY  ${"WHAT IS LEFT OF ITS TOKEN".padEnd(width + 10)}STATE`,
      "dim",
    ]],
    ...secrets.map((secret) => drawSecret(secret, width, now)),
    [],
  ];
  const space = Math.max(1, rows - above.length - 1);
  const log = happenings.slice(-space).map((happening) => drawHappening(happening, startedAt));
  const empty = Array.from({ length: space - log.length }, (): Span[] => []);
  const below: Span[] = [[
    ` exchanges ${exchanges}   patches ${patches}   events ${events}   (Ctrl-C ends it)`,
    "dim",
  ]];
  return [...above, ...log, ...empty, below].slice(0, rows).map((line) => paint(line, columns));
}

/** A line for where there is no terminal. */
export function plainLine({ time, kind, text }: Happening, startedAt: number): string {
  return `${seconds(time - startedAt).padStart(7)}  ${kind.padEnd(8)}  ${text}`;
}

/** The three parts, and what goes between them: it lights up as it goes. */
function drawParts({ ledger, runtime, life }: Scene, now: number): Span[][] {
  const patching: Style = now - ledger.lastPatchAt < LIT_MS ? ["green", "bold"] : "dim";
  const exchanging: Style = now - ledger.lastExchangeAt < LIT_MS ? ["yellow", "bold"] : "dim";
  const changes: Span = ["── what changes ──▶", "dim"];
  const patch: Span = ["◀── new token ─────", patching];
  const question: Span = ["── its own token ─▶", exchanging];
  const answer: Span = [`◀─ one for ${life} s ──`, exchanging];
  return [
    [" API server  ", changes, "   controller   ", question, " issuer"],
    [" (stand-in)  ", patch, ` main.ts (${runtime}) `, answer, " (stand-in)"],
  ];
}

function drawSecret(secret: Watched, width: number, now: number): Span[] {
  const { namespace, name, identity, token, tokens, warning, emptySince } = secret;
  const title = ` ${`${namespace}/${name}`.padEnd(19)}${identity.padEnd(10)}`;
  if (!token) {
    const without = `none, for ${seconds(now - emptySince)}`.padEnd(width + 10);
    return [title, [without, "dim"], warning ? [warning, "red"] : ["not filled yet", "yellow"]];
  }
  const left = token.expiresAt - now;
  const share = Math.min(1, Math.max(0, left / (token.expiresAt - token.issuedAt)));
  const eighths = Math.ceil(share * width * 8);
  const bar = "█".repeat(eighths >> 3) + EIGHTHS[eighths & 7];
  const rest = "·".repeat(width - bar.length);
  const style: Style = left <= 0 ? "red" : share < LOW ? "yellow" : "green";
  const state = left <= 0 ? "EXPIRED" : `valid, token ${tokens}`;
  return [title, [bar, style], [rest, "dim"], `${seconds(Math.max(0, left)).padStart(8)}  `, [
    state,
    style,
  ]];
}

function drawHappening({ time, kind, text }: Happening, startedAt: number): Span[] {
  return [
    [seconds(time - startedAt).padStart(8), "dim"],
    "  ",
    [kind.padEnd(10), STYLES[kind]],
    text,
  ];
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`;
}

/** Cuts a line to the width, and puts the styles in. */
function paint(line: Span[], width: number): string {
  let left = width;
  return line.map((span) => {
    const [text, style] = typeof span === "string" ? [span] : span;
    const cut = text.slice(0, left);
    left -= cut.length;
    return style && cut ? styleText(style, cut, { validateStream: false }) : cut;
  }).join("");
}
