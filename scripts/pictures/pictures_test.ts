import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { drawDashboard, fillIn, type Panel, type Series } from "./panels.ts";
import { animate, escape, spansOf } from "./terminal.ts";

const DOCS = join(import.meta.dirname!, "../../docs");

test("A line's runs keep their columns and styles, apart where there is more than one space", () => {
  const spans = spansOf(
    "\x1b[35m 1/8  \x1b[39m\x1b[1mA <sentence>.\x1b[22m   \x1b[2mdim\x1b[22m end\x1b[K",
  );
  assertEquals(spans.map(({ text, column }) => [text, column]), [["1/8", 1], ["A <sentence>.", 6], [
    "dim",
    22,
  ], [
    "end",
    26,
  ]]);
  assertEquals(spans.map(({ bold }) => bold), [false, true, false, false]);
  assertEquals(new Set(spans.map(({ color }) => color)).size, 3);
});

/** The texts that the picture shows at an instant, by its own rules. */
function shownAt(svg: string, ms: number): string[] {
  const duration = Number(/animation-duration:(\d+)ms/.exec(svg)?.[1]);
  return [...svg.matchAll(/<g(?: id="r(\d+)"[^>]*)?>(.*?)<\/g>/g)].filter(([, id]) => {
    const [, steps = "0%{opacity:1}"] = new RegExp(`@keyframes k${id}\\{(.*)\\}$`, "m").exec(svg) ??
      [];
    const past = [...steps.matchAll(/([\d.]+)%\{opacity:(\d)\}/g)].filter(([, at]) =>
      Number(at) / 100 * duration <= ms
    );
    return past.at(-1)?.[2] === "1";
  }).map(([, , body = ""]) => body.replace(/<[^>]+>/g, ""));
}

test("The picture shows each frame in its time, and draws what stays but once", () => {
  const frames = [["title", "a"], ["title", "b"], ["title", "a", "c & d"]].map((lines, i) => ({
    time: i * 1000,
    lines,
  }));
  const svg = animate(frames, 20, 5, "a < b");
  assertEquals([500, 1500, 2500, 4500].map((ms) => shownAt(svg, ms)), [
    ["title", "a"],
    ["title", "b"],
    ["title", "a", "c &amp; d"],
    ["title", "a", "c &amp; d"],
  ]);
  assertEquals(svg.match(/>title</g)?.length, 1);
  assert(svg.includes("<title>a &lt; b</title>"));
  assertThrows(() => animate([], 20, 5, ""), Error, "there is no frame");
});

test("Where pictures do not move, the last frame is to be seen", () => {
  const svg = animate([{ time: 0, lines: ["first"] }, { time: 1000, lines: ["last"] }], 20, 5, "");
  assertMatch(svg, /opacity="0"><text[^>]*>first</);
  assertMatch(svg, /class="f"><text[^>]*>last</);
});

const panel = (mode: "none" | "normal"): Panel => ({
  title: "A & B",
  gridPos: { x: 0, y: 0, w: 12, h: 8 },
  fieldConfig: { defaults: { unit: "s", custom: { stacking: { mode } } }, overrides: [] },
  targets: [{ expr: "q", legendFormat: "{{state}}" }],
});
const series = (state: string, ...values: number[]): Series => ({
  labels: { state },
  points: values.map((value, i) => [i * 5, value]),
});
const draw = (mode: "none" | "normal", answer: Series[]) =>
  drawDashboard([panel(mode)], new Map([["q", answer]]), 0, 120);
const linesIn = (svg: string) =>
  [...svg.matchAll(/<polyline points="([^"]+)"/g)].map(([, points = ""]) => points.split(" "));
/** The heights of a line, as shares of the highest place. */
const heights = (points: string[]) => points.map((point) => Number(point.split(",")[1]));

test("A line goes through what Prometheus answered, and not over what it did not", () => {
  const [rising = []] = linesIn(draw("none", [series("valid", 0, 5, 10)]));
  const [bottom = 0, middle = 0, top = 0] = heights(rising);
  assertEquals((bottom + top) / 2, middle);
  assert(top < bottom);
  const broken: Series = {
    labels: { state: "x" },
    points: [[0, 1], [5, 1], [60, 1], [65, 1], [70, NaN]],
  };
  assertEquals(linesIn(draw("none", [broken])).map(({ length }) => length), [2, 2]);
});

test("Stacked lines stand upon each other", () => {
  const [lower = [], upper = []] = linesIn(
    draw("normal", [series("a", 10, 10), series("b", 0, 10)]),
  );
  const [first = 0, second = 0] = heights(upper);
  assertEquals(heights(lower), [first, first]);
  assert(second < first);
});

test("A line that is 0 all the time is left out, unless there is no other", () => {
  const namesIn = (svg: string) => ["a", "b"].filter((name) => svg.includes(`>${name}<`));
  const idle = series("a", 0, 0);
  assertEquals(namesIn(draw("none", [idle, series("b", 0, 1)])), ["b"]);
  assertEquals(namesIn(draw("none", [idle, series("b", 0, 0)])), ["a", "b"]);
});

test("Names come from the labels, and are escaped", () => {
  const svg = draw("none", [series("<valid>", 1, 2)]);
  assert(svg.includes("&lt;valid&gt;") && svg.includes("A &amp; B"));
  assertEquals(escape('<a href="b">&'), "&lt;a href=&quot;b&quot;&gt;&amp;");
});

test("A query is asked for all values of its variables, and not with a variable that is unknown", () => {
  const variables = [{ name: "job", allValue: ".*" }, { name: "datasource" }];
  assertEquals(
    fillIn('rate(a{job=~"$job"}[$__rate_interval])', variables, "20s"),
    'rate(a{job=~".*"}[20s])',
  );
  for (const unknown of ["$jobs", "$datasource"]) {
    assertThrows(() => fillIn(unknown, variables), Error, `${unknown} is no variable`);
  }
});

test("The pictures in docs are of this form, with each panel of the dashboard", () => {
  const demo = readFileSync(join(DOCS, "demo.svg"), "utf8");
  assert(shownAt(demo, 1e9).some((line) => line.includes("API server")));
  const drawn = readFileSync(join(DOCS, "dashboard.svg"), "utf8");
  const { panels } = JSON.parse(readFileSync(join(DOCS, "dashboard.json"), "utf8"));
  for (const { title } of panels) assert(drawn.includes(`>${title}<`), title);
});
