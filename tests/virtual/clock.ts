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

const nothing = () => {};

interface Timer {
  at: number;
  /** None once it is over, or was cleared. */
  callback?: () => void;
  owner?: Owner;
}

/** Who set timers: how many of them are pending. A set of them would leave more garbage than all else here. */
interface Owner {
  pending: number;
}

/** Waits, one time after the other: so a listener for each would cost more than the waits themselves. */
export class Waiter {
  readonly #clock: VirtualClock;
  readonly #signal: AbortSignal;
  /** Ends the wait. */
  wake = nothing;

  constructor(clock: VirtualClock, signal: AbortSignal) {
    this.#clock = clock;
    this.#signal = signal;
    signal.addEventListener("abort", () => this.wake());
  }

  /** Resolves after so long, or when it is woken; rejects when the signal says so. */
  wait(ms: number): Promise<void> {
    return new Promise((resolve, reject) => {
      // Not assigned as a literal: V8 takes those for methods, and would have them outlive all that they refer to.
      const end = () => {
        this.#clock.clearTimeout(timer);
        if (this.#signal.aborted) reject(this.#signal.reason);
        else resolve();
      };
      const timer = ms === Infinity ? undefined : this.#clock.setTimeout(end, ms);
      this.wake = end;
      if (this.#signal.aborted) end();
    });
  }
}

/** Time that passes by {@linkcode VirtualClock.advance} only. */
export class VirtualClock {
  /** The monotonic time: a process has lived a moment before it looks at it. */
  tick = 40;
  /** What the true time is ahead by: the machines slept. */
  slept = 0;
  /** The next is the last. Those that were cleared stay until their time, which costs less than to look for them. */
  readonly #timers: Timer[] = [];

  /** The true time, which the issuer's clock shows. */
  now = () => EPOCH_MS + this.slept + this.tick;

  /** As the runtimes' own: in whole ms, a fraction early at times, and at once beyond 2^31 ms. */
  setTimeout(callback: () => void, ms: number, owner?: Owner): Timer {
    const delay = ms >= 1 && ms < 2 ** 31 ? Math.floor(ms) : 1;
    const timer = { at: this.tick + delay, callback, owner };
    let place = this.#timers.push(timer) - 1;
    for (let next; place > 0 && (next = this.#timers[place - 1]!).at <= timer.at; place--) {
      this.#timers[place] = next;
    }
    this.#timers[place] = timer;
    if (owner) owner.pending++;
    return timer;
  }

  clearTimeout(timer?: Timer): void {
    if (!timer?.callback) return;
    timer.callback = undefined;
    if (timer.owner) timer.owner.pending--;
  }

  /** Lets time pass: what is due happens in its order. */
  async advance(ms: number): Promise<void> {
    const end = this.tick + ms;
    await settle();
    for (let timer; (timer = this.#timers.at(-1)) && timer.at <= end;) {
      this.#timers.pop();
      const { callback } = timer;
      if (!callback) continue;
      this.tick = Math.max(this.tick, timer.at);
      this.clearTimeout(timer);
      callback();
      await settle();
    }
    this.tick = end;
  }

  /** The clock of one replica: its wall clock may be wrong, its timers are counted and may be lost. */
  view() {
    const own = { pending: 0 };
    const view = {
      /** What its wall clock is ahead by. */
      skew: 0,
      /** How many timers it was asked for. */
      armed: 0,
      now: () => this.now() + view.skew,
      monotonic: () => this.tick,
      setTimeout: (callback: () => void, ms: number): unknown => {
        view.armed++;
        return this.setTimeout(callback, ms, own);
      },
      clearTimeout: (timer: unknown) => this.clearTimeout(timer as Timer | undefined),
      pending: () => own.pending,
      /** As the process ends. */
      kill: () => {
        view.loseTimers();
        view.setTimeout = () => undefined;
      },
      loseTimers: () => {
        for (const timer of this.#timers) if (timer.owner === own) this.clearTimeout(timer);
      },
    };
    return view;
  }
}
