// A keyboard, or a hand scanner that types eighteen digits and Enter. No amount is as long, so nothing depends on how
// fast it types.

import { CODE_DIGITS } from "./code.js";

// Calls `typed(digit, first)` for each digit (`first`: of those that follow each other), `scanned(code, before)` where
// the last of them before Enter are a code and `before` came before it, and `pressed(key)` for other keys that count.
export function listen(target, { typed, scanned, pressed }) {
  let run = "";
  target.addEventListener("keydown", (event) => {
    if (event.target.closest?.("input") || event.ctrlKey || event.altKey || event.metaKey) return;
    if (/^\d$/.test(event.key)) {
      run += event.key;
      typed(event.key, run.length === 1);
      return;
    }
    const told = run;
    run = "";
    if (event.key === "Enter" && told.length >= CODE_DIGITS) {
      event.preventDefault(); // it would press the button that has the focus
      scanned(told.slice(-CODE_DIGITS), told.slice(0, -CODE_DIGITS));
    } else if (event.key === "Enter" && event.target.closest?.("button")) {
      // the button is pressed by the browser
    } else if (["Enter", "Backspace", "Escape"].includes(event.key)) {
      pressed(event.key);
    }
  });
}
