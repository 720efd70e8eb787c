/** Draws frames of a terminal as an animated SVG. */

/** Of a run of the same style. */
interface Span {
  text: string;
  column: number;
  color: string;
  bold: boolean;
}

export interface Frame {
  /** In ms from the beginning. */
  time: number;
  lines: string[];
}

const CELL = { width: 8.4, height: 18 };
const FONT_SIZE = 14;
const MARGIN = 14;
const BACKGROUND = "#0d1117";
const PLAIN = "#c9d1d9";
const DIM = "#8b949e";
/** By the number that sets it (SGR). */
const COLORS: Record<number, string> = {
  31: "#ff7b72",
  32: "#7ee787",
  33: "#f2cc60",
  34: "#79c0ff",
  35: "#d2a8ff",
  36: "#56d4dd",
};
/** `deno fmt` would make ten thousand lines of a picture. */
export const UNFORMATTED = "<!-- deno-fmt-ignore-file -->";
/** The last frame stays, before it begins anew. */
const LAST_MS = 3_000;

/** The styled runs of a line; what is not a style or text is left out. */
export function spansOf(line: string): Span[] {
  const spans: Span[] = [];
  let style = { color: PLAIN, bold: false };
  let column = 0;
  // deno-lint-ignore no-control-regex
  for (const [, code, text = ""] of line.matchAll(/\x1b\[([\d;?]*)[A-Za-z]|([^\x1b]+)/g)) {
    if (code !== undefined) style = restyle(style, Number(code));
    // Apart where there is more than one space, which not all that draw SVGs keep.
    for (const part of text.split(/(\s{2,}|^\s)/)) {
      if (part.trim() !== "") spans.push({ text: part.trimEnd(), column, ...style });
      column += [...part].length;
    }
  }
  return spans;
}

function restyle(style: Pick<Span, "color" | "bold">, code: number): Pick<Span, "color" | "bold"> {
  if (code === 0) return { color: PLAIN, bold: false };
  if (code === 1) return { ...style, bold: true };
  if (code === 2) return { ...style, color: DIM };
  if (code === 22) return { color: style.color === DIM ? PLAIN : style.color, bold: false };
  if (code === 39) return { ...style, color: PLAIN };
  return { ...style, color: COLORS[code] ?? style.color };
}

/** One picture that shows all frames in turn, for ever. Where SVGs do not move, it shows the last. */
export function animate(frames: Frame[], columns: number, rows: number, title: string): string {
  const last = frames.at(-1);
  if (!last) throw new Error("there is no frame to draw");
  const width = Math.ceil(columns * CELL.width + 2 * MARGIN);
  const height = rows * CELL.height + 2 * MARGIN;
  const duration = last.time + LAST_MS;
  const percent = (time: number) => +(100 * time / duration).toFixed(2);
  const rules: string[] = [];
  const groups = distinctRows(frames, duration).map(({ row, line, shown }, i) => {
    const isLast = shown.some(([, end]) => end === duration);
    const isAlways = shown.length === 1 && shown[0]![0] === 0 && isLast;
    if (!isAlways) {
      rules.push(`@keyframes k${i}{${keyframes(shown, percent)}}`, `#r${i}{animation-name:k${i}}`);
    }
    const attributes = isAlways ? "" : ` id="r${i}" class="f"${isLast ? "" : ' opacity="0"'}`;
    return `<g${attributes}>${drawLine(line, row)}</g>`;
  });
  const moving =
    `.f{animation-duration:${duration}ms;animation-iteration-count:infinite;animation-timing-function:step-end}`;
  return `${UNFORMATTED}
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img">
<title>${escape(title)}</title>
<style>text{font:${FONT_SIZE}px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
${moving}
${rules.join("\n")}
</style>
<rect width="${width}" height="${height}" rx="8" fill="${BACKGROUND}"/>
${groups.join("\n")}
</svg>
`;
}

interface Row {
  row: number;
  line: string;
  /** From and until when, in ms. */
  shown: [from: number, until: number][];
}

/** Each row's different contents, once each, and when they are to be seen. */
function distinctRows(frames: Frame[], duration: number): Row[] {
  const rows = new Map<string, Row>();
  for (const [i, { time, lines }] of frames.entries()) {
    const until = frames[i + 1]?.time ?? duration;
    const from = i === 0 ? 0 : time;
    for (const [row, line] of lines.entries()) {
      if (spansOf(line).length === 0) continue;
      const key = `${row} ${line}`;
      const found = rows.get(key) ?? { row, line, shown: [] };
      rows.set(key, found);
      const before = found.shown.at(-1);
      if (before?.[1] === from) before[1] = until;
      else found.shown.push([from, until]);
    }
  }
  return [...rows.values()];
}

function keyframes(shown: Row["shown"], percent: (time: number) => number): string {
  const steps = new Map([[0, 0]]);
  for (const [from, until] of shown) steps.set(percent(from), 1).set(percent(until), 0);
  return [...steps].filter(([at]) => at < 100).map(([at, opacity]) => `${at}%{opacity:${opacity}}`)
    .join("");
}

function drawLine(line: string, row: number): string {
  const y = MARGIN + row * CELL.height + FONT_SIZE;
  return spansOf(line).map(({ text, column, color, bold }) => {
    const x = +(MARGIN + column * CELL.width).toFixed(1);
    const length = +([...text].length * CELL.width).toFixed(1);
    const weight = bold ? ' font-weight="bold"' : "";
    // Whatever the font, each cell has its width.
    return `<text x="${x}" y="${y}" textLength="${length}" fill="${color}"${weight}>${
      escape(text)
    }</text>`;
  }).join("");
}

/** Text as XML has it. */
export function escape(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll(
    '"',
    "&quot;",
  );
}
