/**
 * Faults that a test injects into a stand-in: which requests they meet, how often, and what happens to
 * the answer. A fault with several fields does all of them.
 */
import type { ServerResponse } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";

/** One request as the stand-ins log it. */
export interface LoggedRequest {
  /** Milliseconds since the epoch, at arrival. */
  time: number;
  method: string;
  /** `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`; the issuer's is `exchange`. */
  verb: string;
  path: string;
  query: URLSearchParams;
  headers: Record<string, string>;
  body: string;
  /** Status of the answer; unset while there is none. */
  status?: number;
}

/** What goes wrong. Without `status`, `hang` and `reset` the request is carried out as usual. */
export interface Fault {
  /** Only requests of this verb. */
  verb?: string;
  /** Only paths that match. */
  path?: RegExp;
  /** Only requests that this accepts. */
  match?: (request: LoggedRequest) => boolean;
  /** How many requests it meets before it is used up. Default 1; `Infinity` until it is removed. */
  times?: number;

  /** Milliseconds to wait first. */
  delay?: number;
  /** Answers with this status instead; `body` defaults to what the real server sends with it. */
  status?: number;
  headers?: Record<string, string>;
  /** A string goes out as it is, anything else as JSON, a function is asked. */
  body?: string | object | ((request: LoggedRequest) => string | object);
  /** Never answers. */
  hang?: boolean;
  /** Resets the connection instead of answering. */
  reset?: boolean;

  /** Cuts the connection after so many lines: 1.5 is one line and half of the next, 0 not even a header. */
  cut?: number;
  /** Goes silent after so many lines, the connection open: 0 is the headers alone. */
  stall?: number;
  /** Sends pieces of so many bytes, so many milliseconds apart: 1 byte splits every character. */
  split?: { bytes: number; ms: number };

  /** Watches only: sends these lines first; a string goes out as it is. */
  lines?: (string | object)[];
  /** Watches only: ends after so many milliseconds; 0 ends after `lines`. */
  close?: number;
}

/** A fault in force. */
export interface ActiveFault {
  /** How many requests it has met. */
  hits: number;
  remove(): void;
}

/** The faults in force. A request meets the first that matches, so that several make a sequence. */
export class Faults<F extends Fault = Fault> {
  #active: { fault: F; state: ActiveFault }[] = [];

  add(fault: F): ActiveFault {
    const state = {
      hits: 0,
      remove: () => void (this.#active = this.#active.filter((active) => active.state !== state)),
    };
    this.#active.push({ fault, state });
    return state;
  }

  clear(): void {
    this.#active = [];
  }

  /** The fault that this request meets, counted. */
  take(request: LoggedRequest): F | undefined {
    const met = this.#active.find(({ fault }) =>
      (fault.verb === undefined || fault.verb === request.verb) &&
      (fault.path === undefined || fault.path.test(request.path)) &&
      (fault.match === undefined || fault.match(request))
    );
    if (!met) return undefined;
    if (++met.state.hits >= (met.fault.times ?? 1)) met.state.remove();
    return met.fault;
  }
}

/** The body of one answer, line by line, through a fault. */
export class Output {
  #response: ServerResponse;
  #fault: Fault;
  #lines = 0;
  #silent = false;
  #queue: Promise<void> = Promise.resolve();

  constructor(response: ServerResponse, fault: Fault = {}) {
    this.#response = response;
    this.#fault = fault;
  }

  write(line: string): void {
    this.#queue = this.#queue.then(() => this.#send(Buffer.from(line)));
  }

  end(): void {
    this.#queue = this.#queue.then(() => {
      if (!this.#silent) this.#response.end();
      this.#silent = true;
    });
  }

  /** Sends nothing more and keeps the connection open. */
  stall(): void {
    this.#silent = true;
  }

  /** Closes the connection in the middle of the body. */
  cut(): void {
    this.#silent = true;
    this.#response.socket?.destroy();
  }

  onClose(listener: () => void): void {
    this.#response.once("close", listener);
  }

  async #send(line: Buffer): Promise<void> {
    if (this.#silent || this.#response.destroyed) return;
    const { cut, stall, split } = this.#fault;
    const left = (cut ?? stall ?? Infinity) - this.#lines++;
    const share = Math.min(1, left);
    const bytes = line.subarray(0, Math.floor(line.length * share));
    const size = split?.bytes ?? line.length;
    for (let at = 0; at < bytes.length; at += size) {
      await new Promise<unknown>((done) =>
        this.#response.write(bytes.subarray(at, at + size), done)
      );
      if (split) await sleep(split.ms);
    }
    if (left > 1) return;
    if (cut === undefined) this.stall();
    else this.cut();
  }
}
