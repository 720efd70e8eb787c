/** A bare process of the runtime: it only serves the probe. */
import { createServer } from "node:http";
import process from "node:process";

createServer((_request, response) => response.end("ok\n")).listen(Number(process.env.PORT));
