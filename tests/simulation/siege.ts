/**
 * Tenants that want to harm others: whatever one or two namespaces may do, at the pace of an API server, the Secrets of
 * all other namespaces are as if nobody did it.
 */
import type { ExchangeRequest } from "../virtual/issuer.ts";
import type { Fault } from "../virtual/shared.ts";
import { keyOf } from "../virtual/cluster.ts";
import { VirtualWorld } from "../virtual/world.ts";
import { refusal } from "./outages.ts";
import { encode, goodUntil } from "./judge.ts";
import { Breach } from "./invariants.ts";
import { DATA_KEY, IDENTITY, MIN, PREFIX, S } from "../support/names.ts";

/** An API server with etcd takes some tens of writes a second from one client. */
const WRITES_A_SECOND = 30;
const ATTACKERS = ["aaa-0", "aaa-1"];
const SECRETS = 240;
const TEAMS = 16;
/** Tokens live so long, and the attack goes on for several lives. */
const LIFE_MS = 3 * MIN;
const LENGTH_MS = 7 * MIN;
/** So often another namespace gets its first Secret, and another a Secret that cannot be filled. */
const ARRIVAL_MS = 60 * S;
const CHECK_MS = 5 * S;
/** So many Secrets a team starts with, which have been filled then. */
const TEAM_SECRETS = 20;
const TEAM_MS = 3 * S;
const ISSUER_MS = 500;
const API_MS = 20;
/** Exchanges and writes at a time. */
const PLACES = 16;
/** Events are written 5 a second in the long run. */
const EVENTS_A_SECOND = 5;
const SLACK_MS = 2 * S;
/** What a deleted Secret had asked for is not exchanged any more. */
const GONE_MS = 2 * S;
const RETRY_AFTER_S = 300;

const SHARED = "5".repeat(40);
const CONFIG = { [DATA_KEY]: encode("{}") };

/** A siege that is under way. */
interface Siege {
  world: VirtualWorld;
  random: () => number;
  /** Names another identity in the Secret of an attacker, which may be there or not. */
  write: (number: number, fields: Fields) => void;
  remove: (number: number) => void;
  /** An identity that nobody else names. */
  newIdentity: () => string;
}

interface Fields {
  identity?: string;
  account?: string | null;
  refresh?: string;
  data?: Record<string, string>;
}

export interface Attack {
  /** The n-th of its writes. */
  act: (siege: Siege, n: number) => void;
  /** What the issuer does about the attackers' own identities; it takes so many ms. */
  issuer?: (request: ExchangeRequest) => Fault;
  issuerMs?: number;
  /** How long a write to an attackers' Secret takes. */
  writeMs?: number;
  /** One namespace is enough. */
  isAlone?: boolean;
}

const isSharedBy = ({ identity }: ExchangeRequest) => identity === SHARED;
/** All but the identity that many tenants share. */
const toOwn = (fault: Fault) => (request: ExchangeRequest) =>
  isSharedBy(request) ? undefined : fault;

const flip = ({ write, newIdentity }: Siege, n: number) =>
  write(n, { identity: newIdentity(), account: "puller" });

