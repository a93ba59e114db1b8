// Has the browser keep the page, so that it opens without a network and goes on with what is unresolved.

const WORKER = "/terminal/worker.js";

export async function keepPage() {
  await navigator.serviceWorker?.register(trusted(WORKER), { scope: "/terminal" });
}

// The page's policy takes no text for the address of a script; this is the only one that is not in its HTML.
function trusted(address) {
  const policy = globalThis.trustedTypes?.createPolicy("page", { createScriptURL: (text) => text });
  return policy?.createScriptURL(address) ?? address;
}
