/** A root, what it has signed, and CAs of others. */
import { makeAuthority } from "../fake/certificates.ts";

/** An authority with an intermediate CA, and others that have signed nothing. */
export type Trust = ReturnType<typeof makeTrust>;

export function makeTrust() {
  const root = makeAuthority();
  const intermediate = root.makeIntermediate();
  return {
    root: root.certificate,
    intermediate: intermediate.certificate,
    others: [makeAuthority().certificate, makeAuthority().certificate] as const,
    issue(hosts: string[], signer: "root" | "intermediate" | "intermediate, sent" = "root") {
      if (signer === "root") return root.issue(hosts);
      const { key, cert } = intermediate.issue(hosts);
      const sent = signer.endsWith("sent") ? intermediate.certificate : "";
      return { key, cert: cert + sent };
    },
  };
}