export const ATTACKS: Record<string, Attack> = {
  "flip identities": { act: flip },
  "flip identities that the issuer is slow for": {
    act: flip,
    issuer: toOwn(9_500),
    issuerMs: 9_500,
  },
  "flip identities in one namespace that the issuer is slow for": {
    act: flip,
    issuer: toOwn(9_500),
    isAlone: true,
  },
  "flip identities that the issuer does not know": { act: flip, issuer: toOwn(refusal(403)) },
  "flip identities that the issuer throttles": {
    act: flip,
    issuer: toOwn(refusal(429, RETRY_AFTER_S)),
  },
  "have identities that the issuer throttles": {
    act: ({ write }, n) =>
      write(n, { identity: `${n % SECRETS}`.padStart(40, "0"), refresh: `${n}` }),
    issuer: toOwn(refusal(429, RETRY_AFTER_S)),
  },
  "flip between their own identity and one that all share": {
    act: ({ write, newIdentity, random }, n) =>
      write(n, { identity: random() < 0.5 ? SHARED : newIdentity(), account: null }),
  },
  "flip service accounts": {
    act: ({ write, random }, n) =>
      write(n, { identity: SHARED, account: `a${Math.floor(random() * 1000)}` }),
  },
  "blank Secrets whose writes are slow": {
    act: ({ write }, n) => write(n, { identity: SHARED, data: CONFIG }),
    writeMs: 10_000,
  },
  "ask for refreshes": {
    act: ({ write }, n) => write(n, { identity: SHARED, refresh: `${n}` }),
    writeMs: 2_000,
  },
  "make and delete Secrets of ever other identities": {
    act: ({ write, remove, newIdentity }, n) => {
      remove(n - SECRETS / 4);
      write(n, { identity: newIdentity(), account: "puller" });
    },
    issuer: toOwn(5_000),
    issuerMs: 5_000,
  },
  "make and delete Secrets that cannot be filled": {
    act: ({ write, remove }, n) => {
      remove(n - SECRETS / 4);
      write(n, { identity: `nobody-${n}` });
    },
  },
  "have Secrets that cannot be filled": {
    act: ({ write }, n) => write(n, { identity: `nobody-${n}`, account: n % 2 ? "" : "../x" }),
  },
  "plant tokens": {
    act: ({ world, write, random }, n) => {
      const now = world.clock.now() / 1000;
      const claims = { aud: "cgr.dev", sub: SHARED, iat: now - 10, exp: now + random() * 5 };
      const auth = encode(`_token:${world.jwt(claims)}`);
      const config = JSON.stringify({ auths: { "cgr.dev": { auth } } });
      write(n, { identity: SHARED, data: { [DATA_KEY]: encode(config) } });
    },
  },
  "write huge and odd values": {
    act: ({ write, random }, n) => {
      const odd = ["\u0000", "é\ud800", '"\\', "<>&", "\n{}", "eyJ"][n % 6]!.repeat(2_000);
      const identity = random() < 0.5 ? odd : SHARED;
      write(n, { identity, account: random() < 0.5 ? odd : null, refresh: `${n}${odd}` });
    },
  },
};

/** All of it in turn, and whatever the issuer and the API server may make of it. */
export const everything = (seed: number): Attack => {
  const acts = Object.values(ATTACKS).map(({ act }) => act);
  const answers = [refusal(429, RETRY_AFTER_S), refusal(403), refusal(500), 9_500, 100];
  return {
    act: (siege, n) => acts[(n * seed + (n >> 6)) % acts.length]!(siege, n),
    issuer: (request) => isSharedBy(request) ? undefined : answers[request.at % answers.length],
    issuerMs: 9_500,
    writeMs: 10_000,
  };
};

/** What a namespace that is left alone waits for. */
interface Arrival {
  key: string;
  at: number;
}

