/** A signing key of a token issuer, RS256 as Kubernetes and Chainguard use it. */
import { randomUUID } from "node:crypto";
import type { JSONWebKeySet, JWTPayload } from "jose";
import { SignJWT } from "jose/jwt/sign";
import { jwtVerify } from "jose/jwt/verify";
import { exportJWK } from "jose/key/export";
import { generateKeyPair } from "jose/key/generate/keypair";

export interface SigningKey {
  /** The public half. */
  jwks: JSONWebKeySet;
  sign(claims: JWTPayload): Promise<string>;
  /** The claims of a token that it signed for this audience and that has not expired. */
  verify(token: string, audience: string): Promise<JWTPayload | undefined>;
}

export async function makeSigningKey(): Promise<SigningKey> {
  const { publicKey, privateKey } = await generateKeyPair("RS256");
  const header = { alg: "RS256", kid: randomUUID() };
  const jwk = { ...await exportJWK(publicKey), ...header, use: "sig" };
  return {
    jwks: { keys: [jwk] },
    sign: (claims) => new SignJWT(claims).setProtectedHeader(header).sign(privateKey),
    verify: (token, audience) =>
      jwtVerify(token, publicKey, { audience }).then(({ payload }) => payload, () => undefined),
  };
}
