import { assert, assertEquals } from "@std/assert";
import { test } from "node:test";
import { stripVTControlCharacters } from "node:util";
import type { Watched } from "./ledger.ts";
import { draw, plainLine, type Scene } from "./screen.ts";

const NOW = Date.UTC(2026, 0, 1);
const token = { id: "1", issuedAt: NOW - 9_000, expiresAt: NOW + 3_000, seenAt: NOW };
const secret: Watched = {
  namespace: "shop",
  name: "plain",
  identity: "A",
  tokens: 2,
  emptySince: NOW,
  token,
};
const late: Watched = { ...secret, name: "late", token: { ...token, expiresAt: NOW - 1 } };
const empty: Watched = {
  ...secret,
  name: "empty",
  token: undefined,
  warning: "ExchangeFailed",
  emptySince: NOW - 5_000,
};
const happenings = Array.from(
  { length: 50 },
  (_, i) => ({ time: NOW, kind: "patch", text: `${i} ${"x".repeat(90)}` }),
);
const counts = { exchanges: 1, refusals: 0, patches: 2, events: 3 };
const scene = {
  ledger: {
    happenings,
    secrets: [secret, late, empty],
    counts,
    lastExchangeAt: NOW,
    lastPatchAt: 0,
  },
  startedAt: NOW - 12_345,
  act: "Something happens.",
  number: "1/8",
  runtime: "node",
  life: 12,
} as Scene;

function plain(columns: number, rows: number): string[] {
  return draw(scene, columns, rows, NOW).map(stripVTControlCharacters);
}

test("a frame fills the terminal and is no wider and no higher, however small it is", () => {
  for (const [columns, rows] of [[120, 40], [80, 24], [40, 10], [20, 5], [1, 1]] as const) {
    const lines = plain(columns, rows);
    assertEquals(lines.length, rows);
    assert(lines.every((line) => line.length <= columns), `${columns}x${rows}`);
  }
});

test("a Secret's line shows what is left of its token, or why it has none", () => {
  const lines = plain(80, 24).map((line) => line.trimEnd());
  assert(
    lines.includes(" shop/plain         A         █████···············   3.0 s  valid, token 2"),
  );
  assert(lines.includes(" shop/late          A         ····················   0.0 s  EXPIRED"));
  assert(
    lines.includes(" shop/empty         A         none, for 5.0 s               ExchangeFailed"),
  );
});

test("the log ends with what happened last", () => {
  assert(plain(80, 24).at(-2)?.startsWith("  12.3 s  patch     49 x"));
});

test("a plain line has the seconds since the start, and no escape codes", () => {
  assertEquals(
    plainLine({ time: NOW, kind: "event", text: "TokenIssued" }, NOW - 1_500),
    "  1.5 s  event     TokenIssued",
  );
});