/** Carries out an attack; throws a {@linkcode Breach} if anybody else comes to feel it. */
export async function besiege(attack: Attack): Promise<void> {
  const world = new VirtualWorld(1);
  const { clock, cluster, issuer } = world;
  const attackers = new Set(ATTACKERS.slice(0, attack.isAlone ? 1 : 2));
  const victims = new Map<string, number>();
  const wrong: Arrival[] = [];
  const told = new Set<string>();
  const leftAt = new Map<string, number>();
  issuer.life = LIFE_MS;
  issuer.fault = (request) =>
    isVictims(request) ? ISSUER_MS : attack.issuer?.(request) ?? ISSUER_MS;
  cluster.fault = ({ verb, namespace }) =>
    verb === "patch" && attackers.has(namespace!) ? attack.writeMs ?? API_MS : API_MS;

  // The attackers are there first, wherever that is of use.
  const siege = createSiege(world, [...attackers], leftAt);
  for (let n = 0; n < SECRETS; n++) attack.act(siege, n);
  for (let team = 0; team < TEAMS; team++) arrive(`team-${team}`, team % 2 === 0);
  const start = clock.tick;
  const { stop } = world.start();
  let n = SECRETS;
  const timer = () => {
    attack.act(siege, n++);
    clock.setTimeout(timer, 1000 / WRITES_A_SECOND);
  };
  timer();
  for (let next = 0; clock.tick < start + LENGTH_MS;) {
    await clock.advance(CHECK_MS);
    check();
    if (clock.tick < start + next * ARRIVAL_MS) continue;
    arrive(`late-${next}`, false);
    startTeam(`wrong-${next++}`);
  }
  stop();

  function isVictims({ identity }: ExchangeRequest) {
    return identity.startsWith("f");
  }

  /** A namespace gets Secrets that are filled, and soon one that cannot be. */
  function startTeam(namespace: string) {
    for (let number = 0; number < TEAM_SECRETS; number++) make(namespace, SHARED, `own-${number}`);
    clock.setTimeout(() => {
      wrong.push({ key: keyOf(make(namespace, "nobody").metadata), at: clock.tick });
    }, TEAM_MS);
  }

  function make(namespace: string, identity: string, name = "pull-secret") {
    const metadata = { namespace, name, labels: { [IDENTITY]: identity } };
    return cluster.create({ metadata, type: "kubernetes.io/dockerconfigjson", data: CONFIG });
  }

  function arrive(namespace: string, isShared: boolean) {
    const identity = isShared ? SHARED : `f${`${victims.size}`.padStart(39, "0")}`;
    victims.set(keyOf(make(namespace, identity).metadata), clock.tick);
  }

  function check() {
    // Each of the namespaces that wait has its turn before any has another.
    const waiting = attackers.size + victims.size + wrong.length;
    const rounds = Math.ceil(waiting / PLACES);
    const { issuerMs = ISSUER_MS, writeMs = API_MS } = attack;
    const fillMs = rounds * (issuerMs + writeMs) + SLACK_MS;
    const reportMs = waiting / EVENTS_A_SECOND * S + SLACK_MS;
    for (const [key, since] of victims) {
      const until = goodUntil(cluster.get(key), ["cgr.dev"]);
      const isNew = until === 0 && clock.tick < since + fillMs + CHECK_MS;
      if (until <= clock.now() && !isNew) {
        throw new Breach(`(a) ${key} has no token ${clock.tick - since} ms after it was made`);
      }
      const filled = cluster.history.find(({ by, secret }) => by && keyOf(secret.metadata) === key);
      if (filled && filled.at > since + fillMs && until > 0 && !told.has(key)) {
        throw new Breach(`(a) ${key} got its first token after ${filled.at - since} ms`);
      }
      if (filled) told.add(key);
    }
    for (const { type, regarding } of cluster.events.splice(0)) {
      if (type === "Warning") told.add(keyOf(regarding));
    }
    for (const { key, at } of wrong) {
      if (!told.has(key) && clock.tick >= at + reportMs) {
        throw new Breach(`(h) ${key} is not reported within ${reportMs} ms`);
      }
    }
    for (const { at, identity } of issuer.requests.splice(0)) {
      if (at > (leftAt.get(identity) ?? Infinity) + GONE_MS) {
        throw new Breach(`(c) ${identity} is exchanged, though nobody names it any more`);
      }
    }
    const patches = cluster.requests.splice(0).filter(({ verb }) => verb === "patch").length;
    if (patches > WRITES_A_SECOND * CHECK_MS / 1000 * 2 + victims.size + TEAM_SECRETS) {
      throw new Breach(`(b) ${patches} patches in ${CHECK_MS} ms`);
    }
    cluster.compact(cluster.version);
    world.lines.length = 0;
    world.secrets.clear();
    if (world.broken.length > 0) throw new Breach(`(c) ${world.broken[0]}`);
  }
}

function createSiege(
  world: VirtualWorld,
  namespaces: string[],
  leftAt: Map<string, number>,
): Siege {
  const { cluster, clock } = world;
  let identities = 0;
  const named = new Map<string, string>();
  /** Nobody but this Secret named it, if it is one of its own. */
  const leave = (key: string) => {
    const identity = named.get(key);
    if (identity?.startsWith("d")) leftAt.set(identity, clock.tick);
    named.delete(key);
  };
  const placeOf = (n: number, isNew: boolean) => ({
    namespace: namespaces[n % namespaces.length]!,
    name: `secret-${isNew ? n : n % SECRETS}`,
  });
  const find = (n: number) =>
    [placeOf(n, true), placeOf(n, false)].find((place) => cluster.secrets.has(keyOf(place)));
  return {
    world,
    random: world.random,
    newIdentity: () => `d${`${identities++}`.padStart(39, "0")}`,
    remove: (n) => {
      const key = keyOf(placeOf(n, true));
      if (!cluster.secrets.has(key)) return;
      leave(key);
      cluster.delete(key);
    },
    write: (n, { identity = "", account, refresh, data }) => {
      const annotations = {
        [IDENTITY]: identity,
        ...account !== undefined && { [`${PREFIX}service-account`]: account },
        ...refresh !== undefined && { [`${PREFIX}refresh`]: refresh },
      };
      const place = find(n) ?? placeOf(n, true);
      const key = keyOf(place);
      leave(key);
      named.set(key, identity);
      if (cluster.secrets.has(key)) {
        return void cluster.update(key, { metadata: { annotations }, ...data && { data } });
      }
      const own = Object.fromEntries(
        Object.entries(annotations).filter(([, value]) => value !== null),
      ) as Record<string, string>;
      cluster.create({
        metadata: { ...place, labels: { [IDENTITY]: "" }, annotations: own },
        type: "kubernetes.io/dockerconfigjson",
        data: data ?? CONFIG,
      });
    },
  };
}
