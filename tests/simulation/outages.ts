/** What befalls the API server, the issuer, clocks, machines and replicas. While one lasts, no Secret is promised a token. */
import { ApiError } from "../../k8s.ts";
import { readResponse, StsError } from "../../sts.ts";
import type { ApiRequest } from "../virtual/cluster.ts";
import type { ExchangeRequest } from "../virtual/issuer.ts";
import type { Fault } from "../virtual/shared.ts";
import { CONTROLLER } from "../support/names.ts";
import type { Action, Begin, Stage } from "./stage.ts";
import { RESTORE_MS } from "./recovery.ts";

/** The longest `Retry-After` that is sent: beyond what the controller heeds. */
export const RETRY_AFTER_S = 400;
/** Slower than any time-out of the controller would be an outage. */
const SLOW_API_MS = 8_000;
const SLOW_ISSUER_MS = 9_000;
const STATUSES = [401, 403, 404, 409, 410, 422, 429, 500, 503];
const HOUR_S = 3600;
/** So often a refresh is asked for that the controller does not know of. */
const ASKED_UNSEEN_MS = 7 * 60_000;
/** Of what stands between it and the controller: a redirect, time-outs, conflicts, too early, cancelled. */
const PROXY_STATUSES = [302, 408, 409, 425, 499];

/** Makes an error without a stack: thousands are made, nobody reads it, and it costs more than all else of one. */
function stackless<T>(make: () => T): T {
  const { stackTraceLimit } = Error;
  Error.stackTraceLimit = 0;
  const error = make();
  Error.stackTraceLimit = stackTraceLimit;
  return error;
}
export const noAnswer = (reason: string) => stackless(() => new ApiError("no answer", { reason }));
export const answer = (status: number, retryAfter?: number) =>
  stackless(() =>
    new ApiError(`answered ${status}`, { status, retryAfter: `${retryAfter ?? ""}` })
  );

/** What the client makes of such an answer of the issuer. */
export function refusal(status: number, retryAfter?: number, body = ""): StsError {
  try {
    readResponse(status, body, `${retryAfter ?? ""}`);
  } catch (error) {
    return error as StsError;
  }
  throw new Error(`${status} is no refusal`);
}

/** What happens to each request to the API server while it lasts. */
export const api =
  (fault: (request: ApiRequest, run: Stage, action: Action) => Fault): Begin => (run, action) => {
    const own = (request: ApiRequest) => fault(request, run, action);
    run.apiFaults.add(own);
    return () => run.apiFaults.delete(own);
  };

/** The same of the issuer. */
export const issuer =
  (fault: (request: ExchangeRequest, run: Stage, action: Action) => Fault | string): Begin =>
  (run, action) => {
    const own = (request: ExchangeRequest) => fault(request, run, action);
    run.issuerFaults.add(own);
    return () => run.issuerFaults.delete(own);
  };

/** The issuer gives tokens that are not as they ought to be. */
const badToken = (claims: (now: number) => object): Begin =>
  issuer(({ identity }, { world }) => {
    const now = Math.floor((world.clock.now() + world.issuer.skew) / 1000);
    return world.jwt({
      aud: "cgr.dev",
      sub: identity,
      iat: now,
      exp: now + HOUR_S,
      ...claims(now),
    });
  });

/** What the file of the controller's own subject token holds. */
const subjectToken = (read: (run: Stage) => string): Begin => (run) => {
  const own = () => read(run);
  run.subjectTokens.add(own);
  return () => run.subjectTokens.delete(own);
};

const apiDown = (run: Stage, action: Action) => {
  run.world.cluster.cut(noAnswer("ECONNRESET"));
  return api(() => noAnswer("ECONNREFUSED"))(run, action)!;
};

