/** Time that passes by being told to, and chance that is determined by a seed. */
import process from "node:process";

const EPOCH_MS = Date.parse("2027-01-01T00:00:00Z");
/** Uniform between 0 and 1 (mulberry32). */
export function seeded(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let hash = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    hash = (hash + Math.imul(hash ^ (hash >>> 7), 61 | hash)) ^ hash;
    return ((hash ^ (hash >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Lets all promises settle that do not wait for time. */
const settle = () => new Promise<void>((resolve) => void process.nextTick(resolve));

interface Timer {
  at: number;
  callback: () => void;
}

/** Time that passes by {@linkcode VirtualClock.advance} only. */
export class VirtualClock {
  /** The monotonic time: a process has lived a moment before it looks at it. */
  tick = 40;
  /** What the true time is ahead by: the machines slept. */
  slept = 0;
  readonly #timers: Timer[] = [];

  /** The true time, which the issuer's clock shows. */
  now = () => EPOCH_MS + this.slept + this.tick;

  /** As the runtimes' own: in whole ms, a fraction early at times, and at once beyond 2^31 ms. */
  setTimeout(callback: () => void, ms: number): Timer {
    const delay = ms >= 1 && ms < 2 ** 31 ? Math.floor(ms) : 1;
    const timer = { at: this.tick + delay, callback };
    this.#timers.splice(this.#timers.findLastIndex(({ at }) => at <= timer.at) + 1, 0, timer);
    return timer;
  }

  clearTimeout(timer: unknown): void {
    const index = this.#timers.indexOf(timer as Timer);
    if (index !== -1) this.#timers.splice(index, 1);
  }

  /** Lets time pass: what is due happens in its order. */
  async advance(ms: number): Promise<void> {
    const end = this.tick + ms;
    await settle();
    for (let timer; (timer = this.#timers[0]) && timer.at <= end;) {
      this.#timers.shift();
      this.tick = Math.max(this.tick, timer.at);
      timer.callback();
      await settle();
    }
    this.tick = end;
  }

  /** Resolves after so long, or when `waiter` is woken; rejects when the signal says so. */
  wait(waiter: { wake: () => void }, ms: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const end = () => {
        this.clearTimeout(timer);
        signal.removeEventListener("abort", end);
        if (signal.aborted) reject(signal.reason);
        else resolve();
      };
      const timer = ms === Infinity ? undefined : this.setTimeout(end, ms);
      waiter.wake = end;
      signal.addEventListener("abort", end);
      if (signal.aborted) end();
    });
  }

  /** Resolves after so long, or never; rejects when the signal says so. */
  sleep = (ms: number, signal: AbortSignal) => this.wait({ wake: () => {} }, ms, signal);

  /** The clock of one replica: its wall clock may be wrong, its timers are counted and may be lost. */
  view() {
    const own = new Set<unknown>();
    const view = {
      /** What its wall clock is ahead by. */
      skew: 0,
      /** How many timers it was asked for. */
      armed: 0,
      now: () => this.now() + view.skew,
      monotonic: () => this.tick,
      setTimeout: (callback: () => void, ms: number): unknown => {
        view.armed++;
        const timer = this.setTimeout(() => {
          own.delete(timer);
          callback();
        }, ms);
        own.add(timer);
        return timer;
      },
      clearTimeout: (timer: unknown) => {
        own.delete(timer);
        this.clearTimeout(timer);
      },
      pending: () => own.size,
      /** As the process ends. */
      kill: () => {
        view.loseTimers();
        view.setTimeout = () => undefined;
      },
      loseTimers: () => own.forEach((timer) => this.clearTimeout(timer)),
    };
    return view;
  }
}
