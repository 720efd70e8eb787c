/** The faults: what each of them does, who may suffer from it, for how long, and what has to be told. */
import { rmSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { makeCertificates } from "../components.ts";
import { errorEvent } from "../../fake/apiserver.ts";
import { makeAuthority } from "../../fake/certificates.ts";
import type { Fault } from "../../fake/injection.ts";
import type { IssuerFault } from "../../fake/issuer.ts";
import { backUpEtcd, fillEtcd } from "./etcd.ts";
import { bindRole, forbidWatch, identityOf, pathOf, unbindRole } from "../objects.ts";
import type { Conditions, Ground, Trial } from "./trial.ts";
import type { Wire } from "./wire.ts";

/** Ends a fault. */
type Mend = () => unknown;

export interface Row {
  /** For --only, and in the names of namespaces. */
  name: string;
  fault: string;
  conditions?: Conditions;
  /** Begins the fault, for one program on each runtime at the most. */
  inject: (trials: Trial[], ground: Ground) => Promise<Mend>;
  /** It is the control plane's own, and no other row can run meanwhile. */
  isAlone?: boolean;
  /** How long it lasts. Default {@linkcode FAULT_S}. */
  lastsS?: number;
  /** Which Secrets may be without a valid token until all is back to normal. */
  suffers: "all" | "victim" | "loner" | "none";
  /** All must be back to normal so soon after the fault's end. */
  backS: number;
  /** Must be found among the log's warnings ("msg: error"). */
  log?: RegExp[];
  /** Must be found among the Warning events ("reason: note"). Where nothing suffers there must be none. */
  event?: RegExp;
  /** Must be found among the counters of trouble that rose. */
  metric?: RegExp;
  /** Warnings in the log, at most; with 0 no counter of watches may rise either. Default: any number. */
  maxWarnings?: number;
}

/** Longer than tokens live: what takes away what a refresh needs is felt by every Secret. */
export const FAULT_S = 20;
/** Whatever has failed for 20 s is tried again after 16 s at the latest; some more for the work itself. */
const PASSING_S = 22;
/** And after 32 s, when it has failed for 30. */
const LONG_PASSING_S = 38;
/** An API server that has just started may answer 403 before it has read its roles: one failure more, then a minute. */
const RESTARTED_S = 66;
/** A request that is never answered is given up after 30 s. */
const UNANSWERED_S = 45;
/** Watches are retried every 5 s at least; some more for the work itself. */
const WATCH_S = 12;
/** A watch that has gone silent is given up after 70 to 100 s. */
const SILENT_WATCH_S = 110;

const HTML = "<html><body><h1>502 Bad Gateway</h1></body></html>";
const MB = 1024 * 1024;

function each(inject: (trial: Trial) => Mend | Promise<Mend>): Row["inject"] {
  return async (trials) => {
    const mends = await Promise.all(trials.map(inject));
    return () => Promise.all(mends.map((mend) => mend()));
  };
}

/** New ones have to be made: for watches too, which last long. */
async function dropConnections(wire: Wire): Promise<void> {
  await wire.refuse();
  await wire.accept();
}

const ofApi = (...faults: Fault[]) =>
  each(async (trial) => {
    const active = faults.map((fault) => trial.proxy.faults.add({ times: Infinity, ...fault }));
    await dropConnections(trial.apiWire);
    return () => active.forEach((fault) => fault.remove());
  });

const ofIssuer = (fault: IssuerFault) =>
  each(({ issuer }) => issuer.faults.add({ times: Infinity, ...fault }).remove);

/** So many versions after the first that is watched are below N too: others write a few each second. */
const OLD_VERSIONS = 10;

/** For ever, as of a store whose past is damaged: a list is well, and what is watched from later versions. */
const ofOldVersions = (fault: Fault) =>
  each(async ({ proxy, apiWire }) => {
    /** By namespace. */
    const firstGood = new Map<string, number>();
    const isOld = (path: string, version: number) => {
      const from = firstGood.get(path) ?? version + OLD_VERSIONS;
      firstGood.set(path, from);
      return version < from;
    };
    proxy.faults.add({
      verb: "watch",
      match: ({ path, query }) => isOld(path, Number(query.get("resourceVersion"))),
      times: Infinity,
      ...fault,
    });
    await dropConnections(apiWire);
    return () => {};
  });

/** For a fault that is there from the start. */
export const nothing: Row["inject"] = () => Promise.resolve(() => {});

const isVictim = ({ victim }: Trial) => new RegExp(`${pathOf(victim)}$`);

/** Does something to one Secret again and again. */
function keepPatching(everyMs: number, patch: () => object): Row["inject"] {
  return each(({ ground: { admin }, victim }) => {
    let isOver = false;
    const loop = async () => {
      for (; !isOver; await sleep(everyMs)) {
        await admin.patch(pathOf(victim), patch());
      }
    };
    const ended = loop();
    return () => {
      isOver = true;
      return ended;
    };
  });
}

const ofApiServer: Row[] = [
  {
    name: "api-refuses",
    fault: "API server: connections refused",
    inject: each(async ({ apiWire }) => {
      await apiWire.refuse();
      return () => apiWire.accept();
    }),
    suffers: "all",
    backS: PASSING_S,
    log: [
      /ExchangeFailed: the token could not be written: .*ECONNREFUSED/,
      /watch failed: .*ECONNREFUSED/,
    ],
  },
  {
    name: "api-hangs",
    fault: "API server: never answers",
    inject: ofApi({ hang: true }),
    suffers: "all",
    backS: UNANSWERED_S,
    log: [/watch failed/],
  },
  {
    name: "api-packets-dropped",
    fault: "API server: all packets dropped",
    conditions: { isApart: true, isDirect: true },
    inject: each(({ ground: { network }, apiWire }) => network.dropServer(apiWire.port)),
    suffers: "all",
    backS: UNANSWERED_S,
  },
  {
    name: "api-half-open",
    fault: "API server: packets of open connections dropped for good, no RST; new ones work",
    conditions: { isApart: true, isDirect: true },
    inject: each(async ({ ground: { network }, apiWire }) => {
      await network.dropClients(apiWire.clientPorts);
      return () => {};
    }),
    lastsS: 0,
    suffers: "all",
    backS: SILENT_WATCH_S,
  },
  {
    name: "latency",
    fault: "API server and issuer: 1 s of latency for each round trip",
    conditions: { lifeS: 60 },
    inject: each(({ apiWire, issuerWire }) => {
      const set = (ms: number) => [apiWire, issuerWire].forEach((wire) => wire.delay = ms);
      set(500);
      return () => set(0);
    }),
    lastsS: 50,
    suffers: "none",
    backS: WATCH_S,
  },
  {
    name: "watch-410-event",
    fault: "API server: each watch ends with an ERROR event of 410",
    inject: ofApi({ verb: "watch", lines: [errorEvent(410)], close: 0 }),
    suffers: "none",
    backS: WATCH_S,
    log: [/watch failed: .*too old resource version/],
  },
  {
    name: "watch-410",
    fault: "API server: 410 on each watch",
    inject: ofApi({ verb: "watch", status: 410 }),
    suffers: "none",
    backS: WATCH_S,
    log: [/watch failed: .*410/],
  },
  {
    name: "watch-ends",
    fault: "API server: each watch ends at once",
    inject: ofApi({ verb: "watch", close: 0 }),
    suffers: "none",
    backS: WATCH_S,
    log: [/watch failed: watch: it ended at once/],
  },
  {
    name: "watch-cut",
    fault: "API server: each watch is reset in the middle of its first line",
    inject: ofApi({ verb: "watch", cut: 0.5 }),
    suffers: "none",
    backS: WATCH_S,
    log: [/watch failed: watch: no response/],
  },
  ...([
    ["ends", "end at once", { close: 0 }, /watch failed: watch: it ended at once/],
    ["cut", "are cut before their headers", { cut: 0 }, /watch failed: watch: no response/],
    [
      "half",
      "are cut after their headers",
      { lines: ["{}"], cut: 0.5 },
      /watch failed: watch: no response/,
    ],
    ["reset", "are reset", { reset: true }, /watch failed: watch: no response/],
    ["403", "are answered 403", { status: 403 }, /watch failed: watch: .*403/],
    ["429", "are answered 429", { status: 429 }, /watch failed: watch: .*429/],
  ] satisfies [string, string, Fault, RegExp][]).map(([name, what, fault, log]): Row => ({
    name: `old-${name}`,
    fault: `API server: watches from versions below N ${what}, for ever`,
    inject: ofOldVersions(fault),
    lastsS: 0,
    suffers: "none",
    backS: WATCH_S,
    log: [log],
  })),
  {
    name: "watch-forbidden",
    fault: "API server: list is allowed and watch forbidden (403), for ever",
    inject: each(async (trial) => {
      const { home, namespaces, ground: { admin } } = trial;
      for (const namespace of namespaces) await forbidWatch(admin, namespace, home);
      await dropConnections(trial.apiWire);
      return () => {};
    }),
    // The counter is asked for, and renewed, once a second.
    lastsS: 3,
    suffers: "none",
    backS: WATCH_S,
    log: [/watch failed: watch: .*403: secrets is forbidden/],
    metric: /watch_restarts_total\{reason="forbidden"\}/,
  },
  {
    name: "namespace-gone",
    fault: "API server: one of three namespaces is gone, and its Role (403), from the start",
    conditions: { hasGone: true },
    inject: nothing,
    suffers: "none",
    backS: WATCH_S,
    log: [/watch failed: list: .*403: secrets is forbidden/],
    metric: /watch_restarts_total\{reason="forbidden"\}/,
    maxWarnings: 2,
  },
  {
    name: "watch-cut-idle",
    fault: "API server: each watch is cut after 20 s, as by a load balancer, from the start",
    conditions: { cutsWatchesS: 20 },
    inject: nothing,
    lastsS: 65,
    suffers: "none",
    backS: WATCH_S,
    maxWarnings: 0,
  },
  {
    name: "watch-garbage",
    fault: "API server: each watch begins with half of a line",
    inject: ofApi({ verb: "watch", lines: ['{"type":"MODIFIED","object":{"meta\n'], close: 0 }),
    suffers: "none",
    backS: WATCH_S,
    log: [/watch failed: watch: a line is not JSON/],
  },
  {
    name: "api-429",
    fault: "API server: 429 with Retry-After: 5",
    inject: ofApi({ status: 429, headers: { "retry-after": "5" } }),
    suffers: "all",
    backS: PASSING_S,
    log: [/ExchangeFailed: the token could not be written: .*429/, /watch failed: .*429/],
  },
  {
    name: "api-500",
    fault: "API server: 500",
    inject: ofApi({ status: 500 }),
    suffers: "all",
    backS: PASSING_S,
    log: [/ExchangeFailed: the token could not be written: .*500/, /watch failed: .*500/],
  },
  {
    name: "api-503-html",
    fault: "API server: 503 and HTML, as of a proxy",
    inject: ofApi({ status: 503, body: HTML }),
    suffers: "all",
    backS: PASSING_S,
    log: [
      /ExchangeFailed: the token could not be written: .*503/,
      /watch failed: .*503: not a response of the API server/,
    ],
  },
  {
    name: "api-garbage",
    fault: "API server: 200 and garbage",
    inject: ofApi({ status: 200, body: "{]\n" }),
    suffers: "all",
    backS: PASSING_S,
    log: [/watch failed: .*not JSON/],
  },
  {
    name: "api-truncated",
    fault: "API server: carries out requests, and cuts its answers in the middle",
    inject: ofApi({ cut: 0.5 }),
    suffers: "all",
    backS: PASSING_S,
    log: [/watch failed: .*no response/],
  },
  {
    name: "api-huge",
    fault: "API server: lists of 17 MiB",
    inject: ofApi({ verb: "watch", status: 410 }, { verb: "list", body: "x".repeat(17 * MB) }),
    lastsS: 10,
    suffers: "none",
    backS: WATCH_S,
    log: [/watch failed: list: the response is over 16777216 bytes/],
  },
  {
    name: "api-slow",
    fault: "API server: answers trickle in at 1 KB/s",
    inject: each(async ({ proxy, apiWire }) => {
      const fault = proxy.faults.add({ split: { bytes: 256, ms: 250 }, times: Infinity });
      await dropConnections(apiWire);
      return () => {
        fault.remove();
        return dropConnections(apiWire); // a slow watch stays slow
      };
    }),
    suffers: "all",
    backS: UNANSWERED_S,
  },
  {
    name: "api-resets",
    fault: "API server: each connection reset",
    inject: ofApi({ reset: true }),
    suffers: "all",
    backS: PASSING_S,
    log: [
      /ExchangeFailed: the token could not be written: .*no response/,
      /watch failed: .*no response/,
    ],
  },
  {
    name: "api-resets-half",
    fault: "API server: every other request reset",
    inject: each(({ proxy }) => {
      let count = 0;
      return proxy.faults.add({ reset: true, match: () => count++ % 2 === 0, times: Infinity })
        .remove;
    }),
    suffers: "all",
    backS: WATCH_S,
    log: [/ExchangeFailed: the token could not be written: .*no response/],
  },
  {
    name: "api-401",
    fault: "API server: token refused (401) until its file is replaced",
    inject: each(async (trial) => {
      const { home, ground: { admin } } = trial;
      const accounts = `/api/v1/namespaces/${home}/serviceaccounts`;
      await admin.delete(`${accounts}/controller`);
      await admin.create(accounts, { metadata: { name: "controller" } });
      await dropConnections(trial.apiWire);
      return trial.giveToken;
    }),
    // The API server itself remembers a good token for 10 s.
    lastsS: FAULT_S + 10,
    suffers: "all",
    backS: LONG_PASSING_S,
    log: [/ExchangeFailed: the token could not be written: .*401/],
  },
  {
    name: "api-403",
    fault: "API server: the Role taken away (403), and given back",
    inject: each(async (trial) => {
      const { home, namespaces, ground: { admin } } = trial;
      for (const namespace of namespaces) await unbindRole(admin, namespace);
      await dropConnections(trial.apiWire);
      return () => Promise.all(namespaces.map((namespace) => bindRole(admin, namespace, home)));
    }),
    suffers: "all",
    backS: PASSING_S,
    log: [/watch failed: .*403/],
  },
];

const ofSecret: Row[] = [
  {
    name: "secret-policy",
    fault: "one Secret: an admission policy refuses its writes (422)",
    inject: each(refuseByPolicy),
    suffers: "victim",
    backS: PASSING_S,
    event: /ExchangeFailed: the token could not be written: .*not today/,
  },
  {
    name: "secret-hangs",
    fault: "one Secret: its writes are never answered",
    inject: each((trial) =>
      trial.proxy.faults.add({ verb: "patch", path: isVictim(trial), hang: true, times: Infinity })
        .remove
    ),
    suffers: "victim",
    backS: UNANSWERED_S,
  },
  {
    name: "secret-conflicts",
    fault: "one Secret: somebody else writes to it ten times a second",
    inject: keepPatching(100, () => ({ metadata: { annotations: { now: `${Date.now()}` } } })),
    suffers: "victim",
    backS: PASSING_S,
  },
  {
    name: "secret-blanked",
    fault: "one Secret: blanked twice a second",
    inject: keepPatching(500, () => ({ stringData: { ".dockerconfigjson": "{}" } })),
    suffers: "victim",
    backS: WATCH_S,
    event: /Overwritten: the token was overwritten by another client/,
  },
];

const ofIssuers: Row[] = [
  {
    name: "issuer-refuses",
    fault: "issuer: connections refused",
    inject: each(async ({ issuerWire }) => {
      await issuerWire.refuse();
      return () => issuerWire.accept();
    }),
    suffers: "all",
    backS: PASSING_S,
    log: [/ExchangeFailed: .*ECONNREFUSED/],
    event: /ExchangeFailed: .*ECONNREFUSED/,
  },
  {
    name: "issuer-hangs",
    fault: "issuer: never answers",
    inject: ofIssuer({ hang: true }),
    suffers: "all",
    backS: PASSING_S + 10,
    event: /ExchangeFailed: no response from the issuer at .*: no response within 10 s/,
  },
  {
    name: "issuer-packets-dropped",
    fault: "issuer: all packets dropped",
    conditions: { isApart: true },
    inject: each(({ ground: { network }, issuerWire }) => network.dropServer(issuerWire.port)),
    suffers: "all",
    backS: PASSING_S + 10,
    event: /ExchangeFailed: no response from the issuer/,
  },
  {
    name: "issuer-name",
    fault: "issuer: its name does not resolve",
    conditions: { isApart: true },
    inject: each(async ({ forgetIssuer, nameIssuer, issuerWire }) => {
      forgetIssuer();
      await dropConnections(issuerWire);
      return nameIssuer;
    }),
    suffers: "all",
    backS: PASSING_S,
    event: /ExchangeFailed: no response from the issuer at .*getaddrinfo/,
  },
  {
    name: "issuer-certificate",
    fault: "issuer: certificate of an unknown CA",
    inject: each(async ({ issuer, issuerWire, certificate }) => {
      issuer.useCertificate(makeAuthority().issue(["127.0.0.1"]));
      await dropConnections(issuerWire);
      return () => issuer.useCertificate(certificate);
    }),
    suffers: "all",
    backS: PASSING_S,
    event: /ExchangeFailed: no response from the issuer at .*certificate/,
  },
  {
    name: "issuer-resets",
    fault: "issuer: each connection reset",
    inject: ofIssuer({ reset: true }),
    suffers: "all",
    backS: PASSING_S,
    event: /ExchangeFailed: no response from the issuer/,
  },
  {
    name: "issuer-500",
    fault: "issuer: 500",
    inject: ofIssuer({ status: 500 }),
    suffers: "all",
    backS: PASSING_S,
    event: /ExchangeFailed: the issuer answered 500/,
  },
  {
    name: "issuer-503-html",
    fault: "issuer: 503 and HTML, as of a proxy",
    inject: ofIssuer({ status: 503, body: HTML }),
    suffers: "all",
    backS: PASSING_S,
    event: /ExchangeFailed: the issuer answered 503: not a response of an STS/,
  },
  {
    name: "issuer-429",
    fault: "issuer: 429 with Retry-After: 5",
    inject: ofIssuer({ status: 429, headers: { "retry-after": "5" } }),
    suffers: "all",
    backS: PASSING_S,
    event: /ExchangeFailed: the issuer answered 429/,
  },
  {
    name: "issuer-401",
    fault: "issuer: does not know the cluster's keys (401)",
    inject: each(({ issuer }) => {
      const { keys } = issuer;
      issuer.keys = { keys: [] };
      return () => issuer.keys = keys;
    }),
    suffers: "all",
    backS: PASSING_S,
    event: /ExchangeFailed: the issuer answered 401: .*chainctl iam identities describe/,
  },
  {
    name: "issuer-403",
    fault: "issuer: one identity refused (403)",
    inject: each(({ issuer, ownIdentity }) => {
      const binding = issuer.bindings.get(ownIdentity)!;
      issuer.bindings.set(ownIdentity, { ...binding, sub: "somebody else" });
      return () => issuer.bindings.set(ownIdentity, binding);
    }),
    suffers: "loner",
    backS: PASSING_S,
    event: /ExchangeFailed: the issuer answered 403: .*chainctl iam identities create/,
  },
  {
    name: "issuer-garbage",
    fault: "issuer: 200 and garbage",
    inject: ofIssuer({ body: "{]" }),
    suffers: "all",
    backS: PASSING_S,
    event: /ExchangeFailed: the issuer answered 200: no token/,
  },
  {
    name: "issuer-truncated",
    fault: "issuer: answers cut in the middle",
    inject: ofIssuer({ cut: 0.5 }),
    suffers: "all",
    backS: PASSING_S,
    event: /ExchangeFailed: no response from the issuer/,
  },
  {
    name: "issuer-huge",
    fault: "issuer: answers of 2 MiB",
    inject: ofIssuer({ body: "x".repeat(2 * MB) }),
    suffers: "all",
    backS: PASSING_S,
    event: /ExchangeFailed: no response from the issuer/,
  },
  {
    name: "issuer-slow",
    fault: "issuer: answers trickle in at 50 bytes a second",
    inject: ofIssuer({ split: { bytes: 10, ms: 200 } }),
    suffers: "all",
    backS: PASSING_S + 10,
    event: /ExchangeFailed: no response from the issuer at .*: no response within 10 s/,
  },
  {
    name: "issuer-audience",
    fault: "issuer: tokens of another audience",
    inject: ofIssuer({ claims: { aud: "another.example" } }),
    suffers: "all",
    backS: PASSING_S,
    event: /ExchangeFailed: .*its audience is another\.example, not cgr\.dev/,
  },
  {
    name: "issuer-identity",
    fault: "issuer: tokens of another identity",
    inject: ofIssuer({ claims: { sub: identityOf("another") } }),
    suffers: "all",
    backS: PASSING_S,
    event: /ExchangeFailed: .*it is another identity's/,
  },
  {
    name: "issuer-expired",
    fault: "issuer: tokens that have expired",
    inject: ofIssuer({ claims: { iat: 1_700_000_000, exp: 1_700_003_600 } }),
    suffers: "all",
    backS: PASSING_S,
    event: /ExchangeFailed: .*it expires, or did, within 5 s: compare the clocks/,
  },
  {
    name: "issuer-caches",
    fault: "issuer: gives the same token again until it has 3 s left",
    inject: each(({ issuer }) => {
      issuer.cacheUntil = 3;
      return () => issuer.cacheUntil = undefined;
    }),
    suffers: "none",
    backS: WATCH_S,
  },
  {
    name: "subject-token",
    fault: "the subject token's file is gone, until there is a new one",
    inject: each(({ giveSubjectToken, settings }) => {
      rmSync(settings.SUBJECT_TOKEN_FILE);
      return giveSubjectToken;
    }),
    suffers: "all",
    backS: PASSING_S,
    event: /ExchangeFailed: .*ENOENT.*SUBJECT_TOKEN_FILE/,
  },
];

const ofControlPlane: Row[] = ([
  {
    name: "api-killed",
    fault: "API server: killed with -9, and started",
    inject: async (_, { cluster }) => {
      await cluster.stop("kube-apiserver", "SIGKILL");
      return async () => {
        await cluster.start("kube-apiserver");
        await cluster.apiServerReady();
      };
    },
    suffers: "all",
    backS: RESTARTED_S,
    log: [/watch failed: .*no response/],
  },
  {
    name: "etcd-stopped",
    fault: "etcd: stopped, and started",
    inject: async (_, { cluster }) => {
      await cluster.stop("etcd");
      return async () => {
        await cluster.start("etcd");
        await cluster.apiServerReady();
      };
    },
    suffers: "all",
    backS: UNANSWERED_S,
  },
  {
    name: "etcd-full",
    fault: "etcd: its disk is full (NOSPACE), and made free",
    inject: (_, { cluster }) => fillEtcd(cluster.options),
    suffers: "all",
    backS: PASSING_S,
    log: [/database space exceeded/],
  },
  {
    name: "etcd-restored",
    fault: "etcd: restored from a backup of 20 s before, in which every token has expired",
    inject: (_, { cluster }) => backUpEtcd(cluster),
    suffers: "all",
    backS: RESTARTED_S,
    log: [/watch failed: .*no response/],
  },
  {
    name: "api-certificate",
    fault: "API server: certificate and CA replaced; the program's ca.crt follows later",
    inject: async (trials, { cluster }) => {
      await cluster.stop("kube-apiserver");
      await makeCertificates(cluster.options);
      await cluster.start("kube-apiserver");
      await cluster.apiServerReady();
      return () => trials.forEach(({ giveCa }) => giveCa());
    },
    suffers: "all",
    backS: RESTARTED_S,
    log: [/watch failed: .*certificate/],
  },
] satisfies Row[]).map((row: Row) => ({ ...row, isAlone: true, conditions: { isDirect: true } }));

export const ROWS: Row[] = [...ofApiServer, ...ofSecret, ...ofIssuers, ...ofControlPlane];

/** A policy of the API server itself, for one Secret. */
async function refuseByPolicy({ ground: { admin }, run, victim }: Trial): Promise<Mend> {
  const [namespace, name] = victim.split("/");
  const policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
  const bindings = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";
  const rule = {
    apiGroups: [""],
    apiVersions: ["v1"],
    resources: ["secrets"],
    operations: ["UPDATE"],
  };
  await admin.create(policies, {
    metadata: { name: run },
    spec: {
      matchConstraints: {
        namespaceSelector: { matchLabels: { "kubernetes.io/metadata.name": namespace } },
        resourceRules: [{ ...rule, resourceNames: [name] }],
      },
      validations: [{ expression: "false", message: "not today" }],
    },
  });
  await admin.create(bindings, {
    metadata: { name: run },
    spec: { policyName: run, validationActions: ["Deny"] },
  });
  return async () => {
    await admin.delete(`${bindings}/${run}`);
    await admin.delete(`${policies}/${run}`);
  };
}
