/** The objects that a run makes on the real API server, and what their Secrets hold. */
import { createHash } from "node:crypto";
import type { Admin } from "./admin.ts";
import { ACCOUNT } from "../support/names.ts";
import type { Json } from "../support/json.ts";
import { pullSecret, tokenIn } from "../support/secrets.ts";
import { until } from "../support/until.ts";

/** The label by which a run finds its own Secrets. */
export const RUN_LABEL = "run";
/** The one of a tenant, as which it may exchange. */
export const TENANT = "tenant";

/** What the program may do. */
const RULES = [
  { apiGroups: [""], resources: ["secrets"], verbs: ["get", "list", "watch", "patch"] },
  { apiGroups: ["events.k8s.io"], resources: ["events"], verbs: ["create"] },
  {
    apiGroups: [""],
    resources: ["serviceaccounts/token"],
    resourceNames: [TENANT],
    verbs: ["create"],
  },
];
const GROUP = "rbac.authorization.k8s.io";

/** An identity's UID, always the same for the same name. */
export function identityOf(name: string): string {
  const hex = createHash("sha256").update(name).digest("hex");
  return `${hex.slice(0, 40)}/${hex.slice(40, 56)}`;
}

/** A pull Secret of a run. */
export function secretOf(
  run: string,
  namespace: string,
  name: string,
  identity: string,
  annotations = {},
): Json {
  const secret = pullSecret(namespace, name, identity, annotations);
  secret.metadata.labels[RUN_LABEL] = run;
  return secret;
}

/** A namespace with one service account. */
export async function createNamespace(
  admin: Admin,
  namespace: string,
  account: string,
): Promise<void> {
  await admin.create("/api/v1/namespaces", { metadata: { name: namespace } });
  await admin.create(`/api/v1/namespaces/${namespace}/serviceaccounts`, {
    metadata: { name: account },
  });
}

/** A namespace with what the narrow install gives the program of the namespace `home` in it. */
export async function createTenant(admin: Admin, namespace: string, home: string): Promise<void> {
  await createNamespace(admin, namespace, TENANT);
  const role = { metadata: { name: ACCOUNT }, rules: RULES };
  await admin.create(`/apis/${GROUP}/v1/namespaces/${namespace}/roles`, role);
  await bindRole(admin, namespace, home);
}

/** Binds the program's account to a role of its name. */
const bindingOf = (kind: "Role" | "ClusterRole", home: string) => ({
  metadata: { name: ACCOUNT },
  roleRef: { apiGroup: GROUP, kind, name: ACCOUNT },
  subjects: [{ kind: "ServiceAccount", namespace: home, name: ACCOUNT }],
});

export async function bindRole(admin: Admin, namespace: string, home: string): Promise<void> {
  const path = `/apis/${GROUP}/v1/namespaces/${namespace}/rolebindings`;
  await admin.create(path, bindingOf("Role", home));
}

/** Leaves all other rights. The API server hears of it some time after the write: only then is it done. */
export async function forbidWatch(admin: Admin, namespace: string, home: string): Promise<void> {
  const rules = RULES.map(({ verbs, ...rule }) => ({
    ...rule,
    verbs: verbs.filter((verb) => verb !== "watch"),
  }));
  await admin.patch(`/apis/${GROUP}/v1/namespaces/${namespace}/roles/${ACCOUNT}`, { rules });
  const spec = {
    user: `system:serviceaccount:${home}:${ACCOUNT}`,
    resourceAttributes: { namespace, verb: "watch", resource: "secrets" },
  };
  const isForbidden = async () =>
    !(await admin.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", { spec })).status
      .allowed;
  await until(isForbidden, "the watch is forbidden");
}

/** Rights in all namespaces: those of the default install, if no others are given. */
export async function grantCluster(
  admin: Admin,
  home: string,
  rules: object[] = RULES,
): Promise<void> {
  await admin.create(`/apis/${GROUP}/v1/clusterroles`, { metadata: { name: ACCOUNT }, rules });
  await admin.create(`/apis/${GROUP}/v1/clusterrolebindings`, bindingOf("ClusterRole", home));
}

export async function unbindRole(admin: Admin, namespace: string): Promise<void> {
  await admin.delete(`/apis/${GROUP}/v1/namespaces/${namespace}/rolebindings/${ACCOUNT}`);
}

/** How a Secret stands at an instant (ms). */
export interface Standing {
  state: "valid" | "expired" | "missing" | "another's";
  /** When its token was issued, and when it expires (ms, whole seconds). */
  issuedAt: number;
  expiresAt: number;
}

/** Judges by the token alone, and not by what the program says of it. */
export function standingOf(secret: Json, identity: string, at: number): Standing {
  const token = tokenIn(secret);
  if (!token) return { state: "missing", issuedAt: 0, expiresAt: 0 };
  const state = token.sub !== identity ? "another's" : token.exp * 1000 <= at ? "expired" : "valid";
  return { state, issuedAt: token.iat * 1000, expiresAt: token.exp * 1000 };
}

/** The path of a Secret, of which the "namespace/name" is given. */
export function pathOf(key: string): string {
  const [namespace, name] = key.split("/");
  return `/api/v1/namespaces/${namespace}/secrets/${name}`;
}
