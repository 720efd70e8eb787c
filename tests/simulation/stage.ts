/** What a run is made of: its plan as data, and the stage on which that is carried out. */
import type { Secret } from "../../k8s.ts";
import type { ApiRequest } from "../virtual/cluster.ts";
import type { ExchangeRequest } from "../virtual/issuer.ts";
import type { Fault } from "../virtual/shared.ts";
import type { Replica, VirtualWorld } from "../virtual/world.ts";

export interface Action {
  /** Its place in the plan: what `--keep` names. */
  id: number;
  /** In ms from the beginning. */
  at: number;
  kind: string;
  /** Which Secret or replica it befalls. */
  target: number;
  /** How long it lasts, in ms, if it does. */
  lasts: number;
  /** Between 0 and 1: how much, how many, which one. */
  amount: number;
}

export interface Plan {
  seed: number;
  days: number;
  replicas: number;
  secrets: number;
  identities: number;
  namespaces: number;
  /** How many registries get an entry. */
  registries: number;
  /** Whether each namespace is watched by itself. */
  isNarrow: boolean;
  /** Of the tokens, in ms. */
  life: number;
  /** How long answers take: the most, in ms. */
  latency: { api: number; issuer: number };
  /** What the replicas' clocks are apart: the most, in ms. */
  skew: number;
  /** In ms. */
  length: number;
  actions: Action[];
}

/** Begins something; returns what ends it, if it lasts. */
export type Begin = (run: Stage, action: Action) => (() => void) | void;

/** A run as what happens in it, and what judges it, sees it. */
export interface Stage {
  readonly plan: Plan;
  readonly world: VirtualWorld;
  readonly registries: string[];
  random(): number;
  pick<T>(items: readonly T[]): T;
  onLine(line: string): void;

  /** What happens to each request while it lasts. */
  readonly apiFaults: Set<(request: ApiRequest) => Fault>;
  readonly issuerFaults: Set<(request: ExchangeRequest) => Fault | string>;
  /** What the file of the controller's own subject token holds: the last of these, or else a good one. */
  readonly subjectTokens: Set<() => string>;

  /** Those that run now. */
  readonly replicas: Replica[];
  /** How many lists and watches each has. */
  readonly scopes: number;
  replicaAt(number: number): Replica;
  /** Ends a replica at once; returns what starts it again. At least one goes on. */
  crash(number: number): () => void;
  /** Starts a replica anew, if it still runs. */
  restart(name: string): void;
  /** Has none of a replica's requests of one kind settle any more; returns what mends it. */
  wedge(number: number, verb: string): () => void;
  /** Since when one of a replica's requests does not settle: infinity if none was made yet. */
  wedgedAt(name: string): number | undefined;

  identityAt(fraction: number): string;
  secretAt(number: number): Secret | undefined;
  /** Another writer's change, if the Secret is there. */
  disturb(key: string, patch: object): void;
  /** Somebody asks for a refresh of each Secret. */
  askForAll(): void;
  /** Another writer makes a Secret, if it is not there. */
  make(number: number): void;
  /** Another writer puts a Secret right, or makes it anew if no write can. */
  mend(key: string, action: Action): void;
  remove(number: number): void;
  /** Backs etcd up; returns what restores it. */
  backUp(): () => void;
  /** Does something again and again; returns what ends it. */
  every(ms: number, act: () => void): () => void;

  readonly invariants: {
    /** Throws if anything does not hold. */
    check(): void;
    /** Nothing is promised for these Secrets, whose lists may get no answer at all; returns what ends it. */
    excuse(
      isExcused: (secret: Secret) => boolean,
      recoveryMs: number,
      isListed?: boolean,
    ): () => void;
  };
}
