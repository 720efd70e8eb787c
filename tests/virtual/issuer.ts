/** The issuer in memory. */
import { Buffer } from "node:buffer";
import { Waiter } from "./clock.ts";
import { delayOf, type Fault, never, type Surroundings } from "./shared.ts";

/** How the issuer answers. */
export interface ExchangeRequest {
  at: number;
  endedAt: number;
  replica: string;
  identity: string;
  /** The subject's `sub`. */
  subject: string;
  /** What it was answered with. */
  token?: string;
  /** Whether the answer arrived. */
  isAnswered?: boolean;
}

/** The issuer. */
export class VirtualIssuer {
  readonly requests: ExchangeRequest[] = [];
  /** Of the tokens, in ms. */
  life = 3600_000;
  /** What its clock is ahead by. */
  skew = 0;
  /** It gives the same token again until that has so many ms left. */
  renewBefore = Infinity;
  /** What happens to each request; a text is the token that it is answered with. */
  fault: (request: ExchangeRequest) => Fault | string = () => undefined;
  /** Claims that differ from what they ought to be. */
  claims: (request: ExchangeRequest) => object = () => ({});
  readonly #issued = new Map<string, { token: string; endsAt: number }>();
  readonly #world: Surroundings;

  constructor(world: Surroundings) {
    this.#world = world;
  }

  client(replica: string) {
    const { clock } = this.#world;
    return async (subjectToken: string, identity: string, signal: AbortSignal): Promise<string> => {
      const act = JSON.parse(Buffer.from(subjectToken.split(".")[1]!, "base64url").toString());
      const request: ExchangeRequest = {
        at: clock.tick,
        endedAt: Infinity,
        replica,
        identity,
        subject: act.sub,
      };
      this.requests.push(request);
      const fault = this.fault(request);
      if (fault === "wedged") return never();
      try {
        await new Waiter(clock, signal).wait(fault === "hang" ? Infinity : delayOf(fault));
        if (this.#world.dead.has(replica)) return never();
        if (fault instanceof Error) throw fault;
        request.token = typeof fault === "string" ? fault : this.#issue(request, act);
        this.#world.secrets.add(request.token);
        if (typeof fault === "object" && fault.after) throw fault.after;
        request.isAnswered = true;
        return request.token;
      } finally {
        request.endedAt = clock.tick;
      }
    };
  }

  #issue(request: ExchangeRequest, act: { iss: string; sub: string; aud: string[] }): string {
    const now = this.#world.clock.now() + this.skew;
    const key = `${request.identity} ${act.sub}`;
    const known = this.#issued.get(key);
    if (known && known.endsAt - now > this.renewBefore) return known.token;
    const iat = Math.floor(now / 1000);
    const exp = iat + this.life / 1000;
    const { iss, sub, aud } = act;
    const claims = {
      iss: "https://issuer.enforce.dev",
      aud: ["cgr.dev"],
      sub: request.identity,
      iat,
      exp,
    };
    const token = this.#world.jwt({ ...claims, act: { iss, sub, aud }, ...this.claims(request) });
    if (this.renewBefore < Infinity) this.#issued.set(key, { token, endsAt: exp * 1000 });
    return token;
  }
}
