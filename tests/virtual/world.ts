/**
 * A world in virtual time to run the whole controller in: a clock that is advanced, an API server and an issuer in
 * memory, any number of replicas. Nothing in it waits, and nothing is random but by the seed. Everything that a replica
 * tells is kept and can be searched for tokens.
 */
import { Buffer } from "node:buffer";
import { type Config, Controller, createLog, readConfig } from "../../main.ts";
import type { Secret } from "../../k8s.ts";
import { CONTROLLER, DATA_KEY } from "../support/names.ts";
import { seeded, VirtualClock } from "./clock.ts";
import { VirtualCluster } from "./cluster.ts";
import { VirtualIssuer } from "./issuer.ts";
import type { Surroundings } from "./shared.ts";

/** Base64url of JSON. */
const part = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url");
const HEADER = part({ alg: "RS256", kid: "1" });
/** Stands in each signature, again and again, and nowhere else: any part of one betrays itself by it. */
export const CANARY = "CaNaRy";
/** So that a signature is as long as that of a real one. */
const SIGNATURE_REPEATS = 20;

/** A process of the controller. */
export interface Replica extends Controller {
  /** Kills it, as a SIGKILL does. */
  stop: () => void;
  name: string;
  clock: ReturnType<VirtualClock["view"]>;
  config: Config;
}

const ENVIRONMENT: Record<string, string> = { KUBERNETES_API: "http://127.0.0.1:8001" };

/** All of it, and what was told and broken in it. */
export class VirtualWorld implements Surroundings {
  readonly clock = new VirtualClock();
  readonly random: () => number;
  readonly cluster = new VirtualCluster(this);
  readonly issuer = new VirtualIssuer(this);
  /** All tokens there ever were, registry and subject. */
  readonly secrets = new Set<string>();
  /** Every line that any replica logged, at any level. */
  readonly lines: string[] = [];
  /** What was written, or asked for, that must not be. */
  readonly broken: string[] = [];
  readonly replicas: Replica[] = [];
  /** The names of those that were killed. */
  readonly dead = new Set<string>();
  #started = 0;
  readSubjectToken = () => this.subjectToken(CONTROLLER, "issuer.enforce.dev", 600);

  constructor(seed = 1) {
    this.random = seeded(seed);
  }

  /** Starts another replica, by default in a namespace and environment as the manifest has it. */
  start({ env = {}, skew = 0 }: { env?: Record<string, string>; skew?: number } = {}): Replica {
    const name = `replica-${++this.#started}`;
    const clock = Object.assign(this.clock.view(), { skew });
    const config: Config = readConfig({ ...ENVIRONMENT, ...env });
    const controller = new Controller(config, {
      api: this.cluster.client(name),
      exchange: this.issuer.client(name),
      readSubjectToken: () => this.readSubjectToken(),
      clock,
      random: seeded(Math.floor(this.random() * 2 ** 32)),
      log: createLog(clock.now, (_level, line) => this.lines.push(line)),
    });
    const stop = () => {
      this.dead.add(name);
      clock.kill();
    };
    const replica = Object.assign(controller, { name, clock, config, stop });
    this.replicas.push(replica);
    replica.start();
    return replica;
  }

  /** A JWT that looks as real ones do; nobody here checks its signature. */
  jwt(claims: object): string {
    const own = Math.floor(this.random() * 2 ** 52).toString(36).padStart(11, "0");
    const token = `${HEADER}.${part(claims)}.${`${CANARY}${own}`.repeat(SIGNATURE_REPEATS)}`;
    this.secrets.add(token);
    return token;
  }

  subjectToken(sub: string, audience: string, seconds: number): string {
    const iat = Math.floor(this.clock.now() / 1000);
    return this.jwt({
      iss: "https://cluster.example",
      aud: [audience],
      sub,
      iat,
      exp: iat + seconds,
    });
  }

  /** Notes what a patch of the controller must not do. */
  judge({ metadata: { namespace, name } }: Secret, patch: Partial<Secret>): void {
    const breach = (what: string) => this.broken.push(`${namespace}/${name}: ${what}`);
    const { metadata, data, ...rest } = patch as {
      metadata: Secret["metadata"];
      data: Record<string, string>;
    };
    const { uid, resourceVersion, annotations: own = {}, ...meta } = metadata;
    if (!uid || !resourceVersion) breach("writes without preconditions");
    if (Object.keys({ ...rest, ...meta }).length > 0) {
      breach(`writes ${Object.keys({ ...rest, ...meta })}`);
    }
    if (Object.keys(data).join() !== DATA_KEY) breach(`writes the data ${Object.keys(data)}`);
    const names = Object.keys(own).map((key) =>
      key.replace(/^pull-secret-updater\.chainguard\.dev\//, "")
    );
    if (!/^token-identity,token-expires(,refreshed)?$/.test(names.join())) {
      breach(`writes the annotations ${names}`);
    }
  }

  /** Says where a token, or a part of one, was told: in a log, an event, the metrics. */
  findLeak(): string | undefined {
    const told = [
      ...this.lines,
      JSON.stringify(this.cluster.events),
      ...this.replicas.map((own) => own.renderMetrics()),
    ];
    const jwts = [...this.secrets];
    const hidden = [...jwts, ...jwts.map((jwt) => Buffer.from(`_token:${jwt}`).toString("base64"))]
      .join("\n");
    const runs = new Set(told.flatMap((text) => text.match(/[\w+/=-]{16,}/g) ?? []));
    for (const run of runs) {
      for (let start = 0; start + 16 <= run.length; start += 4) {
        const piece = run.slice(start, start + 16);
        if (hidden.includes(piece)) return `${piece} in ${told.find((text) => text.includes(run))}`;
      }
    }
  }
}
