/** Waiting for what is to come, without a signal that it has. */
import { setTimeout as sleep } from "node:timers/promises";

const UNTIL_MS = 60_000;
/** A check of what is in this process costs nothing; one that asks somebody is not asked too often. */
const [POLL_MS, ASK_MS] = [5, 100];

/**
 * Repeats a check until it gives something but `undefined` or `false`, and returns that; one that throws gives nothing
 * yet. Fails after so long.
 */
export async function until<T>(
  check: () => T | Promise<T>,
  what: string | (() => string),
  ms: number = UNTIL_MS,
): Promise<Exclude<T, undefined | false>> {
  const deadline = performance.now() + ms;
  for (;;) {
    let pollMs = POLL_MS;
    let why = "";
    try {
      const answer = check();
      if (answer instanceof Promise) pollMs = ASK_MS;
      const found = await answer;
      if (found !== undefined && found !== false) return found as Exclude<T, undefined | false>;
    } catch (error) {
      why = `: ${(error as Error).message}`;
    }
    if (performance.now() > deadline) {
      const told = typeof what === "string" ? what : what();
      throw new Error(`within ${ms / 1000} s it never came to this: ${told}${why}`);
    }
    await sleep(pollMs);
  }
}

/** How long (ms) something takes. */
export async function timed(work: Promise<unknown>): Promise<number> {
  const startedAt = performance.now();
  await work;
  return performance.now() - startedAt;
}

/** Does something again and again, at most so often (ms), until what it returns is called; what fails is left out. */
export function repeat(ms: number, act: () => Promise<unknown>): () => Promise<void> {
  let isOver = false;
  const loop = async () => {
    while (!isOver) {
      const next = sleep(ms);
      await act().catch(() => {});
      await next;
    }
  };
  const ended = loop();
  return () => {
    isOver = true;
    return ended;
  };
}
