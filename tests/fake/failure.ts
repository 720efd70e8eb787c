/** Failures as the API server sends them: a `Status` object, in an answer or in a watch. */

export interface Cause {
  reason: string;
  message: string;
  field: string;
}

export interface Status {
  kind: "Status";
  apiVersion: "v1";
  metadata: { continue?: string };
  status: "Failure" | "Success";
  message?: string;
  reason?: string;
  details?: {
    name?: string;
    group?: string;
    kind?: string;
    uid?: string;
    causes?: Partial<Cause>[];
    retryAfterSeconds?: number;
  };
  code?: number;
}

/** A request that fails, with the `Status` to answer. */
export class ApiFailure extends Error {
  override name = "ApiFailure";
  readonly code: number;
  readonly status: Status;

  constructor(code: number, reason: string, message: string, details?: Status["details"]) {
    super(message);
    this.code = code;
    this.status = {
      kind: "Status",
      apiVersion: "v1",
      metadata: {},
      status: "Failure",
      message,
      ...reason && { reason },
      ...details && { details },
      code,
    };
  }
}

/** What a failure names: the resource (or kind), its group, an object. */
export interface Named {
  name?: string;
  group?: string;
  kind: string;
}

/** Somebody else wrote in between. */
export const MODIFIED =
  "the object has been modified; please apply your changes to the latest version and try again";

const failure = (code: number, reason: string, message: string, details?: Status["details"]) =>
  new ApiFailure(code, reason, message, details);

export const badRequest = (message: string) => failure(400, "BadRequest", message);
export const unauthorized = () => failure(401, "Unauthorized", "Unauthorized");
export const forbidden = (what: Named, message: string) =>
  failure(403, "Forbidden", `${subject(what)} is forbidden: ${message}`, what);
export const notFound = (what: Named) =>
  failure(404, "NotFound", `${subject(what)} not found`, what);
export const noSuchResource = () =>
  failure(404, "NotFound", "the server could not find the requested resource", {});
export const methodNotAllowed = () =>
  failure(405, "MethodNotAllowed", "the server does not allow this method on the resource", {});
export const alreadyExists = (what: Named) =>
  failure(409, "AlreadyExists", `${subject(what)} already exists`, what);
export const conflict = (what: Named, message: string) =>
  failure(409, "Conflict", `Operation cannot be fulfilled on ${subject(what)}: ${message}`, what);
export const expired = (message: string, reason = "Expired") => failure(410, reason, message);
export const tooLarge = (limit: number) =>
  failure(413, "RequestEntityTooLarge", `Request entity too large: limit is ${limit}`);
export const unsupportedMediaType = (message: string, details?: Status["details"]) =>
  failure(415, "UnsupportedMediaType", message, details);

export function invalid(what: Named, causes: Cause[]): ApiFailure {
  const all = causes.map(({ field, message }) => `${field}: ${message}`);
  const list = all.length === 1 ? all[0] : `[${all.join(", ")}]`;
  const kind = what.group ? `${what.kind}.${what.group}` : what.kind;
  const message = `${kind} "${what.name ?? ""}" is invalid: ${list}`;
  const { name, group } = what;
  const known = { ...name && { name }, ...group && { group }, ...kind && { kind: what.kind } };
  return new ApiFailure(422, "Invalid", message, { ...known, causes });
}

const tooManyRequests = (retryAfterSeconds = 1) =>
  failure(429, "TooManyRequests", "the server has asked us to try again later", {
    retryAfterSeconds,
  });
export const internalError = (message: string) =>
  failure(500, "InternalError", `Internal error occurred: ${message}`, { causes: [{ message }] });

export function tooLargeVersion(version: string, current: number): ApiFailure {
  const message = "Too large resource version";
  const causes = [{ reason: "ResourceVersionTooLarge", message }];
  const details = { causes, retryAfterSeconds: 1 };
  const text = `Timeout: ${message}: ${version}, current: ${current}`;
  return new ApiFailure(504, "Timeout", text, details);
}

/** An ERROR event for a watch, as a fault injects it: 410 (`Expired` or `Gone`), 429 or 500. */
export function errorEvent(code: 410 | 429 | 500, reason?: "Expired" | "Gone"): object {
  const failures = {
    410: () => expired("too old resource version: 1 (1000)", reason),
    429: () => tooManyRequests(),
    500: () => internalError("etcdserver: leader changed"),
  };
  return { type: "ERROR", object: failures[code]().status };
}

function subject({ kind, group, name }: Named): string {
  const what = group ? `${kind}.${group}` : kind;
  return name ? `${what} "${name}"` : what;
}
