/** JSON that nobody has checked. */

// deno-lint-ignore no-explicit-any
export type Json = any;

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
