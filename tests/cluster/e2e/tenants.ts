/** What else the README has YAML for: the manifest with an empty `data:`, a tenant's own account, the narrow install. */
import { expectQuiet, rolledOut } from "./deploy.ts";
import { type Context, expect, refused, RETRIED_MS } from "./context.ts";
import { needBlock, runCommands } from "./blocks.ts";
import {
  ACCOUNT,
  CONTROLLER,
  IDENTITY,
  NAMESPACE,
  PREFIX,
  SECRET_TYPE,
} from "../../support/names.ts";
import { pullSecret } from "../../support/secrets.ts";
import { until } from "../../support/until.ts";

/** As the README has it. */
const TENANT = "team-a";
const TENANT_SECRET = "pull-secret";
const TENANT_IDENTITY = "1234567890abcdef1234567890abcdef12345678/fedcba9876543210";
/** Of this part's own. */
const OWN_IDENTITY = `${"6".repeat(40)}/${"b".repeat(16)}`;

export async function tenants(context: Context): Promise<void> {
  const { kubectl, step } = context;
  context.bind(OWN_IDENTITY);
  context.bind(TENANT_IDENTITY, TENANT, "puller");

  await step(
    "the first published manifest, with an empty data:, is made valid by a MutatingAdmissionPolicy",
    async () => {
      const namespace = "empty-data";
      const manifest = `
apiVersion: v1
kind: Secret
metadata:
  name: pull-secret
  labels:
    ${IDENTITY}: "${OWN_IDENTITY.replace("/", ".")}"
type: ${SECRET_TYPE}
data:
`;
      await context.createNamespace(namespace);
      const create = () => kubectl(["create", "-n", namespace, "-f", "-"], manifest);
      await refused(create(), /data\[\.dockerconfigjson\]: Required value/);
      await kubectl(["apply", "-f", "-"], needBlock("name: pull-secret-updater-empty"));
      await until(async () => await create() !== "", "it is taken");
      await until(() => context.tokenIn(namespace, "pull-secret"), "it is filled");
    },
  );

  await step("a tenant's own account: refused without the Role, with a Warning", async () => {
    await context.createNamespace(TENANT);
    await kubectl(["create", "-f", "-"], needBlock("# tenant-secret.yaml"));
    return await until(async () => {
      const { items } = await context.get("events.events.k8s.io", "-n", TENANT);
      return items.find(({ type, reason }: { type: string; reason: string }) =>
        type === "Warning" && reason === "ExchangeFailed"
      )?.note;
    }, "the event");
  });

  await step(
    "a tenant's own account: exchanged as that account once the Role is there",
    async () => {
      await kubectl(["apply", "-f", "-"], needBlock("# tenant.yaml"));
      await kubectl(["annotate", "secret", "-n", TENANT, TENANT_SECRET, `${PREFIX}refresh=now`]);
      const token = await until(
        () => context.tokenIn(TENANT, TENANT_SECRET),
        "it is filled",
        RETRIED_MS,
      );
      const { sub } = token.act;
      expect(sub === `system:serviceaccount:${TENANT}:puller`, `exchanged as ${sub}`);
      return sub;
    },
  );

  await step("the README's other YAML is taken by the API server", async () => {
    const blocks = [needBlock("# use.yaml"), needBlock('# in Git: {"auths":{}} in base64')];
    await Promise.all(
      blocks.map((block) => kubectl(["apply", "--dry-run=server", "-f", "-"], block)),
    );
  });
}

export async function narrow(context: Context): Promise<void> {
  const { kubectl, step } = context;
  const secret = () => context.tokenIn(TENANT, TENANT_SECRET);

  await step("the narrow install works in its namespace, and reads no other", async () => {
    const before = (await secret())?.token;
    await runCommands(context, "kubectl apply -f narrow.yaml");
    await rolledOut(context);

    await context.createNamespace("elsewhere");
    await context.create(pullSecret("elsewhere", "pull-secret", OWN_IDENTITY));
    // The request before stays on the Secret.
    const request = ["--overwrite", `${PREFIX}refresh=narrow`];
    await kubectl(["annotate", "secret", "-n", TENANT, TENANT_SECRET, ...request]);
    await until(async () => (await secret())?.token !== before, "it is refreshed");
    expect(
      !await context.tokenIn("elsewhere", "pull-secret"),
      "a Secret in another namespace was filled",
    );

    const controller = context.as(
      (await kubectl(["create", "token", ACCOUNT, "-n", NAMESPACE])).trim(),
    );
    await refused(controller(["get", "secrets", "-A"]), new RegExp(`${CONTROLLER}" cannot list`));
    await refused(
      controller(["get", "secret", "-n", "elsewhere", "pull-secret"]),
      new RegExp(`${CONTROLLER}" cannot get`),
    );
    await controller(["get", "secret", "-n", TENANT, TENANT_SECRET]);
    await expectQuiet(context);
  });

  await step("taken away as the README says; the Secrets stay", async () => {
    await runCommands(context, "kubectl delete -f deploy.yaml");
    const left = await kubectl([
      "get",
      "namespaces,clusterroles,clusterrolebindings,validatingadmissionpolicies",
      "-o",
      "name",
    ]);
    expect(!/\/pull-secret-updater(-(user|identity|controller|tokens))?$/m.test(left), left);
    expect(await secret(), "the tenant's Secret lost its token");
  });
}
