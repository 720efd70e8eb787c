/** How long what befalls a run is felt after its end. */
import type { Action } from "./stage.ts";

/** After the last fault: a request that still hangs (30 s), the back-off that follows it (1 min), and slow answers. */
const RECOVERY_MS = 110_000;
/** The longest pause that `Retry-After` is granted. */
const RETRY_AFTER_MS = 5 * 60_000;
/** A watch lives up to 90 s, and is given up 10 s later. */
const DEAF_MS = 100_000;
/** The API server is stopped while etcd is restored. */
export const RESTORE_MS = 10_000;

/** How long after its end all has to be well, in ms. */
export function recoveryFrom({ kind }: Action): number {
  if (/throttles/.test(kind)) return RECOVERY_MS + RETRY_AFTER_MS;
  if (/deaf|unseen/.test(kind)) return RECOVERY_MS + DEAF_MS;
  return kind === "etcd restored" ? RECOVERY_MS + RESTORE_MS : RECOVERY_MS;
}
