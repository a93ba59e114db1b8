// A keyboard, or a hand scanner that types: what comes in one burst and ends with Enter is a code.

const BURST_MS = 50; // between the keys of a hand scanner; no hand is as fast
const SHORTEST_SCAN = 14;

// Calls `scanned(digits)`, `typed(digits)` and `pressed(key)` for Enter, Backspace and Escape. Fields keep their keys.
export function listen(target, { scanned, typed, pressed }) {
  let burst = "";
  let timer = 0;
  const flush = () => {
    if (burst) typed(burst);
    burst = "";
  };
  target.addEventListener("keydown", (event) => {
    if (event.target.closest?.("input, textarea") || event.ctrlKey || event.altKey || event.metaKey) return;
    clearTimeout(timer);
    if (/^\d$/.test(event.key)) {
      burst += event.key;
      timer = setTimeout(flush, BURST_MS);
    } else if (event.key === "Enter" && burst.length >= SHORTEST_SCAN) {
      event.preventDefault(); // it would press the button that has the focus
      const digits = burst;
      burst = "";
      scanned(digits);
    } else if (["Enter", "Backspace", "Escape"].includes(event.key)) {
      flush();
      if (event.key === "Enter" && event.target.closest?.("button")) return;
      pressed(event.key);
    }
  });
}
