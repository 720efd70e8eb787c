/**
 * All that deploy.yaml is changed by for this cluster: the image's name, where issuer.enforce.dev is (there is no DNS), and
 * the private CA that the issuer's certificate is signed by. kustomize, as users have it, puts it in.
 */
import * as fs from "node:fs";
import { join } from "node:path";
import { type Context } from "./context.ts";
import { NAMESPACE } from "../../support/names.ts";
import type { Json } from "../../support/json.ts";

const CA_FOLDER = "/etc/private-ca";

/** Tells the Pods where the issuer is. */
export function aliasPatch({ address }: Pick<Context, "address">): Json {
  return {
    spec: {
      template: { spec: { hostAliases: [{ ip: address, hostnames: ["issuer.enforce.dev"] }] } },
    },
  };
}

/** A Pod's part that has it trust the ConfigMap private-ca. */
export function trustOfTheIssuer(image?: string): Json {
  const container = {
    name: "controller",
    image,
    env: [{ name: "NODE_EXTRA_CA_CERTS", value: `${CA_FOLDER}/ca.crt` }],
    volumeMounts: [{ name: "private-ca", mountPath: CA_FOLDER, readOnly: true }],
  };
  const volumes = [{ name: "private-ca", configMap: { name: "private-ca" } }];
  return { containers: [container], volumes };
}

/** That ConfigMap: the CA of the issuer's certificate. */
const authorityOf = ({ ca }: Pick<Context, "ca">): Json => ({
  apiVersion: "v1",
  kind: "ConfigMap",
  metadata: { namespace: NAMESPACE, name: "private-ca" },
  data: { "ca.crt": ca },
});

/** A manifest with all of that. */
export async function patchedManifest(
  context: Context,
  manifest: string,
  image?: string,
): Promise<string> {
  const patch = aliasPatch(context);
  Object.assign(patch.spec.template.spec, trustOfTheIssuer(image));
  const folder = fs.mkdtempSync(join(context.work, "kustomize-"));
  const write = (name: string, value: unknown) =>
    fs.writeFileSync(join(folder, name), JSON.stringify(value));
  fs.writeFileSync(join(folder, "manifest.yaml"), manifest);
  write("ca.yaml", authorityOf(context));
  write("patch.yaml", {
    apiVersion: "apps/v1",
    kind: "Deployment",
    metadata: { namespace: NAMESPACE, name: "controller" },
    ...patch,
  });
  write("kustomization.yaml", {
    resources: ["manifest.yaml", "ca.yaml"],
    patches: [{ path: "patch.yaml" }],
    sortOptions: { order: "fifo" },
  });
  return await context.kubectl(["kustomize", folder]);
}
