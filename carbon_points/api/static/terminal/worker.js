// Keeps the page for a phone without a network: from the server where it answers, else as it was last. Never a call.

const KEPT = "terminal-page";
const OURS = /^\/(terminal$|static\/(terminal|zxing-wasm)\/)/;
const PATIENCE_MS = 4_000;
const FILES = [
  "code.js", "elements.js", "icon.svg", "identity.js", "journal.js", "keys.js", "main.js",
  "manifest.webmanifest", "network.js", "offline.js", "reference.js", "sale.js", "scanner.js", "screens.js",
  "signal.js", "signature.js", "style.css", "till.js", "words.js",
];

self.addEventListener("install", (event) => {
  const all = ["/terminal", ...FILES.map((file) => `/static/terminal/${file}`)];
  event.waitUntil(caches.open(KEPT).then((cache) => cache.addAll(all)).then(() => self.skipWaiting()));
});
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  const { origin, pathname } = new URL(url);
  if (method === "GET" && origin === self.location.origin && OURS.test(pathname)) {
    event.respondWith(newest(event.request));
  }
});

async function newest(request) {
  const cache = await caches.open(KEPT);
  const kept = await cache.match(request);
  const asked = fetch(request).then(async (answer) => {
    if (answer.ok) await cache.put(request, answer.clone());
    return answer.ok || !kept ? answer : kept; // a proxy's 502 is no page
  });
  if (!kept) return asked;
  const late = new Promise((resolve) => setTimeout(resolve, PATIENCE_MS, kept));
  return Promise.race([asked.catch(() => kept), late]);
}
