// RFC 9421 signatures as terminals make them (the server's profile): what is covered, in which words, by which key.
// Pure but for the hash: the key signs elsewhere, so this runs wherever there is WebCrypto.

const TAG = "carbon-points-terminal";
const LIVES_SECONDS = 60;

export function base64(bytes) {
  return btoa(String.fromCharCode(...new Uint8Array(bytes)));
}

export async function contentDigest(body) {
  const hash = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(body ?? ""));
  return `sha-256=:${base64(hash)}:`;
}

// The headers that make `request` {method, url, key, body} a signed one. `sign` takes bytes and gives the signature;
// `created` is in seconds of the server's clock, `nonce` used once. A POST covers its body, even an empty one.
export async function signatureHeaders({ method, url, key, body }, { keyId, sign, created, nonce }) {
  const covered = [["@method", method], ["@target-uri", url]];
  const headers = {};
  if (method !== "GET") {
    headers["Content-Digest"] = await contentDigest(body);
    covered.push(["content-digest", headers["Content-Digest"]], ["idempotency-key", key]);
  }
  const names = covered.map(([name]) => `"${name}"`).join(" ");
  const parameters =
    `(${names});created=${created};expires=${created + LIVES_SECONDS};nonce="${nonce}"` +
    `;keyid="${keyId}";alg="ed25519";tag="${TAG}"`;
  const base = [...covered.map(([name, value]) => `"${name}": ${value}`), `"@signature-params": ${parameters}`];
  const signature = await sign(new TextEncoder().encode(base.join("\n")));
  headers["Signature-Input"] = `sig1=${parameters}`;
  headers["Signature"] = `sig1=:${base64(signature)}:`;
  return headers;
}
