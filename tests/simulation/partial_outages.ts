/** What befalls one identity or one namespace: its Secrets are promised nothing meanwhile, all others are. */
import { ApiError, type Secret } from "../../k8s.ts";
import { StsError } from "../../sts.ts";
import type { ApiRequest } from "../virtual/cluster.ts";
import type { ExchangeRequest } from "../virtual/issuer.ts";
import type { Fault } from "../virtual/shared.ts";
import { answer, api, issuer, noAnswer, refusal, RETRY_AFTER_S } from "./outages.ts";
import { identityOf } from "./judge.ts";
import type { Action, Begin, Stage } from "./stage.ts";
import { recoveryFrom } from "./recovery.ts";

/** As slow as an admission webhook may be that is down. */
const SLOW_WRITE_MS = 29_000;

const both = (...ends: ((() => void) | void)[]) => () => ends.forEach((end) => end?.());

/** What the issuer does to one identity. */
const ofIdentity =
  (fault: (request: ExchangeRequest, run: Stage, action: Action) => Fault): Begin =>
  (
    run,
    action,
  ) => {
    const identity = run.identityAt(action.amount);
    const excuse = run.invariants.excuse(
      (secret) => identityOf(secret) === identity,
      recoveryFrom(action),
    );
    const begin = issuer((request) =>
      request.identity === identity ? fault(request, run, action) : undefined
    );
    return both(begin(run, action), excuse);
  };

/** What the API server does to one namespace. */
const ofNamespace =
  (fault: (request: ApiRequest, run: Stage, action: Action) => Fault): Begin => (run, action) => {
    const namespace = run.secretAt(action.target)?.metadata.namespace;
    if (namespace === undefined) return;
    const isIn = ({ metadata }: Secret) => metadata.namespace === namespace;
    const isListed = /forbidden|writes/.test(action.kind);
    const excuse = run.invariants.excuse(isIn, recoveryFrom(action), isListed);
    const begin = api((request) =>
      request.namespace === namespace ? fault(request, run, action) : undefined
    );
    return both(begin(run, action), excuse);
  };

export const PARTIAL_OUTAGES: Record<string, Begin> = {
  "issuer throttles one identity": ofIdentity((_request, _run, { lasts }) =>
    refusal(429, lasts % RETRY_AFTER_S)
  ),
  "issuer refuses one identity": ofIdentity(() => refusal(403)),
  "issuer hangs for one identity": ofIdentity(() => "hang"),
  "issuer is down for one identity": ofIdentity(() => new StsError("no answer of the issuer")),
  // As its Role is gone, and a replica is restarted; where the whole cluster is watched, all but its lists and watches.
  "a namespace is forbidden": (run, action) => {
    const end = ofNamespace(() => answer(403))(run, action);
    run.restart(run.replicaAt(action.target).name);
    return end;
  },
  "a namespace's writes are refused": ofNamespace(({ verb }, _run, { amount }) =>
    verb === "patch" ? answer(amount < 0.5 ? 403 : 422) : undefined
  ),
  "a namespace's writes are slow": ofNamespace(({ verb }, _run, { amount }) =>
    verb === "patch" ? amount * SLOW_WRITE_MS : undefined
  ),
  "API server throttles a namespace": ofNamespace((_request, _run, { amount }) =>
    answer(429, Math.floor(amount * RETRY_AFTER_S))
  ),
  "a namespace gets no answer": ofNamespace(() => new ApiError("no answer", { reason: "EPIPE" })),
  "a namespace's answers are lost": ofNamespace(({ verb }, run) =>
    verb !== "watch" && run.random() < 0.5 ? { after: noAnswer("UND_ERR_SOCKET") } : undefined
  ),
};
