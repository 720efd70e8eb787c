/** What must not be told: control characters, and any part of a token. */
import { Buffer } from "node:buffer";

/** Terminal escapes, a bell, a line of its own, and a change of direction. */
export const HOSTILE = '\u001b[31mred\u0007\n{"level":"forged"}\u009b2J\u202e';
/** What must not be in anything that is told. */
export const CONTROLS = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u;

const WINDOW = 16;

/**
 * Finds a part of one of the tokens in a text, as it is or in base64, even twice: 16 characters of a segment are
 * enough. Returns the first found.
 */
export function findToken(text: string, tokens: Iterable<string>): string | undefined {
  const known = new Set<string>();
  for (const run of text.match(/[\w+/=-]{16,}/g) ?? []) {
    for (let at = 0; at + WINDOW <= run.length; at++) known.add(run.slice(at, at + WINDOW));
  }
  for (const token of tokens) {
    const segments = token.split(".");
    const encoded = encodings(token);
    for (const form of [...segments, ...encoded, ...encoded.flatMap(encodings)]) {
      for (let at = 0; at + WINDOW <= form.length; at++) {
        if (known.has(form.slice(at, at + WINDOW))) return form.slice(at, at + WINDOW);
      }
    }
  }
}

/** Base64 of a text at each of the three places that it can have within a longer one, its edges left out. */
function encodings(text: string): string[] {
  return ["", "-", "--"].map((before) =>
    Buffer.from(before + text).toString("base64").slice(4, -4)
  );
}
