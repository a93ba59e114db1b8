// Calls to the server: signed, bounded in time, and answered with what is known afterwards: an answer, or none.

const ANSWER_MS = 10_000;

// `sign` gives the headers that prove who asks. What comes back is {answered: false}, where nothing is known, or
// {answered: true, status, body, retryAfterMs}, where the body is what the server itself said, as JSON.
export class Network {
  constructor({ origin, sign, clockIsWrong = () => {}, seen = () => {} }) {
    this.origin = origin;
    this.sign = sign;
    this.clockIsWrong = clockIsWrong; // told the server's time, in milliseconds
    this.seen = seen; // told of each call whether the server was reached
  }

  get(path) {
    return this.#call({ method: "GET", url: this.origin + path });
  }

  post(path, key, content) {
    const body = content === undefined ? undefined : JSON.stringify(content);
    return this.#call({ method: "POST", url: this.origin + path, key, body });
  }

  async #call(request) {
    const answer = await this.#once(request);
    // The phone's clock was set since: the answer says what time it is there. A call that was refused did nothing.
    if (answer.body?.code !== "signature-expired" || !answer.date) return answer;
    await this.clockIsWrong(answer.date);
    return this.#once(request);
  }

  async #once(request) {
    const stop = new AbortController();
    const timer = setTimeout(() => stop.abort(), ANSWER_MS);
    try {
      const headers = await this.sign(request);
      if (request.key) headers["Idempotency-Key"] = request.key;
      if (request.body !== undefined) headers["Content-Type"] = "application/json";
      const { url, method, body } = request;
      const response = await fetch(url, {
        method, body, headers, signal: stop.signal, cache: "no-store", credentials: "omit", redirect: "error",
      });
      const text = await response.text();
      this.seen(true);
      return understood(response, text);
    } catch {
      this.seen(false); // not reached, or not answered in time: nobody knows which
      return { answered: false };
    } finally {
      clearTimeout(timer);
    }
  }
}

// Something between may answer in the server's place (a hotel's login page, a proxy's 502): that is no answer.
function understood(response, text) {
  const retryAfterMs = 1000 * Number(response.headers.get("Retry-After") ?? 0) || 0;
  if (response.status >= 500) return { answered: false, retryAfterMs };
  try {
    const body = JSON.parse(text);
    const told = response.ok ? body !== null && typeof body === "object" : typeof body.code === "string";
    const date = Date.parse(response.headers.get("Date") ?? "");
    if (told) return { answered: true, status: response.status, body, retryAfterMs, date };
  } catch {
    // not JSON: not ours
  }
  return { answered: false, retryAfterMs };
}