export const OUTAGES: Record<string, Begin> = {
  "API server down": apiDown,
  "API server hangs": api(({ verb }) => verb === "watch" ? undefined : "hang"),
  "API server slow": api((_request, _run, { amount }) => 500 + amount * SLOW_API_MS),
  "API server fails at times": api((_request, run, { amount }) => {
    const status = run.pick(STATUSES);
    return run.random() < amount ? answer(status, status === 429 ? 7 : undefined) : undefined;
  }),
  "API server throttles": api((_request, _run, { amount }) =>
    answer(429, Math.floor(amount * RETRY_AFTER_S))
  ),
  "API server refuses writes": api(({ verb }, _run, { amount }) =>
    verb === "patch" ? answer(amount < 0.5 ? 403 : 422) : undefined
  ),
  "answers are lost": api(({ verb }, run) =>
    verb !== "watch" && run.random() < 0.5 ? { after: noAnswer("UND_ERR_SOCKET") } : undefined
  ),
  "conflicts": (run, action) => {
    run.askForAll();
    return api(({ verb }) =>
      verb === "patch" && run.random() < 2 * action.amount ? answer(409) : undefined
    )(
      run,
      action,
    );
  },
  // What the controller reads is not what it knows of.
  "lists and watches fail": (run, action) => {
    run.world.cluster.endWatches(answer(503));
    const end = run.every(ASKED_UNSEEN_MS, () => run.askForAll());
    const endFault = api(({ verb }) => /list|watch/.test(verb) ? answer(503) : undefined)(
      run,
      action,
    );
    return () => {
      end();
      endFault!();
    };
  },
  "watches deaf": ({ world: { cluster } }) => {
    cluster.isDeaf = true;
    cluster.deafen();
    return () => cluster.isDeaf = false;
  },
  "a Secret is deleted unseen": (run, { target }) => {
    const { cluster } = run.world;
    cluster.deafen();
    run.remove(target);
    run.invariants.check();
    cluster.compact(cluster.version);
  },
  "etcd restored": (run, action) => {
    const restore = run.backUp();
    return () => {
      restore();
      run.world.clock.setTimeout(apiDown(run, action), RESTORE_MS);
    };
  },
  "issuer down": issuer(() => new StsError("no answer of the issuer: connect ECONNREFUSED")),
  "issuer hangs": issuer(() => "hang"),
  "issuer slow": issuer((_request, _run, { amount }) => amount * SLOW_ISSUER_MS),
  "issuer fails at times": issuer((_request, run, { amount }) =>
    run.random() < amount ? refusal(500) : undefined
  ),
  "issuer refuses": issuer(() => refusal(403)),
  "issuer throttles": issuer((_request, _run, { amount }) =>
    refusal(429, Math.floor(amount * RETRY_AFTER_S))
  ),
  "issuer answers as a proxy does": issuer((_request, run) =>
    refusal(run.pick(PROXY_STATUSES), undefined, run.pick(["<html>", '{"code":10,"message":"no"}']))
  ),
  "issuer's answers are lost": issuer((_request, run) =>
    run.random() < 0.5
      ? { after: new StsError("no answer of the issuer: other side closed") }
      : undefined
  ),
  "issuer gives nonsense": issuer(() => "nonsense"),
  "issuer gives another audience": badToken(() => ({ aud: "other.example" })),
  "issuer gives another identity's": badToken(() => ({ sub: "f".repeat(40) })),
  "issuer gives expired tokens": badToken((now) => ({ iat: now - HOUR_S, exp: now - 60 })),
  "issuer gives tokens of 6 s": badToken((now) => ({ exp: now + 6 })),
  "issuer gives tokens of 4 s": badToken((now) => ({ exp: now + 4 })),
  "issuer gives tokens of a moment": badToken((now) => ({ iat: now + 55, exp: now + 55.001 })),
  "issuer gives tokens of tomorrow": badToken((now) => ({
    iat: now + 23 * HOUR_S,
    exp: now + 24 * HOUR_S,
  })),
  "issuer gives endless tokens": badToken((now) => ({ exp: now + 10 * 24 * HOUR_S })),
  "issuer's clock off": ({ world }, { amount }) => {
    world.issuer.skew = Math.floor((amount - 0.5) * 100) * 1000;
    return () => world.issuer.skew = 0;
  },
  "a clock jumps": (run, { target, amount }) => {
    const { clock } = run.replicaAt(target);
    const by = Math.floor((amount - 0.5) * 2 * HOUR_S) * 1000;
    clock.skew += by;
    return () => clock.skew -= by;
  },
  "machines sleep": ({ world }, { lasts }) => void (world.clock.slept += lasts),
  "subject token expired": subjectToken(({ world }) =>
    world.subjectToken(CONTROLLER, "issuer.enforce.dev", -1)
  ),
  "subject token unreadable": subjectToken(() => {
    throw new Error("ENOENT: no such file or directory");
  }),
  "a replica crashes": (run, { target }) => run.crash(target),
  "a replica is restarted": (run, { target }) => run.restart(run.replicaAt(target).name),
  // The program's own fault, which only a restart mends.
  "a replica's watches never settle": (run, { target }) => {
    run.world.cluster.endWatches();
    return run.wedge(target, "watch");
  },
  "a replica's exchanges never settle": (run, { target }) => {
    run.askForAll();
    return run.wedge(target, "exchange");
  },
  "a replica's patches never settle": (run, { target }) => {
    run.askForAll();
    return run.wedge(target, "patch");
  },
};
