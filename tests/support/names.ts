/** The product's names, as its documents have them, and units: once for all that tests or measures. */

export const NAMESPACE = "pull-secret-updater";
/** The controller's service account. */
export const ACCOUNT = "controller";
/** The user that the API server takes it for, and the subject of its tokens. */
export const CONTROLLER = `system:serviceaccount:${NAMESPACE}:${ACCOUNT}`;
export const API_GROUP = "pull-secret-updater.chainguard.dev";
/** What labels and annotations begin with. */
export const PREFIX = `${API_GROUP}/`;
/** The label and the annotation that name the identity. */
export const IDENTITY = `${PREFIX}identity`;
/** The annotations. */
export const SERVICE_ACCOUNT = `${PREFIX}service-account`;
export const REFRESH = `${PREFIX}refresh`;
export const REFRESHED = `${PREFIX}refreshed`;
export const TOKEN_IDENTITY = `${PREFIX}token-identity`;
export const TOKEN_EXPIRES = `${PREFIX}token-expires`;
export const SECRET_TYPE = "kubernetes.io/dockerconfigjson";
export const DATA_KEY = ".dockerconfigjson";
/** What the names of metrics begin with. */
export const METRIC_PREFIX = "pull_secret_updater_";

export const MIB = 1024 * 1024;

/** In ms. */
export const S = 1000;
export const MIN = 60 * S;
export const HOUR = 60 * MIN;
