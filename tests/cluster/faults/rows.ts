/**
 * The faults: what each of them does, who may suffer from it, for how long, and what has to be told. They are of the real
 * API server and of the network. What an answer does that is wrong, late or lost: k8s_test.ts and sts_test.ts, and the
 * controller's rules in virtual time.
 */
import { makeCertificates } from "../components.ts";
import { repeat } from "../../support/until.ts";
import { makeAuthority } from "../../fake/certificates.ts";
import { backUpEtcd, fillEtcd } from "./etcd.ts";
import { bindRole, forbidWatch, pathOf, unbindRole } from "../objects.ts";
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
  suffers: "all" | "victim" | "none";
  /** All must be back to normal so soon after the fault's end. */
  backS: number;
  /** Must be found among the log's warnings ("msg: error"). */
  log?: RegExp[];
  /** Must be found among the Warning events ("reason: note"). Where nothing suffers there must be none. */
  event?: RegExp;
  /** Must be found among the counters of trouble that rose. */
  metric?: RegExp;
  /** Warnings in the log, at most. Default: any number. */
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

/** For a fault that is there from the start. */
export const nothing: Row["inject"] = () => Promise.resolve(() => {});

/** Does something to one Secret again and again; none of it may fail. */
const keepPatching = (everyMs: number, patch: () => object): Row["inject"] =>
  each(({ ground: { admin }, victim }) => {
    let failure: Error | undefined;
    const stop = repeat(
      everyMs,
      () => admin.patch(pathOf(victim), patch()).catch((error) => failure = error),
    );
    return async () => {
      await stop();
      if (failure) throw failure;
    };
  });

const ofApiServer: Row[] = [
  {
    name: "api-packets-dropped",
    fault: "API server: all packets dropped",
    conditions: { isApart: true },
    inject: each(({ ground: { network }, apiWire }) => network.dropServer(apiWire.port)),
    suffers: "all",
    backS: UNANSWERED_S,
  },
  {
    name: "api-half-open",
    fault: "API server: packets of open connections dropped for good, no RST; new ones work",
    conditions: { isApart: true },
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
    name: "watch-forbidden",
    fault: "API server: list is allowed and watch forbidden (403), for ever",
    inject: each(async (trial) => {
      const { namespaces, ground: { admin } } = trial;
      for (const namespace of namespaces) await forbidWatch(admin, namespace);
      await dropConnections(trial.apiWire);
      return () => {};
    }),
    lastsS: 0,
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
      makeCertificates(cluster.options);
      await cluster.start("kube-apiserver");
      await cluster.apiServerReady();
      return () => trials.forEach(({ giveCa }) => giveCa());
    },
    suffers: "all",
    backS: RESTARTED_S,
    log: [/watch failed: .*certificate/],
  },
] satisfies Row[]).map((row: Row) => ({ ...row, isAlone: true }));

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
