/**
 * Stands in for `jsr:@std/assert` where JSR cannot be reached: the functions that the tests use, with
 * the same names, arguments and meaning. Taking `links` out of deno.json uses JSR's own.
 */
import { deepStrictEqual, notDeepStrictEqual } from "node:assert/strict";

// deno-lint-ignore no-explicit-any
type ErrorClass<E extends Error> = abstract new (...args: any[]) => E;

/** Thrown by every failed assertion. */
export class AssertionError extends Error {
  override name = "AssertionError";
}

/** Asserts that `value` is truthy. */
export function assert(value: unknown, message = ""): asserts value {
  if (!value) throw new AssertionError(message || `Expected a truthy value, got ${value}`);
}

/** Asserts that `actual` and `expected` are deeply equal. */
export function assertEquals<T>(actual: T, expected: T, message?: string): void {
  deepStrictEqual(actual, expected, message);
}

/** Asserts that `actual` and `expected` are not deeply equal. */
export function assertNotEquals<T>(actual: T, expected: T, message?: string): void {
  notDeepStrictEqual(actual, expected, message);
}

/** Asserts that `actual` contains `expected`. */
export function assertStringIncludes(actual: string, expected: string, message = ""): void {
  assert(actual.includes(expected), `Expected ${actual} to contain ${expected}. ${message}`);
}

/** Asserts that `actual` matches `expected`. */
export function assertMatch(actual: string, expected: RegExp, message = ""): void {
  assert(expected.test(actual), `Expected ${actual} to match ${expected}. ${message}`);
}

/** Asserts that `error` is an `ErrorClass` whose message includes `messageIncludes`. */
export function assertIsError<E extends Error = Error>(
  error: unknown,
  ErrorClass: ErrorClass<E> = Error as unknown as ErrorClass<E>,
  messageIncludes = "",
): asserts error is E {
  assert(error instanceof ErrorClass, `Expected an error of ${ErrorClass.name}, got ${error}`);
  assertStringIncludes(error.message, messageIncludes);
}

/** Asserts that `fn` throws an `ErrorClass` whose message includes `messageIncludes`; returns it. */
export function assertThrows<E extends Error = Error>(
  fn: () => unknown,
  ErrorClass?: ErrorClass<E>,
  messageIncludes?: string,
): E {
  try {
    fn();
  } catch (error) {
    assertIsError(error, ErrorClass, messageIncludes);
    return error;
  }
  throw new AssertionError("Expected the function to throw");
}

/** Asserts that `fn` rejects with an `ErrorClass` whose message includes `messageIncludes`; returns it. */
export async function assertRejects<E extends Error = Error>(
  fn: () => PromiseLike<unknown>,
  ErrorClass?: ErrorClass<E>,
  messageIncludes?: string,
): Promise<E> {
  try {
    await fn();
  } catch (error) {
    assertIsError(error, ErrorClass, messageIncludes);
    return error;
  }
  throw new AssertionError("Expected the promise to reject");
}
