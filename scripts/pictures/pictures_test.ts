/** How the pictures of the documents are drawn, and that they are up to date in their form. */
import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { animate, spansOf } from "./terminal.ts";

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

test("The picture of the demo is of this form, and that of the dashboard has each panel", () => {
  const demo = readFileSync(join(DOCS, "demo.svg"), "utf8");
  assert(shownAt(demo, 1e9).some((line) => line.includes("API server")));
  const drawn = readFileSync(join(DOCS, "dashboard.svg"), "utf8");
  const { panels } = JSON.parse(readFileSync(join(DOCS, "dashboard.json"), "utf8"));
  for (const { title } of panels) assert(drawn.includes(`>${title}<`), title);
});
